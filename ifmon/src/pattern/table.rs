//! The devices of one namespace whose names match patterns: what is heard in, verdicts out.
//!
//! Without I/O. What is heard of a device says its index and its name; the table knows what it was
//! called before. When a pattern is new, or something was lost, the kernel's own table is read, all
//! of it, while what happens goes on being heard. A device of which anything was heard since the
//! reading began is what was heard; any other is what was read. So it does not matter that a table
//! that is read while links come and go is the one of no moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    num::NonZeroU64,
};

use super::{Mask, Pattern, kinds, masks};
use crate::{
    EventKind, InterfaceName, LinkKind,
    machine::{Answer, Named, Question},
    tracker::Destination,
};

/// How often a table is read that links came to or went from meanwhile, whereby kernels before 6.9
/// may leave others out. What one reading leaves out the next one has.
const ROUNDS: u32 = 8;

/// A verdict on a device whose name matches a pattern, or on the pattern as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PatternVerdict {
    pub(crate) pattern: Pattern,
    /// Of the device.
    pub(crate) name: Option<InterfaceName>,
    /// Of the device, when it is new or gone for good.
    pub(crate) link_kind: Option<LinkKind>,
    pub(crate) kind: EventKind,
    pub(crate) recovered: bool,
    /// Of the pattern as a whole: how many devices match.
    pub(crate) matches: Option<u32>,
}

/// The patterns of a namespace, and the devices that match any.
#[derive(Debug, Default)]
pub(crate) struct PatternTable {
    patterns: Vec<WatchedPattern>,
    devices: BTreeMap<u32, MatchingDevice>,
    /// The same by name, which two have where it was not heard how one lost it.
    names: BTreeSet<(InterfaceName, u32)>,
    /// Something was lost since the table was read.
    loss: Option<Loss>,
    reading: Option<Reading>,
    /// What is heard of a known device after a loss may be about another one with its index: what
    /// it comes to.
    deferred: BTreeMap<u32, Deferred>,
    /// A filter in the kernel lets through what is about known indexes.
    filters: bool,
    /// That filter is in place.
    is_filtered: bool,
    /// It was at some time since the last reading began.
    was_filtered: bool,
    /// Devices whose indexes it does not know.
    unfiltered: BTreeSet<u32>,
    /// Devices of which it may have dropped something before it knew them.
    unheard: BTreeSet<u32>,
    /// Devices whose inode was not read.
    unidentified: BTreeSet<u32>,
    /// Nobody enters the namespace to read any.
    is_hidden: bool,
    /// A device is not there any more, and nobody said so.
    has_vanished: bool,
    /// Somebody waits until those are looked at that had come before.
    owes: bool,
    said: VecDeque<PatternVerdict>,
}

#[derive(Debug)]
struct WatchedPattern {
    pattern: Pattern,
    /// The table was read since it is watched.
    is_read: bool,
    /// `watching` was told.
    has_begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct MatchingDevice {
    name: InterfaceName,
    kind: Option<LinkKind>,
    /// Of its directory in sysfs, once it was read.
    inode: Option<NonZeroU64>,
}

/// What was lost.
#[derive(Clone, Copy, Debug)]
struct Loss {
    /// How many changes, where that is known.
    lost: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Deferred {
    /// What it is called by now; `None` when it is gone.
    named: Option<Named>,
    /// It is another device.
    is_new: bool,
}

/// What is being read.
#[derive(Debug)]
struct Reading {
    stage: ReadingStage,
    rounds: u32,
    /// What it is to make good.
    loss: Option<Loss>,
    /// Devices of which something was heard since it began.
    touched: BTreeSet<u32>,
    /// What was read, by index; `None` where no device has it.
    found: BTreeMap<u32, Option<MatchingDevice>>,
    /// Of these, devices that were asked for alone.
    alone: Vec<u32>,
    /// Devices that have no inode.
    missing: Vec<u32>,
    /// It is about devices that were told of.
    identifies: bool,
    /// It looks at what somebody waits for.
    pays: bool,
}

/// What was read and not heard.
#[derive(Default)]
struct News {
    gone: Vec<u32>,
    renamed: Vec<(u32, InterfaceName)>,
    appeared: Vec<(u32, MatchingDevice)>,
}

#[derive(Debug)]
enum ReadingStage {
    /// All links.
    Table,
    /// What was told of these is over soon.
    Settle(Vec<(u32, Named)>),
    /// The names of these.
    Names(Vec<u32>),
    /// The inodes of these.
    Inodes(Vec<(u32, Named)>),
    /// What was read may be ahead of what was told.
    Barrier,
    /// Are these still called so? What cannot be set up goes again, and no message says that it came.
    /// Those that are not.
    Confirm(Vec<u32>, Vec<u32>),
    /// What is queued by now may be what the answers saw.
    Drain,
}

impl PatternTable {
    /// `filters`: a filter in the kernel lets through what is about known indexes.
    pub(crate) fn new(filters: bool) -> Self {
        Self {
            filters,
            ..Self::default()
        }
    }

