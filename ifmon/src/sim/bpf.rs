//! The kernel, as the BPF backends meet it: the very filter that runs there, between maps that are
//! kept here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    io,
};

use ifmon_ebpf::{
    Counters as KernelCounters, DeviceState, EVERYWHERE, LOOPBACK_IFINDEX, Leaving, Link, Match,
    NETREG_REGISTERED, NETREG_UNREGISTERING, Name, NameKey, NameState, PatternSet, PatternState,
    Place, Record, USERSPACE_ID,
    filter::{self, DeviceChange, DeviceEvent, Kernel},
};

use super::{
    host::{self, Conduct, Device, Host, Notice, SPACES, Spot, netns},
    netlink::{KINDS_OF_QUESTIONS, answer, kind_of, no_answer, waits},
    patterns,
    run::{Setting, Side, failure},
    shrink::Decisions,
};
use crate::{
    BackendKind, Counters, NetnsId,
    bpf::{
        Matching, Reply, Request,
        core::{Bpf, Hook},
    },
    machine::Source,
};

/// How many watches there is room for, where there is little and where there is enough.
const LITTLE_ROOM: usize = 4;
const MUCH_ROOM: usize = 64;
/// The same for devices that may match.
const LITTLE_MATCHING: usize = 2;
/// So much may be remembered of devices, whoever held the few names that can be watched.
const REMEMBERED: usize = 4 * 2 * (2 * 3 + 4);
/// `NETREG_UNREGISTERED`: the device is gone, and somebody still has a reference to it.
const NETREG_UNREGISTERED: u32 = 3;
/// A message is not shown to the program once in so many times, where anything fails.
const MISSES: u32 = 50;

/// The programs and their maps.
#[derive(Debug)]
pub(crate) struct Programs {
    hook: Hook,
    room: usize,
    maps: Maps,
    /// The namespaces that are entered.
    entered: [bool; SPACES],
    /// Sockets on which an error is to be found.
    has_error: [bool; SPACES],
    is_noisy: [bool; SPACES],
    /// A message was not shown to the program.
    has_missed: bool,
    /// What was removed is there still.
    has_leftovers: bool,
    /// What was read last, if that was possible.
    counters: Option<KernelCounters>,
}

#[derive(Debug, Default)]
struct Maps {
    names: HashMap<NameKey, NameState>,
    devices: BTreeMap<u64, DeviceState>,
    links: HashMap<Link, u64>,
    remembered: VecDeque<u64>,
    namespaces: HashMap<u32, u32>,
    /// The programs trace.
    hears_everywhere: bool,
    /// How many devices can be remembered.
    room: usize,
    patterns: HashMap<u32, PatternSet>,
    pattern_states: HashMap<u32, PatternState>,
    matching: HashMap<Link, Match>,
    /// How many devices may match at a time.
    matching_room: usize,
    /// Devices for which there was no room.
    unkept: HashSet<Link>,
    /// Nothing is lost of these.
    spares: bool,
    /// No namespace can be entered any more.
    is_confined: bool,
    leaving: HashMap<u64, Leaving>,
    counters: KernelCounters,
    /// As `Control::devices` and `Control::crowd`.
    count: usize,
    crowd: usize,
    ring: VecDeque<Record>,
    /// How many records the ring buffer takes.
    ring_room: usize,
    /// Sent, and not to be read yet.
    on_its_way: Option<Record>,
    /// A record that found no room, and is not counted as dropped yet.
    is_dropping: bool,
    /// Something came when the ring buffer had been read empty.
    is_ready: bool,
}

impl Maps {
    fn insert_name(&mut self, room: usize, key: NameKey, state: NameState) {
        if self.names.len() == room && !self.names.contains_key(&key) {
            panic!("names are forgotten");
        }
        self.names.insert(key, state);
    }

