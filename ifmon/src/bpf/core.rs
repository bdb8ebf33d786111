//! The BPF backends without their I/O: keeps account of what the programs tell of each watched
//! name.
//!
//! A record carries the count of the changes of its name. So a loss is noticed exactly, for the
//! watch that it hit; and what is true now is one look-up away, since the program keeps it in a
//! map. How watches begin is in [`begin`](super::begin).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    io,
    time::{Duration, Instant, SystemTime},
};

use ifmon_ebpf::{Counters as KernelCounters, Name, NameKey, NameState, Place, Record, flag};

use super::{
    Reply, Request,
    begin::Begin,
    everywhere::EverywhereStep,
    forgetting::{Leftovers, Tidy},
    identities::Identities,
    patterns::{DepartedDevice, PatternStep, Patterns},
    recognition::{Recognition, Recognized},
};
use crate::{
    Actor, Counters, Error, InterfaceName, NetnsId,
    engine::Asking,
    machine::{Answer, Command, Machine, Now, Outcome, Question, Source, Step},
    retry,
    signal::Signal,
    tracker::{Change, Destination, Device, Observed, Watch},
};

/// A record that was counted and has neither come nor been counted as dropped is on its way:
/// whoever makes the change can be interrupted in between. It is waited for, twice as long each
/// time, from the first wait to the last; after that it is lost.
const FIRST_DELAY: Duration = Duration::from_millis(2);
const LAST_DELAY: Duration = Duration::from_millis(1024);
/// The epoch of no watch.
const NO_EPOCH: u32 = 0;

/// Where the programs hear of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// On the function that announces every change, in all namespaces.
    Function,
    /// On the link messages of each watched namespace, through a socket that keeps it alive. A
    /// device that moves away is lost from sight there.
    Socket,
}

/// The deciding part of the BPF backends.
#[derive(Debug)]
pub(crate) struct Bpf {
    pub(super) hook: Hook,
    /// How many names, and how many devices of userspace's finding, the maps have room for.
    pub(super) room: usize,
    pub(super) watches: BTreeMap<Watch, ReportedName>,
    /// The epochs of the namespaces that have watches.
    pub(super) namespaces: BTreeMap<NetnsId, u32>,
    pub(super) patterns: Patterns,
    pub(super) identities: Identities,
    /// The epoch that was given out last.
    pub(super) epoch: u32,
    /// How many ids were given out.
    pub(super) ids: u64,
    /// No more than these of the devices with such an id are still in the map.
    pub(super) devices: usize,
    pub(super) leftovers: Leftovers,
    /// There may be something in the ring buffer.
    unread: bool,
    /// Somebody waits for all that was sent, and what follows from it.
    owes: bool,
    /// The counters were read since the ring buffer was found empty last.
    counted: bool,
    /// Records about watches that the programs have counted, those for which they say that there
    /// was no room, those that were read, and those that were given up.
    matched: u64,
    dropped: u64,
    received: u64,
    written_off: u64,
    /// Devices for which there was no room.
    refused: u64,
    /// Records that have been counted and have not come.
    overdue: Option<Overdue>,
    /// Sockets that may have something to say.
    noisy: BTreeSet<NetnsId>,
    /// Watches about which records may be lost.
    suspects: BTreeSet<Watch>,
    /// Namespaces that may have ended unheard.
    doubtful: BTreeSet<NetnsId>,
    /// Namespaces about which the program itself may have missed something.
    pub(super) missed: BTreeSet<NetnsId>,
    pub(super) has_missed: bool,
    /// Watches that have ended with their namespaces, and are still in the maps.
    pub(super) ended: Vec<Watch>,
    /// Watches whose holder's inode is still to be read.
    pub(super) unidentified: BTreeSet<Watch>,
    /// Those of them whose last change is over.
    settled: BTreeSet<Watch>,
    pub(super) task: Option<Task>,
    /// A record that a device lost a name, not told before it is known whether the program was shown
    /// all that came before.
    unconfirmed: Option<Box<Record>>,
    /// A record that cannot be told before something was asked.
    half_told: Option<HalfTold>,
    /// The same about a pattern.
    pub(super) half_gone: Option<DepartedDevice>,
    awaiting: AwaitedOwner,
    pub(super) said: VecDeque<Signal>,
    /// When the last answer came, for people and for deadlines.
    pub(super) time: SystemTime,
    instant: Option<Instant>,
    command: Option<Command>,
    pub(super) outcome: Option<Outcome>,
    /// How often in a row something could not be read, and when it is tried again.
    pub(super) failures: u32,
    retry: Option<Instant>,
    pub(super) failed: Option<Error>,
}

/// Records that have been counted and have not come.
#[derive(Clone, Copy, Debug)]
struct Overdue {
    /// Up to this one.
    matched: u64,
    /// When it is looked for them again, and how long that was waited for.
    at: Instant,
    delay: Duration,
}

/// What was told of a watched name. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportedName {
    /// The changes that were delivered or accounted for.
    pub(super) count: u64,
    /// Id of the device that was told last to hold it.
    pub(super) id: u64,
    /// Of the watch, as the records have it.
    pub(super) epoch: u32,
    /// Index of the device that was told to hold it now; 0 when none does.
    pub(super) ifindex: u32,
}

