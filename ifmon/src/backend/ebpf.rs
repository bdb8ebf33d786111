//! Hears of changes from a BPF program in the kernel, which wakes this process for nothing else.
//!
//! The kernel side keeps the truth about every watched name in a map and counts its changes. A record carries the count,
//! so a loss is noticed exactly, for the watch that it hit; and what is true now is one look-up away. The process needs
//! neither netlink nor the namespace for that, so it keeps no namespace alive.

mod begin;
mod proof;

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::{Duration, SystemTime},
};

use aya::{
    Ebpf as Object,
    maps::{Array, HashMap as Hash, MapData, PerCpuArray, RingBuf},
    programs::{FEntry, KProbe},
};
use aya_log::EbpfLogger;
use ifmon_ebpf::{
    Control, Counters as KernelCounters, DeviceState, FENTRY_PROGRAM, HOOK, KPROBE_PROGRAM, Link,
    Name, NameKey, NameState, Place as WirePlace, Record, Seed, flag,
};
use tokio::{io::unix::AsyncFd, task::AbortHandle};

use super::{Counters, Signal, readable};
use crate::{
    Actor, BackendKind, Error, InterfaceName, NetnsId,
    kernel::{Layout, Unavailable, load},
    tracker::{Change, Device, Observed, Place, Watch},
};