    fn insert_device(&mut self, id: u64, place: Place) -> io::Result<()> {
        if self.devices.len() >= self.room || self.devices.contains_key(&id) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let state = DeviceState {
            place,
            ..DeviceState::default()
        };
        self.devices.insert(id, state);
        self.count += 1;
        Ok(())
    }

    /// A record can be read from now on.
    fn deliver(&mut self) {
        self.is_dropping = false;
        if let Some(record) = self.on_its_way.take() {
            // The kernel wakes nobody who has something to read anyhow.
            self.is_ready |= self.ring.is_empty();
            self.ring.push_back(record);
        }
    }
}

impl Kernel for Maps {
    fn name(&mut self, key: &NameKey) -> Option<&mut NameState> {
        self.names.get_mut(key)
    }

    fn device(&mut self, id: u64) -> Option<&mut DeviceState> {
        self.devices.get_mut(&id)
    }

    fn insert_device(&mut self, id: u64, state: &DeviceState) -> bool {
        if self.devices.len() >= self.room {
            // There can be no more that are heard of than there are.
            assert!(!self.hears_everywhere, "no room for {:?}", self.devices);
            return false;
        }
        let is_new = !self.devices.contains_key(&id);
        if is_new {
            self.devices.insert(id, *state);
            self.count += 1;
        }
        is_new
    }

    fn remove_device(&mut self, id: u64) {
        if self.devices.remove(&id).is_some() {
            self.count -= 1;
        }
    }

    fn next_remembered(&mut self) -> Option<u64> {
        self.remembered.pop_front()
    }

    fn add_remembered(&mut self, id: u64) {
        self.remembered.push_back(id);
    }

    fn is_crowded(&mut self) -> bool {
        self.count > self.crowd
    }

    fn link(&mut self, link: &Link) -> Option<u64> {
        self.links.get(link).copied()
    }

    fn set_link(&mut self, link: &Link, id: u64) {
        self.links.insert(*link, id);
    }

    fn remove_link(&mut self, link: &Link) {
        self.links.remove(link);
    }

    fn has_namespace(&mut self, netns: u32) -> bool {
        self.namespaces.contains_key(&netns)
    }

    fn end_namespace(&mut self, netns: u32) -> Option<u32> {
        self.namespaces.remove(&netns)
    }

    fn has_patterns(&mut self) -> bool {
        !self.patterns.is_empty()
    }

    fn hears_everywhere(&self) -> bool {
        self.hears_everywhere
    }

    fn patterns(&mut self, netns: u32) -> Option<&PatternSet> {
        let own = self.patterns.get(&netns);
        own.or_else(|| self.patterns.get(&EVERYWHERE))
    }

    fn pattern_state(&mut self, netns: u32) -> Option<&mut PatternState> {
        self.pattern_states.get_mut(&netns)
    }

    fn insert_pattern_state(&mut self, netns: u32, epoch: u32) -> bool {
        let is_new = !self.pattern_states.contains_key(&netns);
        if is_new {
            let state = PatternState {
                epoch,
                ..PatternState::default()
            };
            self.pattern_states.insert(netns, state);
        }
        is_new
    }

    fn remove_pattern_state(&mut self, netns: u32) {
        self.pattern_states.remove(&netns);
    }

    fn matching(&mut self, link: &Link) -> Name {
        let found = self.matching.get(link);
        found.map_or_else(Name::default, |found| found.name)
    }

    fn set_matching(&mut self, link: &Link, name: &Name, kind: &Name) -> bool {
        let has_room = self.matching.len() < self.matching_room || self.matching.contains_key(link);
        if has_room {
            let (name, kind) = (*name, *kind);
            self.matching.insert(*link, Match { name, kind });
        } else {
            self.unkept.insert(*link);
        }
        has_room
    }

    fn remove_matching(&mut self, link: &Link) {
        self.matching.remove(link);
    }

    fn set_leaving(&mut self, address: u64, leaving: &Leaving) {
        self.leaving.insert(address, *leaving);
    }

    fn take_leaving(&mut self, address: u64) -> Option<Leaving> {
        self.leaving.remove(&address)
    }