/// Something that takes more than one request.
#[derive(Debug)]
pub(super) enum Task {
    /// Records about this watch may be lost: what is true of it?
    Resync(Watch, Resync),
    /// Has this namespace ended?
    IsAlive(NetnsId),
    Begin(Box<Begin>),
    Unwatch(Watch, Unwatch),
    /// A watch has ended with its namespace.
    Clean(Watch),
    /// Devices are remembered that hold no watched name any more.
    Tidy(Tidy),
    /// The changes of this namespace that have been told are over soon.
    Settle(NetnsId),
    /// Which device holds this name, for when it is seen again? And is it there still?
    Identify(Recognition),
    /// About the patterns of a namespace.
    Patterns(NetnsId, PatternStep),
    /// About those of all namespaces.
    Everywhere(EverywhereStep),
}

/// How far reading the truth about a name is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resync {
    State,
    /// Nobody has the name: where is the device that was told as its holder? The namespace was
    /// found to have ended before.
    Device(NameState, u64, bool),
    /// It could have got the name again before that was read.
    Confirm(NameState, u64, Option<Destination>, bool),
    /// It is in this namespace. Or has that ended, and it with it, or in another one with this
    /// number?
    Home(NameState, u64, Destination, bool),
    /// Is the holder one that was here before?
    Holder(NameState, Recognition),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Unwatch {
    Name,
    Namespace,
    Leave,
}

/// A record that cannot be told before something was asked.
#[derive(Debug)]
enum HalfTold {
    /// A device with a new id took a name: is it one that came back?
    Took(Taking, Recognition),
    /// A device went to the namespace that has this id in the numbering of its own.
    Netns(Change, i32, SystemTime, Option<Actor>),
}

#[derive(Debug)]
struct Taking {
    watch: Watch,
    ifindex: u32,
    id: u64,
    /// It was not there before.
    is_new: bool,
    time: SystemTime,
    by: Option<Actor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AwaitedOwner {
    Nothing,
    Record,
    Confirmation,
    Overflowed(NetnsId),
    Counters,
    /// For a caller.
    Count,
    HalfTold,
    HalfGone,
    Task,
}

/// What a step of a task comes to.
pub(super) enum TaskProgress {
    Request(Request),
    Done,
}

impl Bpf {
    pub(crate) fn new(hook: Hook, room: usize) -> Self {
        Self {
            hook,
            room,
            watches: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            patterns: Patterns::default(),
            identities: Identities::default(),
            epoch: 0,
            ids: 0,
            devices: 0,
            leftovers: Leftovers::default(),
            unread: true,
            owes: false,
            counted: false,
            matched: 0,
            dropped: 0,
            received: 0,
            written_off: 0,
            refused: 0,
            overdue: None,
            noisy: BTreeSet::new(),
            suspects: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            missed: BTreeSet::new(),
            has_missed: false,
            ended: Vec::new(),
            unidentified: BTreeSet::new(),
            settled: BTreeSet::new(),
            task: None,
            unconfirmed: None,
            half_told: None,
            half_gone: None,
            awaiting: AwaitedOwner::Nothing,
            said: VecDeque::new(),
            time: SystemTime::UNIX_EPOCH,
            instant: None,
            command: None,
            outcome: None,
            failures: 0,
            retry: None,
            failed: None,
        }
    }

    /// How much is remembered beside the watches.
    #[cfg(test)]
    pub(crate) fn remembered_of_patterns(&self) -> usize {
        self.patterns.remembered()
    }

    /// How much is remembered beside the watches.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.identities.len() + self.ended.len() + self.said.len() + self.suspects.len()
    }

    /// Was everything read that had been sent, and handed on?
    fn is_drained(&self) -> bool {
        !self.unread
            && self.noisy.is_empty()
            && self.said.is_empty()
            && self.unconfirmed.is_none()
            && self.half_told.is_none()
            && self.half_gone.is_none()
    }

    /// Is it known, too, that nothing was missed?
    fn is_certain(&self) -> bool {
        self.is_drained()
            && self.counted
            && self.overdue.is_none()
            && self.suspects.is_empty()
            && self.doubtful.is_empty()
            && self.missed.is_empty()
            && self.unidentified.is_empty()
            && self.settled.is_empty()
            && !self.owes
            && self.patterns.are_certain()
            && self.task.is_none()
    }