    /// Is no pattern watched?
    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// How much is remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.devices.len() + self.deferred.len() + self.unheard.len() + self.unidentified.len()
    }

    /// What a filter in the kernel compares names with.
    pub(crate) fn masks(&self, most: usize) -> Vec<Mask> {
        masks(self.patterns.iter().map(|watched| &watched.pattern), most)
    }

    /// The kinds of the devices that match any pattern, which a filter in the kernel compares as well;
    /// none where kinds do not matter.
    pub(crate) fn kinds(&self) -> BTreeSet<LinkKind> {
        kinds(self.patterns.iter().map(|watched| &watched.pattern))
    }

    /// Does a filter in the kernel drop any name? Otherwise it need not know any index: a device that
    /// matches is of the right kind for ever.
    pub(crate) fn is_dropping(&self) -> bool {
        let mut masks = self.patterns.iter().map(|watched| watched.pattern.mask());
        self.filters && masks.all(|mask| mask != Mask::default())
    }

    /// The indexes of the devices that match, or may.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = u32> {
        self.devices.keys().chain(self.deferred.keys()).copied()
    }

    /// Does the device match, as far as is known?
    pub(crate) fn knows(&self, ifindex: u32) -> bool {
        self.devices.contains_key(&ifindex)
    }

    /// The same of one of this kind, which may be another one with its index.
    pub(crate) fn knows_as(&self, ifindex: u32, kind: Option<LinkKind>) -> bool {
        let known = self.devices.get(&ifindex);
        known.is_some_and(|known| known.kind == kind)
    }

    /// Are there new indexes that a filter in the kernel has to know?
    pub(crate) fn has_unfiltered(&self) -> bool {
        !self.unfiltered.is_empty()
    }

    /// The filter in the kernel knows all indexes from now on; or there is none any more.
    pub(crate) fn set_filtered(&mut self, is_filtered: bool) {
        self.is_filtered = is_filtered;
        if is_filtered {
            self.was_filtered = true;
            self.unheard.append(&mut self.unfiltered);
        }
    }

    /// Nothing is left to be read or told.
    pub(crate) fn is_certain(&self) -> bool {
        self.said.is_empty() && self.is_read() && !(self.owes && self.is_looking())
    }

    /// Somebody waits until it is [certain](Self::is_certain): so it is when those that have come by
    /// now were looked at, whoever comes later.
    pub(crate) fn owe(&mut self) {
        self.owes = self.is_looking();
    }

    fn is_looking(&self) -> bool {
        let reading = self.reading.as_ref();
        !self.unidentified.is_empty() || reading.is_some_and(|reading| reading.identifies)
    }

    /// Nothing is left to be read, but for inodes.
    pub(crate) fn is_read(&self) -> bool {
        self.reading.is_none()
            && self.unfiltered.is_empty()
            && self.unheard.is_empty()
            && !self.needs_table()
    }

    /// No inode is left to be read.
    pub(crate) fn is_identified(&self) -> bool {
        self.unidentified.is_empty()
    }

    /// The next verdict.
    pub(crate) fn take(&mut self) -> Option<PatternVerdict> {
        self.said.pop_front()
    }

    pub(crate) fn has_said(&self) -> bool {
        !self.said.is_empty()
    }

    /// Begins to watch patterns, none of which is watched: the table is to be read, then comes
    /// [`PatternTable::begin`].
    pub(crate) fn add(&mut self, patterns: impl IntoIterator<Item = Pattern>) {
        self.abandon();
        self.patterns
            .extend(patterns.into_iter().map(|pattern| WatchedPattern {
                pattern,
                is_read: false,
                has_begun: false,
            }));
    }

    /// The new patterns, for which the table was read, have begun.
    pub(crate) fn begin(&mut self) {
        for at in 0..self.patterns.len() {
            let WatchedPattern {
                pattern, has_begun, ..
            } = &mut self.patterns[at];
            if !std::mem::replace(has_begun, true) {
                let pattern = pattern.clone();
                self.tell_whole(pattern, EventKind::Watching { ifindex: None });
            }
        }
    }

