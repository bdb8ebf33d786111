//! Begins watches, without a moment in which a change could be missed.
//!
//! The program in the kernel counts the changes of a name from the moment that it is told of the
//! name. Who holds it then is userspace's to find out, and to tell the program: a look-up, and by
//! the time that the program is told, the answer can be out of date. So for some names at a time:
//!
//! 1. The number of all changes that the programs have seen is read, and they are told of the
//!    names.
//! 2. Changes that have begun are waited for: those in that number are over now, and show in every
//!    answer.
//! 3. Each name is looked up, and the programs are told who holds it. Many names are looked up in
//!    one go, once: where that cannot be, or the number has moved at 4, some at a time.
//! 4. Changes that have begun are waited for again, then the number is read again. A change since 2
//!    either ended before this wait, and is counted; or it began after it, and the programs knew by
//!    then all that they were told.
//! 5. Where the number has moved, or waiting was refused, each name is looked up again, changes
//!    that have begun are waited for, and what the programs know of the name is read. If both are
//!    alike, that is who holds it. If not, everything is done again for this name.
//!
//! A watch is known by its epoch. When the programs are told of a name anew, it gets another one,
//! so that records of what they had been told before count for nothing.

use std::io;

use ifmon_ebpf::{DeviceState, Link, Name, NameState, Place as WirePlace, USERSPACE_ID};

use super::{
    Reply, Request,
    core::{Bpf, Hook, Known, Progress, is_whole, key_of},
};
use crate::{
    Error, InterfaceName, NetnsId,
    machine::{Answer, Census, Counted, Holder, Outcome, Question, Wanted},
    packed,
    tracker::{Device, Watch},
};

/// Names that are looked up at a stretch. Where nothing changes meanwhile, each is looked up once:
/// on a host where much happens that is the likelier the fewer they are.
const STRETCH: usize = if cfg!(test) { 2 } else { 128 };
/// More names than these are looked up in one go.
const FEW: usize = if cfg!(test) { 1 } else { 64 };
/// How often a name is begun again while it changes under our eyes.
const ROUNDS: u32 = 1000;
/// How often it is waited for the programs to learn of a device's new name, which it can have for a
/// moment only, before what they know of it is taken for out of date.
const WAITS: u32 = 8;

/// Watches of one namespace that begin, or that begin again because the programs may have missed
/// something.
#[derive(Debug)]
pub(super) struct Begin {
    netns: NetnsId,
    hook: Hook,
    items: Vec<Item>,
    /// It is not on behalf of a caller.
    is_again: bool,
    /// The namespace is needed for longer.
    stays: bool,
    /// The stretch that is being looked up.
    stretch: std::ops::Range<usize>,
    /// It is all names, in one go.
    in_one_go: bool,
    /// What that has brought.
    census: Option<Census>,
    /// Devices of it that were entered, and cannot be found by their indexes yet.
    unlinked: Vec<Unlinked>,
    /// The programs were told of no names but these first ones, perhaps.
    told: usize,
    /// Other watches were to begin anew, and do not.
    breaks_others: bool,
    step: Step,
    /// Each name of it was looked up, and they are made sure of.
    is_checking: bool,
    /// Changes that the programs had seen before the stretch.
    seen: u64,
    /// Every wait was granted.
    has_waited: bool,
    /// What is to be taken back if this fails.
    entered: bool,
    inserted_namespace: bool,
    failure: Option<Failure>,
}

/// A device of userspace's finding: whose name it has, its index and its id.
#[derive(Clone, Copy, Debug)]
struct Unlinked {
    at: usize,
    ifindex: u32,
    id: u64,
}

#[derive(Debug)]
enum Failure {
    Enter(io::Error),
    /// What the maps have no room for, or refuse.
    Filter(io::Error),
    Recheck(io::Error),
}

/// A name.
#[derive(Debug)]
struct Item {
    name: InterfaceName,
    wants_inode: bool,
    /// It is watched already, and what the programs know of it may be wrong.
    is_again: bool,
    epoch: u32,
    count: u64,
    holder: Option<(u32, u64)>,
    inode: Option<u64>,
    /// How often it was waited for the programs to learn of a new name of the device.
    waits: u32,
    rounds: u32,
}