    /// What to do next; `None` when something was decided that changes it.
    fn step(&mut self, now: &Now) -> Option<Step<Request>> {
        if let Some(record) = &self.unconfirmed {
            let request = Request::Overflowed(NetnsId(record.from.netns));
            return Some(self.request(AwaitedOwner::Confirmation, request));
        }
        if let Some(half) = &self.half_told {
            let request = match half {
                HalfTold::Took(_, recognition) => recognition.request(),
                HalfTold::Netns(Change::Left { watch, .. }, nsid, ..)
                | HalfTold::Netns(Change::Took { watch, .. }, nsid, ..) => {
                    Request::Ask(watch.netns, Question::NetnsOf(*nsid))
                }
            };
            return Some(self.request(AwaitedOwner::HalfTold, request));
        }
        if let Some(gone) = &self.half_gone {
            let request = Request::Ask(gone.netns, Question::NetnsOf(gone.nsid));
            return Some(self.request(AwaitedOwner::HalfGone, request));
        }
        if let Some(signal) = self.said.pop_front() {
            return Some(Step::Signal(signal));
        }
        if let Some(outcome) = self.outcome.take() {
            return Some(Step::Done(outcome));
        }
        if let Some(error) = self.failed.take() {
            return Some(Step::Failed(error));
        }
        if let Some(Command::Count) = self.command {
            self.command = None;
            return Some(self.request(AwaitedOwner::Count, Request::Counters));
        }
        // A task that has begun goes on: how the looks of a watch that begins stand to the records
        // is told by the counts that these carry.
        if let Some(task) = self.task.take() {
            return self.go_on(task);
        }
        if self.unread {
            return Some(self.request(AwaitedOwner::Record, Request::Record));
        }
        if let Some(netns) = self.noisy.pop_first() {
            let request = Request::Overflowed(netns);
            return Some(self.request(AwaitedOwner::Overflowed(netns), request));
        }
        if std::mem::take(&mut self.owes) {
            self.patterns.owe();
        }
        // Before a namespace with the same inode number can have the same watch.
        if let Some(watch) = self.ended.pop() {
            self.task = Some(Task::Clean(watch));
            return None;
        }
        if let Some(command) = self.command.take() {
            match self.begin(command) {
                Ok(task) => self.task = Some(task),
                Err(command) => self.command = command,
            }
            if self.task.is_some() || self.outcome.is_some() {
                return None;
            }
        }
        if let Some(at) = self.retry {
            if now.instant < at {
                return Some(Step::Wait(Some(at)));
            }
            self.retry = None;
        }
        // Before each wait: the ring buffer was full when a record was lost, so there was something
        // to read, and no loss goes unnoticed.
        if !self.counted {
            self.awaiting = AwaitedOwner::Counters;
            return Some(Step::Background(Request::Counters));
        }
        if let Some(task) = self.next_task() {
            self.task = Some(task);
            return None;
        }
        if self.have_begun_everywhere() {
            return None;
        }
        if let Some(overdue) = &mut self.overdue {
            if now.instant < overdue.at {
                return Some(Step::Wait(Some(overdue.at)));
            }
            if overdue.delay < LAST_DELAY {
                overdue.delay *= 2;
                overdue.at = now.instant + overdue.delay;
            } else {
                let matched = overdue.matched;
                self.overdue = None;
                self.written_off = matched.saturating_sub(self.received + self.dropped);
                self.suspect_all();
            }
            self.unread = true;
            self.counted = false;
            return None;
        }
        if self.command.is_some() {
            // It waited for this.
            return None;
        }
        Some(Step::Wait(None))
    }

    fn request(&mut self, awaiting: AwaitedOwner, request: Request) -> Step<Request> {
        self.awaiting = awaiting;
        Step::Request(request)
    }

    /// What there is to find out.
    fn next_task(&mut self) -> Option<Task> {
        if self.overdue.is_none() {
            self.patterns.catch_up();
        }
        if let Some(netns) = self.missed.pop_first() {
            let all = self.watches.range(Watch::first_of(netns)..);
            let names = all.take_while(|(watch, _)| watch.netns == netns);
            let names: Vec<_> = names.map(|(watch, _)| watch.name).collect();
            Some(Task::Begin(Box::new(Begin::again(netns, names))))
        } else if let Some(watch) = self.suspects.pop_first() {
            Some(Task::Resync(watch, Resync::State))
        } else if let Some(netns) = self.doubtful.pop_first() {
            // After what had happened in it: the programs write nothing of a watch any more whose
            // namespace has ended.
            Some(Task::IsAlive(netns))
        } else if let Some(step) = self.next_of_everywhere(self.overdue.is_none()) {
            Some(Task::Everywhere(step))
        } else if let Some((netns, step)) = self.patterns.next(self.overdue.is_none()) {
            Some(Task::Patterns(netns, step))
        } else if let Some((netns, step)) = self.patterns.identify() {
            Some(Task::Patterns(netns, step))
        } else if let Some(recognition) = self.next_settled() {
            Some(Task::Identify(recognition))
        } else if let Some(watch) = self.unidentified.first() {
            Some(Task::Settle(watch.netns))
        } else if let Some(tidy) = self.next_tidying() {
            Some(Task::Tidy(tidy))
        } else {
            self.failures = 0;
            None
        }
    }

    fn next_settled(&mut self) -> Option<Recognition> {
        let watches = &self.watches;
        std::iter::from_fn(|| self.settled.pop_first()).find_map(|watch| {
            let known = watches.get(&watch).filter(|known| known.ifindex != 0)?;
            let took = (known.epoch, known.count);
            Some(Recognition::new(watch, known.ifindex, took, true))
        })
    }

    /// Begins to carry out a command; gives it back when that has to wait.
    fn begin(&mut self, command: Command) -> Result<Task, Option<Command>> {
        Ok(match command {
            Command::Watch { ref wanted, .. } if self.waits_for_room(wanted.len()) => {
                return Err(Some(command));
            }
            Command::Watch { netns, wanted } => {
                Task::Begin(Box::new(Begin::new(netns, wanted, self.hook)))
            }
            Command::Unwatch(watch) => Task::Unwatch(watch, Unwatch::Name),
            Command::WatchPatterns {
                netns: NetnsId::ALL,
                patterns,
            } => match self.begin_everywhere(patterns) {
                Some(step) => Task::Everywhere(step),
                None => return Err(None),
            },
            Command::WatchPatterns { .. } if self.patterns.everywhere.is_on => {
                self.outcome = Some(Outcome::Watched(Err(Error::AllNamespaces)));
                return Err(None);
            }
            Command::UnwatchPattern(NetnsId::ALL, pattern) => match self.end_everywhere(&pattern) {
                Some(step) => Task::Everywhere(step),
                None => return Err(None),
            },
            Command::WatchPatterns { netns, patterns } => {
                self.patterns.add(netns, patterns);
                Task::Begin(Box::new(Begin::namespace(netns, self.hook)))
            }
            Command::UnwatchPattern(netns, pattern) => {
                let Some(step) = self.patterns.remove(netns, &pattern) else {
                    self.outcome = Some(Outcome::Unwatched);
                    return Err(None);
                };
                Task::Patterns(netns, step)
            }
            Command::Sync if self.is_certain() => {
                self.outcome = Some(Outcome::Synced);
                return Err(None);
            }
            Command::Sync | Command::Count => return Err(Some(command)),
        })
    }