    /// The patterns of all namespaces, in one of which nothing is known yet, and which nobody enters to
    /// read an inode. `is_read`: it has no device.
    pub(crate) fn adopt(
        &mut self,
        patterns: impl IntoIterator<Item = Pattern>,
        has_begun: bool,
        is_read: bool,
    ) {
        self.is_hidden = true;
        self.patterns
            .extend(patterns.into_iter().map(|pattern| WatchedPattern {
                pattern,
                is_read,
                has_begun,
            }));
    }

    /// They have begun, which is told of all namespaces together.
    pub(crate) fn begin_silently(&mut self) {
        for watched in &mut self.patterns {
            watched.has_begun = true;
        }
    }

    /// How many devices match a pattern.
    pub(crate) fn matches(&self, pattern: &Pattern) -> u32 {
        let accepts = |known: &&MatchingDevice| pattern.accepts(&known.name, known.kind);
        let matches = self.devices.values().filter(accepts).count();
        u32::try_from(matches).unwrap_or(u32::MAX)
    }

    /// What is known of a device.
    pub(crate) fn named(&self, ifindex: u32) -> Option<Named> {
        self.devices.get(&ifindex).map(MatchingDevice::named)
    }

    /// What was heard last of a device, which may not be told yet.
    pub(crate) fn heard(&self, ifindex: u32) -> Option<Named> {
        match self.deferred.get(&ifindex) {
            Some(deferred) => deferred.named,
            None => self.named(ifindex),
        }
    }

    /// Ends a watch.
    pub(crate) fn remove(&mut self, pattern: &Pattern) {
        self.patterns.retain(|watched| watched.pattern != *pattern);
        self.keep_matching();
    }

    /// Takes back those that have not begun.
    pub(crate) fn remove_new(&mut self) {
        self.abandon();
        self.patterns.retain(|watched| watched.has_begun);
        if self.filters {
            // While they were there, less had to be known of each device.
            self.unheard.extend(self.devices.keys());
        }
        self.keep_matching();
    }

    fn keep_matching(&mut self) {
        let Self {
            patterns,
            devices,
            names,
            ..
        } = self;
        devices.retain(|_, known| matches(patterns, &known.named()));
        names.retain(|(_, ifindex)| devices.contains_key(ifindex));
        let is_known = |ifindex: &u32| self.devices.contains_key(ifindex);
        let heard = self.deferred.len();
        self.deferred.retain(|ifindex, _| is_known(ifindex));
        let is_unsaid = self.deferred.len() < heard;
        self.unfiltered.retain(is_known);
        self.unheard.retain(is_known);
        self.unidentified.retain(is_known);
        if self.patterns.is_empty() {
            self.loss = None;
            self.reading = None;
        }
        if is_unsaid {
            // What was heard under these indexes may match those that go on, and what was read of
            // them does not count any more.
            self.abandon();
        }
    }

    /// Changes were lost, so many if that is known.
    pub(crate) fn lost(&mut self, lost: Option<u64>) {
        if self.is_empty() {
            return;
        }
        self.abandon();
        self.loss = Some(match self.loss {
            Some(before) => before.and(Loss { lost }),
            None => Loss { lost },
        });
    }

    fn is_after_loss(&self) -> bool {
        let is_for_loss = |reading: &Reading| reading.loss.is_some();
        self.loss.is_some() || self.reading.as_ref().is_some_and(is_for_loss)
    }

    fn touch(&mut self, ifindex: u32) {
        if let Some(reading) = &mut self.reading {
            reading.touched.insert(ifindex);
        }
    }

    /// A device has this name now.
    ///
    /// `is_new`: it is known to be new, so that whatever had its index before is gone.
    pub(crate) fn exists(&mut self, ifindex: u32, named: Named, is_new: bool) {
        self.touch(ifindex);
        let known = self.devices.get(&ifindex);
        let is_other = known.is_some_and(|known| known.kind != named.kind);
        let is_new = is_new || is_other;
        if self.deferred.contains_key(&ifindex) {
            self.defer(ifindex, Some(named), is_new);
            return;
        }
        let old = known.map(|known| known.name);
        let is_taken = old != Some(named.name) && self.is_taken(named.name);
        if is_taken && self.filters && !self.is_after_loss() {
            // How the other one lost it was not heard: the filter did not know its index yet.
            self.lost(None);
        }
        match old {
            // Who has its name as far as is known has lost it, and is told of first.
            None if is_taken && self.is_after_loss() => self.defer(ifindex, Some(named), true),
            None => self.appear(ifindex, MatchingDevice::new(named), false),
            // Something else about it has changed; or what was read was ahead of this.
            Some(old) if old == named.name && !is_other && !(is_new && self.is_after_loss()) => {
                self.skip();
            }
            Some(_) if self.is_after_loss() => self.defer(ifindex, Some(named), is_new),
            Some(_) if is_new => {
                self.go(ifindex, None, false);
                self.appear(ifindex, MatchingDevice::new(named), false);
            }
            Some(_) => self.rename(ifindex, named.name, false),
        }
    }

