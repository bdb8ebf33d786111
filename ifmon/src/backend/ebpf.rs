//! Hears of changes from a BPF program in the kernel, which wakes this process for nothing else.
//!
//! The kernel side keeps the truth about every watched name in a map, and [`Ledger`] keeps account of what it tells; here
//! are the program and its maps. The process needs neither netlink nor the namespace for that, so it keeps no namespace
//! alive.

mod proof;

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::{
    Ebpf as Object, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{FEntry, KProbe},
};
use aya_log::EbpfLogger;
use ifmon_ebpf::{
    Control, Counters as KernelCounters, DeviceState, FENTRY_PROGRAM, HOOK, KPROBE_PROGRAM, Link,
    NameKey, NameState, Record, Seed,
};
use tokio::{io::unix::AsyncFd, task::AbortHandle};

use super::{
    Counters, Signal,
    ledger::{Ledger, Lookup, Program},
    readable,
};
use crate::{
    BackendKind, Error, InterfaceName, Netns,
    kernel::{Layout, Unavailable, load},
    netlink::query::Query,
    tracker::{Device, Watch},
};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`: insert, and do not replace.
const BPF_NOEXIST: u64 = 1;

/// The BPF backend, through either hook.
#[derive(Debug)]
pub(crate) struct Ebpf {
    kind: BackendKind,
    ledger: Ledger<Maps>,
    /// Hands the kernel side's log on, where one is wanted.
    log: Option<AbortHandle>,
    /// Drops the programs and their links with it; nothing is pinned, so a killed process leaves nothing behind.
    _object: Object,
}

/// The program's maps.
struct Maps {
    names: HashMap<MapData, NameKey, NameState>,
    devices: HashMap<MapData, u64, DeviceState>,
    most_devices: u32,
    seeds: HashMap<MapData, Link, Seed>,
    namespaces: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, KernelCounters>,
    control: Array<MapData, Control>,
    events: AsyncFd<Ring>,
}

/// `AsyncFd` wants something with a descriptor that it owns.
struct Ring(RingBuf<MapData>);

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Ebpf {
    /// Loads and attaches the program, and proves that it reads the kernel right.
    pub(crate) fn new(
        kind: BackendKind,
        layout: &Layout,
        watches: usize,
        ring_bytes: Option<u32>,
    ) -> Result<Self, Unavailable> {
        load::with_memory(|| Self::load(kind, layout, watches, ring_bytes))
    }

    fn load(
        kind: BackendKind,
        layout: &Layout,
        watches: usize,
        ring_bytes: Option<u32>,
    ) -> Result<Self, Unavailable> {
        let (mut object, most_devices) = load::object(layout, watches, ring_bytes)?;
        let log = load::wants_log().then(|| follow_log(&mut object)).flatten();
        attach(&mut object, kind, layout)?;
        let ring = take::<RingBuf<_>>(&mut object, "EVENTS")?;
        let mut maps = Maps {
            names: take(&mut object, "NAMES")?,
            devices: take(&mut object, "DEVICES")?,
            most_devices,
            seeds: take(&mut object, "SEEDS")?,
            namespaces: take(&mut object, "NAMESPACES")?,
            counters: take(&mut object, "COUNTERS")?,
            control: take(&mut object, "CONTROL")?,
            events: readable(Ring(ring)).map_err(Unavailable::other)?,
        };
        maps.prove()?;
        Ok(Self {
            kind,
            ledger: Ledger::new(maps),
            log,
            _object: object,
        })
    }

    pub(crate) fn kind(&self) -> BackendKind {
        self.kind
    }

    /// Has the program send every change, from before the first watch on; what concerns no watch is left out here, as it is there.
    pub(crate) fn open_filter(&mut self, open: bool) -> Result<(), Error> {
        let settings = self.ledger.program.settings();
        let Maps { control, .. } = &mut self.ledger.program;
        let settings = Control {
            open: u32::from(open),
            ..settings
        };
        control
            .set(0, settings, 0)
            .map_err(|error| Error::Filter(io::Error::other(error)))
    }

    pub(crate) fn watch(
        &mut self,
        netns: &Netns,
        names: &[InterfaceName],
    ) -> Result<Vec<Option<Device>>, Error> {
        let mut query = Query::new(netns).map_err(Error::Recheck)?;
        self.ledger.watch(netns.id(), names, &mut query)
    }

    pub(crate) fn unwatch(&mut self, watch: Watch) {
        self.ledger.unwatch(watch);
    }

    pub(crate) async fn signals(&mut self, signals: &mut Vec<Signal>) -> Result<(), Error> {
        loop {
            self.ledger.read(signals);
            if !signals.is_empty() {
                return Ok(());
            }
            let ready = self.ledger.program.events.readable_mut().await;
            ready.map_err(Error::Ended)?.clear_ready();
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let KernelCounters {
            seen,
            matched,
            ignored,
            dropped,
            generations: _,
        } = self.ledger.program.counters();
        Counters {
            seen: Some(seen),
            matched: Some(matched),
            ignored: Some(ignored),
            lost: Some(dropped),
        }
    }
}

impl Maps {
    /// What the program is told at the start.
    fn settings(&self) -> Control {
        Control {
            // The other half is for devices that are the first to have a name, or have one that is not watched any more.
            crowd: (self.most_devices / 2).saturating_sub(1),
            ..Control::default()
        }
    }
}

impl Program for Maps {
    fn record(&mut self) -> Option<Record> {
        let ring = &mut self.events.get_mut().0;
        while let Some(item) = ring.next() {
            if let Some(record) = Record::read(&item) {
                return Some(record);
            }
        }
        None
    }

    fn counters(&self) -> KernelCounters {
        let mut sum = KernelCounters::default();
        if let Ok(each) = self.counters.get(&0, 0) {
            for cpu in each.iter() {
                sum.seen += cpu.seen;
                sum.matched += cpu.matched;
                sum.ignored += cpu.ignored;
                sum.dropped += cpu.dropped;
            }
        }
        sum
    }

    fn name(&mut self, key: &NameKey) -> io::Result<NameState> {
        self.names.get(key, 0).map_err(io::Error::other)
    }

    fn insert_name(&mut self, key: NameKey, epoch: u32) -> io::Result<()> {
        let state = NameState {
            epoch,
            ..NameState::default()
        };
        insert(&mut self.names, key, state)
    }

    fn remove_name(&mut self, key: &NameKey) {
        remove(&mut self.names, key);
    }

    fn device(&mut self, address: u64) -> Option<DeviceState> {
        self.devices.get(&address, 0).ok()
    }

    fn devices(&mut self) -> Vec<(u64, DeviceState)> {
        self.devices.iter().filter_map(Result::ok).collect()
    }

    fn most_devices(&self) -> usize {
        self.most_devices as usize
    }

    fn insert_seed(&mut self, link: Link, seed: Seed) -> io::Result<()> {
        let inserted = self.seeds.insert(link, seed, BPF_NOEXIST);
        inserted.map_err(io::Error::other)
    }

    fn seed(&mut self, link: &Link) -> Option<Seed> {
        self.seeds.get(link, 0).ok()
    }

    fn seeds(&mut self) -> Vec<(Link, Seed)> {
        self.seeds.iter().filter_map(Result::ok).collect()
    }

    fn remove_seed(&mut self, link: &Link) {
        remove(&mut self.seeds, link);
    }

    fn insert_namespace(&mut self, netns: u32) -> io::Result<()> {
        insert(&mut self.namespaces, netns, netns)
    }

    fn remove_namespace(&mut self, netns: u32) {
        remove(&mut self.namespaces, &netns);
    }

    fn is_alive(&mut self, netns: u32) -> bool {
        self.namespaces.get(&netns, 0).is_ok()
    }
}

fn insert<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: K, value: V) -> io::Result<()> {
    map.insert(key, value, 0).map_err(io::Error::other)
}

/// The kernel side may have removed it before.
fn remove<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K) {
    let _ = map.remove(key);
}

impl Lookup for Query {
    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        Self::by_name(self, name)
    }

    fn wait_for_changes(&mut self) -> bool {
        Self::wait_for_changes(self)
    }
}

impl Drop for Ebpf {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// Passes what the kernel side has to say to the logger of this process.
fn follow_log(object: &mut Object) -> Option<AbortHandle> {
    let logger = EbpfLogger::init(object)
        .map_err(|error| error.to_string())
        .and_then(|logger| readable(logger).map_err(|error| error.to_string()));
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(error) => {
            log::warn!("no log from the kernel side: {error}");
            return None;
        }
    };
    let task = tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Some(task.abort_handle())
}

fn attach(object: &mut Object, kind: BackendKind, layout: &Layout) -> Result<(), Unavailable> {
    let name = match kind {
        BackendKind::Kprobe => KPROBE_PROGRAM,
        _ => FENTRY_PROGRAM,
    };
    let program = object
        .program_mut(name)
        .ok_or_else(|| Unavailable::other("the program is not in the object"))?;
    if kind == BackendKind::Kprobe {
        let program: &mut KProbe = program.try_into().map_err(Unavailable::other)?;
        program.load().map_err(|error| load::refused(&error))?;
        program
            .attach(HOOK, 0)
            .map_err(|error| load::refused(&error))?;
    } else {
        let program: &mut FEntry = program.try_into().map_err(Unavailable::other)?;
        program
            .load(HOOK, &layout.hook_btf()?)
            .map_err(|error| load::refused(&error))?;
        program.attach().map_err(|error| load::refused(&error))?;
    }
    Ok(())
}

fn take<M>(object: &mut Object, name: &str) -> Result<M, Unavailable>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    object
        .take_map(name)
        .ok_or_else(|| Unavailable::other("a map is not in the object"))?
        .try_into()
        .map_err(Unavailable::other)
}