    fn counters(&mut self) -> Option<&mut KernelCounters> {
        Some(&mut self.counters)
    }

    fn cpu(&mut self) -> u32 {
        3
    }

    fn is_traced(&mut self) -> bool {
        false
    }

    fn send(&mut self, change: &DeviceChange) -> bool {
        self.deliver();
        // Nobody finds out what is lost of a device that had no room, where that cannot be read by
        // then.
        let is_unkept = |place: &Place| self.unkept.contains(&Link::of(place));
        let is_spared = self.spares && (is_unkept(&change.from) || is_unkept(&change.to));
        let has_room = self.ring.len() < self.ring_room || is_spared;
        if has_room {
            self.on_its_way = Some(change.record(change.kind));
        }
        self.is_dropping = !has_room;
        has_room
    }
}

fn place(device: &Device) -> Place {
    Place {
        name: Name::from_bytes(device.name.padded()),
        netns: netns(device.space).0,
        ifindex: device.ifindex,
    }
}

fn kind(device: &Device) -> Name {
    let kind = device.kind.map(|kind| kind.padded());
    Name::from_bytes(kind.unwrap_or_default())
}

fn loopback(space: usize) -> Device {
    Device {
        id: 0,
        space,
        ifindex: LOOPBACK_IFINDEX,
        name: host::loopback(),
        kind: None,
    }
}

/// One that went as it was entered without a name stays.
fn is_nameless(found: &Match) -> bool {
    found.name == Name::default().marked()
}

fn key_of(spot: &Spot) -> NameKey {
    NameKey {
        name: Name::from_bytes(spot.name.padded()),
        netns: netns(spot.space).0,
        zero: 0,
    }
}

impl Programs {
    /// Both tracing programs.
    fn trace(&mut self, host: &Host, notice: Notice) {
        let (event, device, reg_state) = match notice {
            Notice::Registered(device) | Notice::Arrived(device) => {
                (DeviceEvent::Registered, device, NETREG_REGISTERED)
            }
            Notice::Renamed(device) => (DeviceEvent::Renamed, device, NETREG_REGISTERED),
            Notice::Unregistered(device) => {
                (DeviceEvent::Unregistered, device, NETREG_UNREGISTERING)
            }
            Notice::Leaving(old, _) => (DeviceEvent::Leaving, old, NETREG_REGISTERED),
            Notice::Repeated(device) => (DeviceEvent::Repeated, device, NETREG_UNREGISTERED),
            Notice::NetnsGone(space) => (
                DeviceEvent::Unregistered,
                loopback(space),
                NETREG_UNREGISTERING,
            ),
            Notice::NetnsNew(space) => {
                (DeviceEvent::Registered, loopback(space), NETREG_REGISTERED)
            }
            Notice::Altered(_) | Notice::Released(_) => return,
        };
        let seen = filter::Notice {
            reg_state,
            kind: kind(&device),
            // A new device is where one was that is gone.
            address: 0xffff_8880_0000_0000 + 0x1000 * host.now.slot(device.id) as u64,
            ..filter::Notice::new(event, place(&device))
        };
        filter::observe(&mut self.maps, &seen);
    }

    /// The filter of the sockets.
    fn show(&mut self, decisions: &mut Decisions, misses: bool, notice: Notice) {
        let seen = |event, device: Device| {
            let seen = filter::Notice {
                kind: kind(&device),
                ..filter::Notice::new(event, place(&device))
            };
            (seen, device)
        };
        let (seen, device) = match notice {
            Notice::Registered(device)
            | Notice::Renamed(device)
            | Notice::Altered(device)
            | Notice::Arrived(device) => seen(DeviceEvent::Exists, device),
            Notice::Unregistered(device) => seen(DeviceEvent::Deleted, device),
            Notice::Leaving(old, new) => {
                let (seen, device) = seen(DeviceEvent::Moved, old);
                let seen = filter::Notice {
                    nsid: new.space as i32,
                    to_ifindex: new.ifindex,
                    ..seen
                };
                (seen, device)
            }
            Notice::Released(_)
            | Notice::Repeated(_)
            | Notice::NetnsGone(_)
            | Notice::NetnsNew(_) => return,
        };
        if !self.entered[device.space] {
            return;
        }
        if misses && decisions.chance(MISSES) {
            // The message could not be cloned.
            self.has_missed = true;
            self.has_error[device.space] = true;
            self.is_noisy[device.space] = true;
            return;
        }
        filter::observe(&mut self.maps, &seen);
    }
}