#[derive(Debug)]
enum Step {
    /// Is the namespace still the one that is watched?
    IsAlive,
    /// What the maps still have of watches that ended with their namespaces can be in the way.
    Clean,
    Namespace,
    Enter,
    /// Are there too many devices of userspace's finding?
    Room,
    /// Devices of a namespace in which something was missed, or that was left for a while: none of
    /// what is known of them holds.
    Known,
    Forget(Vec<(Link, u64)>, bool),
    Seen,
    /// Whoever still writes to what was removed is done: it can be taken for what is inserted.
    Settle,
    Insert,
    Barrier,
    Census,
    /// Hardly any device of a namespace that is new to the programs is known already.
    Devices,
    Look(usize, Look),
    /// Who holds the names that were looked up in one go.
    Tell,
    BarrierAgain,
    SeenAgain,
    Check(usize, Check),
    Undo(usize, Undo),
    Done,
}

#[derive(Clone, Copy, Debug)]
enum Look {
    Index,
    Inode(u32),
    Link(u32),
    /// Where the device is that has this index.
    Device(u32, u64),
    /// It is known by another name: it is being renamed right now, and the programs are about to
    /// learn of that.
    Barrier,
    /// Or what is known of it is out of date: the programs are not to find it by this index any
    /// more,
    RemoveLink(u32, u64),
    /// those that had found it by then are done,
    Settle(u32, u64),
    /// and this is what they have written.
    DeviceAgain(u32, u64),
    RemoveDevice(u32, u64),
    InsertDevice(u32),
    InsertLink(u32, u64),
    /// Another one was faster.
    TakeBack(u32, u64),
    /// Its index could not be entered.
    GiveUp(u64),
    Tell(u32, u64),
}

#[derive(Clone, Copy, Debug)]
enum Check {
    Index,
    Barrier(Option<u32>),
    State(Option<u32>),
    /// The programs have userspace's word for the holder. Do they know the device? An answer can be
    /// ahead of what they are told: that a device is new, whereupon they forget what has its index.
    Holder(u32, u64),
    /// Begin again with this name.
    Insert,
}

/// A device that was entered and can be found stays, as it does when a watch ends: the programs may be
/// about to write where it is, and who else holds a name by its id.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Device,
    Name,
    Namespace,
    Leave,
}

impl Begin {
    /// Watches that begin.
    pub(super) fn new(netns: NetnsId, wanted: Vec<Wanted>, hook: Hook) -> Self {
        let item = |Wanted { name, inode }| Item::new(name, inode || hook == Hook::Socket, false);
        Self::of(netns, hook, wanted.into_iter().map(item).collect(), false)
    }

    /// Watches about which a program on a socket may have missed something.
    pub(super) fn again(netns: NetnsId, names: Vec<InterfaceName>) -> Self {
        let item = |name| Item::new(name, true, true);
        Self::of(
            netns,
            Hook::Socket,
            names.into_iter().map(item).collect(),
            true,
        )
    }

    /// Nothing but the namespace, for patterns.
    pub(super) fn namespace(netns: NetnsId, hook: Hook) -> Self {
        Self {
            stays: true,
            ..Self::of(netns, hook, Vec::new(), false)
        }
    }

    /// Is it for patterns? In which namespace.
    pub(super) fn is_for_patterns(&self) -> Option<NetnsId> {
        self.stays.then_some(self.netns)
    }

    fn of(netns: NetnsId, hook: Hook, items: Vec<Item>, is_again: bool) -> Self {
        Self {
            netns,
            hook,
            is_again,
            stays: false,
            in_one_go: items.len() > FEW,
            items,
            stretch: 0..0,
            census: None,
            unlinked: Vec::new(),
            told: 0,
            breaks_others: false,
            is_checking: false,
            step: if is_again { Step::Known } else { Step::IsAlive },
            seen: 0,
            has_waited: true,
            entered: false,
            inserted_namespace: false,
            failure: None,
        }
    }

    fn key(&self, at: usize) -> ifmon_ebpf::NameKey {
        key_of(&Watch {
            netns: self.netns,
            name: self.items[at].name,
        })
    }

    fn link(&self, ifindex: u32) -> Link {
        Link {
            netns: self.netns.0,
            ifindex,
        }
    }

    fn place(&self, at: usize, ifindex: u32) -> WirePlace {
        WirePlace {
            name: Name::from_bytes(self.items[at].name.padded()),
            netns: self.netns.0,
            ifindex,
        }
    }

