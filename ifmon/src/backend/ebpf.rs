//! Hears of changes from a BPF program in the kernel, which wakes this process for nothing else.
//!
//! The kernel side keeps the truth about every watched name in a map and counts its changes. A record carries the count,
//! so a loss is noticed exactly, for the watch that it hit; and what is true now is one look-up away. The process needs
//! neither netlink nor the namespace for that, so it keeps no namespace alive.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    thread,
    time::{Duration, SystemTime},
};

use aya::{
    Ebpf as Object,
    maps::{Array, HashMap as Hash, MapData, PerCpuArray, RingBuf},
    programs::{FEntry, KProbe},
};
use aya_log::EbpfLogger;
use ifmon_ebpf::{
    Control, Counters as KernelCounters, DeviceState, FENTRY_PROGRAM, HOOK, KPROBE_PROGRAM,
    LOOPBACK_IFINDEX, Link, NETREG_REGISTERED, Name, NameKey, NameState, Place as WirePlace,
    Record, Seed, flag,
};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use tokio::{io::unix::AsyncFd, task::AbortHandle};

use super::{Counters, Signal, readable};
use crate::{
    Actor, BackendKind, Error, InterfaceName, Netns, NetnsId,
    kernel::{Layout, Unavailable, load},
    netlink::query::Query,
    packed,
    tracker::{Change, Device, Observed, Place, Watch},
};

/// Generations from userspace have this bit, those from the kernel side do not.
const SEEDED: u64 = 1 << 63;
/// Names that are looked up at a stretch. Where nothing changes meanwhile, each is looked up once: on a host where much
/// happens that is the likelier the fewer they are.
const STRETCH: usize = 128;

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

/// Who was found to hold a name.
#[derive(Clone, Copy)]
struct Look {
    link: Option<Link>,
    /// What the program was told to call the device.
    generation: u64,
}

impl Look {
    /// The holder, if this is still true. A device that was met before keeps the generation that it has.
    fn holder(&self, met: &HashMap<Link, u64>) -> Option<Device> {
        self.link.map(|link| Device {
            ifindex: link.ifindex,
            generation: met.get(&link).copied().unwrap_or(self.generation),
        })
    }
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

