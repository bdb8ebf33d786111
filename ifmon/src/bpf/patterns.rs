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

use ifmon_ebpf::{Link, MASKS, Match, Name, NameMask, PatternSet, Record, flag};

use super::{
    Matching, Reply, Request,
    core::{Bpf, Hook, Task, place},
    everywhere::{Everywhere, uncounted},
};
use crate::{
    Actor, Error, EventKind, InterfaceName, LinkKind, NetnsId, Pattern,
    machine::{Answer, LinkTable, Named, Outcome, Question},
    pattern::{Mask, kind_masks, table::PatternTable},
    retry,
    signal::Signal,
    tracker::{Destination, Watch},
};

/// The patterns of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    pub(super) spaces: BTreeMap<NetnsId, Space>,
    /// Namespaces about whose patterns records may be lost.
    pub(super) suspects: BTreeSet<NetnsId>,
    /// What is said when the step is done that takes patterns from the programs.
    outcome: Option<Outcome>,
    pub(super) everywhere: Everywhere,
}

/// The patterns of one namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) table: PatternTable,
    /// They are the patterns of all namespaces.
    is_of_all: bool,
    /// The programs count for it.
    pub(super) is_counted: bool,
    pub(super) epoch: u32,
    /// The changes that were delivered or accounted for.
    pub(super) count: u64,
    /// There were so many, some of which may be on their way.
    counted: Option<u64>,
    /// There was no room for all of its devices in the maps:
    is_full: bool,
    /// for these, as far as is known.
    unkept: BTreeSet<u32>,
    /// It could not be entered since something was lost, or not be read there.
    is_closed: bool,
    /// The maps know all devices, and nothing was lost while they were told.
    pub(super) is_sure: bool,
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
pub(super) enum PatternStep {
    /// Of all namespaces: this one is entered,
    Enter,
    /// the programs begin to count in it, unless they do already,
    Adopt,
    /// and it is still the one that they mean.
    Verify,
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
    /// Whoever still reads what they were before is done.
    NarrowWait,
    /// There are none.
    Remove,
    RemoveWait,
    RemoveMatching,
    RemoveState,
    Namespace,
    Leave,
}

/// A device that matched went to the namespace that has this id in the numbering of its own.
#[derive(Debug)]
pub(super) struct DepartedDevice {
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
    pub(super) fn remove(&mut self, netns: NetnsId, pattern: &Pattern) -> Option<PatternStep> {
        let space = self.spaces.get_mut(&netns)?;
        space.table.remove(pattern);
        self.outcome = Some(Outcome::Unwatched);
        Some(if space.table.is_empty() {
            PatternStep::Remove
        } else {
            PatternStep::Narrow
        })
    }

    pub(super) fn are_joining(&self, netns: NetnsId) -> bool {
        self.spaces.get(&netns).is_some_and(|space| space.joins)
    }

    /// Is it known that nothing was missed?
    pub(super) fn are_certain(&self) -> bool {
        let mut spaces = self.spaces.values();
        let everywhere = &self.everywhere;
        let is_counting = everywhere.must_count || !everywhere.left.is_empty();
        !is_counting
            && self.suspects.is_empty()
            && spaces
                .all(|space| space.table.is_certain() && !space.closes && space.counted.is_none())
    }

    /// Somebody waits until they are certain.
    pub(super) fn owe(&mut self) {
        for space in self.spaces.values_mut() {
            space.table.owe();
        }
    }

    /// Is any watched, or about to be?
    pub(super) fn are_any(&self) -> bool {
        self.everywhere.is_on || !self.spaces.is_empty()
    }

    /// Something is lost, and nobody knows yet whom it was about.
    pub(super) fn suspect_all(&mut self) {
        self.everywhere.must_count = self.everywhere.is_on;
        if !self.everywhere.is_on {
            let counted = self.spaces.iter().filter(|(_, space)| space.is_counted);
            self.suspects.extend(counted.map(|(&netns, _)| netns));
        }
    }

    /// The program may have missed something about the namespace.
    pub(super) fn missed(&mut self, netns: NetnsId) {
        if let Some(space) = self.spaces.get_mut(&netns) {
            space.table.lost(None);
            space.must_open = true;
        }
    }