    /// The names of the next stretch.
    fn begin_stretch(&mut self) {
        let begin = self.stretch.end;
        let most = if self.in_one_go { usize::MAX } else { STRETCH };
        self.stretch = begin..self.items.len().min(begin.saturating_add(most));
        self.told = self.told.max(self.stretch.end);
        self.census = None;
        self.has_waited = true;
        self.is_checking = false;
        self.step = if self.stretch.is_empty() {
            Step::Done
        } else {
            Step::Seen
        };
    }

    /// It cannot be in one go: all names again, some at a time.
    fn begin_stretches(&mut self) {
        self.in_one_go = false;
        self.stretch = 0..0;
        self.begin_stretch();
    }

    /// What to do next.
    pub(super) fn next(&mut self, core: &mut Bpf) -> Progress {
        loop {
            let request = match &self.step {
                Step::IsAlive if core.namespaces.contains_key(&self.netns) => {
                    Request::Namespace(self.netns)
                }
                Step::IsAlive => {
                    self.step = Step::Namespace;
                    continue;
                }
                Step::Clean => match core.ended.last() {
                    Some(watch) => Request::RemoveName(key_of(watch)),
                    None => {
                        self.step = Step::Namespace;
                        continue;
                    }
                },
                Step::Namespace => {
                    core.epoch = core.epoch.wrapping_add(1);
                    Request::InsertNamespace(self.netns, core.epoch)
                }
                Step::Enter => Request::Enter(self.netns),
                Step::Room if core.watches.len() + self.items.len() > core.room => {
                    self.fail(Failure::Filter(io::Error::other(format!(
                        "there is room for {} watches; Builder::capacity makes more",
                        core.room
                    ))));
                    continue;
                }
                Step::Room if core.devices + self.items.len() > core.room => Request::Devices,
                Step::Room => {
                    self.begin_stretch();
                    continue;
                }
                Step::Known => Request::Devices,
                Step::Forget(devices, is_link_gone) => match devices.last() {
                    Some((link, _)) if !is_link_gone => Request::RemoveLink(*link),
                    Some((_, id)) => Request::RemoveDevice(*id),
                    None if self.is_again => {
                        self.begin_stretch();
                        continue;
                    }
                    None => {
                        self.step = Step::Room;
                        continue;
                    }
                },
                Step::Seen | Step::SeenAgain => Request::Counters,
                Step::Insert => {
                    let names = self.stretch.clone();
                    let names = names.map(|at| (self.key(at), self.unknown(at, core)));
                    Request::InsertNames(names.collect())
                }
                Step::Tell => {
                    let held = self.stretch.clone().filter_map(|at| {
                        let (ifindex, id) = self.items[at].holder?;
                        Some((self.key(at), self.held(at, ifindex, id, core)))
                    });
                    Request::InsertNames(held.collect())
                }
                Step::Settle | Step::Barrier | Step::BarrierAgain => self.ask(Question::Barrier),
                Step::Census => self.ask(Question::Census(Census::worth(self.items.len()))),
                Step::Devices => self.insert_devices(core),
                Step::Look(at, look) => self.look(*at, *look, core),
                Step::Check(_, Check::Barrier(_)) => self.ask(Question::Barrier),
                Step::Check(at, Check::Index) => self.ask(Question::IndexOf(self.items[*at].name)),
                Step::Check(at, Check::State(_)) => Request::Name(self.key(*at)),
                Step::Check(_, Check::Holder(ifindex, _)) => Request::Link(self.link(*ifindex)),
                Step::Check(at, Check::Insert) => {
                    let at = *at;
                    Request::InsertNames(vec![(self.key(at), self.unknown(at, core))])
                }
                Step::Undo(at, undo) => match self.undo(*at, *undo) {
                    Ok(request) => request,
                    Err(step) => {
                        self.step = step;
                        continue;
                    }
                },
                // A tracing program needs nothing of the namespace, so it is not kept alive.
                Step::Done
                    if self.entered
                        && self.hook == Hook::Function
                        && !(self.stays && self.failure.is_none())
                        && !core.has_patterns(self.netns) =>
                {
                    Request::Leave(self.netns)
                }
                Step::Done => return Progress::Done,
            };
            return Progress::Request(request);
        }
    }

    fn ask(&self, question: Question) -> Request {
        Request::Ask(self.netns, question)
    }

    /// A name of which nothing is known, in a new epoch.
    fn unknown(&mut self, at: usize, core: &mut Bpf) -> NameState {
        core.epoch = core.epoch.wrapping_add(1);
        let item = &mut self.items[at];
        item.epoch = core.epoch;
        item.count = 0;
        item.holder = None;
        item.inode = None;
        NameState {
            epoch: item.epoch,
            ..NameState::default()
        }
    }