    fn is_taken(&self, name: InterfaceName) -> bool {
        self.names
            .range((name, 0)..=(name, u32::MAX))
            .next()
            .is_some()
    }

    /// What a device is called by now is told along with what is read.
    fn defer(&mut self, ifindex: u32, named: Option<Named>, is_new: bool) {
        let before = self.deferred.get(&ifindex);
        let is_new = is_new || before.is_some_and(|before| before.is_new);
        self.deferred.insert(ifindex, Deferred { named, is_new });
        self.skip();
    }

    /// A change that was heard after a loss is not told as what it was: it counts as lost, too.
    fn skip(&mut self) {
        let reading = self
            .reading
            .as_mut()
            .and_then(|reading| reading.loss.as_mut());
        if let Some(Loss { lost: Some(lost) }) = self.loss.as_mut().or(reading) {
            *lost += 1;
        }
    }

    /// A device is gone, or went elsewhere.
    ///
    /// `last`: what it was called at the end, where that is certain.
    pub(crate) fn gone(&mut self, ifindex: u32, last: Option<Named>, to: Option<Destination>) {
        self.touch(ifindex);
        if self.deferred.contains_key(&ifindex) {
            // Whoever has its index next is another one.
            self.defer(ifindex, None, true);
            return;
        }
        let Some(known) = self.devices.get(&ifindex) else {
            self.skip();
            return;
        };
        // Another one had its index by then, and the filter did not know that index yet.
        let is_other = last.is_some_and(|last| last.kind != known.kind);
        let to = to.filter(|_| !is_other);
        if to.is_none() && last != Some(known.named()) {
            if self.is_after_loss() {
                // It may have been called otherwise by then, or be another one.
                self.defer(ifindex, None, true);
                return;
            }
            if let Some(last) = last.filter(|_| !is_other) {
                // It was renamed when the filter did not know its index yet.
                self.rename(ifindex, last.name, false);
            }
        }
        self.go(ifindex, to, false);
    }

    /// The namespace has ended, and all that was in it. Nothing is watched any more.
    pub(crate) fn netns_gone(&mut self) {
        let all: Vec<u32> = self.devices.keys().copied().collect();
        for ifindex in all {
            self.go(ifindex, None, false);
        }
        *self = Self {
            said: std::mem::take(&mut self.said),
            ..Self::new(self.filters)
        };
    }

    fn appear(&mut self, ifindex: u32, device: MatchingDevice, recovered: bool) {
        if !matches(&self.patterns, &device.named()) {
            return;
        }
        self.devices.insert(ifindex, device);
        self.names.insert((device.name, ifindex));
        let MatchingDevice { name, kind, inode } = device;
        // What is heard or read with no filter in place may have been queued, or read, when there was
        // one.
        if self.is_dropping() && (self.was_filtered || !recovered) {
            self.unfiltered.insert(ifindex);
        }
        if inode.is_none() && !self.is_hidden {
            self.unidentified.insert(ifindex);
        }
        self.tell(device.named(), recovered, |pattern| {
            pattern
                .accepts(&name, kind)
                .then_some(EventKind::Appeared { ifindex })
        });
    }

    fn rename(&mut self, ifindex: u32, to: InterfaceName, recovered: bool) {
        let Some(known) = self.devices.get_mut(&ifindex) else {
            return;
        };
        let old = known.named();
        known.name = to;
        let new = known.named();
        if old == new {
            return;
        }
        if known.inode.is_none() && !self.is_hidden {
            // It was not found under the old name, perhaps.
            self.unidentified.insert(ifindex);
        }
        self.names.remove(&(old.name, ifindex));
        self.names.insert((to, ifindex));
        if !matches(&self.patterns, &new) {
            self.forget(ifindex);
        }
        self.tell(old, recovered, |pattern| {
            pattern
                .accepts(&old.name, old.kind)
                .then_some(EventKind::Renamed { ifindex, to })
        });
        self.tell(new, recovered, |pattern| {
            let is_new = !pattern.matches(&old.name) && pattern.accepts(&to, new.kind);
            is_new.then_some(EventKind::Appeared { ifindex })
        });
    }