    /// Every record came that was counted: what was not heard by now is lost.
    pub(super) fn catch_up(&mut self) {
        for space in self.spaces.values_mut() {
            if let Some(changes) = space.counted.take() {
                space.catch_up(changes);
            }
        }
    }

    /// What there is to do. `is_all`: every record came that was counted.
    pub(super) fn next(&mut self, is_all: bool) -> Option<(NetnsId, PatternStep)> {
        if let Some(netns) = self.suspects.pop_first() {
            return Some((netns, PatternStep::Count));
        }
        let Self {
            spaces, everywhere, ..
        } = self;
        // Those that were heard of meanwhile are among the others.
        everywhere.left.retain(|netns| !spaces.contains_key(netns));
        if everywhere.entered.is_none()
            && let Some(netns) = everywhere.left.pop()
        {
            spaces.insert(netns, Space::of_all(everywhere.table(false), true));
        }
        spaces.iter_mut().find_map(|(&netns, space)| {
            let step = if space.is_of_all && space.must_open {
                // One after the other, and none for long: it is kept alive meanwhile.
                let is_free = everywhere.entered.is_none_or(|entered| entered == netns);
                is_free.then_some(PatternStep::Enter)
            } else if space.table.is_reading() {
                let is_ready = is_all || space.table.question().is_some();
                is_ready.then_some(PatternStep::Read)
            } else if space.table.needs_table() {
                Some(if space.must_open {
                    PatternStep::Open
                } else {
                    PatternStep::Read
                })
            } else {
                space.closes.then(|| {
                    // Of each it is known soon.
                    space.unkept.clear();
                    PatternStep::Mark(space.table.indexes().collect())
                })
            };
            Some((netns, step?))
        })
    }

    /// The same when there is nothing else to do.
    pub(super) fn identify(&mut self) -> Option<(NetnsId, PatternStep)> {
        self.spaces.iter_mut().find_map(|(&netns, space)| {
            space.table.identify().then_some((netns, PatternStep::Read))
        })
    }

    /// Is this a change of the namespace that was not accounted for? A later one than the next
    /// shows a gap.
    fn is_news(&mut self, netns: u32, epoch: u32, count: u64) -> Option<&mut Space> {
        let space = self.spaces.get_mut(&NetnsId(netns))?;
        if epoch != space.epoch || count <= space.count {
            return None;
        }
        let lost = count - space.count - 1;
        space.count = count;
        if lost > 0 {
            space.lost(lost);
        }
        Some(space)
    }
}

impl Space {
    fn give_up(&mut self) {
        self.table.remove_new();
        self.joins = false;
    }

    /// Of patterns of all namespaces. `must_open`: there may be devices that the programs do not know.
    pub(super) fn of_all(table: PatternTable, must_open: bool) -> Self {
        Self {
            table,
            is_of_all: true,
            must_open,
            is_sure: !must_open,
            ..Self::default()
        }
    }

    /// The programs count for it, and are there by now.
    pub(super) fn counted(self, epoch: u32, count: u64) -> Self {
        Self {
            is_counted: true,
            epoch,
            count,
            ..self
        }
    }

    /// There were so many changes, none of which was heard; some may be on their way.
    pub(super) fn unheard(self, changes: u64) -> Self {
        Self {
            counted: Some(changes),
            ..self
        }
    }

    /// Is there nothing to be read or to be told to the programs?
    pub(super) fn is_settled(&self) -> bool {
        let needs_table = self.table.needs_table() || self.table.is_reading();
        !self.must_open && !self.closes && !needs_table
    }

    /// There were so many changes.
    fn catch_up(&mut self, changes: u64) {
        if let Some(lost) = changes.checked_sub(self.count)
            && lost > 0
        {
            self.count = changes;
            self.lost(lost);
        }
    }

    /// So many changes were lost.
    fn lost(&mut self, lost: u64) {
        self.table.lost(Some(lost));
        self.is_closed = false;
        // The maps say what is true, but for devices for which there was no room; and of those that
        // were entered without a name it is what is known of them, if nothing was lost meanwhile.
        self.must_open |= self.is_of_all && (!self.is_sure || self.is_full);
    }

    fn set(&self) -> Box<PatternSet> {
        set(&self.table, self.is_open)
    }