impl Programs {
    /// Patterns of all namespaces are watched, or were.
    fn check_everywhere(&self, host: &Host) {
        let maps = &self.maps;
        for netns in maps.patterns.keys() {
            let is_counted = maps.pattern_states.contains_key(netns);
            assert!(is_counted, "{netns} has ended: {:?}", maps.patterns);
        }
        for &netns in maps
            .pattern_states
            .keys()
            .filter(|&&netns| netns != EVERYWHERE)
        {
            let is_there = !host.now.has_ended[host::space_of(NetnsId(netns))];
            assert!(is_there, "{netns} has ended: {:?}", maps.pattern_states);
        }
        for (link, _) in maps
            .matching
            .iter()
            .filter(|(_, found)| !is_nameless(found))
        {
            let space = host::space_of(NetnsId(link.netns));
            let is_there = match link.ifindex {
                LOOPBACK_IFINDEX => maps.pattern_states.contains_key(&link.netns),
                ifindex => host.now.by_index(space, ifindex).is_some(),
            };
            assert!(is_there, "{link:?} is gone: {:?}", maps.matching);
        }
    }
}

impl Side for Programs {
    type Machine = Bpf;

    const KINDS: &'static [BackendKind] = &[BackendKind::Fentry, BackendKind::NetlinkEbpf];

    fn new(setting: Setting) -> Self {
        let Setting {
            kind,
            is_confined,
            is_crowded,
            conduct: Conduct { room, .. },
            ..
        } = setting;
        let watches = if is_crowded { LITTLE_ROOM } else { MUCH_ROOM };
        Self {
            hook: if kind == BackendKind::NetlinkEbpf {
                Hook::Socket
            } else {
                Hook::Function
            },
            room: watches,
            maps: Maps {
                hears_everywhere: kind != BackendKind::NetlinkEbpf,
                room: if is_crowded && kind == BackendKind::NetlinkEbpf {
                    LITTLE_ROOM + 1
                } else {
                    2 * watches
                },
                crowd: if is_crowded { 1 } else { watches },
                ring_room: room,
                spares: is_confined,
                matching_room: if is_crowded {
                    LITTLE_MATCHING
                } else {
                    MUCH_ROOM
                },
                ..Maps::default()
            },
            entered: [false; SPACES],
            has_error: [false; SPACES],
            is_noisy: [false; SPACES],
            has_missed: false,
            has_leftovers: false,
            counters: None,
        }
    }

    fn machine(&self) -> Bpf {
        Bpf::new(self.hook, self.room)
    }

    fn kind_of(request: &Request) -> usize {
        let kind = match request {
            Request::Ask(_, question) => return kind_of(*question),
            Request::Enter(_) => 0,
            Request::Leave(_) => 1,
            Request::Record => 2,
            Request::Overflowed(_) => 3,
            Request::Counters => 4,
            Request::Name(_) => 5,
            Request::InsertNames(_) => 6,
            Request::RemoveName(_) => 7,
            Request::Link(_) => 8,
            Request::InsertLink(..) => 9,
            Request::RemoveLink(_) => 10,
            Request::Device(_) => 11,
            Request::Devices => 12,
            Request::InsertDevices(_) => 13,
            Request::RemoveDevice(_) => 14,
            Request::Namespace(_) => 15,
            Request::InsertNamespace(..) => 16,
            Request::RemoveNamespace(_) => 17,
            Request::InsertPatterns(..) => 18,
            Request::RemovePatterns(_) => 19,
            Request::PatternState(_) => 20,
            Request::PatternStates => 21,
            Request::InsertPatternState(..) => 22,
            Request::AddPatternState(..) => 23,
            Request::RemovePatternState(_) => 24,
            Request::Matching(_) => 25,
            Request::InsertMatching(_) => 26,
            Request::RemoveMatching(_) => 27,
            Request::Namespaces => 28,
            Request::RemoveLeaving => 29,
        };
        KINDS_OF_QUESTIONS + kind
    }