    fn go_on(&mut self, mut task: Task) -> Option<Step<Request>> {
        let request = match &mut task {
            Task::Begin(begin) => match begin.next(self) {
                TaskProgress::Request(request) => request,
                TaskProgress::Done => return self.begun(task),
            },
            Task::Resync(watch, step) => match step {
                Resync::State | Resync::Confirm(..) => Request::Name(key_of(watch)),
                Resync::Device(_, id, _) => Request::Device(*id),
                Resync::Home(..) => Request::Namespace(watch.netns),
                Resync::Holder(_, recognition) => recognition.request(),
            },
            Task::IsAlive(netns) => Request::Namespace(*netns),
            Task::Unwatch(watch, step) => match step {
                Unwatch::Name => Request::RemoveName(key_of(watch)),
                Unwatch::Namespace => Request::RemoveNamespace(watch.netns),
                Unwatch::Leave => Request::Leave(watch.netns),
            },
            Task::Clean(watch) => Request::RemoveName(key_of(watch)),
            Task::Tidy(tidy) => tidy.request()?,
            Task::Settle(netns) => Request::Ask(*netns, Question::Barrier),
            Task::Identify(recognition) => recognition.request(),
            Task::Patterns(netns, step) => self.next_of_patterns(*netns, step)?,
            Task::Everywhere(step) => self.next_everywhere(step),
        };
        let is_background = match &task {
            Task::Resync(..) | Task::Settle(_) | Task::Identify(..) | Task::Tidy(_) => true,
            Task::Patterns(netns, _) => !self.patterns.are_joining(*netns),
            Task::Everywhere(step) => step.is_background(),
            _ => false,
        };
        self.task = Some(task);
        self.awaiting = AwaitedOwner::Task;
        Some(if is_background {
            Step::Background(request)
        } else {
            Step::Request(request)
        })
    }

    /// A begin has come to its end.
    fn begun(&mut self, task: Task) -> Option<Step<Request>> {
        let Task::Begin(begin) = task else {
            return None;
        };
        let for_patterns = begin.is_for_patterns();
        match begin.finish(self) {
            Some(Ok(outcome)) => {
                if let Some(netns) = for_patterns {
                    if let Outcome::Watched(Ok(_)) = outcome {
                        self.task = Some(Task::Patterns(netns, PatternStep::State));
                        return None;
                    }
                    self.patterns.give_up(netns);
                }
                self.outcome = Some(outcome);
            }
            Some(Err(error)) => self.trouble(error),
            None => {}
        }
        None
    }

    /// Something could not be read. It is tried again, after a wait that grows; until then nothing
    /// that was told is known to be all.
    pub(super) fn trouble(&mut self, error: io::Error) {
        self.failures += 1;
        self.patterns.suspect_all();
        self.suspects.extend(self.watches.keys());
        self.doubtful.extend(self.namespaces.keys());
        self.counted = false;
        let Some(wait) = retry::wait_after(self.failures) else {
            self.failed = Some(Error::Ended(error));
            return;
        };
        log::warn!(
            "cannot read what the BPF program keeps ({error}); trying again in {} ms",
            wait.as_millis()
        );
        self.retry = self.instant.map(|now| now + wait);
    }

    /// Something is lost, and nobody knows yet whom it was about.
    fn suspect_all(&mut self) {
        self.patterns.suspect_all();
        self.suspects.extend(self.watches.keys());
        if self.hook == Hook::Function {
            self.doubtful.extend(self.namespaces.keys());
        }
    }

    /// All records were read that there were; this is what the programs have counted.
    fn check(&mut self, counters: &KernelCounters) {
        self.counted = true;
        self.matched = counters.matched;
        if counters.dropped != self.dropped {
            self.dropped = counters.dropped;
            self.suspect_all();
            // Which namespaces there are is read after all that was sent before the loss: of one that
            // begins by it, the end may be what was lost.
            self.unread |= self.patterns.everywhere.is_on;
        }
        if counters.refused != self.refused {
            self.refused = counters.refused;
            self.had_no_room();
        }
        let known = self.received + self.dropped;
        let accounted = known + self.written_off;
        if self.matched <= accounted {
            // One that was given up may have come after all.
            self.written_off = self.matched.saturating_sub(known);
            self.overdue = None;
        } else if self
            .overdue
            .is_none_or(|overdue| accounted >= overdue.matched)
        {
            self.overdue = self.instant.map(|now| Overdue {
                matched: self.matched,
                at: now + FIRST_DELAY,
                delay: FIRST_DELAY,
            });
        }
    }

    /// There may be something in the ring buffer that is to be taken before what comes next.
    pub(super) fn read_again(&mut self) {
        self.unread = true;
        self.counted = false;
    }

    /// Takes the record that a device lost a name, now that it is known whether the program was shown
    /// all that came before. If it was not, what it says of names is found out in another way.
    fn confirmed(&mut self, now: &Now, overflowed: io::Result<bool>) {
        if let Some(record) = self.unconfirmed.take() {
            self.answered_overflowed(NetnsId(record.from.netns), overflowed);
            self.record(now, &record);
        }
    }

