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

use ifmon_ebpf::{DeviceState, Link, Name, NameState, Place, USERSPACE_ID};

use super::{
    Reply, Request,
    core::{Bpf, Hook, ReportedName, TaskProgress, is_whole, key_of},
    forgetting::Forgetting,
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
    items: Vec<BeginItem>,
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
    step: BeginStep,
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
struct BeginItem {
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
enum BeginStep {
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
    Forget(Forgetting),
    Seen,
    /// Whoever still writes to what was removed is done: it can be taken for what is inserted.
    Settle,
    Insert,
    Barrier,
    Census,
    /// Hardly any device of a namespace that is new to the programs is known already.
    Devices,
    Look(usize, BeginLook),
    /// Who holds the names that were looked up in one go.
    Tell,
    BarrierAgain,
    SeenAgain,
    /// Has the device still the name that was looked up? What cannot be set up goes again, and no
    /// message is sent of it.
    Confirm(usize),
    Check(usize, BeginCheck),
    Undo(usize, BeginUndo),
    Done,
}

#[derive(Clone, Copy, Debug)]
enum BeginLook {
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
enum BeginCheck {
    Index,
    Barrier(Option<u32>),
    State(Option<u32>),
    /// The programs have userspace's word for the holder. Do they know the device? An answer can be
    /// ahead of what they are told: that a device is new, whereupon they forget what has its index.
    Holder(u32, u64),
    /// Has it the name still, now that changes that had begun are over? As in [`BeginStep::Confirm`].
    Confirm(u32, u64),
    /// Begin again with this name.
    Insert,
}

/// A device that was entered and can be found stays, as it does when a watch ends: the programs may be
/// about to write where it is, and who else holds a name by its id.
#[derive(Clone, Copy, Debug)]
enum BeginUndo {
    Device,
    Name,
    Namespace,
    Leave,
}

impl Begin {
    /// Watches that begin.
    pub(super) fn new(netns: NetnsId, wanted: Vec<Wanted>, hook: Hook) -> Self {
        let item =
            |Wanted { name, inode }| BeginItem::new(name, inode || hook == Hook::Socket, false);
        Self::of(netns, hook, wanted.into_iter().map(item).collect(), false)
    }

    /// Watches about which a program on a socket may have missed something.
    pub(super) fn again(netns: NetnsId, names: Vec<InterfaceName>) -> Self {
        let item = |name| BeginItem::new(name, true, true);
        Self::of(
            netns,
            Hook::Socket,
            names.into_iter().map(item).collect(),
            true,
        )
    }

    /// A watch whose holder, a device with this index and this id, is gone unheard.
    pub(super) fn after(watch: &Watch, link: Link, id: u64) -> Self {
        Self {
            step: BeginStep::Forget(Forgetting::new(vec![(link, id)])),
            ..Self::again(watch.netns, vec![watch.name])
        }
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

    fn of(netns: NetnsId, hook: Hook, items: Vec<BeginItem>, is_again: bool) -> Self {
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
            step: if is_again {
                BeginStep::Known
            } else {
                BeginStep::IsAlive
            },
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

    fn place(&self, at: usize, ifindex: u32) -> Place {
        Place {
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
            BeginStep::Done
        } else {
            BeginStep::Seen
        };
    }

    /// It cannot be in one go: all names again, some at a time.
    fn begin_stretches(&mut self) {
        self.in_one_go = false;
        self.stretch = 0..0;
        self.begin_stretch();
    }

    /// What to do next.
    pub(super) fn next(&mut self, core: &mut Bpf) -> TaskProgress {
        loop {
            let request = match &self.step {
                BeginStep::IsAlive if core.namespaces.contains_key(&self.netns) => {
                    Request::Namespace(self.netns)
                }
                BeginStep::IsAlive => {
                    self.step = BeginStep::Namespace;
                    continue;
                }
                BeginStep::Clean => match core.ended.last() {
                    Some(watch) => Request::RemoveName(key_of(watch)),
                    None => {
                        self.step = BeginStep::Namespace;
                        continue;
                    }
                },
                BeginStep::Namespace => {
                    core.epoch = core.epoch.wrapping_add(1);
                    Request::InsertNamespace(self.netns, core.epoch)
                }
                BeginStep::Enter => Request::Enter(self.netns),
                BeginStep::Room if core.watches.len() + self.items.len() > core.room => {
                    self.fail(Failure::Filter(io::Error::other(format!(
                        "there is room for {} watches; Builder::capacity makes more",
                        core.room
                    ))));
                    continue;
                }
                BeginStep::Room if core.devices + self.items.len() > core.room => Request::Devices,
                BeginStep::Room => {
                    self.begin_stretch();
                    continue;
                }
                BeginStep::Known => Request::Devices,
                BeginStep::Forget(forgetting) => match forgetting.request() {
                    Some(request) => request,
                    None if self.is_again => {
                        self.begin_stretch();
                        continue;
                    }
                    None => {
                        self.step = BeginStep::Room;
                        continue;
                    }
                },
                BeginStep::Seen | BeginStep::SeenAgain => Request::Counters,
                BeginStep::Insert => {
                    let names = self.stretch.clone();
                    let names = names.map(|at| (self.key(at), self.unknown(at, core)));
                    Request::InsertNames(names.collect())
                }
                BeginStep::Tell => {
                    let held = self.stretch.clone().filter_map(|at| {
                        let (ifindex, id) = self.items[at].holder?;
                        Some((self.key(at), self.held(at, ifindex, id, core)))
                    });
                    Request::InsertNames(held.collect())
                }
                BeginStep::Settle | BeginStep::Barrier | BeginStep::BarrierAgain => {
                    self.ask(Question::Barrier)
                }
                BeginStep::Census => self.ask(Question::Census(Census::worth(self.items.len()))),
                BeginStep::Devices => self.insert_devices(core),
                BeginStep::Look(at, look) => self.look(*at, *look, core),
                BeginStep::Confirm(at) => {
                    let at = *at;
                    let mut rest = at..self.stretch.end;
                    match rest.find(|&at| self.items[at].holder.is_some()) {
                        Some(next) => {
                            self.step = BeginStep::Confirm(next);
                            self.ask(Question::IndexOf(self.items[next].name))
                        }
                        None => {
                            self.begin_stretch();
                            continue;
                        }
                    }
                }
                BeginStep::Check(_, BeginCheck::Barrier(_)) => self.ask(Question::Barrier),
                BeginStep::Check(at, BeginCheck::Index | BeginCheck::Confirm(..)) => {
                    self.ask(Question::IndexOf(self.items[*at].name))
                }
                BeginStep::Check(at, BeginCheck::State(_)) => Request::Name(self.key(*at)),
                BeginStep::Check(_, BeginCheck::Holder(ifindex, _)) => {
                    Request::Link(self.link(*ifindex))
                }
                BeginStep::Check(at, BeginCheck::Insert) => {
                    let at = *at;
                    Request::InsertNames(vec![(self.key(at), self.unknown(at, core))])
                }
                BeginStep::Undo(at, undo) => match self.undo(*at, *undo) {
                    Ok(request) => request,
                    Err(step) => {
                        self.step = step;
                        continue;
                    }
                },
                // A tracing program needs nothing of the namespace, so it is not kept alive.
                BeginStep::Done
                    if self.entered
                        && self.hook == Hook::Function
                        && !(self.stays && self.failure.is_none())
                        && !core.has_patterns(self.netns) =>
                {
                    Request::Leave(self.netns)
                }
                BeginStep::Done => return TaskProgress::Done,
            };
            return TaskProgress::Request(request);
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

    fn look(&mut self, at: usize, look: BeginLook, core: &mut Bpf) -> Request {
        match look {
            BeginLook::Index => self.ask(Question::IndexOf(self.items[at].name)),
            BeginLook::Barrier | BeginLook::Settle(..) => self.ask(Question::Barrier),
            BeginLook::Inode(_) => self.ask(Question::IdentityOf(self.items[at].name)),
            BeginLook::Link(ifindex) => Request::Link(self.link(ifindex)),
            BeginLook::Device(_, id) | BeginLook::DeviceAgain(_, id) => Request::Device(id),
            BeginLook::RemoveLink(ifindex, _) => Request::RemoveLink(self.link(ifindex)),
            BeginLook::RemoveDevice(_, id) | BeginLook::TakeBack(_, id) | BeginLook::GiveUp(id) => {
                Request::RemoveDevice(id)
            }
            BeginLook::InsertDevice(ifindex) => {
                core.ids += 1;
                Request::InsertDevices(vec![(core.ids | USERSPACE_ID, self.place(at, ifindex))])
            }
            BeginLook::InsertLink(ifindex, id) => Request::InsertLink(self.link(ifindex), id),
            BeginLook::Tell(ifindex, id) => {
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
    fn undo(&self, at: usize, undo: BeginUndo) -> Result<Request, BeginStep> {
        let next = |undo| BeginStep::Undo(at, undo);
        if let BeginUndo::Device = undo {
            let device = self.unlinked.last().ok_or_else(|| next(BeginUndo::Name))?;
            return Ok(Request::RemoveDevice(device.id));
        }
        let Some(item) = self.items.get(at) else {
            return match undo {
                BeginUndo::Namespace if self.inserted_namespace => {
                    Ok(Request::RemoveNamespace(self.netns))
                }
                BeginUndo::Namespace => Err(next(BeginUndo::Leave)),
                BeginUndo::Leave if self.entered && self.inserted_namespace => {
                    Ok(Request::Leave(self.netns))
                }
                BeginUndo::Leave => Err(BeginStep::Done),
                BeginUndo::Device | BeginUndo::Name => Err(next(BeginUndo::Namespace)),
            };
        };
        if item.is_again {
            return Err(BeginStep::Undo(at + 1, BeginUndo::Name));
        }
        Ok(Request::RemoveName(self.key(at)))
    }

    /// It cannot be: what was done is taken back.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
        }
        self.step = if self.is_again {
            BeginStep::Done
        } else {
            let others = self.items.split_off(self.told);
            self.breaks_others |= others.iter().any(|item| item.is_again);
            BeginStep::Undo(0, BeginUndo::Device)
        };
    }

    /// The answer to the request that was made last.
    pub(super) fn answer(&mut self, core: &mut Bpf, reply: Reply) {
        let step = std::mem::replace(&mut self.step, BeginStep::Done);
        self.step = match (step, reply) {
            (BeginStep::IsAlive, Reply::Namespace(Ok(epoch))) => {
                if epoch == core.namespaces.get(&self.netns).copied() {
                    BeginStep::Enter
                } else {
                    // Another one has its number by now.
                    core.gone_unheard(self.netns);
                    BeginStep::Clean
                }
            }
            (BeginStep::Clean, _) => {
                core.ended.pop();
                BeginStep::Clean
            }
            (BeginStep::Namespace, Reply::Done(Ok(()))) => {
                self.inserted_namespace = true;
                core.namespaces.insert(self.netns, core.epoch);
                BeginStep::Enter
            }
            (BeginStep::Enter, Reply::Done(Ok(()))) => {
                self.entered = true;
                if self.hook == Hook::Socket && self.inserted_namespace {
                    // What became of devices while nobody listened is not known.
                    BeginStep::Known
                } else {
                    BeginStep::Room
                }
            }
            (BeginStep::Enter, Reply::Done(Err(error))) => return self.fail(Failure::Enter(error)),
            (BeginStep::Room, Reply::Devices(Ok(devices))) => {
                core.devices = count_own(&devices);
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
            (BeginStep::Known, Reply::Devices(Ok(devices))) => {
                let here = devices
                    .into_iter()
                    .filter(|(_, device)| device.place.netns == self.netns.0);
                let known = here.map(|(id, device)| (Link::of(&device.place), id));
                BeginStep::Forget(Forgetting::new(known.collect()))
            }
            (BeginStep::Forget(forgetting), Reply::Done(Ok(()))) => {
                BeginStep::Forget(forgetting.done())
            }
            (BeginStep::Seen, Reply::Counters(Ok(counters))) => {
                self.seen = counters.seen;
                // What was removed was removed before the first.
                if self.stretch.start == 0 {
                    BeginStep::Settle
                } else {
                    BeginStep::Insert
                }
            }
            (BeginStep::Settle, Reply::Answer(Answer::Waited(waited))) => {
                self.has_waited &= waited;
                BeginStep::Insert
            }
            (BeginStep::Insert, Reply::Done(Ok(()))) => BeginStep::Barrier,
            (BeginStep::Tell, Reply::Done(Ok(()))) => BeginStep::BarrierAgain,
            (BeginStep::Barrier, Reply::Answer(Answer::Waited(waited))) => {
                self.has_waited &= waited;
                if self.in_one_go {
                    BeginStep::Census
                } else {
                    self.first_look(self.stretch.start)
                }
            }
            (BeginStep::Census, Reply::Answer(Answer::Census(census))) => {
                // Where it fails, other questions will, or do not.
                let Some(census) = census.ok().flatten() else {
                    return self.begin_stretches();
                };
                self.census = Some(census);
                if self.inserted_namespace {
                    BeginStep::Devices
                } else {
                    self.first_look(self.stretch.start)
                }
            }
            (BeginStep::Devices, Reply::Done(Ok(()))) => self.first_look(self.stretch.start),
            (BeginStep::Look(at, look), reply) => match self.looked(core, at, look, reply) {
                Ok(Some(look)) => BeginStep::Look(at, look),
                Ok(None) => self.next_look(at),
                Err(failure) => return self.fail(failure),
            },
            (BeginStep::BarrierAgain, Reply::Answer(Answer::Waited(waited))) => {
                self.has_waited &= waited;
                BeginStep::SeenAgain
            }
            (BeginStep::SeenAgain, Reply::Counters(Ok(counters))) => {
                if self.has_waited && counters.seen == self.seen {
                    if self.hook == Hook::Function || self.in_one_go {
                        return self.begin_stretch();
                    }
                    BeginStep::Confirm(self.stretch.start)
                } else if self.in_one_go {
                    return self.begin_stretches();
                } else {
                    self.check()
                }
            }
            (BeginStep::Confirm(at), Reply::Answer(Answer::Index(Ok(found)))) => {
                if found == self.items[at].holder.map(|(ifindex, _)| ifindex) {
                    BeginStep::Confirm(at + 1)
                } else {
                    self.check()
                }
            }
            (BeginStep::Confirm(_), Reply::Answer(Answer::Index(Err(error)))) => {
                return self.fail(Failure::Recheck(error));
            }
            (BeginStep::Check(at, check), reply) => match self.checked(at, check, reply) {
                Ok(Some(step)) => step,
                Ok(None) if at + 1 < self.stretch.end => {
                    BeginStep::Check(at + 1, BeginCheck::Index)
                }
                Ok(None) => return self.begin_stretch(),
                Err(failure) => return self.fail(failure),
            },
            (BeginStep::Undo(at, undo), _) => self.undone(core, at, undo),
            (BeginStep::Done, _) => {
                self.entered = false;
                BeginStep::Done
            }
            (
                BeginStep::IsAlive
                | BeginStep::Namespace
                | BeginStep::Room
                | BeginStep::Known
                | BeginStep::Forget(..)
                | BeginStep::Seen
                | BeginStep::Insert
                | BeginStep::Devices
                | BeginStep::Tell
                | BeginStep::SeenAgain
                | BeginStep::Confirm(_),
                reply,
            ) => return self.fail(Failure::Filter(error_of(reply))),
            (
                step @ (BeginStep::Enter
                | BeginStep::Settle
                | BeginStep::Barrier
                | BeginStep::Census
                | BeginStep::BarrierAgain),
                reply,
            ) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                step
            }
        };
    }

    /// Makes sure of each name of the stretch.
    const fn check(&mut self) -> BeginStep {
        self.is_checking = true;
        BeginStep::Check(self.stretch.start, BeginCheck::Index)
    }

    /// What is known of the other watches of the namespace may be wrong as well.
    fn add_all(&mut self, core: &Bpf) {
        let here = |watch: &Watch| watch.netns == self.netns;
        let all = core.watches.range(Watch::first_of(self.netns)..);
        for (watch, _) in all.take_while(|(watch, _)| here(watch)) {
            if !self.items.iter().any(|item| item.name == watch.name) {
                let wants_inode = self.hook == Hook::Socket;
                self.items
                    .push(BeginItem::new(watch.name, wants_inode, true));
            }
        }
    }

    /// A name was looked up; the next one, or what comes after the last.
    fn next_look(&mut self, at: usize) -> BeginStep {
        if self.is_checking {
            // It was begun again alone.
            BeginStep::Check(at, BeginCheck::Index)
        } else {
            self.first_look(at + 1)
        }
    }

    /// Begins to look names up, from this one on.
    fn first_look(&mut self, from: usize) -> BeginStep {
        let Some(census) = &self.census else {
            return if from < self.stretch.end {
                BeginStep::Look(from, BeginLook::Index)
            } else {
                BeginStep::BarrierAgain
            };
        };
        if self.inserted_namespace {
            let next = self.unlinked.pop();
            return next.map_or(BeginStep::Tell, |Unlinked { at, ifindex, id }| {
                BeginStep::Look(at, BeginLook::InsertLink(ifindex, id))
            });
        }
        for at in from..self.stretch.end {
            let item = &mut self.items[at];
            if let Some(Counted { ifindex, inode, .. }) = census.by_name(item.name) {
                // If nothing has changed meanwhile, both are one device's; else all is read again.
                item.inode = inode.filter(|_| item.wants_inode);
                return BeginStep::Look(at, BeginLook::Link(ifindex));
            }
        }
        BeginStep::Tell
    }

    /// It was found out who holds a name, and the programs know that device: they are told now, or
    /// with all the others that are looked up in one go.
    fn found(&mut self, at: usize, ifindex: u32, id: u64) -> Option<BeginLook> {
        if self.census.is_none() {
            return Some(BeginLook::Tell(ifindex, id));
        }
        self.items[at].holder = Some((ifindex, id));
        None
    }

    /// Goes on looking a name up; `None` when that is done.
    fn looked(
        &mut self,
        core: &mut Bpf,
        at: usize,
        look: BeginLook,
        reply: Reply,
    ) -> Result<Option<BeginLook>, Failure> {
        let place = |ifindex| self.place(at, ifindex);
        Ok(match (look, reply) {
            (BeginLook::Index, Reply::Answer(Answer::Index(found))) => {
                match found.map_err(Failure::Recheck)? {
                    Some(ifindex) if self.items[at].wants_inode => Some(BeginLook::Inode(ifindex)),
                    Some(ifindex) => Some(BeginLook::Link(ifindex)),
                    None => None,
                }
            }
            (BeginLook::Inode(ifindex), Reply::Answer(Answer::Identity(found))) => {
                let found = found.map_err(Failure::Recheck)?;
                self.items[at].inode = found.and_then(|found| found.inode_of(ifindex));
                Some(BeginLook::Link(ifindex))
            }
            (BeginLook::Link(ifindex), Reply::Link(Ok(None))) => {
                Some(BeginLook::InsertDevice(ifindex))
            }
            (BeginLook::Link(ifindex), Reply::Link(Ok(Some(id)))) => {
                Some(BeginLook::Device(ifindex, id))
            }
            (BeginLook::Device(ifindex, id), Reply::Device(Ok(device))) => match device {
                Some(device) if device.opened != device.closed => {
                    Some(BeginLook::Device(ifindex, id))
                }
                Some(device) if device.place == place(ifindex) => self.found(at, ifindex, id),
                device if self.items[at].waits < self.most_waits(id, device) => {
                    Some(BeginLook::Barrier)
                }
                _ => Some(BeginLook::RemoveLink(ifindex, id)),
            },
            (BeginLook::Barrier, Reply::Answer(Answer::Waited(_))) => {
                self.items[at].waits += 1;
                Some(BeginLook::Index)
            }
            (BeginLook::RemoveLink(ifindex, id), Reply::Done(Ok(()))) => {
                Some(BeginLook::Settle(ifindex, id))
            }
            (BeginLook::Settle(ifindex, id), Reply::Answer(Answer::Waited(_))) => {
                Some(BeginLook::DeviceAgain(ifindex, id))
            }
            (BeginLook::DeviceAgain(ifindex, id), Reply::Device(Ok(Some(device))))
                if device.opened != device.closed =>
            {
                Some(BeginLook::DeviceAgain(ifindex, id))
            }
            (BeginLook::DeviceAgain(ifindex, id), Reply::Device(device)) => {
                // What could not be read may be anything.
                let device = device.ok().flatten();
                let here = self.link(ifindex);
                let is_here = device.is_none_or(|device| Link::of(&device.place) == here);
                if is_here && !is_word(id, device) || core.has_told(id) {
                    // Whoever holds a name by this id is found again.
                    self.add_all(core);
                }
                Some(if is_here {
                    BeginLook::RemoveDevice(ifindex, id)
                } else {
                    // It went elsewhere meanwhile, and is known there.
                    BeginLook::Index
                })
            }
            (BeginLook::RemoveDevice(ifindex, _), Reply::Done(Ok(()))) => {
                Some(BeginLook::InsertDevice(ifindex))
            }
            (BeginLook::InsertDevice(ifindex), Reply::Done(Ok(()))) => {
                core.devices += 1;
                Some(BeginLook::InsertLink(ifindex, core.ids | USERSPACE_ID))
            }
            (BeginLook::InsertLink(ifindex, id), Reply::Inserted(Ok(inserted))) => {
                if inserted {
                    self.found(at, ifindex, id)
                } else {
                    Some(BeginLook::TakeBack(ifindex, id))
                }
            }
            (BeginLook::TakeBack(ifindex, _), Reply::Done(_)) => {
                core.devices = core.devices.saturating_sub(1);
                Some(BeginLook::Link(ifindex))
            }
            (BeginLook::Tell(ifindex, id), Reply::Done(Ok(()))) => {
                self.items[at].holder = Some((ifindex, id));
                None
            }
            (BeginLook::InsertLink(_, id), reply @ Reply::Inserted(Err(_))) => {
                self.failure = Some(Failure::Filter(error_of(reply)));
                Some(BeginLook::GiveUp(id))
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
    fn checked(
        &mut self,
        at: usize,
        check: BeginCheck,
        reply: Reply,
    ) -> Result<Option<BeginStep>, Failure> {
        let step = match (check, reply) {
            (BeginCheck::Index, Reply::Answer(Answer::Index(found))) => {
                BeginCheck::Barrier(found.map_err(Failure::Recheck)?)
            }
            // What the answer saw of a change that had not ended yet has ended now, and is counted.
            (BeginCheck::Barrier(found), Reply::Answer(Answer::Waited(_))) => {
                BeginCheck::State(found)
            }
            (BeginCheck::State(found), Reply::Name(Ok(Some(state)))) => {
                let holder = (state.ifindex != 0).then_some((state.ifindex, state.id));
                if !is_whole(&state) {
                    BeginCheck::State(found)
                } else if holder.map(|(ifindex, _)| ifindex) != found {
                    return Ok(self.settle(at, None));
                } else if let Some((ifindex, id)) = holder
                    && state.opened == 0
                {
                    BeginCheck::Holder(ifindex, id)
                } else {
                    return Ok(self.settle(at, Some((state.opened, holder))));
                }
            }
            (BeginCheck::Holder(ifindex, id), Reply::Link(Ok(link))) => {
                let is_known = link == Some(id);
                if is_known && self.hook == Hook::Socket {
                    BeginCheck::Confirm(ifindex, id)
                } else {
                    return Ok(self.settle(at, is_known.then_some((0, Some((ifindex, id))))));
                }
            }
            (BeginCheck::Confirm(ifindex, id), Reply::Answer(Answer::Index(found))) => {
                let stays = found.map_err(Failure::Recheck)? == Some(ifindex);
                return Ok(self.settle(at, stays.then_some((0, Some((ifindex, id))))));
            }
            (BeginCheck::Insert, Reply::Done(Ok(()))) => {
                return Ok(Some(BeginStep::Look(at, BeginLook::Index)));
            }
            (_, reply) => return Err(Failure::Filter(error_of(reply))),
        };
        Ok(Some(BeginStep::Check(at, step)))
    }

    /// What the programs know of a name is true: after how many changes, and who holds it. Or not;
    /// then it is begun again. What is left to do.
    fn settle(&mut self, at: usize, state: Option<(u64, Option<(u32, u64)>)>) -> Option<BeginStep> {
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
        (item.rounds <= ROUNDS).then_some(BeginStep::Check(at, BeginCheck::Insert))
    }

    /// Goes on taking back what was done, whether that can be done or not.
    fn undone(&mut self, core: &mut Bpf, at: usize, undo: BeginUndo) -> BeginStep {
        match undo {
            BeginUndo::Device => {
                self.unlinked.pop();
                core.devices = core.devices.saturating_sub(1);
                BeginStep::Undo(at, BeginUndo::Device)
            }
            BeginUndo::Name => BeginStep::Undo(at + 1, BeginUndo::Name),
            BeginUndo::Namespace => {
                core.namespaces.remove(&self.netns);
                BeginStep::Undo(at, BeginUndo::Leave)
            }
            BeginUndo::Leave => {
                self.entered = false;
                BeginStep::Done
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
                // A device that a program on a function saw come has the id that it gave it.
                let is_seen = core.hook == Hook::Function && !is_own(id);
                let before = core.watches.get(&watch).filter(|known| {
                    let is_unknown = !is_seen && !core.identities.knows(known.id);
                    item.is_again && known.ifindex == ifindex && is_unknown
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
                ReportedName {
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

impl BeginItem {
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

/// Did userspace give out this id?
const fn is_own(id: u64) -> bool {
    id & USERSPACE_ID != 0
}

/// How many of these devices are of userspace's finding.
pub(super) fn count_own(devices: &[(u64, DeviceState)]) -> usize {
    devices.iter().filter(|(id, _)| is_own(*id)).count()
}

/// Is it userspace's word where the device is, which may have been out of date when it was entered?
/// No program has written it since.
fn is_word(id: u64, device: Option<DeviceState>) -> bool {
    is_own(id) && device.is_some_and(|device| device.opened == 0)
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
