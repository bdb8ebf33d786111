//! Patterns of all namespaces, with tracing.
//!
//! The programs begin to count in a namespace with the first change in it, which for one that is new
//! is its loopback device, and end with its last. What matches there they know from the beginning,
//! and so, after a loss, their maps say what is true: nobody has to enter the namespace, and it is
//! not kept alive. Those that there are at the start are entered once, one after the other, to read
//! which devices they have.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::SystemTime,
};

use ifmon_ebpf::{KERNEL_EPOCH, LOOPBACK_IFINDEX, Record, flag};

use super::{
    Reply, Request,
    core::Bpf,
    patterns::{Space, set},
};
use crate::{
    Actor, Error, EventKind, NetnsId, Pattern,
    machine::{Answer, Command, Machine as _, Outcome, Question},
    pattern::table::{PatternTable, PatternVerdict},
    signal::Signal,
};

/// The patterns of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Everywhere {
    pub(super) is_on: bool,
    patterns: Vec<Pattern>,
    has_begun: bool,
    /// Their watches have ended, and it is not known that no device is between two namespaces since
    /// then: what the programs tell of it would be taken for news of the next.
    is_moving: bool,
    /// Namespaces that there were at the start, and that were not entered yet.
    pub(super) left: Vec<NetnsId>,
    /// The one that is entered.
    pub(super) entered: Option<NetnsId>,
    /// There may be namespaces of which nothing was heard, and others may have ended.
    pub(super) must_count: bool,
    /// Namespaces that have ended while everything was let through in them.
    pub(super) ended: Vec<NetnsId>,
    /// It was said that some are not read.
    pub(super) is_refused: bool,
    /// Why they do not begin.
    refused: Option<Error>,
}

/// What is done about all namespaces.
#[derive(Debug)]
pub(super) enum EverywhereStep {
    /// Of which namespaces do the programs know something still, after a watch that was refused?
    Leftovers,
    /// That is removed: what it says of their devices may be out of date.
    Clear(VecDeque<Request>),
    State,
    Set,
    /// Which namespaces are there?
    List,
    /// How much has happened in each of those that the programs know?
    Count,
    /// This one has ended while everything was let through in it.
    Forget(NetnsId),
    /// Of the one that was entered all is known.
    Exit(NetnsId),
    /// They are fewer.
    Narrow,
    /// Whoever still reads what they were before is done.
    Settle(NetnsId),
    /// They do not begin, or have ended: nothing is left of them when this is done,
    Undo(Option<Error>, VecDeque<Request>),
    /// and whoever still reads what they were is done, too. This can be waited for,
    Undone(Option<Error>),
    /// and then nothing is known of a device that was between two namespaces.
    Forgotten(Option<Error>),
}

impl EverywhereStep {
    /// Does nobody wait for it?
    pub(super) const fn is_background(&self) -> bool {
        matches!(self, Self::Count | Self::Forget(_) | Self::Exit(_))
    }
}

impl Everywhere {
    /// What is watched in one namespace.
    pub(super) fn table(&self, is_read: bool) -> PatternTable {
        let mut table = PatternTable::default();
        table.adopt(self.patterns.iter().cloned(), self.has_begun, is_read);
        table
    }

    /// One with this epoch, in which so much has happened; one that is new has no device yet.
    fn space(&self, epoch: u32, count: u64, is_new: bool) -> Space {
        Space::of_all(self.table(is_new), !is_new).counted(epoch, count)
    }
}

impl Bpf {
    /// Begins to watch patterns in all namespaces.
    pub(super) fn begin_everywhere(&mut self, patterns: Vec<Pattern>) -> Option<EverywhereStep> {
        if self.patterns.are_any() {
            self.outcome = Some(Outcome::Watched(Err(Error::AllNamespaces)));
            return None;
        }
        let is_moving = self.patterns.everywhere.is_moving;
        self.patterns.everywhere = Everywhere {
            is_on: true,
            patterns,
            is_moving,
            ..Everywhere::default()
        };
        Some(if is_moving {
            EverywhereStep::Undone(None)
        } else {
            EverywhereStep::Leftovers
        })
    }