    /// Takes a record, in the order in which the program sent them.
    fn record(&mut self, now: &Now, record: &Record) {
        if record.flags & flag::TRACED != 0 {
            return;
        }
        self.received += 1;
        let record = &self.without_missed(*record);
        let time = now.wall_time(Duration::from_nanos(record.time));
        let by = actor(record);
        if record.flags & flag::LEFT_NAME != 0
            && let Some(watch) = self.is_next(&record.from, record.from_epoch, record.from_count)
        {
            let id = self.identities.of(record.id);
            let to = destination(record);
            match to {
                Some(_) => self.identities.left(id),
                None => self.identities.deleted(id),
            }
            if let Some(known) = self.watches.get_mut(&watch) {
                known.ifindex = 0;
            }
            let change = Change::Left { watch, id, to };
            if record.flags & flag::MOVED != 0 {
                self.half_told = Some(HalfTold::Netns(change, record.nsid, time, by.clone()));
            } else {
                self.say(change, time, by.clone());
            }
        }
        if record.flags & flag::TOOK_NAME != 0
            && let Some(watch) = self.is_next(&record.to, record.to_epoch, record.to_count)
        {
            let taking = Taking {
                watch,
                ifindex: record.to.ifindex,
                id: record.id,
                is_new: record.from.netns == 0,
                time,
                by: by.clone(),
            };
            if self.identities.expects_somebody() && !self.identities.knows(record.id) {
                let took = (record.to_epoch, record.to_count);
                let recognition = Recognition::new(watch, record.to.ifindex, took, false);
                self.half_told = Some(HalfTold::Took(taking, recognition));
            } else {
                let id = self.tell_id(record.id);
                self.took(taking, id);
            }
        }
        self.record_of_patterns(record, time, by.as_ref());
        if record.flags & flag::NETNS_GONE != 0 {
            let netns = NetnsId(record.from.netns);
            self.end_of_namespace(record, time, by.as_ref());
            if self.namespaces.get(&netns) == Some(&record.from_epoch) {
                self.gone(netns, time, by);
            }
        }
    }

    /// Without what it says of names in a namespace where the program may have missed something: who has
    /// them is found out soon, and the record may follow from what was missed.
    fn without_missed(&self, mut record: Record) -> Record {
        if self.missed.contains(&NetnsId(record.from.netns)) {
            record.flags &= !flag::LEFT_NAME;
        }
        if self.missed.contains(&NetnsId(record.to.netns)) {
            record.flags &= !flag::TOOK_NAME;
        }
        record
    }

    /// Is this the next change of the name, in the watch that there is now? An earlier one was
    /// accounted for; a later one shows a gap.
    fn is_next(&mut self, place: &Place, epoch: u32, count: u64) -> Option<Watch> {
        let watch = watch_at(place)?;
        let known = self.watches.get_mut(&watch)?;
        if epoch != known.epoch || count <= known.count {
            return None;
        }
        if count == known.count + 1 {
            known.count = count;
            return Some(watch);
        }
        self.suspects.insert(watch);
        None
    }

    fn took(&mut self, taking: Taking, id: u64) {
        let Taking {
            watch,
            ifindex,
            id: _,
            is_new,
            time,
            by,
        } = taking;
        if let Some(known) = self.watches.get_mut(&watch) {
            known.id = id;
            known.ifindex = ifindex;
        }
        self.is_told(watch, id);
        if is_new && self.hook == Hook::Socket {
            // It may not stay.
            self.unidentified.insert(watch);
        }
        let device = Device { ifindex, id };
        self.say(Change::Took { watch, device }, time, by);
    }

    /// The device with this id is told of: by which id.
    pub(super) fn tell_id(&mut self, id: u64) -> u64 {
        match self.hook {
            Hook::Function => self.identities.of(id),
            Hook::Socket => self.identities.tell(id),
        }
    }

    /// Was any watch's last holder told by this id?
    pub(super) fn has_told(&self, id: u64) -> bool {
        let told = self.identities.of(id);
        self.watches.values().any(|known| known.id == told)
    }

    /// The device that is told by this id has the name.
    fn is_told(&mut self, watch: Watch, id: u64) {
        if self.hook == Hook::Socket {
            self.identities.took(id);
            if !self.identities.knows(id) {
                self.unidentified.insert(watch);
            }
        }
        self.prune_identities();
    }

    fn prune_identities(&mut self) {
        let Self {
            identities,
            watches,
            ..
        } = self;
        identities.prune(watches.len(), || {
            let told = watches.values().map(|known| known.id);
            told.collect::<HashSet<_>>()
        });
    }

    fn say(&mut self, change: Change, time: SystemTime, by: Option<Actor>) {
        self.said.push_back(Signal::Change { change, time, by });
    }

    /// A namespace has ended, and the watches in it.
    fn gone(&mut self, netns: NetnsId, time: SystemTime, by: Option<Actor>) {
        // One with patterns of its own is kept alive.
        self.forget_namespace(netns);
        self.said.push_back(Signal::NetnsGone { netns, time, by });
    }

    /// Forgets the watches of a namespace that has ended. What the maps have of them is removed
    /// when there is time.
    pub(super) fn forget_namespace(&mut self, netns: NetnsId) {
        self.namespaces.remove(&netns);
        let of = |watch: &Watch| watch.netns == netns;
        let ended = self.watches.keys().copied().filter(of);
        self.ended.extend(ended);
        self.watches.retain(|watch, _| !of(watch));
        self.suspects.retain(|watch| !of(watch));
        self.unidentified.retain(|watch| !of(watch));
        self.settled.retain(|watch| !of(watch));
        self.doubtful.remove(&netns);
        self.missed.remove(&netns);
    }
}

impl Machine for Bpf {
    type Request = Request;
    type Answer = Reply;

    fn poll(&mut self, now: &Now) -> Step<Request> {
        debug_assert_eq!(self.awaiting, AwaitedOwner::Nothing);
        self.time = now.wall;
        self.instant = Some(now.instant);
        loop {
            if let Some(step) = self.step(now) {
                return step;
            }
        }
    }