    /// A name and who holds it, in a new epoch.
    fn held(&mut self, at: usize, ifindex: u32, id: u64, core: &mut Bpf) -> NameState {
        core.epoch = core.epoch.wrapping_add(1);
        self.items[at].epoch = core.epoch;
        NameState {
            id,
            ifindex,
            epoch: core.epoch,
            ..NameState::default()
        }
    }

    fn look(&mut self, at: usize, look: Look, core: &mut Bpf) -> Request {
        match look {
            Look::Index => self.ask(Question::IndexOf(self.items[at].name)),
            Look::Barrier | Look::Settle(..) => self.ask(Question::Barrier),
            Look::Inode(_) => self.ask(Question::IdentityOf(self.items[at].name)),
            Look::Link(ifindex) => Request::Link(self.link(ifindex)),
            Look::Device(_, id) | Look::DeviceAgain(_, id) => Request::Device(id),
            Look::RemoveLink(ifindex, _) => Request::RemoveLink(self.link(ifindex)),
            Look::RemoveDevice(_, id) | Look::TakeBack(_, id) | Look::GiveUp(id) => {
                Request::RemoveDevice(id)
            }
            Look::InsertDevice(ifindex) => {
                core.ids += 1;
                Request::InsertDevices(vec![(core.ids | USERSPACE_ID, self.place(at, ifindex))])
            }
            Look::InsertLink(ifindex, id) => Request::InsertLink(self.link(ifindex), id),
            Look::Tell(ifindex, id) => {
                Request::InsertNames(vec![(self.key(at), self.held(at, ifindex, id, core))])
            }
        }
    }

    /// All devices that were found in one go.
    fn insert_devices(&mut self, core: &mut Bpf) -> Request {
        let mut devices = Vec::new();
        for at in self.stretch.clone() {
            let census = self.census.as_ref();
            let item = &mut self.items[at];
            let Some(counted) = census.and_then(|census| census.by_name(item.name)) else {
                continue;
            };
            item.inode = counted.inode.filter(|_| item.wants_inode);
            let ifindex = counted.ifindex;
            core.ids += 1;
            let id = core.ids | USERSPACE_ID;
            self.unlinked.push(Unlinked { at, ifindex, id });
            devices.push((id, self.place(at, ifindex)));
        }
        core.devices += devices.len();
        // The first one comes first.
        self.unlinked.reverse();
        Request::InsertDevices(devices)
    }

    /// Takes back what was done; the next step where there is nothing to take back.
    fn undo(&self, at: usize, undo: Undo) -> Result<Request, Step> {
        let next = |undo| Step::Undo(at, undo);
        if let Undo::Device = undo {
            let device = self.unlinked.last().ok_or_else(|| next(Undo::Name))?;
            return Ok(Request::RemoveDevice(device.id));
        }
        let Some(item) = self.items.get(at) else {
            return match undo {
                Undo::Namespace if self.inserted_namespace => {
                    Ok(Request::RemoveNamespace(self.netns))
                }
                Undo::Namespace => Err(next(Undo::Leave)),
                Undo::Leave if self.entered && self.inserted_namespace => {
                    Ok(Request::Leave(self.netns))
                }
                Undo::Leave => Err(Step::Done),
                Undo::Device | Undo::Name => Err(next(Undo::Namespace)),
            };
        };
        if item.is_again {
            return Err(Step::Undo(at + 1, Undo::Name));
        }
        Ok(Request::RemoveName(self.key(at)))
    }