    fn go(&mut self, ifindex: u32, to: Option<Destination>, recovered: bool) {
        let Some(known) = self.forget(ifindex) else {
            return;
        };
        let Named { name, kind } = known.named();
        self.tell(known.named(), recovered, |pattern| {
            pattern.accepts(&name, kind).then_some(match to {
                None => EventKind::Deleted { ifindex },
                Some(place) => EventKind::Moved {
                    ifindex,
                    to_netns: place.netns,
                    to_ifindex: place.ifindex,
                },
            })
        });
    }

    fn forget(&mut self, ifindex: u32) -> Option<MatchingDevice> {
        self.unfiltered.remove(&ifindex);
        self.unheard.remove(&ifindex);
        self.unidentified.remove(&ifindex);
        let known = self.devices.remove(&ifindex)?;
        self.names.remove(&(known.name, ifindex));
        Some(known)
    }

    /// Tells what there is to say to each pattern.
    fn tell(
        &mut self,
        named: Named,
        recovered: bool,
        kind: impl Fn(&Pattern) -> Option<EventKind>,
    ) {
        let begun = self.patterns.iter().filter(|watched| watched.has_begun);
        for WatchedPattern { pattern, .. } in begun {
            self.said.extend(kind(pattern).map(|kind| PatternVerdict {
                pattern: pattern.clone(),
                name: Some(named.name),
                link_kind: named.kind.filter(|_| {
                    matches!(kind, EventKind::Appeared { .. } | EventKind::Deleted { .. })
                }),
                kind,
                recovered,
                matches: None,
            }));
        }
    }

    /// Is the kernel's table to be read: for a pattern that begins, or after a loss?
    pub(crate) fn needs_table(&self) -> bool {
        self.loss.is_some() || self.has_new()
    }

    /// Is there a pattern that has not begun?
    pub(crate) fn has_new(&self) -> bool {
        self.patterns.iter().any(|watched| !watched.is_read)
    }

    /// Was a device found to be gone that nobody said is? Said once.
    pub(crate) fn has_vanished(&mut self) -> bool {
        std::mem::take(&mut self.has_vanished)
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Begins to read the kernel's table.
    pub(crate) fn read_table(&mut self) {
        let loss = self.loss.take();
        self.read(ReadingStage::Table, loss);
    }

    /// Begins to read what became of devices of which something may have been dropped; false when
    /// there is none.
    pub(crate) fn read_unheard(&mut self) -> bool {
        if self.reading.is_some() {
            return false;
        }
        let new = std::mem::take(&mut self.unheard);
        if new.is_empty() {
            return false;
        }
        self.read(ReadingStage::Names(new.into_iter().collect()), None);
        true
    }

    /// Begins to read the inodes of devices by which they are known again after a loss; false when
    /// all were read. Whoever has none is gone, perhaps: of one that could not be set up some kinds tell
    /// that it came, and not that it went.
    pub(crate) fn identify(&mut self) -> bool {
        if self.reading.is_some() {
            return false;
        }
        let new = std::mem::take(&mut self.unidentified);
        let named = |ifindex| Some((ifindex, self.devices.get(&ifindex)?.named()));
        let new: Vec<_> = new.into_iter().filter_map(named).collect();
        if new.is_empty() {
            return false;
        }
        self.read(ReadingStage::Settle(new), None);
        true
    }

    fn read(&mut self, stage: ReadingStage, loss: Option<Loss>) {
        self.was_filtered = self.is_filtered;
        let identifies = matches!(stage, ReadingStage::Settle(_));
        self.reading = Some(Reading {
            identifies,
            pays: identifies && self.owes,
            stage,
            rounds: 0,
            loss,
            touched: BTreeSet::new(),
            found: BTreeMap::new(),
            alone: Vec::new(),
            missing: Vec::new(),
        });
    }

    /// Gives up what is being read: it is to be read again.
    pub(crate) fn abandon(&mut self) {
        let Some(reading) = self.reading.take() else {
            return;
        };
        self.loss = match (self.loss, reading.loss) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        };
        let known = self.devices.iter();
        let is_hidden = self.is_hidden;
        let is_open = |(_, known): &(&u32, &MatchingDevice)| known.inode.is_none() && !is_hidden;
        self.unidentified
            .extend(known.filter(is_open).map(|(&ifindex, _)| ifindex));
        // Which of them it was about is not remembered: all are looked at once more.
        if self.is_filtered && !matches!(reading.stage, ReadingStage::Table) {
            self.unheard.extend(self.devices.keys());
        }
    }