/// The BPF backend, through either hook.
pub(crate) struct Ebpf {
    kind: BackendKind,
    names: Hash<MapData, NameKey, NameState>,
    devices: Hash<MapData, u64, DeviceState>,
    seeds: Hash<MapData, Link, Seed>,
    namespaces: Hash<MapData, u32, u32>,
    counters: PerCpuArray<MapData, KernelCounters>,
    control: Array<MapData, Control>,
    events: AsyncFd<Ring>,
    /// Changes of each watched name that were delivered or accounted for.
    counts: BTreeMap<Watch, u64>,
    generations: u64,
    /// Sum of `dropped` at the last look.
    dropped: u64,
    /// Hands the kernel side's log on, where one is wanted.
    log: Option<AbortHandle>,
    /// Drops the programs and their links with it; nothing is pinned, so a killed process leaves nothing behind.
    _object: Object,
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

impl fmt::Debug for Ebpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ebpf")
            .field("kind", &self.kind)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
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
        let mut object = load::object(layout, watches, ring_bytes)?;
        let log = load::wants_log().then(|| follow_log(&mut object)).flatten();
        attach(&mut object, kind, layout)?;
        let ring = take::<RingBuf<_>>(&mut object, "EVENTS")?;
        let mut ebpf = Self {
            kind,
            names: take(&mut object, "NAMES")?,
            devices: take(&mut object, "DEVICES")?,
            seeds: take(&mut object, "SEEDS")?,
            namespaces: take(&mut object, "NAMESPACES")?,
            counters: take(&mut object, "COUNTERS")?,
            control: take(&mut object, "CONTROL")?,
            events: readable(Ring(ring)).map_err(Unavailable::other)?,
            counts: BTreeMap::new(),
            generations: 0,
            dropped: 0,
            log,
            _object: object,
        };
        ebpf.prove()?;
        Ok(ebpf)
    }

    pub(crate) fn kind(&self) -> BackendKind {
        self.kind
    }

    /// Has the program send every change; what concerns no watch is left out here, as it is there.
    pub(crate) fn open_filter(&mut self, open: bool) -> Result<(), Error> {
        let control = Control {
            traced_thread: 0,
            open: u32::from(open),
        };
        self.control.set(0, control, 0).map_err(filter_error)
    }

    pub(crate) fn unwatch(&mut self, watch: Watch) {
        let key = key_of(&watch);
        let state = self.names.get(&key, 0);
        let _ = self.names.remove(&key);
        self.counts.remove(&watch);
        // The device's notes go with the watch that was its home. It cannot get another home by this name any more.
        if let Ok(NameState { last_device, .. }) = state
            && self
                .devices
                .get(&last_device, 0)
                .is_ok_and(|device| device.home == key)
        {
            let _ = self.devices.remove(&last_device);
        }
        if !self.counts.keys().any(|other| other.netns == watch.netns) {
            let _ = self.namespaces.remove(&key.netns);
        }
    }

    pub(crate) async fn signals(&mut self, signals: &mut Vec<Signal>) -> Result<(), Error> {
        loop {
            let clock = Clock::now();
            self.drain(&clock, signals);
            // What is known is told before more is asked.
            if signals.is_empty() {
                self.find_losses(&clock, signals);
            }
            if !signals.is_empty() {
                return Ok(());
            }
            let mut ready = self.events.readable_mut().await.map_err(Error::Ended)?;
            ready.clear_ready();
        }
    }

    /// Reads records until there are none.
    fn drain(&mut self, clock: &Clock, signals: &mut Vec<Signal>) {
        loop {
            let record = match self.events.get_mut().0.next() {
                Some(item) => Record::read(&item),
                None => break,
            };
            if let Some(record) = record {
                self.record(&record, clock, signals);
            }
        }
    }

    /// Sees whether records were lost, before each wait: the ring was full then, so there was something to read, and no
    /// loss goes unnoticed.
    fn find_losses(&mut self, clock: &Clock, signals: &mut Vec<Signal>) {
        let dropped = self.kernel_counters().dropped;
        if dropped != self.dropped {
            self.dropped = dropped;
            let watches: Vec<Watch> = self.counts.keys().copied().collect();
            for watch in watches {
                self.resync(watch, signals);
            }
            self.find_dead_namespaces(clock, signals);
        }
    }

    fn record(&mut self, record: &Record, clock: &Clock, signals: &mut Vec<Signal>) {
        let time = clock.time(record.time);
        let by = actor(record);
        let push = |change, signals: &mut Vec<Signal>| {
            signals.push(Signal::Change {
                change,
                time,
                by: Some(by.clone()),
            });
        };
        if record.flags & flag::LEFT_NAME != 0
            && let Some(watch) = self.is_next(&record.from, record.from_count, signals)
        {
            let change = Change::Left {
                watch,
                generation: record.generation,
                to: place(&record.to),
            };
            push(change, signals);
        }
        if record.flags & flag::TOOK_NAME != 0
            && let Some(watch) = self.is_next(&record.to, record.to_count, signals)
        {
            let change = Change::Took {
                watch,
                device: Device {
                    ifindex: record.to.ifindex,
                    generation: record.generation,
                },
            };
            push(change, signals);
        }
        if record.flags & flag::NETNS_GONE != 0 {
            let netns = NetnsId(record.from.netns);
            self.counts.retain(|watch, _| watch.netns != netns);
            signals.push(Signal::NetnsGone {
                netns,
                time,
                by: Some(by),
            });
        }
    }

    /// Is this the next change of the name? An earlier one was accounted for; a later one shows a gap.
    fn is_next(
        &mut self,
        place: &WirePlace,
        count: u64,
        signals: &mut Vec<Signal>,
    ) -> Option<Watch> {
        let watch = watch_at(place)?;
        let known = self.counts.get_mut(&watch)?;
        if count <= *known {
            return None;
        }
        if count == *known + 1 {
            *known = count;
            return Some(watch);
        }
        self.resync(watch, signals);
        None
    }

    /// Reads the truth about a name, if anything about it was lost.
    fn resync(&mut self, watch: Watch, signals: &mut Vec<Signal>) {
        let Ok(state) = self.state(&key_of(&watch)) else {
            return;
        };
        let Some(known) = self.counts.get_mut(&watch) else {
            return;
        };
        if state.opened <= *known {
            return;
        }
        let lost = state.opened - *known;
        *known = state.opened;
        let away = self.devices.get(&state.last_device, 0).ok();
        signals.push(Signal::Resync {
            watch,
            observed: Observed {
                holder: holder(&state),
                away: away.and_then(|device| Some((device.generation, place(&device.place)?))),
            },
            lost: Some(lost),
        });
    }

    /// The program strikes a namespace off when it ends; if the record of that was lost, this is how it is noticed.
    fn find_dead_namespaces(&mut self, clock: &Clock, signals: &mut Vec<Signal>) {
        // The watches are in the order of their namespaces.
        let mut watched: Vec<NetnsId> = self.counts.keys().map(|watch| watch.netns).collect();
        watched.dedup();
        for netns in watched {
            if self.namespaces.get(&netns.0, 0).is_err() {
                self.counts.retain(|watch, _| watch.netns != netns);
                signals.push(Signal::NetnsGone {
                    netns,
                    time: clock.now,
                    by: None,
                });
            }
        }
    }

    /// A whole state of a name: the program may be writing it while it is read.
    fn state(&self, key: &NameKey) -> io::Result<NameState> {
        loop {
            let state = self.names.get(key, 0).map_err(io::Error::other)?;
            if state.opened == state.closed
                && self.names.get(key, 0).map_err(io::Error::other)? == state
            {
                return Ok(state);
            }
        }
    }

    fn kernel_counters(&self) -> KernelCounters {
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

    pub(crate) fn counters(&self) -> Counters {
        let KernelCounters {
            seen,
            matched,
            ignored,
            dropped,
            generations: _,
        } = self.kernel_counters();
        Counters {
            seen: Some(seen),
            matched: Some(matched),
            ignored: Some(ignored),
            lost: Some(dropped),
        }
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

fn filter_error(error: aya::maps::MapError) -> Error {
    Error::Filter(io::Error::other(error))
}

fn watch_at(place: &WirePlace) -> Option<Watch> {
    Some(Watch {
        netns: NetnsId(place.netns),
        name: InterfaceName::from_kernel(&place.name.to_bytes())?,
    })
}

fn key_of(watch: &Watch) -> NameKey {
    NameKey {
        name: Name::from_bytes(watch.name.padded()),
        netns: watch.netns.0,
        zero: 0,
    }
}

fn holder(state: &NameState) -> Option<Device> {
    (state.generation != 0).then_some(Device {
        ifindex: state.ifindex,
        generation: state.generation,
    })
}

fn place(place: &WirePlace) -> Option<Place> {
    (place.netns != 0).then(|| Place {
        netns: Some(NetnsId(place.netns)),
        ifindex: Some(place.ifindex),
        name: InterfaceName::from_kernel(&place.name.to_bytes()),
    })
}

fn actor(record: &Record) -> Actor {
    let comm = record
        .comm
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Actor {
        pid: record.pid,
        comm: String::from_utf8_lossy(comm).into_owned(),
        uid: record.uid,
        cgroup: record.cgroup,
        kthread: record.flags & flag::KTHREAD != 0,
    }
}

/// Tells the time of day of a moment on the kernel's boot clock.
struct Clock {
    now: SystemTime,
    boot: Duration,
}

impl Clock {
    fn now() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self {
            now: SystemTime::now(),
            boot: Duration::new(boot.tv_sec.unsigned_abs(), boot.tv_nsec as u32),
        }
    }

    fn time(&self, boot_nanoseconds: u64) -> SystemTime {
        let age = self
            .boot
            .saturating_sub(Duration::from_nanos(boot_nanoseconds));
        self.now - age
    }
}
