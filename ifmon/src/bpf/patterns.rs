//! Patterns, with BPF: what the programs are told of them, and what they tell.
//!
//! The programs compare names with masks, and remember of each device that passed what it is
//! called. So they hear of what it does next, also where a link message has the new name alone; of
//! any other device they hear nothing. They are over-cautious at most: what a record means is
//! decided in [`PatternTable`]. Each record has the count of those about its namespace, so that a
//! loss shows there.
//!
//! While it is read which devices there are, the programs let everything through. What they are then
//! told of each device is that it may match, and not its name, so that whatever it is called next is
//! told at least once, be what they were told out of date or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::SystemTime,
};

use ifmon_ebpf::{Link, MASKS, Name, NameMask, PatternSet, Record, flag};

use super::{
    Reply, Request,
    core::{Bpf, Hook, Task, place},
};
use crate::{
    Actor, Error, InterfaceName, LinkKind, NetnsId, Pattern,
    machine::{Answer, Named, Outcome, Question},
    pattern::{Mask, kind_masks, table::PatternTable},
    signal::Signal,
    tracker::{Place, Watch},
};

/// The patterns of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    spaces: BTreeMap<NetnsId, Space>,
    /// Namespaces about whose patterns records may be lost.
    suspects: BTreeSet<NetnsId>,
    /// What is said when the step is done that takes patterns from the programs.
    outcome: Option<Outcome>,
}

/// The patterns of one namespace.
#[derive(Debug, Default)]
struct Space {
    table: PatternTable,
    /// The programs count for it.
    is_counted: bool,
    epoch: u32,
    /// The changes that were delivered or accounted for.
    count: u64,
    /// What the programs know of its devices may be wrong, or is nothing yet.
    must_open: bool,
    /// They let everything through, until they know the devices.
    closes: bool,
    is_open: bool,
    /// Patterns begin.
    joins: bool,
}

/// What is done about the patterns of a namespace.
#[derive(Debug)]
pub(super) enum Step {
    State,
    Open,
    /// What they know of devices counts for nothing: that one was deleted may have been missed, and
    /// another one can have its index and its name.
    Clear,
    /// No program runs any more that began before.
    Wait,
    /// How many changes were there?
    Count,
    /// Which devices are there?
    Read,
    /// These may match.
    Mark(Vec<u32>),
    Close,
    Settle,
    /// There are fewer patterns.
    Narrow,
    /// There are none.
    Remove,
    RemoveWait,
    RemoveMatching,
    Namespace,
    Leave,
}

/// A device that matched went to the namespace that has this id in the numbering of its own.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) netns: NetnsId,
    pub(super) nsid: i32,
    ifindex: u32,
    to_ifindex: Option<u32>,
    time: SystemTime,
    by: Option<Actor>,
}