    fn answer(&mut self, now: &Now, reply: Reply) {
        self.time = now.wall;
        self.instant = Some(now.instant);
        match (
            std::mem::replace(&mut self.awaiting, AwaitedOwner::Nothing),
            reply,
        ) {
            (AwaitedOwner::Record, Reply::Record(Some(record))) => {
                self.counted = false;
                // Where messages were missed, the device may have lost the name before, and another one
                // may have it by now.
                if self.hook == Hook::Socket && record.flags & flag::LEFT_NAME != 0 {
                    self.unconfirmed = Some(Box::new(record));
                } else {
                    self.record(now, &record);
                }
            }
            (AwaitedOwner::Record, Reply::Record(None)) => self.unread = false,
            (AwaitedOwner::Confirmation, Reply::Overflowed(result)) => self.confirmed(now, result),
            (AwaitedOwner::Overflowed(netns), Reply::Overflowed(result)) => {
                self.answered_overflowed(netns, result);
            }
            (AwaitedOwner::Counters, Reply::Counters(Ok(counters))) => self.check(&counters),
            (AwaitedOwner::Counters, Reply::Counters(Err(error))) => self.trouble(error),
            (AwaitedOwner::Count, Reply::Counters(counters)) => {
                self.outcome = Some(Outcome::Counted(self.counters(counters.ok())));
            }
            (AwaitedOwner::HalfTold, reply) => self.told(reply),
            (AwaitedOwner::HalfGone, Reply::Answer(answer)) => self.gone_elsewhere(answer),
            (AwaitedOwner::Task, reply) => {
                if let Some(task) = self.task.take() {
                    self.task = self.task_answered(task, reply);
                }
            }
            (awaiting, reply) => debug_assert!(false, "{reply:?} to {awaiting:?}"),
        }
    }

    fn ready(&mut self, source: Source) {
        match source {
            Source::Ring => {
                self.unread = true;
                self.counted = false;
            }
            Source::Socket(netns) => {
                self.noisy.insert(netns);
            }
            Source::Call => {}
        }
    }

    fn command(&mut self, command: Command) {
        // A command comes after all that was queued before it.
        let netns = match &command {
            Command::Watch { netns, .. }
            | Command::WatchPatterns { netns, .. }
            | Command::UnwatchPattern(netns, _) => Some(*netns),
            Command::Unwatch(watch) => Some(watch.netns),
            Command::Sync => {
                self.owes = true;
                None
            }
            Command::Count => {
                self.command = Some(command);
                return;
            }
        };
        self.ready(Source::Ring);
        if self.hook == Hook::Socket {
            let is_meant = |&known: &NetnsId| netns.is_none_or(|netns| netns == known);
            self.noisy
                .extend(self.namespaces.keys().copied().filter(is_meant));
        }
        self.command = Some(command);
    }
}

impl Bpf {
    fn counters(&self, counters: Option<KernelCounters>) -> Counters {
        let Some(KernelCounters {
            seen,
            matched,
            ignored,
            dropped,
            refused: _,
            ids: _,
            zero: _,
        }) = counters
        else {
            return Counters::default();
        };
        Counters {
            seen: Some(seen),
            matched: Some(matched),
            ignored: Some(ignored),
            // What the program never saw, it did not count.
            lost: (!self.has_missed).then_some(dropped),
        }
    }

    /// Was there a message of this namespace that the program could not be shown? If that is not known,
    /// there may have been.
    fn answered_overflowed(&mut self, netns: NetnsId, overflowed: io::Result<bool>) {
        if !matches!(overflowed, Ok(false)) {
            self.overflowed(netns);
        }
        if let Err(error) = overflowed {
            self.trouble(error);
        }
    }

    /// The program could not be shown a message: what the maps have of this namespace may be wrong.
    fn overflowed(&mut self, netns: NetnsId) {
        self.has_missed = true;
        self.patterns.missed(netns);
        if self.namespaces.contains_key(&netns) {
            self.missed.insert(netns);
        }
    }

    fn recognize(
        &mut self,
        recognition: Recognition,
        reply: Reply,
    ) -> Result<Recognition, Recognized> {
        let next = recognition.answer(reply);
        if let Err(Recognized::Unheard) = next {
            self.overflowed(recognition.watch.netns);
        }
        next
    }

    /// The rest of a record.
    fn told(&mut self, reply: Reply) {
        match (self.half_told.take(), reply) {
            (Some(HalfTold::Took(taking, recognition)), reply) => {
                let id = match self.recognize(recognition, reply) {
                    Ok(next) => {
                        self.half_told = Some(HalfTold::Took(taking, next));
                        return;
                    }
                    Err(Recognized::Inode(inode)) => self.identities.identify(taking.id, inode),
                    // "Another device" is the answer that does no harm.
                    Err(_) => self.tell_id(taking.id),
                };
                self.took(taking, id);
            }
            (Some(HalfTold::Netns(mut change, _, time, by)), reply) => {
                if let Reply::Answer(Answer::Netns(netns)) = reply
                    && let Change::Left { to: Some(to), .. } = &mut change
                {
                    to.netns = netns;
                }
                self.say(change, time, by);
            }
            (None, reply) => debug_assert!(false, "{reply:?} to nothing"),
        }
    }