    /// What the programs know of the devices is an answer to all that is asked: nothing is hidden from
    /// them.
    fn read_map(&mut self, devices: &[(u32, Match)]) -> io::Result<()> {
        let Self { table, unkept, .. } = self;
        for (ifindex, _) in devices {
            unkept.remove(ifindex);
        }
        unkept.retain(|&ifindex| table.heard(ifindex).is_some());
        let links = devices.iter().filter_map(|&(ifindex, found)| {
            let name = found.name.unmarked();
            let named = if name == Name::default() {
                // As it was when the programs were told of it.
                self.table.named(ifindex)?
            } else {
                Named {
                    name: InterfaceName::from_kernel(&name.to_bytes())?,
                    kind: LinkKind::from_kernel(&found.kind.to_bytes()),
                }
            };
            Some((ifindex, named))
        });
        let table = LinkTable {
            links: links.collect(),
            is_interrupted: false,
        };
        self.table.answer(Answer::Table(Ok(table)))?;
        while let Some(question) = self.table.question() {
            let answer = match question {
                Question::NameOf(ifindex) if self.unkept.contains(&ifindex) => {
                    Answer::Name(Ok(self.table.heard(ifindex)))
                }
                Question::NameOf(_) => Answer::Name(Ok(None)),
                question => Answer::unknown(question),
            };
            self.table.answer(answer)?;
        }
        Ok(())
    }
}

/// Was the map full?
fn has_no_room(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}

/// What the programs are told of these patterns.
pub(super) fn set(table: &PatternTable, is_open: bool) -> Box<PatternSet> {
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
        masks: of(table.masks(MASKS)),
        kinds: of(kind_masks(&table.kinds(), MASKS)),
        open: u32::from(is_open),
        zero: 0,
    })
}

impl Bpf {
    /// Is the namespace needed for patterns?
    pub(super) fn has_patterns(&self, netns: NetnsId) -> bool {
        let space = self.patterns.spaces.get(&netns);
        space.is_some_and(|space| space.is_counted && !space.is_of_all)
    }

    /// What is to be asked for this step; `None` when it needs nothing, or another one comes first.
    pub(super) fn next_of_patterns(
        &mut self,
        netns: NetnsId,
        step: &PatternStep,
    ) -> Option<Request> {
        let ask = |question| Some(Request::Ask(netns, question));
        let is_entered = self.patterns.everywhere.entered == Some(netns);
        let space = self.patterns.spaces.get_mut(&netns)?;
        let next = match step {
            PatternStep::Enter => return Some(Request::Enter(netns)),
            PatternStep::Adopt if space.is_counted => PatternStep::Verify,
            PatternStep::Adopt => {
                self.epoch = self.epoch.wrapping_add(1);
                return Some(Request::AddPatternState(netns, self.epoch));
            }
            PatternStep::State if space.is_counted => PatternStep::Open,
            PatternStep::State => {
                self.epoch = self.epoch.wrapping_add(1);
                space.epoch = self.epoch;
                return Some(Request::InsertPatternState(netns, self.epoch));
            }
            PatternStep::Open => {
                space.is_open = true;
                return Some(Request::InsertPatterns(netns, space.set()));
            }
            PatternStep::Wait
            | PatternStep::Settle
            | PatternStep::NarrowWait
            | PatternStep::RemoveWait => {
                return ask(Question::Barrier);
            }
            PatternStep::Count | PatternStep::Verify => return Some(Request::PatternState(netns)),
            PatternStep::Read => {
                if !space.table.is_reading() {
                    space.table.read_table();
                }
                if let Some(question) = space.table.question() {
                    return if space.is_of_all && (!is_entered || space.is_closed) {
                        Some(Request::Matching(netns))
                    } else {
                        ask(question)
                    };
                }
                space.table.finish();
                self.say_patterns(netns, self.time, None);
                return None;
            }
            PatternStep::Mark(left) => match left.last() {
                Some(&ifindex) => {
                    let netns = netns.0;
                    return Some(Request::InsertMatching(Link { netns, ifindex }));
                }
                None if space.unkept.is_empty() => PatternStep::Close,
                None => {
                    self.have_begun(netns);
                    self.read_again();
                    return None;
                }
            },
            PatternStep::Close => {
                space.is_open = false;
                return Some(if space.is_of_all {
                    Request::RemovePatterns(netns)
                } else {
                    Request::InsertPatterns(netns, space.set())
                });
            }
            PatternStep::Narrow => return Some(Request::InsertPatterns(netns, space.set())),
            PatternStep::Remove => return Some(Request::RemovePatterns(netns)),
            // That one was deleted cannot be missed where all namespaces are heard of.
            PatternStep::Clear if space.is_of_all => PatternStep::Wait,
            PatternStep::Clear | PatternStep::RemoveMatching => {
                return Some(Request::RemoveMatching(netns));
            }
            PatternStep::RemoveState => return Some(Request::RemovePatternState(netns)),
            PatternStep::Namespace => return Some(Request::RemoveNamespace(netns)),
            PatternStep::Leave => return Some(Request::Leave(netns)),
        };
        self.task = Some(Task::Patterns(netns, next));
        None
    }