impl Patterns {
    /// How much is remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        let spaces = self.spaces.values();
        spaces.map(|space| space.table.remembered()).sum()
    }

    /// Patterns begin, for which there is a namespace soon.
    pub(super) fn add(&mut self, netns: NetnsId, patterns: Vec<Pattern>) {
        let space = self.spaces.entry(netns).or_default();
        space.table.add(patterns);
        space.joins = true;
        space.must_open = true;
    }

    /// There is no namespace for those that were to begin.
    pub(super) fn give_up(&mut self, netns: NetnsId) {
        if let Some(space) = self.spaces.get_mut(&netns) {
            space.give_up();
            if space.table.is_empty() {
                self.spaces.remove(&netns);
            }
        }
    }

    /// Ends a watch; what is to be done about it.
    pub(super) fn remove(&mut self, netns: NetnsId, pattern: &Pattern) -> Option<Step> {
        let space = self.spaces.get_mut(&netns)?;
        space.table.remove(pattern);
        self.outcome = Some(Outcome::Unwatched);
        Some(if space.table.is_empty() {
            Step::Remove
        } else {
            Step::Narrow
        })
    }

    pub(super) fn are_joining(&self, netns: NetnsId) -> bool {
        self.spaces.get(&netns).is_some_and(|space| space.joins)
    }

    /// Is it known that nothing was missed?
    pub(super) fn are_certain(&self) -> bool {
        let mut spaces = self.spaces.values();
        self.suspects.is_empty() && spaces.all(|space| space.table.is_certain() && !space.closes)
    }

    /// Something is lost, and nobody knows yet whom it was about.
    pub(super) fn suspect_all(&mut self) {
        let counted = self.spaces.iter().filter(|(_, space)| space.is_counted);
        self.suspects.extend(counted.map(|(&netns, _)| netns));
    }

    /// The program may have missed something about the namespace.
    pub(super) fn missed(&mut self, netns: NetnsId) {
        if let Some(space) = self.spaces.get_mut(&netns) {
            space.table.lost(None);
            space.must_open = true;
        }
    }

    /// What there is to do. `is_all`: every record came that was counted.
    pub(super) fn next(&mut self, is_all: bool) -> Option<(NetnsId, Step)> {
        if let Some(netns) = self.suspects.pop_first() {
            return Some((netns, Step::Count));
        }
        self.spaces.iter_mut().find_map(|(&netns, space)| {
            let step = if space.table.is_reading() {
                let is_ready = is_all || space.table.question().is_some();
                is_ready.then_some(Step::Read)
            } else if space.table.needs_table() {
                Some(if space.must_open {
                    Step::Open
                } else {
                    Step::Read
                })
            } else {
                let mark = || Step::Mark(space.table.indexes().collect());
                space.closes.then(mark)
            };
            Some((netns, step?))
        })
    }

    /// The same when there is nothing else to do.
    pub(super) fn identify(&mut self) -> Option<(NetnsId, Step)> {
        self.spaces
            .iter_mut()
            .find_map(|(&netns, space)| space.table.identify().then_some((netns, Step::Read)))
    }

    /// Is this a change of the namespace that was not accounted for? A later one than the next
    /// shows a gap.
    fn is_news(&mut self, netns: u32, epoch: u32, count: u64) -> Option<&mut PatternTable> {
        let space = self.spaces.get_mut(&NetnsId(netns))?;
        if epoch != space.epoch || count <= space.count {
            return None;
        }
        let lost = count - space.count - 1;
        space.count = count;
        if lost > 0 {
            space.table.lost(Some(lost));
        }
        Some(&mut space.table)
    }
}

impl Space {
    fn give_up(&mut self) {
        self.table.remove_new();
        self.joins = false;
    }

    fn set(&self) -> Box<PatternSet> {
        let of = |found: Vec<Mask>| {
            let mut masks = [NameMask::NOTHING; MASKS];
            for (to, mask) in masks.iter_mut().zip(found) {
                *to = NameMask {
                    bytes: Name::from_bytes(mask.bytes),
                    mask: Name::from_bytes(mask.mask),
                };
            }
            masks
        };
        Box::new(PatternSet {
            masks: of(self.table.masks(MASKS)),
            kinds: of(kind_masks(&self.table.kinds(), MASKS)),
            open: u32::from(self.is_open),
            epoch: self.epoch,
        })
    }
}

impl Bpf {
    /// Is the namespace needed for patterns?
    pub(super) fn has_patterns(&self, netns: NetnsId) -> bool {
        let space = self.patterns.spaces.get(&netns);
        space.is_some_and(|space| space.is_counted)
    }

    /// What is to be asked for this step; `None` when it needs nothing, or another one comes first.
    pub(super) fn next_of_patterns(&mut self, netns: NetnsId, step: &Step) -> Option<Request> {
        let ask = |question| Some(Request::Ask(netns, question));
        let space = self.patterns.spaces.get_mut(&netns)?;
        let next = match step {
            Step::State if space.is_counted => Step::Open,
            Step::State => return Some(Request::InsertPatternState(netns)),
            Step::Open => {
                space.is_open = true;
                return Some(Request::InsertPatterns(netns, space.set()));
            }
            Step::Wait | Step::Settle | Step::RemoveWait => return ask(Question::Barrier),
            Step::Count => return Some(Request::PatternState(netns)),
            Step::Read => {
                if !space.table.is_reading() {
                    space.table.read_table();
                }
                if let Some(question) = space.table.question() {
                    return ask(question);
                }
                space.table.finish();
                self.say_patterns(netns, self.time, None);
                return None;
            }
            Step::Mark(left) => match left.last() {
                Some(&ifindex) => {
                    let netns = netns.0;
                    return Some(Request::InsertMatching(Link { netns, ifindex }));
                }
                None => Step::Close,
            },
            Step::Close => {
                space.is_open = false;
                return Some(Request::InsertPatterns(netns, space.set()));
            }
            Step::Narrow => return Some(Request::InsertPatterns(netns, space.set())),
            Step::Remove => return Some(Request::RemovePatterns(netns)),
            Step::Clear | Step::RemoveMatching => return Some(Request::RemoveMatching(netns)),
            Step::Namespace => return Some(Request::RemoveNamespace(netns)),
            Step::Leave => return Some(Request::Leave(netns)),
        };
        self.task = Some(Task::Patterns(netns, next));
        None
    }