    /// What follows from an answer: the rest of the task, if there is any.
    fn task_answered(&mut self, task: Task, reply: Reply) -> Option<Task> {
        match (task, reply) {
            (Task::Begin(mut begin), reply) => {
                begin.answer(self, reply);
                Some(Task::Begin(begin))
            }
            (Task::Resync(watch, step), reply) => match self.resync(watch, step, reply) {
                Ok(step) => step.map(|step| Task::Resync(watch, step)),
                Err(error) => {
                    self.trouble(error);
                    None
                }
            },
            (Task::IsAlive(netns), Reply::Namespace(epoch)) => {
                match epoch {
                    Ok(epoch) if epoch == self.namespaces.get(&netns).copied() => {}
                    Ok(_) => self.gone(netns, self.time, None),
                    Err(error) => self.trouble(error),
                }
                None
            }
            (Task::Unwatch(watch, step), Reply::Done(result)) => {
                if let Err(error) = result {
                    log::warn!(
                        "{} is still in the filter in the kernel: {error}",
                        watch.name
                    );
                }
                self.unwatch(watch, step)
            }
            (Task::Clean(_), _) => None,
            (Task::Tidy(tidy), reply) => self.tidied(tidy, reply).map(Task::Tidy),
            (Task::Patterns(netns, step), reply) => {
                let step = self.patterns_answered(netns, step, reply);
                step.map(|step| Task::Patterns(netns, step))
            }
            (Task::Everywhere(step), reply) => {
                self.everywhere_answered(step, reply).map(Task::Everywhere)
            }
            (Task::Settle(netns), _) => {
                let unidentified = std::mem::take(&mut self.unidentified).into_iter();
                let (here, elsewhere) = unidentified.partition(|watch| watch.netns == netns);
                self.unidentified = elsewhere;
                self.settled.extend::<BTreeSet<_>>(here);
                None
            }
            (Task::Identify(recognition), reply) => {
                let watch = recognition.watch;
                match self.recognize(recognition, reply) {
                    Ok(next) => return Some(Task::Identify(next)),
                    Err(Recognized::Inode(inode)) => {
                        let known = self.watches.get(&watch)?;
                        self.identities.learn(known.id, inode);
                        self.prune_identities();
                    }
                    Err(Recognized::Failed(error)) => {
                        self.unidentified.insert(watch);
                        self.trouble(error);
                    }
                    Err(Recognized::Vanished(link, id)) => {
                        self.has_missed = true;
                        return Some(Task::Begin(Box::new(Begin::after(&watch, link, id))));
                    }
                    // Who takes the name next is looked at then.
                    Err(Recognized::Nothing | Recognized::Unheard | Recognized::Outdated) => {}
                }
                None
            }
            (task, reply) => {
                debug_assert!(false, "{reply:?} to {task:?}");
                None
            }
        }
    }

    fn unwatch(&mut self, watch: Watch, step: Unwatch) -> Option<Task> {
        let netns = watch.netns;
        let next = match step {
            Unwatch::Name => {
                if let Some(known) = self.watches.remove(&watch) {
                    self.identities.left(known.id);
                }
                self.suspects.remove(&watch);
                self.unidentified.remove(&watch);
                self.settled.remove(&watch);
                self.leftovers.unwatched += 1;
                let others = self.watches.range(Watch::first_of(netns)..).next();
                let is_needed = others.is_some_and(|(other, _)| other.netns == netns)
                    || self.has_patterns(netns);
                (!is_needed)
                    .then_some(Unwatch::Namespace)
                    .filter(|_| self.namespaces.remove(&netns).is_some())
            }
            Unwatch::Namespace => (self.hook == Hook::Socket).then_some(Unwatch::Leave),
            Unwatch::Leave => None,
        };
        match next {
            Some(step) => Some(Task::Unwatch(watch, step)),
            None => {
                self.outcome = Some(Outcome::Unwatched);
                None
            }
        }
    }

    /// Goes on reading the truth about a name.
    fn resync(&mut self, watch: Watch, step: Resync, reply: Reply) -> io::Result<Option<Resync>> {
        let Some(&known) = self.watches.get(&watch) else {
            return Ok(None);
        };
        Ok(match (step, reply) {
            (Resync::State, Reply::Name(state)) => {
                let state = state?.ok_or(io::ErrorKind::NotFound)?;
                if !is_whole(&state) {
                    // It is being written.
                    Some(Resync::State)
                } else if state.epoch != known.epoch || state.opened <= known.count {
                    None
                } else if state.ifindex == 0 {
                    let is_last = self.identities.of(state.id) == known.id;
                    let id = if is_last { state.id } else { known.id };
                    Some(Resync::Device(state, id, false))
                } else if !self.identities.is_empty() && !self.identities.knows(state.id) {
                    let took = (state.epoch, state.opened);
                    let recognition = Recognition::new(watch, state.ifindex, took, false);
                    Some(Resync::Holder(state, recognition))
                } else {
                    self.resynced(watch, &state, None);
                    None
                }
            }
            (Resync::Device(state, id, is_over), Reply::Device(device)) => match device? {
                Some(device) if device.opened != device.closed => {
                    Some(Resync::Device(state, id, is_over))
                }
                device => {
                    let place = device.and_then(|device| place(&device.place));
                    Some(Resync::Confirm(state, id, place, is_over))
                }
            },
            (Resync::Confirm(state, id, place, is_over), Reply::Name(now)) => {
                let here = |place: &Destination| place.netns == Some(watch.netns);
                // A program on a socket does not know where a device is that went elsewhere; what
                // it has of it is from before. Nor was it shown all if the device
                // has the name.
                let is_right = |place: &Destination| here(place) && place.name != Some(watch.name);
                let place = place.filter(|place| self.hook == Hook::Function || is_right(place));
                if now? != Some(state) {
                    Some(Resync::State)
                } else if let Some(place) = place.filter(here)
                    && self.hook == Hook::Function
                {
                    Some(Resync::Home(state, id, place, is_over))
                } else {
                    self.resynced(watch, &state, place);
                    None
                }
            }
            (Resync::Home(state, id, place, is_over), Reply::Namespace(epoch)) => {
                let is_home = epoch? == self.namespaces.get(&watch.netns).copied();
                if is_home || is_over {
                    let netns = place.netns.filter(|_| is_home);
                    self.resynced(watch, &state, Some(Destination { netns, ..place }));
                    None
                } else {
                    Some(Resync::Device(state, id, true))
                }
            }
            (Resync::Holder(state, recognition), reply) => {
                match self.recognize(recognition, reply) {
                    Ok(next) => return Ok(Some(Resync::Holder(state, next))),
                    Err(Recognized::Outdated) => return Ok(Some(Resync::State)),
                    Err(Recognized::Failed(error)) => return Err(error),
                    Err(Recognized::Inode(inode)) => {
                        self.identities.identify(state.id, inode);
                    }
                    Err(Recognized::Nothing | Recognized::Unheard | Recognized::Vanished(..)) => {}
                }
                self.resynced(watch, &state, None);
                None
            }
            (step, reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                None
            }
        })
    }