    /// Proves on a live device that the program reads the right name, index and namespace: a fresh network namespace
    /// registers a `lo` of its own, and disturbs nobody. A wrong offset would otherwise be wrong for ever, and silent.
    fn prove(&mut self) -> Result<(), Unavailable> {
        let control = &mut self.control;
        let made = thread::scope(|scope| {
            scope
                .spawn(|| -> io::Result<NetnsId> {
                    let traced = Control {
                        traced_thread: gettid().as_raw_nonzero().get().unsigned_abs(),
                        open: 0,
                    };
                    control.set(0, traced, 0).map_err(io::Error::other)?;
                    // SAFETY: this thread ends with the closure and shares its namespace with nobody.
                    let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
                    let id = made
                        .map_err(Into::into)
                        .and_then(|()| crate::netns::current_id());
                    control
                        .set(0, Control::default(), 0)
                        .map_err(io::Error::other)?;
                    id
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let netns = match made {
            Ok(netns) => netns,
            Err(error) => {
                log::warn!(
                    "could not prove that the BPF program reads this kernel right, for want of a network namespace of \
                     its own ({error}); going by the kernel's BTF alone"
                );
                return Ok(());
            }
        };
        let loopback = Name::new(b"lo").unwrap_or_default();
        let mut seen = None;
        let ring = &mut self.events.get_mut().0;
        while let Some(item) = ring.next() {
            let Some(record) = Record::read(&item) else {
                continue;
            };
            let right = record.to
                == (WirePlace {
                    name: loopback,
                    netns: netns.0,
                    ifindex: LOOPBACK_IFINDEX,
                })
                && record.reg_state == NETREG_REGISTERED
                && record.pid == std::process::id()
                && record.flags & flag::KTHREAD == 0;
            if right {
                return Ok(());
            }
            seen = Some(record);
        }
        Err(Unavailable::Misread {
            netns,
            seen: seen.map(|record| {
                let WirePlace {
                    name,
                    netns,
                    ifindex,
                } = record.to;
                let name = InterfaceName::from_kernel(&name.to_bytes())
                    .map_or_else(|| "?".to_owned(), |name| name.to_string());
                format!("{name}, index {ifindex}, in namespace {netns}")
            }),
        })
    }

    /// Has the program send every change; what concerns no watch is left out here, as it is there.
    pub(crate) fn open_filter(&mut self, open: bool) -> Result<(), Error> {
        let control = Control {
            traced_thread: 0,
            open: u32::from(open),
        };
        self.control.set(0, control, 0).map_err(filter_error)
    }

    pub(crate) fn watch(
        &mut self,
        netns: &Netns,
        names: &[InterfaceName],
    ) -> Result<Vec<Option<Device>>, Error> {
        let mut query = Query::new(netns).map_err(Error::Recheck)?;
        let id = netns.id().0;
        self.namespaces.insert(id, id, 0).map_err(filter_error)?;
        let met = self.met_before();
        let mut holders = Vec::with_capacity(names.len());
        let mut counts = Vec::with_capacity(names.len());
        for names in names.chunks(STRETCH) {
            for (watch, count, holder) in self.watch_stretch(id, names, &mut query, &met)? {
                counts.push((watch, count));
                holders.push(holder);
            }
        }
        packed::extend(&mut self.counts, counts);
        Ok(holders)
    }

    /// Tells the program of some names, then finds out who holds each, without a moment in which a change could be missed.
    /// Says how many changes of each are known of.
    ///
    /// An answer can be out of date by the time that the program is told of it. The program counts every change of a name
    /// or a namespace that it sees, so where the count stands still nothing became out of date:
    ///
    /// 1. The count is read, and the program told of the names.
    /// 2. Changes that have begun are waited for. Those in the first count are over now, and show in every answer.
    /// 3. Each name is looked up, and the program told who holds it.
    /// 4. Changes that have begun are waited for again, then the count is read again. A change since 2 either ended before
    ///    this wait, and is counted; or it began after it, and the program knew by then all that it was told.
    ///
    /// All this holds because changes are made under RTNL one after the other, and so are the waits. If the count has
    /// moved, or waiting was refused, each name is looked up again.
    fn watch_stretch(
        &mut self,
        netns: u32,
        names: &[InterfaceName],
        query: &mut Query,
        met: &HashMap<Link, u64>,
    ) -> Result<Vec<(Watch, u64, Option<Device>)>, Error> {
        let before = self.kernel_counters().seen;
        let keys = names.iter().map(|name| NameKey {
            name: Name::from_bytes(name.padded()),
            netns,
            zero: 0,
        });
        for key in keys.clone() {
            self.names
                .insert(key, NameState::default(), 0)
                .map_err(filter_error)?;
        }
        let has_waited = query.wait_for_changes();
        let mut looks = Vec::with_capacity(names.len());
        for (name, key) in names.iter().zip(keys) {
            looks.push((name, key, self.look(&key, name, query)?));
        }
        let has_waited = query.wait_for_changes() && has_waited;
        let is_quiet = has_waited && self.kernel_counters().seen == before;
        looks
            .into_iter()
            .map(|(&name, key, look)| {
                let (count, holder) = if is_quiet {
                    (0, look.holder(met))
                } else {
                    self.settle(&key, &name, look, query, met)?
                };
                let netns = NetnsId(netns);
                Ok((Watch { netns, name }, count, holder))
            })
            .collect()
    }

    /// Finds out who holds a name, and tells the program.
    fn look(
        &mut self,
        key: &NameKey,
        name: &InterfaceName,
        query: &mut Query,
    ) -> Result<Look, Error> {
        let found = query.by_name(name).map_err(Error::Recheck)?;
        self.generations += 1;
        let look = Look {
            link: found.map(|ifindex| Link {
                netns: key.netns,
                ifindex,
            }),
            generation: self.generations | SEEDED,
        };
        if let Some(link) = look.link {
            // From here on the program knows the device by its index, so a rename cannot escape it …
            let seed = Seed {
                generation: look.generation,
                home: *key,
            };
            self.seeds.insert(link, seed, 0).map_err(filter_error)?;
        }
        Ok(look)
    }

    /// Looks a name up again until nothing has changed in between; says how many changes of it are known of.
    fn settle(
        &mut self,
        key: &NameKey,
        name: &InterfaceName,
        mut look: Look,
        query: &mut Query,
        met: &HashMap<Link, u64>,
    ) -> Result<(u64, Option<Device>), Error> {
        loop {
            // … if it still had the name then.
            let still = query.by_name(name).map_err(Error::Recheck)?;
            let is_same = still == look.link.map(|link| link.ifindex);
            if !is_same && let Some(link) = look.link {
                // The program may have used the seed up. That was before `watching`, and counts in the state below.
                let _ = self.seeds.remove(&link);
            }
            // What both answers saw of a change that had not ended yet has ended, and counts there too.
            query.wait_for_changes();
            let state = self.state(key).map_err(Error::Filter)?;
            if state.opened != 0 {
                // It has seen the name change since it was told: then it knows better than any answer.
                if let Some(link) = look.link {
                    let _ = self.seeds.remove(&link);
                }
                return Ok((state.opened, holder(&state)));
            }
            if is_same {
                return Ok((0, look.holder(met)));
            }
            look = self.look(key, name, query)?;
        }
    }

    /// The generations of devices that the program has notes about, because they held other watched names before.
    fn met_before(&self) -> HashMap<Link, u64> {
        if self.counts.is_empty() {
            return HashMap::new();
        }
        self.devices
            .iter()
            .filter_map(Result::ok)
            .map(
                |(
                    _,
                    DeviceState {
                        generation, place, ..
                    },
                )| {
                    let WirePlace { netns, ifindex, .. } = place;
                    (Link { netns, ifindex }, generation)
                },
            )
            .collect()
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
