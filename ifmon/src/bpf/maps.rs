//! The maps of the BPF programs, as userspace reads and writes them.

use std::{
    collections::BTreeMap,
    ffi::c_int,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, IterableMap as _, Map, MapData, MapError, Queue},
};
use ifmon_ebpf::{
    DeviceState, Link, Match, Name, NameKey, NameState, PatternSet, PatternState, Place,
    USERSPACE_ID, namespace_key,
};

use super::{Matching, Reply, Request, shared::Shared};
use crate::{NetnsId, Unavailable};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`: insert, and do not replace.
const BPF_NOEXIST: u64 = 1;
/// The same: a queue that is full drops its first element for it.
const BPF_EXIST: u64 = 2;

/// The maps.
pub(super) struct Maps {
    names: HashMap<MapData, NameKey, NameState>,
    devices: HashMap<MapData, u64, DeviceState>,
    links: HashMap<MapData, Link, u64>,
    remembered: Queue<MapData, u64>,
    namespaces: HashMap<MapData, u64, u32>,
    /// `None` where there was no pattern at the start.
    patterns: Option<PatternMaps>,
    pub(super) shared: Shared,
}

/// Those of patterns.
struct PatternMaps {
    patterns: HashMap<MapData, u32, PatternSet>,
    states: HashMap<MapData, u32, PatternState>,
    /// The keys are words on the kernel side, of the same bytes.
    matching: HashMap<MapData, Link, Match>,
    /// By address.
    leaving: HashMap<MapData, u64, [u64; 5]>,
}

impl PatternMaps {
    fn take(object: &mut Ebpf) -> Result<Self, Unavailable> {
        Ok(Self {
            patterns: take(object, "PATTERNS")?,
            states: take(object, "PATTERN_STATES")?,
            matching: take(object, "MATCHING")?,
            leaving: take(object, "LEAVING")?,
        })
    }

    fn insert(&mut self, netns: u32, set: PatternSet) -> io::Result<()> {
        insert(&mut self.patterns, netns, set, 0)
    }

    fn remove(&mut self, netns: u32) -> io::Result<()> {
        remove(&mut self.patterns, &netns)
    }

    fn insert_state(&mut self, NetnsId(netns): NetnsId, epoch: u32, flags: u64) -> io::Result<()> {
        let state = PatternState {
            epoch,
            ..PatternState::default()
        };
        insert(&mut self.states, netns, state, flags)
    }

    fn states(&self) -> io::Result<Vec<(NetnsId, PatternState)>> {
        let all = entries(&self.states)?.into_iter();
        Ok(all.map(|(netns, state)| (NetnsId(netns), state)).collect())
    }

    fn matching(&self, NetnsId(netns): NetnsId) -> io::Result<Matching> {
        let mut devices = Vec::new();
        for link in self.matching.keys() {
            let link = link.map_err(cause)?;
            if link.netns == netns
                && let Some(found) = get(&self.matching, &link)?
            {
                devices.push((link.ifindex, found));
            }
        }
        let state = get(&self.states, &netns)?;
        Ok(Matching { devices, state })
    }

    fn remove_matching(&mut self, netns: NetnsId) -> io::Result<()> {
        let is_here = |link: &Link| netns == NetnsId::ALL || netns == NetnsId(link.netns);
        let here = |link: &Result<Link, _>| link.as_ref().is_ok_and(is_here);
        let links: Vec<Link> = self.matching.keys().filter(here).flatten().collect();
        for link in links {
            remove(&mut self.matching, &link)?;
        }
        Ok(())
    }

    fn remove_leaving(&mut self) -> io::Result<()> {
        let all: Vec<_> = self.leaving.keys().flatten().collect();
        all.iter().try_for_each(|it| remove(&mut self.leaving, it))
    }
}

impl Maps {
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, Unavailable> {
        Ok(Self {
            names: take(object, "NAMES")?,
            devices: take(object, "DEVICES")?,
            links: take(object, "LINKS")?,
            remembered: take(object, "REMEMBERED")?,
            namespaces: take(object, "NAMESPACES")?,
            patterns: match object.map("PATTERNS") {
                Some(_) => Some(PatternMaps::take(object)?),
                None => None,
            },
            shared: Shared::take(object)?,
        })
    }

    /// Does what is about a map; gives the request back when it is not.
    pub(super) fn perform(&mut self, request: Request) -> Result<Reply, Request> {
        Ok(match request {
            Request::Counters => Reply::Counters(Ok(self.shared.counters())),
            Request::Name(key) => Reply::Name(get(&self.names, &key)),
            Request::InsertNames(names) => Reply::Done(insert_all(&mut self.names, names)),
            Request::RemoveName(key) => Reply::Done(remove(&mut self.names, &key)),
            Request::Link(link) => Reply::Link(get(&self.links, &link)),
            Request::InsertLink(link, id) => Reply::Inserted(self.insert_link(link, id)),
            Request::RemoveLink(link) => Reply::Done(remove(&mut self.links, &link)),
            Request::Device(id) => Reply::Device(get(&self.devices, &id)),
            Request::Devices => Reply::Devices(entries(&self.devices)),
            Request::InsertDevices(devices) => Reply::Done(self.insert_devices(devices)),
            Request::RemoveDevice(id) => Reply::Done(self.remove_device(id)),
            Request::Namespace(NetnsId(netns)) => {
                Reply::Namespace(get(&self.namespaces, &namespace_key::of_netns(netns)))
            }
            Request::InsertNamespace(NetnsId(netns), epoch) => {
                let key = namespace_key::of_netns(netns);
                Reply::Done(insert(&mut self.namespaces, key, epoch, 0))
            }
            Request::RemoveNamespace(NetnsId(netns)) => Reply::Done(remove(
                &mut self.namespaces,
                &namespace_key::of_netns(netns),
            )),
            Request::InsertPatterns(NetnsId(netns), set) => {
                Reply::Done(self.change_patterns(|maps| maps.insert(netns, *set)))
            }
            Request::RemovePatterns(NetnsId(netns)) => {
                Reply::Done(self.change_patterns(|maps| maps.remove(netns)))
            }
            Request::PatternState(NetnsId(netns)) => {
                Reply::PatternState(self.patterns().and_then(|maps| get(&maps.states, &netns)))
            }
            Request::PatternStates => {
                Reply::PatternStates(self.patterns().and_then(|maps| maps.states()))
            }
            Request::InsertPatternState(netns, epoch) => {
                let maps = self.patterns();
                Reply::Done(maps.and_then(|maps| maps.insert_state(netns, epoch, 0)))
            }
            Request::AddPatternState(netns, epoch) => {
                let maps = self.patterns();
                Reply::Inserted(is_new(
                    maps.and_then(|maps| maps.insert_state(netns, epoch, BPF_NOEXIST)),
                ))
            }
            Request::RemovePatternState(NetnsId(netns)) => {
                let maps = self.patterns();
                Reply::Done(maps.and_then(|maps| remove(&mut maps.states, &netns)))
            }
            Request::Matching(netns) => {
                Reply::Matching(self.patterns().and_then(|maps| maps.matching(netns)))
            }
            Request::InsertMatching(link) => {
                let nothing = Match {
                    name: Name::default().marked(),
                    ..Match::default()
                };
                let maps = self.patterns();
                Reply::Done(maps.and_then(|maps| insert(&mut maps.matching, link, nothing, 0)))
            }
            Request::RemoveMatching(netns) => {
                Reply::Done(self.patterns().and_then(|maps| maps.remove_matching(netns)))
            }
            Request::RemoveLeaving => {
                let maps = self.patterns.as_mut();
                Reply::Done(maps.map_or(Ok(()), PatternMaps::remove_leaving))
            }
            Request::Enter(_)
            | Request::Leave(_)
            | Request::Record
            | Request::Overflowed(_)
            | Request::Namespaces
            | Request::Ask(..) => return Err(request),
        })
    }

    /// The socket with this cookie hears of this namespace.
    pub(super) fn insert_socket(&mut self, cookie: u64, netns: NetnsId) -> io::Result<()> {
        let key = namespace_key::of_socket(cookie);
        insert(&mut self.namespaces, key, netns.0, 0)
    }

    pub(super) fn remove_socket(&mut self, cookie: u64) {
        // The socket is closed anyhow.
        let _ = remove(&mut self.namespaces, &namespace_key::of_socket(cookie));
    }

    fn patterns(&mut self) -> io::Result<&mut PatternMaps> {
        self.patterns.as_mut().ok_or_else(|| {
            io::Error::other(
                "the BPF programs know names alone, since there was no pattern at the start; \
                 ask for room with Builder::pattern_capacity",
            )
        })
    }

    fn change_patterns(
        &mut self,
        change: impl FnOnce(&mut PatternMaps) -> io::Result<()>,
    ) -> io::Result<()> {
        let maps = self.patterns()?;
        change(maps)?;
        let count = maps.patterns.keys().count();
        self.shared
            .set_patterned(u32::try_from(count).unwrap_or(u32::MAX));
        Ok(())
    }

    fn remove_device(&mut self, id: u64) -> io::Result<()> {
        if take_out(&mut self.devices, &id)? {
            self.shared.count_devices(u32::MAX);
        }
        Ok(())
    }

    /// Where to find a device that was inserted, which can be forgotten from then on.
    fn insert_link(&mut self, link: Link, id: u64) -> io::Result<bool> {
        let is_new = is_new(insert(&mut self.links, link, id, BPF_NOEXIST))?;
        if is_new && let Err(error) = self.remembered.push(id, BPF_EXIST) {
            log::debug!("{link:?} is remembered until it is deleted: {error}");
        }
        Ok(is_new)
    }

    fn insert_devices(&mut self, devices: Vec<(u64, Place)>) -> io::Result<()> {
        let devices = devices.into_iter().map(|(id, place)| {
            debug_assert!(id & USERSPACE_ID != 0);
            let state = DeviceState {
                place,
                ..DeviceState::default()
            };
            (id, state)
        });
        let devices: Vec<_> = devices.collect();
        let ids: Vec<u64> = devices.iter().map(|(id, _)| *id).collect();
        // Before, since the programs can take them out.
        self.shared.count_devices(count_of(&ids));
        insert_all(&mut self.devices, devices).inspect_err(|_| {
            let is_missing = |id: &&u64| !matches!(get(&self.devices, id), Ok(Some(_)));
            let missing: Vec<_> = ids.iter().filter(is_missing).collect();
            self.shared.count_devices(count_of(&missing).wrapping_neg());
        })
    }
}

/// As many as the maps can have.
fn count_of<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap_or_default()
}

pub(super) fn take<M>(object: &mut Ebpf, name: &str) -> Result<M, Unavailable>
where
    M: TryFrom<Map, Error = MapError>,
{
    object
        .take_map(name)
        .ok_or_else(|| Unavailable::other("a map is not in the object"))?
        .try_into()
        .map_err(Unavailable::other)
}

fn get<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, key: &K) -> io::Result<Option<V>> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(cause(error)),
    }
}

/// All of them, each once.
fn entries<K: Pod + Ord, V: Pod>(map: &HashMap<MapData, K, V>) -> io::Result<Vec<(K, V)>> {
    let mut entries = BTreeMap::new();
    for entry in map.iter() {
        match entry {
            Ok((key, value)) => drop(entries.insert(key, value)),
            // One that is removed meanwhile.
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(cause(error)),
        }
    }
    Ok(entries.into_iter().collect())
}

/// Was it inserted, or there already?
fn is_new(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn insert<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    value: V,
    flags: u64,
) -> io::Result<()> {
    map.insert(key, value, flags).map_err(cause)
}

/// Inserts or replaces, in one call; for which aya has no name, unless it is one entry.
fn insert_all<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    entries: Vec<(K, V)>,
) -> io::Result<()> {
    /// `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd` in `include/uapi/linux/bpf.h`, since Linux 5.6
    const BPF_MAP_UPDATE_BATCH: c_int = 26;
    /// `batch` of `union bpf_attr`
    #[repr(C)]
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        element_flags: u64,
        flags: u64,
    }
    if let [] | [_] = *entries {
        let mut entries = entries.into_iter();
        return entries.try_for_each(|(key, value)| insert(map, key, value, 0));
    }
    let (keys, values): (Vec<K>, Vec<V>) = entries.into_iter().unzip();
    let Ok(count) = u32::try_from(keys.len()) else {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    };
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        // No descriptor is negative.
        map_fd: map.map().fd().as_fd().as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as many keys and values as are said, of the sizes that the map has, as aya made sure;
    // the kernel reads them, and writes to `batch` how many it has inserted.
    let result = unsafe {
        let size = size_of::<Batch>();
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut batch, size)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel side may have removed it before.
fn remove<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K) -> io::Result<()> {
    take_out(map, key).map(|_| ())
}

/// False when there was none.
fn take_out<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K) -> io::Result<bool> {
    match map.remove(key).map_err(cause) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        result => result.map(|()| true),
    }
}

/// The error of the system call, where that was it.
fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}