    /// Ends the watch of one of them; what is to be done about it.
    pub(super) fn end_everywhere(&mut self, pattern: &Pattern) -> Option<EverywhereStep> {
        let everywhere = &mut self.patterns.everywhere;
        if !everywhere.is_on {
            self.outcome = Some(Outcome::Unwatched);
            return None;
        }
        everywhere.patterns.retain(|other| other != pattern);
        for space in self.patterns.spaces.values_mut() {
            space.table.remove(pattern);
        }
        Some(if self.patterns.everywhere.patterns.is_empty() {
            self.undo_everywhere(None)
        } else {
            EverywhereStep::Narrow
        })
    }

    pub(super) fn next_everywhere(&mut self, step: &EverywhereStep) -> Request {
        match step {
            EverywhereStep::State => Request::InsertPatternState(NetnsId::ALL, 0),
            EverywhereStep::Set | EverywhereStep::Narrow => {
                let table = self.patterns.everywhere.table(true);
                Request::InsertPatterns(NetnsId::ALL, set(&table, false))
            }
            EverywhereStep::List => Request::Namespaces,
            EverywhereStep::Leftovers | EverywhereStep::Count => Request::PatternStates,
            &EverywhereStep::Forget(netns) => Request::RemovePatterns(netns),
            &EverywhereStep::Exit(netns) => Request::Leave(netns),
            &EverywhereStep::Settle(netns) => Request::Ask(netns, Question::Barrier),
            EverywhereStep::Undone(_) => Request::Ask(NetnsId::ALL, Question::Barrier),
            EverywhereStep::Forgotten(_) => Request::RemoveLeaving,
            // There is something in it.
            EverywhereStep::Clear(left) | EverywhereStep::Undo(_, left) => {
                left.front().cloned().unwrap_or(Request::Namespaces)
            }
        }
    }

    /// What follows from an answer: the next step, if there is any.
    pub(super) fn everywhere_answered(
        &mut self,
        step: EverywhereStep,
        reply: Reply,
    ) -> Option<EverywhereStep> {
        match (step, reply) {
            (EverywhereStep::Leftovers, Reply::PatternStates(Ok(states))) => {
                // Of all first: whoever was still writing then can have left something where nothing is
                // counted.
                let counted = states.into_iter().map(|(netns, _)| netns);
                let all = std::iter::once(NetnsId::ALL).chain(counted);
                Some(clear(all.flat_map(remove).collect()))
            }
            (EverywhereStep::Leftovers, Reply::PatternStates(Err(error))) => {
                Some(self.undo_everywhere(Some(Error::Filter(error))))
            }
            (EverywhereStep::Clear(mut left), _) => {
                left.pop_front();
                Some(clear(left))
            }
            (EverywhereStep::State, Reply::Done(Ok(()))) => Some(EverywhereStep::Set),
            // Before the look: a namespace that is there by then, and that the programs do not know,
            // is found by it.
            (EverywhereStep::Set, Reply::Done(Ok(()))) => Some(EverywhereStep::List),
            (EverywhereStep::State | EverywhereStep::Set, Reply::Done(Err(error))) => {
                Some(self.undo_everywhere(Some(Error::Filter(error))))
            }
            (EverywhereStep::List, Reply::Namespaces(Ok(all))) => {
                self.patterns.everywhere.left = all;
                // Those that are new were told by then.
                self.read_again();
                None
            }
            (EverywhereStep::List, Reply::Namespaces(Err(error))) => {
                Some(self.undo_everywhere(Some(Error::Recheck(error))))
            }
            (EverywhereStep::Count, Reply::PatternStates(Ok(states))) => {
                self.patterns.everywhere.must_count = false;
                let states: BTreeMap<_, _> = states.into_iter().collect();
                let known = self.patterns.spaces.iter();
                let suspects = known.filter(|(netns, space)| {
                    let state = states.get(netns);
                    space.is_counted
                        && state.is_none_or(|state| {
                            (state.epoch, state.changes) != (space.epoch, space.count)
                        })
                });
                // Each is asked once more: one can have ended or begun meanwhile.
                let suspects = suspects.map(|(&netns, _)| netns).collect::<Vec<_>>();
                self.patterns.suspects.extend(suspects);
                for (netns, state) in states {
                    if netns != NetnsId::ALL && !self.patterns.spaces.contains_key(&netns) {
                        let space = self.patterns.everywhere.space(state.epoch, 0, false);
                        let space = space.unheard(state.changes);
                        self.patterns.spaces.insert(netns, space);
                        self.read_again();
                    }
                }
                None
            }
            (EverywhereStep::Count, Reply::PatternStates(Err(error))) => {
                self.trouble(error);
                None
            }
            (EverywhereStep::Forget(_), _) => None,
            (EverywhereStep::Exit(netns), _) => {
                self.patterns.everywhere.entered = None;
                // Everything was heard by then.
                if let Some(space) = self.patterns.spaces.get_mut(&netns) {
                    space.is_sure = true;
                }
                None
            }
            (EverywhereStep::Narrow, _) => {
                let anywhere = self.patterns.spaces.keys().next();
                Some(EverywhereStep::Settle(*anywhere.unwrap_or(&NetnsId::ALL)))
            }
            (EverywhereStep::Settle(_), _) => {
                self.outcome = Some(Outcome::Unwatched);
                None
            }
            (EverywhereStep::Undo(error, mut left), reply) => {
                left.pop_front();
                // Those that the programs have found meanwhile.
                if let Reply::PatternStates(Ok(states)) = reply {
                    left.extend(states.into_iter().flat_map(|(netns, _)| remove(netns)));
                }
                Some(if left.is_empty() {
                    EverywhereStep::Undone(error)
                } else {
                    EverywhereStep::Undo(error, left)
                })
            }
            (EverywhereStep::Undone(error), Reply::Answer(Answer::Waited(true))) => {
                Some(EverywhereStep::Forgotten(error))
            }
            (EverywhereStep::Undone(error) | EverywhereStep::Forgotten(error), reply) => {
                let is_moving = !matches!(reply, Reply::Done(Ok(())));
                let error = if !self.patterns.everywhere.is_moving {
                    error
                } else if is_moving {
                    let why = "changes that are under way cannot be waited for";
                    Some(Error::Recheck(io::Error::other(why)))
                } else {
                    // The last ones are over only now, and what was told of them is read first.
                    let Everywhere { patterns, .. } = std::mem::take(&mut self.patterns.everywhere);
                    let netns = NetnsId::ALL;
                    self.command(Command::WatchPatterns { netns, patterns });
                    return None;
                };
                self.patterns.everywhere = Everywhere {
                    is_moving,
                    ..Everywhere::default()
                };
                self.patterns.spaces.clear();
                self.patterns.suspects.clear();
                self.outcome = Some(match error {
                    Some(error) => Outcome::Watched(Err(error)),
                    None => Outcome::Unwatched,
                });
                None
            }
            (step, reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                None
            }
        }
    }