    /// The truth about a name was read; and where the device is that was told as its holder, while
    /// nobody has the name.
    fn resynced(&mut self, watch: Watch, state: &NameState, place: Option<Destination>) {
        let Some(&known) = self.watches.get(&watch) else {
            return;
        };
        self.identities.left(known.id);
        let holder = (state.ifindex != 0).then(|| Device {
            ifindex: state.ifindex,
            id: self.tell_id(state.id),
        });
        let id = holder.map_or(known.id, |device| device.id);
        let count = state.opened;
        let ifindex = state.ifindex;
        let after = ReportedName {
            count,
            id,
            ifindex,
            ..known
        };
        self.watches.insert(watch, after);
        if holder.is_some() {
            self.is_told(watch, id);
        }
        let away = place.map(|place| (known.id, place));
        let lost = state.opened - known.count;
        self.said.push_back(Signal::Resync {
            watch,
            observed: Observed { holder, away },
            lost: Some(lost),
            time: self.time,
        });
    }

    /// What the programs may have missed of this watch was found out in another way.
    pub(super) fn found_again(&mut self, watch: Watch, holder: Option<Device>) {
        self.said.push_back(Signal::Resync {
            watch,
            observed: Observed { holder, away: None },
            lost: None,
            time: self.time,
        });
    }

    /// What is told of some watches may be wrong, and cannot be mended.
    pub(super) fn has_failed(&mut self) {
        let error = io::Error::other("the state of a watched interface could not be read");
        self.failed = Some(Error::Recheck(error));
    }

    /// The namespace ended unheard.
    pub(super) fn gone_unheard(&mut self, netns: NetnsId) {
        self.gone(netns, self.time, None);
    }

    /// The program may have missed something of this namespace, and what it says of these names
    /// until they are found again counts for nothing.
    pub(super) fn find_again(
        &mut self,
        netns: NetnsId,
        names: impl Iterator<Item = InterfaceName>,
    ) {
        self.missed.insert(netns);
        for name in names {
            if let Some(known) = self.watches.get_mut(&Watch { netns, name }) {
                known.epoch = NO_EPOCH;
            }
        }
    }
}

impl Asking for Bpf {
    fn ask(netns: NetnsId, question: Question) -> Request {
        Request::Ask(netns, question)
    }

    fn answered(reply: Reply) -> Option<Answer> {
        match reply {
            Reply::Answer(answer) => Some(answer),
            _ => None,
        }
    }
}

/// Was it read between two writes?
pub(super) fn is_whole(state: &NameState) -> bool {
    state.opened == state.closed
}

fn watch_at(place: &Place) -> Option<Watch> {
    Some(Watch {
        netns: NetnsId(place.netns),
        name: InterfaceName::from_kernel(&place.name.to_bytes())?,
    })
}

pub(super) fn key_of(watch: &Watch) -> NameKey {
    NameKey {
        name: Name::from_bytes(watch.name.padded()),
        netns: watch.netns.0,
        zero: 0,
    }
}

pub(super) fn place(place: &Place) -> Option<Destination> {
    (place.netns != 0).then(|| Destination {
        netns: Some(NetnsId(place.netns)),
        ifindex: Some(place.ifindex),
        name: InterfaceName::from_kernel(&place.name.to_bytes()),
    })
}

/// Where a device is that left a name.
fn destination(record: &Record) -> Option<Destination> {
    if record.flags & flag::MOVED == 0 {
        return place(&record.to);
    }
    Some(Destination {
        netns: None,
        ifindex: Some(record.to.ifindex).filter(|&ifindex| ifindex != 0),
        name: None,
    })
}

/// Who made a change, as far as the program could tell.
fn actor(record: &Record) -> Option<Actor> {
    let has = |bit| record.flags & bit != 0;
    let comm = record.comm.split(|&byte| byte == 0).next();
    let actor = Actor {
        pid: has(flag::HAS_PID).then_some(record.pid),
        comm: has(flag::HAS_COMM)
            .then(|| String::from_utf8_lossy(comm.unwrap_or_default()).into_owned()),
        uid: has(flag::HAS_UID).then_some(record.uid),
        cgroup: has(flag::HAS_CGROUP).then_some(record.cgroup),
        kthread: has(flag::HAS_KTHREAD).then(|| has(flag::KTHREAD)),
    };
    (actor != Actor::default()).then_some(actor)
}

#[cfg(test)]
mod tests;