    fn waits(host: &Host, request: &Request) -> bool {
        match request {
            Request::Ask(_, question) => waits(host, *question),
            _ => false,
        }
    }

    fn fail(&mut self, request: &Request) -> Option<Reply> {
        Some(match request {
            Request::Ask(_, question) => Reply::Answer(no_answer(*question)),
            // What cannot fail.
            Request::Leave(_)
            | Request::Record
            | Request::RemoveName(_)
            | Request::RemoveLink(_)
            | Request::RemoveDevice(_)
            | Request::RemoveNamespace(_)
            | Request::RemovePatterns(_)
            | Request::RemovePatternState(_)
            | Request::RemoveMatching(_)
            | Request::RemoveLeaving => return None,
            Request::Overflowed(_) => Reply::Overflowed(Err(failure())),
            Request::Counters => {
                self.counters = None;
                Reply::Counters(Err(failure()))
            }
            Request::Name(_) => Reply::Name(Err(failure())),
            Request::Link(_) => Reply::Link(Err(failure())),
            Request::InsertLink(..) => Reply::Inserted(Err(failure())),
            Request::Device(_) => Reply::Device(Err(failure())),
            Request::Devices => Reply::Devices(Err(failure())),
            Request::Namespace(_) => Reply::Namespace(Err(failure())),
            Request::PatternState(_) => Reply::PatternState(Err(failure())),
            Request::PatternStates => {
                // What is to be removed cannot be known.
                self.has_leftovers = true;
                Reply::PatternStates(Err(failure()))
            }
            Request::Namespaces => Reply::Namespaces(Err(failure())),
            Request::AddPatternState(..) => Reply::Inserted(Err(failure())),
            Request::Matching(_) => Reply::Matching(Err(failure())),
            Request::InsertNames(names) => {
                // Half of them are there.
                for &(key, state) in &names[..names.len() / 2] {
                    self.maps.insert_name(self.room, key, state);
                }
                Reply::Done(Err(failure()))
            }
            Request::InsertDevices(devices) => {
                for &(id, place) in &devices[..devices.len() / 2] {
                    let _ = self.maps.insert_device(id, place);
                }
                Reply::Done(Err(failure()))
            }
            Request::InsertMatching(link) => {
                self.maps.unkept.insert(*link);
                Reply::Done(Err(failure()))
            }
            Request::Enter(_)
            | Request::InsertNamespace(..)
            | Request::InsertPatterns(..)
            | Request::InsertPatternState(..) => Reply::Done(Err(failure())),
        })
    }