    /// What is to be asked; `None` when all was answered, and what is queued by now is to be heard
    /// before [`PatternTable::finish`].
    pub(crate) fn question(&mut self) -> Option<Question> {
        let reading = self.reading.as_mut()?;
        loop {
            match &reading.stage {
                ReadingStage::Table => return Some(Question::Table),
                ReadingStage::Names(left) => match left.last() {
                    Some(&ifindex) => return Some(Question::NameOf(ifindex)),
                    None => reading.stage = ReadingStage::Inodes(reading.unsure(&self.devices)),
                },
                ReadingStage::Settle(_) => return Some(Question::Barrier),
                ReadingStage::Inodes(left) => match left.last() {
                    Some((_, named)) => return Some(Question::InodeOf(named.name)),
                    None if !reading.missing.is_empty() => {
                        reading.stage = ReadingStage::Names(std::mem::take(&mut reading.missing));
                    }
                    None if reading.is_news(&self.devices) || !self.deferred.is_empty() => {
                        reading.stage = ReadingStage::Barrier;
                    }
                    None => reading.stage = ReadingStage::Drain,
                },
                ReadingStage::Barrier => return Some(Question::Barrier),
                ReadingStage::Confirm(left, wrong) => match left.last() {
                    Some(&ifindex) => return Some(Question::NameOf(ifindex)),
                    None if wrong.is_empty() => reading.stage = ReadingStage::Drain,
                    None if reading.rounds >= ROUNDS => {
                        // It is renamed again and again, so it is there; what it is called is heard.
                        for ifindex in wrong {
                            reading.found.remove(ifindex);
                        }
                        reading.stage = ReadingStage::Drain;
                    }
                    None => {
                        reading.rounds += 1;
                        reading.stage = ReadingStage::Names(wrong.clone());
                    }
                },
                ReadingStage::Drain => return None,
            }
        }
    }

    /// The answer to [`PatternTable::question`].
    ///
    /// # Errors
    /// When it was not answered.
    pub(crate) fn answer(&mut self, answer: Answer) -> io::Result<()> {
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        match (&mut reading.stage, answer) {
            (ReadingStage::Table, Answer::Table(table)) => {
                let table = table?;
                let mut here = BTreeSet::new();
                for (ifindex, named) in table.links {
                    if matches(&self.patterns, &named) || self.devices.contains_key(&ifindex) {
                        here.insert(ifindex);
                        reading
                            .found
                            .insert(ifindex, Some(MatchingDevice::new(named)));
                    } else {
                        // It matched a moment ago, perhaps.
                        reading.found.remove(&ifindex);
                    }
                }
                if table.is_interrupted && reading.rounds < ROUNDS {
                    reading.rounds += 1;
                } else {
                    // Those that an interrupted reading has had as well: they can be gone by now.
                    let known = self.devices.keys().chain(self.deferred.keys());
                    let known: BTreeSet<u32> = known.chain(reading.found.keys()).copied().collect();
                    reading.rounds = 0;
                    reading.stage = ReadingStage::Names(known.difference(&here).copied().collect());
                }
            }
            (ReadingStage::Names(left), Answer::Name(named)) => {
                let named = named?;
                if let Some(ifindex) = left.pop() {
                    reading
                        .found
                        .insert(ifindex, named.map(MatchingDevice::new));
                    reading.alone.extend(named.map(|_| ifindex));
                }
            }
            (ReadingStage::Inodes(left), Answer::Inode(inode)) => {
                let inode = inode?.and_then(NonZeroU64::new);
                if let Some((ifindex, named)) = left.pop() {
                    let known = MatchingDevice::new(named);
                    reading
                        .found
                        .insert(ifindex, Some(MatchingDevice { inode, ..known }));
                    if inode.is_none() && !reading.alone.contains(&ifindex) {
                        reading.missing.push(ifindex);
                    }
                }
            }
            (ReadingStage::Settle(new), _) => {
                reading.stage = ReadingStage::Inodes(std::mem::take(new));
            }
            (ReadingStage::Barrier, _) => {
                let alone = std::mem::take(&mut reading.alone);
                reading.stage = ReadingStage::Confirm(alone, Vec::new());
            }
            (ReadingStage::Confirm(left, wrong), Answer::Name(named)) => {
                let named = named?;
                if let Some(ifindex) = left.pop() {
                    let found = reading.found.get(&ifindex).copied().flatten();
                    if found.map(|found| found.named()) != named {
                        wrong.push(ifindex);
                    }
                }
            }
            (stage, answer) => debug_assert!(false, "{answer:?} to {stage:?}"),
        }
        Ok(())
    }