    /// One of the namespaces that there were cannot be watched.
    pub(super) fn refuse_everywhere(&mut self, error: Error) {
        self.patterns.everywhere.refused = Some(error);
    }

    /// What there is to do about all namespaces, before anything is done about one. `is_all`: every
    /// record came that was counted.
    pub(super) fn next_of_everywhere(&mut self, is_all: bool) -> Option<EverywhereStep> {
        if let Some(error) = self.patterns.everywhere.refused.take() {
            return Some(self.undo_everywhere(Some(error)));
        }
        if !self.patterns.suspects.is_empty() {
            return None;
        }
        let everywhere = &mut self.patterns.everywhere;
        if everywhere.must_count {
            return Some(EverywhereStep::Count);
        }
        if let Some(netns) = everywhere.ended.pop() {
            return Some(EverywhereStep::Forget(netns));
        }
        let entered = everywhere.entered.filter(|_| is_all)?;
        let space = self.patterns.spaces.get(&entered);
        space
            .is_none_or(Space::is_settled)
            .then_some(EverywhereStep::Exit(entered))
    }

    fn undo_everywhere(&self, error: Option<Error>) -> EverywhereStep {
        // First that of all, so that no more are found.
        let all = std::iter::once(NetnsId::ALL).chain(self.patterns.spaces.keys().copied());
        let Everywhere { entered, ended, .. } = &self.patterns.everywhere;
        let all = all.chain(ended.iter().copied());
        let left = all.flat_map(remove).chain([Request::PatternStates]);
        EverywhereStep::Undo(error, left.chain(entered.map(Request::Leave)).collect())
    }

    /// Have they begun?
    pub(super) const fn is_everywhere(&self) -> bool {
        self.patterns.everywhere.has_begun
    }