    fn serve(&mut self, decisions: &mut Decisions, host: &Host, request: Request) -> Reply {
        let maps = &mut self.maps;
        // A program that runs just now may be writing it.
        let mut is_torn = || host.is_busy() && decisions.chance(4);
        match request {
            Request::Ask(netns, question) => Reply::Answer(answer(host, netns, question)),
            Request::Enter(netns) => {
                let space = host::space_of(netns);
                // Whoever watches a name hands the namespace in.
                let is_closed = maps.is_confined && !maps.namespaces.contains_key(&netns.0);
                if is_closed {
                    return Reply::Done(Err(io::ErrorKind::PermissionDenied.into()));
                }
                if !host.is_open(space) {
                    return Reply::Done(Err(io::ErrorKind::NotFound.into()));
                }
                self.entered[space] = true;
                Reply::Done(Ok(()))
            }
            Request::Leave(netns) => {
                let space = host::space_of(netns);
                self.entered[space] = false;
                self.has_error[space] = false;
                self.is_noisy[space] = false;
                Reply::Done(Ok(()))
            }
            Request::Record => Reply::Record(maps.ring.pop_front()),
            Request::Overflowed(netns) => {
                let has_error = &mut self.has_error[host::space_of(netns)];
                Reply::Overflowed(Ok(std::mem::take(has_error)))
            }
            Request::Counters => {
                let mut counters = maps.counters;
                counters.dropped -= u64::from(maps.is_dropping);
                self.counters = Some(counters);
                Reply::Counters(Ok(counters))
            }
            Request::Name(key) => {
                let mut state = maps.names.get(&key).copied();
                if let Some(state) = &mut state
                    && is_torn()
                {
                    state.opened += 1;
                    state.ifindex ^= 1;
                }
                Reply::Name(Ok(state))
            }
            Request::InsertNames(names) => {
                for (key, state) in names {
                    maps.insert_name(self.room, key, state);
                }
                Reply::Done(Ok(()))
            }
            Request::RemoveName(key) => {
                maps.names.remove(&key);
                Reply::Done(Ok(()))
            }
            Request::Link(link) => Reply::Link(Ok(maps.links.get(&link).copied())),
            Request::InsertLink(link, id) => {
                let is_new = !maps.links.contains_key(&link);
                if is_new {
                    maps.links.insert(link, id);
                    maps.add_remembered(id);
                }
                Reply::Inserted(Ok(is_new))
            }
            Request::RemoveLink(link) => {
                maps.links.remove(&link);
                Reply::Done(Ok(()))
            }
            Request::Device(id) => {
                let mut device = maps.devices.get(&id).copied();
                if let Some(device) = &mut device
                    && maps.links.values().any(|other| *other == id)
                    && is_torn()
                {
                    device.opened += 1;
                    device.place.ifindex ^= 1;
                }
                Reply::Device(Ok(device))
            }
            Request::Devices => {
                let devices = maps.devices.iter();
                Reply::Devices(Ok(devices.map(|(&id, &device)| (id, device)).collect()))
            }
            Request::InsertDevices(devices) => {
                let mut devices = devices.into_iter();
                Reply::Done(devices.try_for_each(|(id, place)| maps.insert_device(id, place)))
            }
            Request::RemoveDevice(id) => {
                maps.remove_device(id);
                Reply::Done(Ok(()))
            }
            Request::Namespace(netns) => {
                Reply::Namespace(Ok(maps.namespaces.get(&netns.0).copied()))
            }
            Request::InsertNamespace(netns, epoch) => {
                maps.namespaces.insert(netns.0, epoch);
                Reply::Done(Ok(()))
            }
            Request::RemoveNamespace(netns) => {
                maps.namespaces.remove(&netns.0);
                Reply::Done(Ok(()))
            }
            Request::InsertPatterns(netns, set) => {
                maps.patterns.insert(netns.0, *set);
                Reply::Done(Ok(()))
            }
            Request::RemovePatterns(netns) => {
                maps.patterns.remove(&netns.0);
                Reply::Done(Ok(()))
            }
            Request::PatternState(netns) => {
                Reply::PatternState(Ok(maps.pattern_states.get(&netns.0).copied()))
            }
            Request::PatternStates => {
                let states = maps.pattern_states.iter();
                let states = states.map(|(&netns, &state)| (NetnsId(netns), state));
                Reply::PatternStates(Ok(states.collect()))
            }
            Request::InsertPatternState(netns, epoch) => {
                // A watch of all namespaces begins with nothing.
                self.has_leftovers &= netns != NetnsId::ALL;
                maps.pattern_states.remove(&netns.0);
                maps.insert_pattern_state(netns.0, epoch);
                Reply::Done(Ok(()))
            }
            Request::AddPatternState(netns, epoch) => {
                Reply::Inserted(Ok(maps.insert_pattern_state(netns.0, epoch)))
            }
            Request::RemovePatternState(netns) => {
                maps.pattern_states.remove(&netns.0);
                Reply::Done(Ok(()))
            }
            Request::Matching(netns) => {
                let here = maps.matching.iter();
                let here = here.filter(|(link, _)| link.netns == netns.0);
                Reply::Matching(Ok(Matching {
                    devices: here.map(|(link, &found)| (link.ifindex, found)).collect(),
                    state: maps.pattern_states.get(&netns.0).copied(),
                }))
            }
            Request::Namespaces => {
                let open = (0..SPACES).filter(|&space| host.is_open(space));
                Reply::Namespaces(Ok(open.map(host::netns).collect()))
            }
            Request::InsertMatching(link) => {
                let inserted =
                    maps.set_matching(&link, &Name::default().marked(), &Name::default());
                let full = || io::ErrorKind::StorageFull.into();
                Reply::Done(inserted.then_some(()).ok_or_else(full))
            }
            Request::RemoveMatching(netns) => {
                let is_kept = |link: &Link| netns != NetnsId::ALL && link.netns != netns.0;
                maps.matching.retain(|link, _| is_kept(link));
                Reply::Done(Ok(()))
            }
            Request::RemoveLeaving => {
                maps.leaving.clear();
                Reply::Done(Ok(()))
            }
        }
    }