    /// What follows from an answer: the next step, if there is any.
    pub(super) fn patterns_answered(
        &mut self,
        netns: NetnsId,
        step: Step,
        reply: Reply,
    ) -> Option<Step> {
        let space = self.patterns.spaces.get_mut(&netns)?;
        match (step, reply) {
            (Step::State, Reply::Done(Ok(()))) => {
                self.epoch = self.epoch.wrapping_add(1);
                space.is_counted = true;
                space.epoch = self.epoch;
                space.count = 0;
                Some(Step::Open)
            }
            (Step::Open, Reply::Done(Ok(()))) => {
                space.closes = true;
                Some(Step::Clear)
            }
            (Step::Clear, Reply::Done(Ok(()))) => {
                space.must_open = false;
                Some(Step::Wait)
            }
            (Step::State | Step::Open | Step::Clear, Reply::Done(Err(error))) => {
                space.is_open = false;
                if space.joins {
                    return self.refuse_patterns(netns, Error::Filter(error));
                }
                self.trouble(error);
                None
            }
            (Step::Wait, Reply::Answer(_)) => {
                // What was sent before is not all that happened, and comes before anything is read.
                self.read_again();
                None
            }
            (Step::Count, Reply::PatternState(Ok(Some(state)))) => {
                if let Some(lost) = state.changes.checked_sub(space.count)
                    && lost > 0
                {
                    space.count = state.changes;
                    space.table.lost(Some(lost));
                }
                None
            }
            (Step::Count, Reply::PatternState(state)) => {
                let error = state.err();
                self.trouble(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
                None
            }
            (Step::Read, Reply::Answer(answer)) => {
                let result = space.table.answer(answer);
                let is_answered = space.table.question().is_none();
                match result {
                    Ok(()) if is_answered => self.read_again(),
                    Ok(()) => {}
                    Err(error) if space.joins => {
                        return self.refuse_patterns(netns, Error::Recheck(error));
                    }
                    Err(error) => {
                        space.table.abandon();
                        self.trouble(error);
                    }
                }
                None
            }
            (Step::Mark(mut left), Reply::Done(Ok(()))) => {
                left.pop();
                Some(Step::Mark(left))
            }
            (Step::Close, Reply::Done(Ok(()))) => Some(Step::Settle),
            // There is no room for all of them: everything is let through from now on.
            (Step::Mark(_), Reply::Done(Err(error))) => {
                log::warn!("the programs let every interface through from now on: {error}");
                self.have_begun(netns);
                None
            }
            (Step::Close, Reply::Done(Err(error))) => {
                log::warn!("the programs let every interface through from now on: {error}");
                space.is_open = true;
                self.have_begun(netns);
                None
            }
            (Step::Settle, _) => {
                self.have_begun(netns);
                None
            }
            (Step::Narrow, _) => {
                self.outcome = self.patterns.outcome.take();
                None
            }
            (Step::Remove, _) => Some(Step::RemoveWait),
            (Step::RemoveWait, _) => Some(Step::RemoveMatching),
            (Step::RemoveMatching, _) => {
                let watch = self.watches.range(Watch::first_of(netns)..).next();
                let has_names = watch.is_some_and(|(watch, _)| watch.netns == netns);
                if !has_names && self.namespaces.remove(&netns).is_some() {
                    Some(Step::Namespace)
                } else if self.hook == Hook::Function {
                    Some(Step::Leave)
                } else {
                    self.have_ended(netns)
                }
            }
            (Step::Namespace, _) => Some(Step::Leave),
            (Step::Leave, _) => self.have_ended(netns),
            (step, reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                None
            }
        }
    }

    /// The patterns that were to begin do not: nothing is left of them.
    fn refuse_patterns(&mut self, netns: NetnsId, error: Error) -> Option<Step> {
        let space = self.patterns.spaces.get_mut(&netns)?;
        space.give_up();
        let outcome = Outcome::Watched(Err(error));
        if space.table.is_empty() {
            self.patterns.outcome = Some(outcome);
            return Some(Step::Remove);
        }
        // What the others were told meanwhile is all that there was; the programs are told of them
        // anew.
        space.table.lost(None);
        self.outcome = Some(outcome);
        None
    }

    /// The programs know what they need to.
    fn have_begun(&mut self, netns: NetnsId) {
        let Some(space) = self.patterns.spaces.get_mut(&netns) else {
            return;
        };
        space.closes = false;
        if std::mem::take(&mut space.joins) {
            space.table.begin();
            self.say_patterns(netns, self.time, None);
            self.outcome = Some(Outcome::Watched(Ok(Vec::new())));
        }
    }

    /// No pattern of the namespace is watched any more.
    fn have_ended(&mut self, netns: NetnsId) -> Option<Step> {
        self.patterns.spaces.remove(&netns);
        self.patterns.suspects.remove(&netns);
        self.outcome = self.patterns.outcome.take();
        None
    }

    /// Takes what a record says of patterns.
    pub(super) fn record_of_patterns(
        &mut self,
        record: &Record,
        time: SystemTime,
        by: Option<&Actor>,
    ) {
        let Record { from, to, .. } = record;
        let (from_netns, to_netns) = (NetnsId(from.netns), NetnsId(to.netns));
        if record.flags & flag::LEFT_PATTERN != 0
            && let Some(table) =
                self.patterns
                    .is_news(from.netns, record.left_epoch, record.left_count)
        {
            if record.flags & flag::MOVED == 0 {
                table.gone(from.ifindex, None, place(to));
                self.say_patterns(from_netns, time, by);
            } else if table.knows(from.ifindex) {
                self.half_gone = Some(Gone {
                    netns: from_netns,
                    nsid: record.nsid,
                    ifindex: from.ifindex,
                    to_ifindex: Some(to.ifindex).filter(|&ifindex| ifindex != 0),
                    time,
                    by: by.cloned(),
                });
            } else {
                table.gone(from.ifindex, None, None);
            }
        }
        if record.flags & flag::TOOK_PATTERN != 0
            && let Some(name) = InterfaceName::from_kernel(&to.name.to_bytes())
            && let Some(table) =
                self.patterns
                    .is_news(to.netns, record.took_epoch, record.took_count)
        {
            let kind = LinkKind::from_kernel(&record.kind.to_bytes());
            table.exists(
                to.ifindex,
                Named { name, kind },
                record.flags & flag::NEW != 0,
            );
            self.say_patterns(to_netns, time, by);
        }
    }

    /// The rest of a record.
    pub(super) fn gone_elsewhere(&mut self, answer: Answer) {
        if let (
            Some(Gone {
                netns,
                ifindex,
                to_ifindex,
                time,
                by,
                ..
            }),
            Answer::Netns(to),
        ) = (self.half_gone.take(), answer)
            && let Some(space) = self.patterns.spaces.get_mut(&netns)
        {
            let place = Place {
                netns: to,
                ifindex: to_ifindex,
                name: None,
            };
            space.table.gone(ifindex, None, Some(place));
            self.say_patterns(netns, time, by.as_ref());
        }
    }

    /// A namespace has ended, and its patterns with it.
    pub(super) fn patterns_gone(&mut self, netns: NetnsId, time: SystemTime, by: Option<&Actor>) {
        // Those that begin are of the one that has its number now.
        if let Some(space) = self.patterns.spaces.get_mut(&netns)
            && space.is_counted
        {
            space.table.netns_gone();
            self.say_patterns(netns, time, by);
            self.patterns.spaces.remove(&netns);
            self.patterns.suspects.remove(&netns);
        }
    }

    fn say_patterns(&mut self, netns: NetnsId, time: SystemTime, by: Option<&Actor>) {
        let Some(space) = self.patterns.spaces.get_mut(&netns) else {
            return;
        };
        while let Some(told) = space.table.take() {
            self.said.push_back(Signal::Pattern {
                netns,
                told,
                time,
                by: by.cloned(),
            });
        }
    }
}