    /// Everything was heard that was queued after the last answer: what was read is entered, and
    /// told. Or it is not, and there is more to be asked.
    pub(crate) fn finish(&mut self) {
        if self.read_again() {
            return;
        }
        let Some(Reading {
            loss,
            touched,
            found,
            stage,
            identifies,
            pays,
            ..
        }) = self.reading.take()
        else {
            return;
        };
        debug_assert!(matches!(stage, ReadingStage::Drain));
        // What is said by now was heard.
        let heard = std::mem::take(&mut self.said);
        let mut read = found;
        read.retain(|ifindex, _| !touched.contains(ifindex));
        let mut news = News::default();
        for (&ifindex, &found) in &read {
            if !self.deferred.contains_key(&ifindex) {
                self.compare(ifindex, found, &mut news);
            }
        }
        self.has_vanished |= identifies && !news.gone.is_empty();
        self.owes &= !pays;
        for (ifindex, Deferred { named, is_new }) in std::mem::take(&mut self.deferred) {
            // What was read after the last that was heard counts.
            let read = read.get(&ifindex);
            let named = read.map_or(named, |found| found.map(|known| known.named()));
            let is_it = match (self.devices.get(&ifindex), read) {
                (Some(known), Some(Some(found))) => known.may_be(found),
                _ => true,
            };
            match named {
                Some(named) if is_it && !is_new => news.renamed.push((ifindex, named.name)),
                named => {
                    news.gone.push(ifindex);
                    news.appeared
                        .extend(named.map(|named| (ifindex, MatchingDevice::new(named))));
                }
            }
        }
        self.tell_news(news);
        if !self.is_hidden {
            // What was read of these is not entered, and whose inode was read may be another one.
            let is_open = |known: &MatchingDevice| known.inode.is_none();
            let is_unread = |ifindex: &u32| self.devices.get(ifindex).is_some_and(is_open);
            let unread = touched.iter().copied().filter(is_unread);
            self.unidentified.extend(unread);
        }
        let changes = std::mem::replace(&mut self.said, heard);
        self.tell_changes(loss, changes.into());
        for watched in &mut self.patterns {
            watched.is_read = true;
        }
    }

    /// What was heard of a device after a loss may be about another one with its index, which the
    /// inode tells if nothing is heard in between; true when that is to be read again.
    fn read_again(&mut self) -> bool {
        let can_be = |reading: &&Reading| {
            // Of a device of which something is heard all the time what was heard counts.
            reading.loss.is_some() && reading.rounds < ROUNDS
        };
        let Some(reading) = self.reading.as_ref().filter(can_be) else {
            return false;
        };
        let conflicts = self.conflicts(reading);
        let Some(reading) = &mut self.reading else {
            return false;
        };
        let touched = reading.touched.iter().copied();
        let mut again: BTreeSet<u32> = touched
            .filter(|ifindex| {
                let known = self.devices.get(ifindex);
                known.is_some_and(|known| known.inode.is_some())
            })
            .collect();
        again.extend(conflicts);
        if again.is_empty() {
            return false;
        }
        for ifindex in &again {
            reading.touched.remove(ifindex);
            reading.found.remove(ifindex);
        }
        reading.rounds += 1;
        reading.stage = ReadingStage::Names(again.into_iter().collect());
        true
    }

    /// Devices that have one name, by what was heard and read after a loss: how all but one of them
    /// lost it was dropped by a filter that did not know their indexes yet.
    fn conflicts(&self, reading: &Reading) -> Vec<u32> {
        if !self.filters {
            return Vec::new();
        }
        let known = self.devices.iter();
        let mut names: BTreeMap<u32, Option<InterfaceName>> = known
            .map(|(&ifindex, known)| (ifindex, Some(known.name)))
            .collect();
        let heard = self.deferred.iter();
        names.extend(heard.map(|(&ifindex, it)| (ifindex, it.named.map(|named| named.name))));
        let read = reading.found.iter();
        let read = read.filter(|(ifindex, _)| !reading.touched.contains(ifindex));
        names.extend(read.map(|(&ifindex, found)| (ifindex, found.map(|known| known.name))));
        let mut holders: BTreeMap<InterfaceName, Vec<u32>> = BTreeMap::new();
        for (ifindex, name) in names {
            if let Some(name) = name {
                holders.entry(name).or_default().push(ifindex);
            }
        }
        let several = holders.into_values().filter(|holders| holders.len() > 1);
        several.flatten().collect()
    }

    /// Compares what was read of a device, of which nothing was heard meanwhile, with what is known.
    fn compare(&mut self, ifindex: u32, found: Option<MatchingDevice>, news: &mut News) {
        let known = self.devices.get_mut(&ifindex);
        match (known, found) {
            (Some(known), Some(found)) if known.may_be(&found) => {
                known.inode = known.inode.or(found.inode);
                if known.name != found.name {
                    news.renamed.push((ifindex, found.name));
                }
            }
            (known, found) => {
                news.gone.extend(known.map(|_| ifindex));
                news.appeared.extend(found.map(|found| (ifindex, found)));
            }
        }
    }