    fn notice(&mut self, decisions: &mut Decisions, host: &Host, misses: bool, notice: Notice) {
        self.maps.deliver();
        match self.hook {
            Hook::Function => self.trace(host, notice),
            Hook::Socket => self.show(decisions, misses, notice),
        }
        // Counted, and not sent yet.
        if !decisions.chance(4) {
            self.maps.deliver();
        }
    }

    fn finish(&mut self) {
        self.maps.deliver();
    }

    fn confine(&mut self, is_confined: bool) {
        self.maps.is_confined = is_confined;
    }

    fn take_ready(&mut self, mut ready: impl FnMut(Source)) {
        if std::mem::take(&mut self.maps.is_ready) {
            ready(Source::Ring);
        }
        for (space, is_noisy) in self.is_noisy.iter_mut().enumerate() {
            if std::mem::take(is_noisy) {
                ready(Source::Socket(netns(space)));
            }
        }
    }

    fn sources(&self, mut source: impl FnMut(Source)) {
        source(Source::Ring);
        for space in (0..SPACES).filter(|&space| self.hook == Hook::Socket && self.entered[space]) {
            source(Source::Socket(netns(space)));
        }
    }

    fn is_holding(&self, space: usize) -> bool {
        self.entered[space]
    }

    fn changes(&self, spot: &Spot) -> Option<(u32, u64)> {
        let state = self.maps.names.get(&key_of(spot))?;
        Some((state.epoch, state.opened))
    }