    /// All namespaces that there were have been entered: then the patterns are watched.
    pub(super) fn have_begun_everywhere(&mut self) -> bool {
        let everywhere = &self.patterns.everywhere;
        let is_due = everywhere.is_on && !everywhere.has_begun && everywhere.entered.is_none();
        if !is_due || !self.patterns.are_certain() {
            return false;
        }
        self.patterns.everywhere.has_begun = true;
        for space in self.patterns.spaces.values_mut() {
            space.table.begin_silently();
            space.is_sure = true;
        }
        for pattern in &self.patterns.everywhere.patterns {
            let spaces = self.patterns.spaces.values();
            let matches = spaces.map(|space| space.table.matches(pattern)).sum();
            self.said.push_back(Signal::Pattern {
                netns: NetnsId::ALL,
                told: PatternVerdict {
                    pattern: pattern.clone(),
                    name: None,
                    link_kind: None,
                    kind: EventKind::Watching { ifindex: None },
                    recovered: false,
                    matches: Some(matches),
                },
                time: self.time,
                by: None,
            });
        }
        self.outcome = Some(Outcome::Watched(Ok(Vec::new())));
        true
    }

    /// What a record says of the namespace where the device is now, or was.
    pub(super) fn record_of_namespace(
        &mut self,
        record: &Record,
        time: SystemTime,
        by: Option<&Actor>,
    ) {
        if !self.patterns.everywhere.is_on {
            return;
        }
        if record.flags & flag::LEFT_PATTERN != 0 {
            let (netns, epoch) = (record.from.netns, record.left_epoch);
            self.heard_of(netns, epoch, before(record.left_count), false, time, by);
        }
        if record.flags & (flag::TOOK_PATTERN | flag::FOUND_NETNS) == 0 {
            return;
        }
        if record.took_epoch == 0 {
            uncounted(NetnsId(record.to.netns));
            return;
        }
        let (netns, epoch) = (record.to.netns, record.took_epoch);
        let is_first = record.flags & flag::FOUND_NETNS != 0;
        let is_new =
            is_first && record.flags & flag::NEW != 0 && record.to.ifindex == LOOPBACK_IFINDEX;
        self.heard_of(netns, epoch, before(record.took_count), is_new, time, by);
    }

    /// Something was heard of the namespace with this epoch, before which so much had happened if it
    /// is not known.
    fn heard_of(
        &mut self,
        netns: u32,
        epoch: u32,
        count: u64,
        is_new: bool,
        time: SystemTime,
        by: Option<&Actor>,
    ) {
        let netns = NetnsId(netns);
        match self.patterns.spaces.get(&netns) {
            Some(space) if space.is_counted && !is_later(epoch, space.epoch) => return,
            // That it had ended was lost.
            Some(_) => self.patterns_gone(netns, time, by),
            None => {}
        }
        let space = self.patterns.everywhere.space(epoch, count, is_new);
        self.patterns.spaces.insert(netns, space);
    }
}

/// The programs have no room for this one.
pub(super) fn uncounted(netns: NetnsId) {
    log::warn!(
        "there is no room for more network namespaces; interfaces in {netns} are not watched"
    );
}

/// How much had happened before the change with this count: it is news itself. One that concerns no
/// pattern was not counted.
const fn before(count: u64) -> u64 {
    count.saturating_sub(1)
}

/// The patterns begin when all of this is removed.
fn clear(left: VecDeque<Request>) -> EverywhereStep {
    if left.is_empty() {
        EverywhereStep::State
    } else {
        EverywhereStep::Clear(left)
    }
}

/// What takes from the programs what they know of a namespace.
fn remove(netns: NetnsId) -> [Request; 3] {
    [
        Request::RemovePatterns(netns),
        Request::RemovePatternState(netns),
        Request::RemoveMatching(netns),
    ]
}

/// Is this the epoch of a namespace that came after the one with the other? Those that userspace
/// gives are of namespaces that were there before.
fn is_later(one: u32, other: u32) -> bool {
    match (one & KERNEL_EPOCH != 0, other & KERNEL_EPOCH != 0) {
        (true, true) => one != other && one.wrapping_sub(other) & KERNEL_EPOCH == 0,
        (is_kernels, others_is) => is_kernels && !others_is,
    }
}

#[cfg(test)]
mod tests;