    /// Tells what was read in an order in which it can have happened: no name has two devices, unless
    /// some have exchanged theirs.
    fn tell_news(&mut self, news: News) {
        let News {
            gone,
            renamed,
            appeared,
        } = news;
        for ifindex in gone {
            self.go(ifindex, None, true);
        }
        let name_of = |ifindex| self.devices.get(&ifindex).map(|known| known.name);
        let old = |(at, &(ifindex, _))| Some((name_of(ifindex)?, at));
        let holders: HashMap<InterfaceName, usize> =
            renamed.iter().enumerate().filter_map(old).collect();
        let mut is_told = vec![false; renamed.len()];
        for first in 0..renamed.len() {
            // Whoever has the name comes before who takes it.
            let mut waiting = Vec::new();
            let mut next = Some(first);
            while let Some(at) = next.filter(|at| !is_told[*at]) {
                is_told[at] = true;
                waiting.push(renamed[at]);
                next = holders.get(&renamed[at].1).copied();
            }
            for (ifindex, to) in waiting.into_iter().rev() {
                self.rename(ifindex, to, true);
            }
        }
        for (ifindex, device) in appeared {
            self.appear(ifindex, device, true);
        }
    }

    /// Tells each pattern of a loss, and of what was found to have changed.
    fn tell_changes(&mut self, loss: Option<Loss>, changes: Vec<PatternVerdict>) {
        for at in 0..self.patterns.len() {
            let WatchedPattern {
                ref pattern,
                has_begun,
                ..
            } = self.patterns[at];
            let pattern = pattern.clone();
            let own = changes.iter().filter(|told| told.pattern == pattern);
            let own: Vec<PatternVerdict> = own.cloned().collect();
            let changed = !own.is_empty();
            if has_begun && (loss.is_some() || changed) {
                let lost = loss.and_then(|loss| loss.lost);
                let resynced = EventKind::Resynced {
                    lost,
                    changed,
                    ifindex: None,
                };
                self.tell_whole(pattern, resynced);
                self.said.extend(own);
            }
        }
    }

    /// Tells something about a pattern as a whole.
    fn tell_whole(&mut self, pattern: Pattern, kind: EventKind) {
        let matches = Some(self.matches(&pattern));
        self.said.push_back(PatternVerdict {
            pattern,
            name: None,
            link_kind: None,
            kind,
            recovered: false,
            matches,
        });
    }
}

impl Reading {
    /// Devices of which only the inode says whether they are what they were.
    fn unsure(&self, devices: &BTreeMap<u32, MatchingDevice>) -> Vec<(u32, Named)> {
        if self.loss.is_none() {
            return Vec::new();
        }
        let unsure = |(&ifindex, found): (&u32, &Option<MatchingDevice>)| {
            let found = (*found)?;
            devices.get(&ifindex)?.inode?;
            found.inode.is_none().then_some((ifindex, found.named()))
        };
        self.found.iter().filter_map(unsure).collect()
    }

    /// Was anything found that was not told? Newer kernels answer before a change is over, and tell
    /// of it at its end.
    fn is_news(&self, devices: &BTreeMap<u32, MatchingDevice>) -> bool {
        self.loss.is_some()
            || self
                .found
                .iter()
                .any(|(ifindex, found)| match (devices.get(ifindex), found) {
                    (Some(known), Some(found)) => known.name != found.name || !known.may_be(found),
                    (known, found) => known.is_some() || found.is_some(),
                })
    }
}

impl MatchingDevice {
    fn new(Named { name, kind }: Named) -> Self {
        let inode = None;
        Self { name, kind, inode }
    }

    fn named(&self) -> Named {
        let Self { name, kind, .. } = *self;
        Named { name, kind }
    }

    /// Nothing speaks against it that this is that device. None ever gets another kind.
    fn may_be(&self, other: &Self) -> bool {
        let is_same = self.inode.is_none() || other.inode.is_none() || self.inode == other.inode;
        is_same && self.kind == other.kind
    }
}

impl Loss {
    fn and(self, other: Self) -> Self {
        let lost = self.lost.zip(other.lost);
        Self {
            lost: lost.map(|(one, other)| one + other),
        }
    }
}

fn matches(patterns: &[WatchedPattern], &Named { name, kind }: &Named) -> bool {
    patterns
        .iter()
        .any(|watched| watched.pattern.accepts(&name, kind))
}

#[cfg(test)]
mod tests;