    fn check_rest(
        &mut self,
        host: &Host,
        machine: &Bpf,
        watched: &[Spot],
        patterns: &[patterns::Place],
    ) {
        let is_everywhere = patterns.iter().any(|place| place.is_everywhere);
        let matches = |device: &Device| {
            let matches = |place: &patterns::Place| {
                place.spot.space == device.space && place.pattern.accepts(&device.name, device.kind)
            };
            patterns.iter().any(matches)
        };
        let matching = host.now.devices().filter(matches).count();
        let remembered = machine.remembered_of_patterns();
        assert!(
            remembered <= matching,
            "{remembered} devices are remembered, and {matching} match"
        );
        let remembered = machine.remembered();
        assert!(remembered <= REMEMBERED, "{remembered} entries");
        let maps = &self.maps;
        assert!(
            maps.ring.is_empty(),
            "{} records are unread",
            maps.ring.len()
        );
        let is_watched = |space| watched.iter().any(|spot| spot.space == space);
        for space in 0..SPACES {
            let is_here = |place: &patterns::Place| place.spot.space == space;
            let has_patterns = !is_everywhere && patterns.iter().any(is_here);
            let is_needed = self.hook == Hook::Socket && is_watched(space) || has_patterns;
            assert_eq!(self.entered[space], is_needed, "namespace {space} is held");
        }
        let KernelCounters {
            seen,
            matched,
            ignored,
            ..
        } = maps.counters;
        assert_eq!(seen, matched + ignored);
        assert_eq!(maps.count, maps.devices.len(), "devices are counted");
        let mut spots: BTreeSet<_> = watched.iter().map(|spot| netns(spot.space).0).collect();
        let patterned: BTreeSet<_> = patterns
            .iter()
            .map(|place| netns(place.spot.space).0)
            .collect();
        if is_everywhere || maps.patterns.contains_key(&EVERYWHERE) {
            self.check_everywhere(host);
        } else {
            assert_eq!(maps.patterns.len(), patterned.len(), "{:?}", maps.patterns);
            let is_right = |link: &Link| patterned.contains(&link.netns);
            if !self.has_leftovers {
                let counted = maps.pattern_states.len();
                assert_eq!(counted, patterned.len(), "{:?}", maps.pattern_states);
                assert!(maps.matching.keys().all(is_right), "{:?}", maps.matching);
            }
            spots.extend(patterned);
        }
        for spot in watched {
            let state = maps.names.get(&key_of(spot));
            let state = state.unwrap_or_else(|| panic!("the program knows nothing of {spot:?}"));
            let holder = host.now.holder(*spot);
            let ifindex = holder.map_or(0, |device| device.ifindex);
            assert_eq!(state.ifindex, ifindex, "{spot:?}: {holder:?} holds it");
        }
        for netns in &spots {
            assert!(maps.namespaces.contains_key(netns), "nobody sees its end");
        }
        if self.has_leftovers {
            return;
        }
        assert_eq!(maps.names.len(), watched.len(), "{:?}", maps.names);
        assert_eq!(maps.namespaces.len(), spots.len(), "{:?}", maps.namespaces);
        for (link, id) in &maps.links {
            let device = maps.devices.get(id);
            let is_it = device.is_some_and(|device| Link::of(&device.place) == *link);
            assert!(is_it, "{link:?} is {device:?}");
        }
        for id in maps.devices.keys().filter(|id| *id & USERSPACE_ID != 0) {
            let is_found = maps.links.values().any(|other| other == id);
            assert!(is_found, "{id:#x} cannot be found");
        }
        if self.hook == Hook::Function {
            // Those that userspace entered may have been gone by then.
            let theirs = maps
                .devices
                .iter()
                .filter(|(id, _)| **id & USERSPACE_ID == 0);
            for (_, device) in theirs {
                let is_it = |one: Device| place(&one) == device.place;
                assert!(host.now.devices().any(is_it), "{device:?} is remembered");
            }
        }
    }

    fn check_counters(&self, counters: &Counters, told: bool, is_faulty: bool) {
        let Some(KernelCounters {
            seen,
            matched,
            ignored,
            dropped,
            refused,
            ids: _,
            zero: _,
        }) = self.counters
        else {
            assert_eq!(*counters, Counters::default(), "nothing could be read");
            return;
        };
        assert_eq!(counters.seen, Some(seen));
        assert_eq!(counters.matched, Some(matched));
        assert_eq!(counters.ignored, Some(ignored));
        // That one was not shown may not be known yet.
        let is_known = counters.lost.is_none() || self.has_missed;
        assert!(!told || is_known, "{counters:?}");
        // Where there is little room, namespaces are looked at anew.
        let is_crowded = self.maps.room < 2 * self.room;
        let can_miss = self.hook == Hook::Socket && (is_faulty || is_crowded);
        let has_lost = refused > 0 || self.has_missed || can_miss;
        if !has_lost || counters.lost.is_some() {
            assert_eq!(counters.lost, Some(dropped));
        }
    }
}