    /// What follows from an answer: the next step, if there is any.
    pub(super) fn patterns_answered(
        &mut self,
        netns: NetnsId,
        step: PatternStep,
        reply: Reply,
    ) -> Option<PatternStep> {
        let is_everywhere = self.is_everywhere();
        let space = self.patterns.spaces.get_mut(&netns)?;
        match (step, reply) {
            (PatternStep::Enter, Reply::Done(Ok(()))) => {
                self.patterns.everywhere.entered = Some(netns);
                space.is_closed = false;
                Some(PatternStep::Adopt)
            }
            (PatternStep::Enter, Reply::Done(Err(error))) => {
                log::debug!("network namespace {netns} cannot be entered: {error}");
                let may_not = error.kind() == io::ErrorKind::PermissionDenied;
                let is_away = error.kind() == io::ErrorKind::NotFound || may_not;
                if may_not && !std::mem::replace(&mut self.patterns.everywhere.is_refused, true) {
                    log::warn!(
                        "network namespaces that may not be entered are watched from the next change in \
                         each on ({error})"
                    );
                }
                // Whatever else it is may pass, and it is no reason to end.
                let is_over = is_everywhere && retry::wait_after(self.failures + 1).is_none();
                if space.is_counted && (is_away || is_over) {
                    // What it has is known from now on, and what it had is not.
                    space.must_open = false;
                    space.is_closed = true;
                } else if is_away {
                    self.patterns.spaces.remove(&netns);
                } else if is_everywhere {
                    self.trouble(error);
                } else {
                    self.refuse_everywhere(Error::Recheck(error));
                }
                None
            }
            (PatternStep::Adopt, Reply::Inserted(Ok(_))) => Some(PatternStep::Verify),
            (PatternStep::Adopt, Reply::Inserted(Err(error))) if has_no_room(&error) => {
                uncounted(netns);
                self.patterns.spaces.remove(&netns);
                None
            }
            (PatternStep::Adopt, Reply::Inserted(Err(error))) => {
                self.refuse_everywhere(Error::Filter(error));
                None
            }
            (PatternStep::Verify, Reply::PatternState(Ok(state))) => {
                let is_it = |epoch| !space.is_counted || epoch == space.epoch;
                match state.filter(|state| is_it(state.epoch)) {
                    Some(state) => {
                        space.is_full |= state.full != 0;
                        if !space.is_counted {
                            space.is_counted = true;
                            space.epoch = state.epoch;
                            space.count = state.changes;
                        }
                        Some(PatternStep::Open)
                    }
                    None => {
                        self.patterns_gone(netns, self.time, None);
                        None
                    }
                }
            }
            (PatternStep::Verify, Reply::PatternState(Err(error))) => {
                self.trouble(error);
                None
            }
            (PatternStep::State, Reply::Done(Ok(()))) => {
                space.is_counted = true;
                space.count = 0;
                Some(PatternStep::Open)
            }
            (PatternStep::Open, Reply::Done(Ok(()))) => {
                space.closes = true;
                space.is_sure = false;
                space.must_open = !space.is_of_all;
                Some(PatternStep::Clear)
            }
            (PatternStep::Clear, Reply::Done(Ok(()))) => {
                space.must_open = false;
                Some(PatternStep::Wait)
            }
            // As if it could not be entered: what is read while a change can be missed is not true.
            (PatternStep::Open, Reply::Done(Err(error)))
                if space.is_of_all && has_no_room(&error) =>
            {
                space.is_open = false;
                space.is_full = true;
                space.must_open = false;
                space.is_closed = true;
                if !std::mem::replace(&mut self.patterns.everywhere.is_refused, true) {
                    log::warn!(
                        "there is no room to read more network namespaces; they are watched from the \
                         next change in each on"
                    );
                }
                None
            }
            (
                PatternStep::State | PatternStep::Open | PatternStep::Clear,
                Reply::Done(Err(error)),
            ) => {
                // What was let through before is let through still.
                space.is_open &= space.is_of_all;
                if space.joins {
                    return self.refuse_patterns(netns, Error::Filter(error));
                }
                self.trouble(error);
                None
            }
            (PatternStep::Wait, Reply::Answer(_)) => {
                // What was sent before is not all that happened, and comes before anything is read.
                self.read_again();
                None
            }
            (PatternStep::Count, Reply::PatternState(Ok(state))) if space.is_of_all => {
                let state = state.filter(|state| state.epoch == space.epoch);
                if let Some(state) = state {
                    space.is_full |= state.full != 0;
                    space.counted = Some(state.changes);
                    // A device that moves is counted when it leaves, and told of when it arrives.
                    Some(PatternStep::Wait)
                } else {
                    // If another one has its number, that is found by the next look.
                    self.patterns_gone(netns, self.time, None);
                    self.patterns.everywhere.must_count = true;
                    None
                }
            }
            (PatternStep::Count, Reply::PatternState(Ok(Some(state)))) => {
                space.counted = Some(state.changes);
                self.read_again();
                None
            }
            (PatternStep::Count, Reply::PatternState(state)) => {
                let error = state.err();
                self.trouble(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
                None
            }
            (PatternStep::Read, Reply::Matching(Ok(Matching { devices, state }))) => {
                let Some(state) = state.filter(|state| state.epoch == space.epoch) else {
                    self.patterns_gone(netns, self.time, None);
                    self.patterns.everywhere.must_count = true;
                    return None;
                };
                space.is_full |= state.full != 0;
                if space.is_full && !space.is_closed {
                    space.table.abandon();
                    space.must_open = true;
                } else if let Err(error) = space.read_map(&devices) {
                    space.table.abandon();
                    self.trouble(error);
                } else {
                    self.read_again();
                }
                None
            }
            (PatternStep::Read, Reply::Matching(Err(error))) => {
                space.table.abandon();
                self.trouble(error);
                None
            }
            (PatternStep::Read, Reply::Answer(answer)) => {
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
                        // It may not be entered any more.
                        space.must_open |= space.is_of_all;
                        self.trouble(error);
                    }
                }
                None
            }
            (PatternStep::Mark(mut left), Reply::Done(result)) => {
                let ifindex = left.pop();
                // There is no room for all of them: everything is let through from now on.
                if let Err(error) = result {
                    if space.unkept.is_empty() {
                        log::warn!("the programs let every interface through from now on: {error}");
                    }
                    space.is_full = true;
                    space.unkept.extend(ifindex);
                }
                Some(PatternStep::Mark(left))
            }
            (PatternStep::Close, Reply::Done(Ok(()))) => Some(PatternStep::Settle),
            (PatternStep::Close, Reply::Done(Err(error))) => {
                log::warn!("the programs let every interface through from now on: {error}");
                space.is_open = true;
                self.have_begun(netns);
                self.read_again();
                None
            }
            (PatternStep::Settle, _) => {
                self.have_begun(netns);
                self.read_again();
                None
            }
            (PatternStep::Narrow, _) => Some(PatternStep::NarrowWait),
            (PatternStep::NarrowWait, _) => {
                self.outcome = self.patterns.outcome.take();
                None
            }
            (PatternStep::Remove, _) => Some(PatternStep::RemoveWait),
            (PatternStep::RemoveWait, _) => Some(PatternStep::RemoveMatching),
            (PatternStep::RemoveMatching, _) => Some(PatternStep::RemoveState),
            (PatternStep::RemoveState, _) => {
                let watch = self.watches.range(Watch::first_of(netns)..).next();
                let has_names = watch.is_some_and(|(watch, _)| watch.netns == netns);
                if !has_names && self.namespaces.remove(&netns).is_some() {
                    Some(PatternStep::Namespace)
                } else if self.hook == Hook::Function {
                    Some(PatternStep::Leave)
                } else {
                    self.have_ended(netns)
                }
            }
            (PatternStep::Namespace, _) => Some(PatternStep::Leave),
            (PatternStep::Leave, _) => self.have_ended(netns),
            (step, reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                None
            }
        }
    }

    /// The patterns that were to begin do not: nothing is left of them.
    fn refuse_patterns(&mut self, netns: NetnsId, error: Error) -> Option<PatternStep> {
        let space = self.patterns.spaces.get_mut(&netns)?;
        space.give_up();
        let outcome = Outcome::Watched(Err(error));
        if space.table.is_empty() {
            self.patterns.outcome = Some(outcome);
            return Some(PatternStep::Remove);
        }
        // What the others were told meanwhile is all that there was, and nothing of it is lost; the
        // programs are told of them anew.
        space.table.lost(Some(0));
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
    fn have_ended(&mut self, netns: NetnsId) -> Option<PatternStep> {
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
        self.record_of_namespace(record, time, by);
        if record.flags & flag::LEFT_PATTERN != 0
            && let Some(Space { table, unkept, .. }) =
                self.patterns
                    .is_news(from.netns, record.left_epoch, record.left_count)
        {
            unkept.remove(&from.ifindex);
            if record.flags & flag::MOVED == 0 {
                table.gone(from.ifindex, None, place(to));
                self.say_patterns(from_netns, time, by);
            } else if table.knows(from.ifindex) {
                self.half_gone = Some(DepartedDevice {
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
            && let Some(space) =
                self.patterns
                    .is_news(to.netns, record.took_epoch, record.took_count)
        {
            if record.flags & flag::UNKEPT == 0 {
                space.unkept.remove(&to.ifindex);
            } else {
                space.is_full = true;
                space.unkept.insert(to.ifindex);
            }
            let kind = LinkKind::from_kernel(&record.kind.to_bytes());
            space.table.exists(
                to.ifindex,
                Named { name, kind },
                record.flags & flag::NEW != 0,
            );
            self.say_patterns(to_netns, time, by);
        }
    }

    /// A namespace of all has ended, if it is the one with this epoch.
    pub(super) fn end_of_namespace(
        &mut self,
        record: &Record,
        time: SystemTime,
        by: Option<&Actor>,
    ) {
        let netns = NetnsId(record.from.netns);
        let space = self.patterns.spaces.get(&netns);
        let is_it = |space: &Space| space.is_of_all && space.epoch == record.left_epoch;
        if space.is_some_and(is_it) {
            self.patterns_gone(netns, time, by);
        }
    }

    /// The rest of a record.
    pub(super) fn gone_elsewhere(&mut self, answer: Answer) {
        if let (
            Some(DepartedDevice {
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
            let place = Destination {
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
            && (space.is_counted || space.is_of_all)
        {
            space.table.netns_gone();
            if space.is_of_all && space.is_open {
                self.patterns.everywhere.ended.push(netns);
            }
            self.say_patterns(netns, time, by);
            self.patterns.spaces.remove(&netns);
            self.patterns.suspects.remove(&netns);
        }
    }

    fn say_patterns(&mut self, netns: NetnsId, time: SystemTime, by: Option<&Actor>) {
        let Some(space) = self.patterns.spaces.get_mut(&netns) else {
            return;
        };
        // The program would take another one with its index for it.
        let has_vanished = space.table.has_vanished();
        while let Some(told) = space.table.take() {
            // What no message said was not counted.
            let is_uncounted = matches!(told.kind, EventKind::Resynced { lost: None, .. });
            self.has_missed |= is_uncounted && self.hook == Hook::Socket;
            self.said.push_back(Signal::Pattern {
                netns,
                told,
                time,
                by: by.cloned(),
            });
        }
        if has_vanished && self.hook == Hook::Socket {
            self.patterns.missed(netns);
        }
    }
}
