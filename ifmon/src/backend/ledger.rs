//! Keeps account of the changes of each watched name, as the BPF program tells of them. Pure: the program with its maps is
//! behind [`Program`], so that the tests can put a model of a kernel in its place.
//!
//! A record carries the count of the changes of its name. So a loss is noticed exactly, for the watch that it hit; and
//! what is true now is one look-up away, since the program keeps it in a map.

mod begin;

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, SystemTime},
};

use ifmon_ebpf::{
    Counters, DeviceState, Link, Name, NameKey, NameState, Place as WirePlace, Record, Seed, flag,
};

pub(crate) use self::begin::Lookup;
use super::Signal;
use crate::{
    Actor, InterfaceName, NetnsId,
    tracker::{Change, Device, Observed, Place, Watch},
};

/// The program in the kernel, as userspace knows it: each of its maps is written by one side and read by the other.
pub(crate) trait Program {
    /// The next record, without waiting.
    fn record(&mut self) -> Option<Record>;
    /// What all CPUs have counted.
    fn counters(&self) -> Counters;
    /// Who holds a watched name; perhaps half-written.
    fn name(&mut self, key: &NameKey) -> io::Result<NameState>;
    /// Begins a watch: nothing is known of the name.
    fn insert_name(&mut self, key: NameKey, epoch: u32) -> io::Result<()>;
    fn remove_name(&mut self, key: &NameKey);
    /// The program's notes about the device at an address.
    fn device(&mut self, address: u64) -> Option<DeviceState>;
    /// All of them, with their addresses.
    fn devices(&mut self) -> Vec<(u64, DeviceState)>;
    /// How many devices there is room for.
    fn most_devices(&self) -> usize;
    /// Fails when there is one already, or the map is full.
    fn insert_seed(&mut self, link: Link, seed: Seed) -> io::Result<()>;
    fn seed(&mut self, link: &Link) -> Option<Seed>;
    fn seeds(&mut self) -> Vec<(Link, Seed)>;
    fn remove_seed(&mut self, link: &Link);
    fn insert_namespace(&mut self, netns: u32) -> io::Result<()>;
    fn remove_namespace(&mut self, netns: u32);
    /// The program strikes a watched namespace off when it ends.
    fn is_alive(&mut self, netns: u32) -> bool;
}

/// What was told of each watched name.
#[derive(Debug)]
pub(crate) struct Ledger<P> {
    pub(crate) program: P,
    watches: BTreeMap<Watch, Known>,
    /// How many generations were given out.
    generations: u64,
    /// Of the names that were inserted last.
    epoch: u32,
    /// `dropped` of the program at the last look.
    dropped: u64,
}

/// What was told of a watched name. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The changes that were delivered or accounted for.
    count: u64,
    /// Generation of the device that was told last to hold it.
    generation: u64,
}

impl<P: Program> Ledger<P> {
    pub(crate) fn new(program: P) -> Self {
        Self {
            program,
            watches: BTreeMap::new(),
            generations: 0,
            epoch: 0,
            dropped: 0,
        }
    }

    /// Ends a watch.
    pub(crate) fn unwatch(&mut self, watch: Watch) {
        self.program.remove_name(&key_of(&watch));
        self.watches.remove(&watch);
        if !self.watches.keys().any(|other| other.netns == watch.netns) {
            self.program.remove_namespace(watch.netns.0);
        }
    }

    /// Reads what there is, and finds out what was lost.
    pub(crate) fn read(&mut self, signals: &mut Vec<Signal>) {
        let clock = Clock::now();
        while let Some(record) = self.program.record() {
            self.record(&record, &clock, signals);
        }
        // What is known is told before more is asked.
        if signals.is_empty() {
            self.find_losses(&clock, signals);
        }
    }

    /// Sees whether records were lost, before each wait: the ring was full then, so there was something to read, and no
    /// loss goes unnoticed.
    fn find_losses(&mut self, clock: &Clock, signals: &mut Vec<Signal>) {
        let dropped = self.program.counters().dropped;
        if dropped != self.dropped {
            self.dropped = dropped;
            let watches: Vec<Watch> = self.watches.keys().copied().collect();
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
            let device = Device {
                ifindex: record.to.ifindex,
                generation: record.generation,
            };
            if let Some(known) = self.watches.get_mut(&watch) {
                known.generation = record.generation;
            }
            push(Change::Took { watch, device }, signals);
        }
        if record.flags & flag::NETNS_GONE != 0 {
            let netns = NetnsId(record.from.netns);
            self.forget(netns);
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
        let known = self.watches.get_mut(&watch)?;
        if count <= known.count {
            return None;
        }
        if count == known.count + 1 {
            known.count = count;
            return Some(watch);
        }
        self.resync(watch, signals);
        None
    }

    /// Reads the truth about a name, if anything about it was lost.
    fn resync(&mut self, watch: Watch, signals: &mut Vec<Signal>) {
        let Some(&known) = self.watches.get(&watch) else {
            return;
        };
        let Ok((state, away)) = self.state_and_place(&key_of(&watch), known) else {
            return;
        };
        if state.opened <= known.count {
            return;
        }
        let holder = holder(&state);
        self.watches.insert(
            watch,
            Known {
                count: state.opened,
                generation: holder.map_or(known.generation, |device| device.generation),
            },
        );
        signals.push(Signal::Resync {
            watch,
            observed: Observed { holder, away },
            lost: Some(state.opened - known.count),
        });
    }

    /// What is true of a name; and where the device is that was told of as its holder, while nobody has the name.
    fn state_and_place(
        &mut self,
        key: &NameKey,
        known: Known,
    ) -> io::Result<(NameState, Option<(u64, Place)>)> {
        loop {
            let state = self.state(key)?;
            if state.opened <= known.count || state.ifindex != 0 {
                return Ok((state, None));
            }
            let told = |device: &DeviceState| device.generation == known.generation;
            let device = if state.generation == known.generation {
                self.program.device(state.last_device).filter(told)
            } else {
                // Another one has had the name since.
                let devices = self.program.devices();
                devices.into_iter().map(|(_, device)| device).find(told)
            };
            // It could have got the name again before it was read.
            if self.program.name(key)? == state {
                let away =
                    device.and_then(|device| Some((device.generation, place(&device.place)?)));
                return Ok((state, away));
            }
        }
    }

    /// If the record of a namespace's end was lost, this is how it is noticed.
    fn find_dead_namespaces(&mut self, clock: &Clock, signals: &mut Vec<Signal>) {
        // The watches are in the order of their namespaces.
        let mut watched: Vec<NetnsId> = self.watches.keys().map(|watch| watch.netns).collect();
        watched.dedup();
        for netns in watched {
            if !self.program.is_alive(netns.0) {
                self.forget(netns);
                signals.push(Signal::NetnsGone {
                    netns,
                    time: clock.now,
                    by: None,
                });
            }
        }
    }

    /// A namespace has ended, and the watches in it.
    fn forget(&mut self, netns: NetnsId) {
        let Self {
            program, watches, ..
        } = self;
        watches.retain(|watch, _| {
            let stays = watch.netns != netns;
            if !stays {
                program.remove_name(&key_of(watch));
            }
            stays
        });
    }

    /// A whole state of a name: the program may be writing it while it is read.
    fn state(&mut self, key: &NameKey) -> io::Result<NameState> {
        loop {
            let state = self.program.name(key)?;
            if state.opened == state.closed && self.program.name(key)? == state {
                return Ok(state);
            }
        }
    }
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
    (state.ifindex != 0).then_some(Device {
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

#[cfg(test)]
mod tests;