    /// It cannot be: what was done is taken back.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
        }
        self.step = if self.is_again {
            Step::Done
        } else {
            let others = self.items.split_off(self.told);
            self.breaks_others |= others.iter().any(|item| item.is_again);
            Step::Undo(0, Undo::Device)
        };
    }

    /// The answer to the request that was made last.
    pub(super) fn answer(&mut self, core: &mut Bpf, reply: Reply) {
        let step = std::mem::replace(&mut self.step, Step::Done);
        self.step = match (step, reply) {
            (Step::IsAlive, Reply::Namespace(Ok(epoch))) => {
                if epoch == core.namespaces.get(&self.netns).copied() {
                    Step::Enter
                } else {
                    // Another one has its number by now.
                    core.gone_unheard(self.netns);
                    Step::Clean
                }
            }
            (Step::Clean, _) => {
                core.ended.pop();
                Step::Clean
            }
            (Step::Namespace, Reply::Done(Ok(()))) => {
                self.inserted_namespace = true;
                core.namespaces.insert(self.netns, core.epoch);
                Step::Enter
            }
            (Step::Enter, Reply::Done(Ok(()))) => {
                self.entered = true;
                if self.hook == Hook::Socket && self.inserted_namespace {
                    // What became of devices while nobody listened is not known.
                    Step::Known
                } else {
                    Step::Room
                }
            }
            (Step::Enter, Reply::Done(Err(error))) => return self.fail(Failure::Enter(error)),
            (Step::Room, Reply::Devices(Ok(devices))) => {
                let own = devices.iter().filter(|(id, _)| id & USERSPACE_ID != 0);
                core.devices = own.count();
                if core.devices + self.items.len() > core.room {
                    let error = format!(
                        "it remembers {} interfaces that had watched names before, until they are \
                         deleted, and has room for {}",
                        core.devices, core.room
                    );
                    return self.fail(Failure::Filter(io::Error::other(error)));
                }
                return self.begin_stretch();
            }
            (Step::Known, Reply::Devices(Ok(devices))) => {
                let here = devices
                    .into_iter()
                    .filter(|(_, device)| device.place.netns == self.netns.0);
                let known = here.map(|(id, device)| (Link::of(&device.place), id));
                Step::Forget(known.collect(), false)
            }
            (Step::Forget(devices, false), Reply::Done(Ok(()))) => Step::Forget(devices, true),
            (Step::Forget(mut devices, true), Reply::Done(Ok(()))) => {
                devices.pop();
                Step::Forget(devices, false)
            }
            (Step::Seen, Reply::Counters(Ok(counters))) => {
                self.seen = counters.seen;
                // What was removed was removed before the first.
                if self.stretch.start == 0 {
                    Step::Settle
                } else {
                    Step::Insert
                }
            }
            (Step::Settle, _) => Step::Insert,
            (Step::Insert, Reply::Done(Ok(()))) => Step::Barrier,
            (Step::Tell, Reply::Done(Ok(()))) => Step::BarrierAgain,
            (Step::Barrier, Reply::Answer(Answer::Waited(waited))) => {
                self.has_waited &= waited;
                if self.in_one_go {
                    Step::Census
                } else {
                    self.first_look(self.stretch.start)
                }
            }
            (Step::Census, Reply::Answer(Answer::Census(census))) => {
                // Where it fails, other questions will, or do not.
                let Some(census) = census.ok().flatten() else {
                    return self.begin_stretches();
                };
                self.census = Some(census);
                if self.inserted_namespace {
                    Step::Devices
                } else {
                    self.first_look(self.stretch.start)
                }
            }
            (Step::Devices, Reply::Done(Ok(()))) => self.first_look(self.stretch.start),
            (Step::Look(at, look), reply) => match self.looked(core, at, look, reply) {
                Ok(Some(look)) => Step::Look(at, look),
                Ok(None) => self.next_look(at),
                Err(failure) => return self.fail(failure),
            },
            (Step::BarrierAgain, Reply::Answer(Answer::Waited(waited))) => {
                self.has_waited &= waited;
                Step::SeenAgain
            }
            (Step::SeenAgain, Reply::Counters(Ok(counters))) => {
                if self.has_waited && counters.seen == self.seen {
                    return self.begin_stretch();
                }
                if self.in_one_go {
                    return self.begin_stretches();
                }
                self.is_checking = true;
                Step::Check(self.stretch.start, Check::Index)
            }
            (Step::Check(at, check), reply) => match self.checked(at, check, reply) {
                Ok(Some(step)) => step,
                Ok(None) if at + 1 < self.stretch.end => Step::Check(at + 1, Check::Index),
                Ok(None) => return self.begin_stretch(),
                Err(failure) => return self.fail(failure),
            },
            (Step::Undo(at, undo), _) => self.undone(core, at, undo),
            (Step::Done, _) => {
                self.entered = false;
                Step::Done
            }
            (
                Step::IsAlive
                | Step::Namespace
                | Step::Room
                | Step::Known
                | Step::Forget(..)
                | Step::Seen
                | Step::Insert
                | Step::Devices
                | Step::Tell
                | Step::SeenAgain,
                reply,
            ) => return self.fail(Failure::Filter(error_of(reply))),
            (step @ (Step::Enter | Step::Barrier | Step::Census | Step::BarrierAgain), reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                step
            }
        };
    }

    /// What is known of the other watches of the namespace may be wrong as well.
    fn add_all(&mut self, core: &Bpf) {
        let here = |watch: &Watch| watch.netns == self.netns;
        let all = core.watches.range(Watch::first_of(self.netns)..);
        for (watch, _) in all.take_while(|(watch, _)| here(watch)) {
            if !self.items.iter().any(|item| item.name == watch.name) {
                let wants_inode = self.hook == Hook::Socket;
                self.items.push(Item::new(watch.name, wants_inode, true));
            }
        }
    }

    /// A name was looked up; the next one, or what comes after the last.
    fn next_look(&mut self, at: usize) -> Step {
        if self.is_checking {
            // It was begun again alone.
            Step::Check(at, Check::Index)
        } else {
            self.first_look(at + 1)
        }
    }

    /// Begins to look names up, from this one on.
    fn first_look(&mut self, from: usize) -> Step {
        let Some(census) = &self.census else {
            return if from < self.stretch.end {
                Step::Look(from, Look::Index)
            } else {
                Step::BarrierAgain
            };
        };
        if self.inserted_namespace {
            let next = self.unlinked.pop();
            return next.map_or(Step::Tell, |Unlinked { at, ifindex, id }| {
                Step::Look(at, Look::InsertLink(ifindex, id))
            });
        }
        for at in from..self.stretch.end {
            let item = &mut self.items[at];
            if let Some(Counted { ifindex, inode, .. }) = census.by_name(item.name) {
                // If nothing has changed meanwhile, both are one device's; else all is read again.
                item.inode = inode.filter(|_| item.wants_inode);
                return Step::Look(at, Look::Link(ifindex));
            }
        }
        Step::Tell
    }

    /// It was found out who holds a name, and the programs know that device: they are told now, or
    /// with all the others that are looked up in one go.
    fn found(&mut self, at: usize, ifindex: u32, id: u64) -> Option<Look> {
        if self.census.is_none() {
            return Some(Look::Tell(ifindex, id));
        }
        self.items[at].holder = Some((ifindex, id));
        None
    }

    /// Goes on looking a name up; `None` when that is done.
    fn looked(
        &mut self,
        core: &mut Bpf,
        at: usize,
        look: Look,
        reply: Reply,
    ) -> Result<Option<Look>, Failure> {
        let place = |ifindex| self.place(at, ifindex);
        Ok(match (look, reply) {
            (Look::Index, Reply::Answer(Answer::Index(found))) => {
                match found.map_err(Failure::Recheck)? {
                    Some(ifindex) if self.items[at].wants_inode => Some(Look::Inode(ifindex)),
                    Some(ifindex) => Some(Look::Link(ifindex)),
                    None => None,
                }
            }
            (Look::Inode(ifindex), Reply::Answer(Answer::Identity(found))) => {
                let found = found.map_err(Failure::Recheck)?;
                self.items[at].inode = found.and_then(|found| found.inode_of(ifindex));
                Some(Look::Link(ifindex))
            }
            (Look::Link(ifindex), Reply::Link(Ok(None))) => Some(Look::InsertDevice(ifindex)),
            (Look::Link(ifindex), Reply::Link(Ok(Some(id)))) => Some(Look::Device(ifindex, id)),
            (Look::Device(ifindex, id), Reply::Device(Ok(device))) => match device {
                Some(device) if device.opened != device.closed => Some(Look::Device(ifindex, id)),
                Some(device) if device.place == place(ifindex) => self.found(at, ifindex, id),
                device if self.items[at].waits < self.most_waits(id, device) => Some(Look::Barrier),
                _ => Some(Look::RemoveLink(ifindex, id)),
            },
            (Look::Barrier, Reply::Answer(Answer::Waited(_))) => {
                self.items[at].waits += 1;
                Some(Look::Index)
            }
            (Look::RemoveLink(ifindex, id), Reply::Done(Ok(()))) => Some(Look::Settle(ifindex, id)),
            (Look::Settle(ifindex, id), Reply::Answer(Answer::Waited(_))) => {
                Some(Look::DeviceAgain(ifindex, id))
            }
            (Look::DeviceAgain(ifindex, id), Reply::Device(Ok(Some(device))))
                if device.opened != device.closed =>
            {
                Some(Look::DeviceAgain(ifindex, id))
            }
            (Look::DeviceAgain(ifindex, id), Reply::Device(device)) => {
                // What could not be read may be anything.
                let device = device.ok().flatten();
                let here = self.link(ifindex);
                let is_here = device.is_none_or(|device| Link::of(&device.place) == here);
                if is_here && !is_word(id, device) || core.has_told(id) {
                    // Whoever holds a name by this id is found again.
                    self.add_all(core);
                }
                Some(if is_here {
                    Look::RemoveDevice(ifindex, id)
                } else {
                    // It went elsewhere meanwhile, and is known there.
                    Look::Index
                })
            }
            (Look::RemoveDevice(ifindex, _), Reply::Done(Ok(()))) => {
                Some(Look::InsertDevice(ifindex))
            }
            (Look::InsertDevice(ifindex), Reply::Done(Ok(()))) => {
                core.devices += 1;
                Some(Look::InsertLink(ifindex, core.ids | USERSPACE_ID))
            }
            (Look::InsertLink(ifindex, id), Reply::Inserted(Ok(inserted))) => {
                if inserted {
                    self.found(at, ifindex, id)
                } else {
                    Some(Look::TakeBack(ifindex, id))
                }
            }
            (Look::TakeBack(ifindex, _), Reply::Done(_)) => {
                core.devices = core.devices.saturating_sub(1);
                Some(Look::Link(ifindex))
            }
            (Look::Tell(ifindex, id), Reply::Done(Ok(()))) => {
                self.items[at].holder = Some((ifindex, id));
                None
            }
            (Look::InsertLink(_, id), reply @ Reply::Inserted(Err(_))) => {
                self.failure = Some(Failure::Filter(error_of(reply)));
                Some(Look::GiveUp(id))
            }
            (_, reply) => return Err(Failure::Filter(error_of(reply))),
        })
    }

    /// How often it is waited for what is known of a device to be true.
    fn most_waits(&self, id: u64, device: Option<DeviceState>) -> u32 {
        // What a program has written is so in the end, and what it has removed is not found again,
        // unless something was not shown to it.
        let can_miss = self.hook == Hook::Socket && device.is_some();
        if is_word(id, device) || can_miss {
            WAITS
        } else {
            ROUNDS
        }
    }

    /// Goes on making sure of a name; `None` when that is done.
    fn checked(&mut self, at: usize, check: Check, reply: Reply) -> Result<Option<Step>, Failure> {
        let step = match (check, reply) {
            (Check::Index, Reply::Answer(Answer::Index(found))) => {
                Check::Barrier(found.map_err(Failure::Recheck)?)
            }
            // What the answer saw of a change that had not ended yet has ended now, and is counted.
            (Check::Barrier(found), Reply::Answer(Answer::Waited(_))) => Check::State(found),
            (Check::State(found), Reply::Name(Ok(Some(state)))) => {
                let holder = (state.ifindex != 0).then_some((state.ifindex, state.id));
                if !is_whole(&state) {
                    Check::State(found)
                } else if holder.map(|(ifindex, _)| ifindex) != found {
                    return Ok(self.settle(at, None));
                } else if let Some((ifindex, id)) = holder
                    && state.opened == 0
                {
                    Check::Holder(ifindex, id)
                } else {
                    return Ok(self.settle(at, Some((state.opened, holder))));
                }
            }
            (Check::Holder(ifindex, id), Reply::Link(Ok(link))) => {
                let is_known = link == Some(id);
                return Ok(self.settle(at, is_known.then_some((0, Some((ifindex, id))))));
            }
            (Check::Insert, Reply::Done(Ok(()))) => {
                return Ok(Some(Step::Look(at, Look::Index)));
            }
            (_, reply) => return Err(Failure::Filter(error_of(reply))),
        };
        Ok(Some(Step::Check(at, step)))
    }

    /// What the programs know of a name is true: after how many changes, and who holds it. Or not;
    /// then it is begun again. What is left to do.
    fn settle(&mut self, at: usize, state: Option<(u64, Option<(u32, u64)>)>) -> Option<Step> {
        let item = &mut self.items[at];
        if let Some((count, holder)) = state {
            if item.holder != holder {
                // The inode was that of another one.
                item.inode = None;
            }
            item.count = count;
            item.holder = holder;
            return None;
        }
        item.rounds += 1;
        item.waits = 0;
        (item.rounds <= ROUNDS).then_some(Step::Check(at, Check::Insert))
    }

    /// Goes on taking back what was done, whether that can be done or not.
    fn undone(&mut self, core: &mut Bpf, at: usize, undo: Undo) -> Step {
        match undo {
            Undo::Device => {
                self.unlinked.pop();
                core.devices = core.devices.saturating_sub(1);
                Step::Undo(at, Undo::Device)
            }
            Undo::Name => Step::Undo(at + 1, Undo::Name),
            Undo::Namespace => {
                core.namespaces.remove(&self.netns);
                Step::Undo(at, Undo::Leave)
            }
            Undo::Leave => {
                self.entered = false;
                Step::Done
            }
        }
    }

    /// It has come to its end: the outcome of the command. An error where something is to be tried
    /// again.
    pub(super) fn finish(self, core: &mut Bpf) -> Option<io::Result<Outcome>> {
        let Self {
            netns,
            items,
            is_again,
            breaks_others,
            failure,
            ..
        } = self;
        if let Some(failure) = failure {
            if is_again {
                core.find_again(netns, items.iter().map(|item| item.name));
                let (Failure::Enter(error) | Failure::Filter(error) | Failure::Recheck(error)) =
                    failure;
                return Some(Err(error));
            }
            if breaks_others || items.iter().any(|item| item.is_again) {
                // The programs were told of other watches anew, and by whom they are held was not
                // found out.
                core.has_failed();
            }
            let error = match failure {
                Failure::Enter(error) => Error::Subscribe(error),
                Failure::Filter(error) => Error::Filter(error),
                Failure::Recheck(error) => Error::Recheck(error),
            };
            return Some(Ok(Outcome::Watched(Err(error))));
        }
        let mut holders = Vec::with_capacity(items.len());
        let mut known = Vec::with_capacity(items.len());
        for item in items {
            let watch = Watch {
                netns,
                name: item.name,
            };
            let device = item.holder.map(|(ifindex, id)| {
                let before = core.watches.get(&watch).filter(|known| {
                    item.is_again && known.ifindex == ifindex && !core.identities.knows(known.id)
                });
                let id = match (before.map(|known| known.id), item.inode) {
                    // Nothing speaks against it that this is still the same device.
                    (Some(told), inode) => core.identities.resume(id, told, inode),
                    (None, Some(inode)) if core.hook == Hook::Socket => {
                        core.identities.identify(id, inode)
                    }
                    (None, _) => core.tell_id(id),
                };
                Device { ifindex, id }
            });
            let last = core.watches.get(&watch).map_or(0, |known| known.id);
            core.identities.left(last);
            if let Some(Device { id, .. }) = device {
                core.identities.took(id);
                if core.hook == Hook::Socket && !core.identities.knows(id) {
                    core.unidentified.insert(watch);
                }
            }
            known.push((
                watch,
                Known {
                    count: item.count,
                    id: device.map_or(last, |device| device.id),
                    epoch: item.epoch,
                    ifindex: device.map_or(0, |device| device.ifindex),
                },
            ));
            if item.is_again {
                core.found_again(watch, device);
                continue;
            }
            holders.push(device.map(|device| Holder {
                device,
                inode: item.inode,
            }));
        }
        if is_again {
            core.watches.extend(known);
            return None;
        }
        // One by one where some are there already, else many at once.
        if known.len() > core.watches.len() {
            core.identities.repack();
        }
        packed::extend(&mut core.watches, known);
        Some(Ok(Outcome::Watched(Ok(holders))))
    }
}

impl Item {
    fn new(name: InterfaceName, wants_inode: bool, is_again: bool) -> Self {
        Self {
            name,
            wants_inode,
            is_again,
            epoch: 0,
            count: 0,
            holder: None,
            inode: None,
            waits: 0,
            rounds: 0,
        }
    }
}

/// Is it userspace's word where the device is, which may have been out of date when it was entered?
/// No program has written it since.
fn is_word(id: u64, device: Option<DeviceState>) -> bool {
    id & USERSPACE_ID != 0 && device.is_some_and(|device| device.opened == 0)
}

/// What speaks against it.
fn error_of(reply: Reply) -> io::Error {
    match reply {
        Reply::Done(Err(error))
        | Reply::Inserted(Err(error))
        | Reply::Overflowed(Err(error))
        | Reply::Counters(Err(error))
        | Reply::Name(Err(error))
        | Reply::Link(Err(error))
        | Reply::Device(Err(error))
        | Reply::Devices(Err(error))
        | Reply::Namespace(Err(error)) => error,
        _ => io::ErrorKind::NotFound.into(),
    }
}

#[cfg(test)]
mod refused;
#[cfg(test)]
mod tests;
