//! The whole monitor without its I/O: commands and a backend's machine in, events out.
//!
//! [`Engine`] decides in which order things happen: a command comes after all that the kernel had
//! queued before it, what was said of a watch is taken back when the watch ends, and while nobody
//! reads the events, the backend is not read either.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    io,
    time::Instant,
};

use crate::{
    Actor, BackendKind, Counters, Error, Event, Identity, InterfaceName, NetnsId, Pattern,
    machine::{Answer, Command, Holder, Machine, Now, Outcome, Question, Step, Wanted},
    outbox::{Item, Outbox},
    pattern::table::PatternVerdict,
    signal::Signal,
    tracker::{Device, Expectation, Tracker, Verdict, Watch},
};

/// Names to be watched, with the devices that are expected to hold them.
pub(crate) type Targets = Vec<(InterfaceName, Option<Identity>)>;

/// A machine as the engine needs it: it can also ask questions through it.
pub(crate) trait Asking: Machine {
    fn ask(netns: NetnsId, question: Question) -> Self::Request;
    /// The answer to a question; `None` when it is one to something else.
    fn answered(answer: Self::Answer) -> Option<Answer>;
}

/// What a caller asks for, one at a time.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Watch {
        netns: NetnsId,
        targets: Targets,
    },
    WatchPatterns {
        netns: NetnsId,
        patterns: Vec<Pattern>,
    },
    Unwatch(Watch),
    UnwatchPattern(NetnsId, Pattern),
    /// Puts a mark into the outbox after all that happened so far.
    Sync(u64),
    Count,
}

/// The reply to an [`Ask`].
#[derive(Debug)]
pub(crate) enum Reply {
    Watched(Result<(), Error>),
    /// Whether there was such a watch.
    Unwatched(bool),
    Synced,
    Counted(Counters),
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Output<R> {
    /// Do this and give back the answer.
    Request(R),
    /// The same, when the reader has had a chance to take what is in the outbox.
    Background(R),
    /// Tell whoever asked. The next may ask.
    Reply(Reply),
    /// Wait until something can be read, somebody asks, or until this moment.
    Wait(Option<Instant>),
    /// Wait until the reader has taken something, or somebody asks.
    Full,
    /// The outbox has its last item; this is what was counted.
    End(Counters),
}

/// The monitor.
#[derive(Debug)]
pub(crate) struct Engine<M> {
    pub(crate) machine: M,
    kind: BackendKind,
    tracker: Tracker,
    /// The patterns that are watched, or are about to be.
    patterns: BTreeSet<(NetnsId, Pattern)>,
    /// What was asked and not replied to yet.
    asked: Option<Asked>,
    /// The namespace of the last watches has ended.
    gone: Option<NetnsId>,
    /// Why it ends, while it counts for the last time.
    ending: Option<Error>,
    /// Why it ends without counting.
    broken: Option<Error>,
    ended: bool,
}

/// How far what was asked is.
#[derive(Debug)]
enum Asked {
    /// What was queued before comes first: it may say that the namespace has ended.
    Drain(NetnsId, Targets),
    /// The machine is at it. With what is expected of each watch.
    Watch(Vec<(Watch, Option<Identity>)>),
    /// The machine has begun them; where the expected devices are that hold other names is asked.
    Find {
        begun: Vec<Begun>,
        at: VecDeque<usize>,
        awaiting: bool,
    },
    /// The same for patterns, which it tells of itself.
    WatchPatterns(NetnsId, Vec<Pattern>),
    Unwatch(Watch),
    UnwatchPattern(NetnsId, Pattern),
    /// There is no such watch. It may have ended with its namespace, and what was said of it not
    /// have been read yet.
    Forget(Watch),
    ForgetPattern(NetnsId, Pattern),
    Sync(u64),
    Count,
    /// There is nothing to wait for.
    Reply(Reply),
}

/// A watch that has begun.
#[derive(Debug)]
struct Begun {
    watch: Watch,
    holder: Option<Device>,
    expected: Option<Expectation>,
}

impl<M: Asking> Engine<M> {
    pub(crate) fn new(kind: BackendKind, machine: M) -> Self {
        Self {
            machine,
            kind,
            tracker: Tracker::default(),
            patterns: BTreeSet::new(),
            asked: None,
            gone: None,
            ending: None,
            broken: None,
            ended: false,
        }
    }

    /// Asks for something. The reply to what was asked before must have come.
    pub(crate) fn ask(&mut self, ask: Ask) {
        debug_assert!(self.asked.is_none(), "one at a time");
        self.asked = Some(match ask {
            Ask::Watch { netns, targets } if self.may_have_ended(netns, &targets) => {
                self.machine.command(Command::Sync);
                Asked::Drain(netns, targets)
            }
            Ask::Watch { netns, targets } => self.begin(netns, targets),
            Ask::WatchPatterns { netns, patterns } => self.begin_patterns(netns, patterns),
            Ask::Unwatch(watch) if self.tracker.is_watching(watch) => {
                self.machine.command(Command::Unwatch(watch));
                Asked::Unwatch(watch)
            }
            Ask::Unwatch(watch) => Asked::Forget(watch),
            Ask::UnwatchPattern(netns, pattern) => {
                if self.patterns.contains(&(netns, pattern.clone())) {
                    let command = Command::UnwatchPattern(netns, pattern.clone());
                    self.machine.command(command);
                    Asked::UnwatchPattern(netns, pattern)
                } else {
                    Asked::ForgetPattern(netns, pattern)
                }
            }
            Ask::Sync(mark) => {
                self.machine.command(Command::Sync);
                Asked::Sync(mark)
            }
            Ask::Count => {
                self.machine.command(Command::Count);
                Asked::Count
            }
        });
    }

    /// Is one of these names watched as far as is known, in a namespace that may have ended since?
    /// Then the one that is meant now is another with the same number, and the watch is to
    /// begin. One with patterns is kept alive.
    fn may_have_ended(&self, netns: NetnsId, targets: &Targets) -> bool {
        let is_watched = |&(name, _): &_| self.tracker.is_watching(Watch { netns, name });
        !self.kind.keeps_netns_alive() && targets.iter().any(is_watched)
    }

    fn begin(&mut self, netns: NetnsId, targets: Targets) -> Asked {
        let mut places = HashMap::new();
        let mut watches: Vec<(Watch, Option<Identity>)> = Vec::with_capacity(targets.len());
        for (name, expected) in targets {
            let watch = Watch { netns, name };
            // A watch that is there already goes on.
            if self.tracker.is_watching(watch) {
                continue;
            }
            match places.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(watches.len());
                    watches.push((watch, expected));
                }
                // Named again, perhaps without the device that is expected.
                Entry::Occupied(place) => {
                    let (_, before) = &mut watches[*place.get()];
                    *before = before.or(expected);
                }
            }
        }
        let wanted: Vec<Wanted> = watches
            .iter()
            .map(|(watch, expected)| Wanted {
                name: watch.name,
                inode: expected.is_some_and(|identity| identity.inode.is_some()),
            })
            .collect();
        if wanted.is_empty() {
            return Asked::Reply(Reply::Watched(Ok(())));
        }
        self.machine.command(Command::Watch { netns, wanted });
        Asked::Watch(watches)
    }

    fn begin_patterns(&mut self, netns: NetnsId, mut patterns: Vec<Pattern>) -> Asked {
        patterns.retain(|pattern| self.patterns.insert((netns, pattern.clone())));
        if patterns.is_empty() {
            return Asked::Reply(Reply::Watched(Ok(())));
        }
        self.machine.command(Command::WatchPatterns {
            netns,
            patterns: patterns.clone(),
        });
        Asked::WatchPatterns(netns, patterns)
    }

    /// What to do next. Events go into the outbox.
    pub(crate) fn poll(&mut self, now: &Now, outbox: &mut Outbox) -> Output<M::Request> {
        loop {
            if self.ended {
                return Output::Wait(None);
            }
            if let Some(error) = self.broken.take() {
                return self.end_broken(error, outbox);
            }
            match self.asked.take() {
                Some(Asked::Reply(reply)) => return Output::Reply(reply),
                Some(Asked::Forget(watch)) => {
                    outbox.forget(watch);
                    return Output::Reply(Reply::Unwatched(false));
                }
                Some(Asked::ForgetPattern(netns, pattern)) => {
                    outbox.forget_pattern(netns, &pattern);
                    return Output::Reply(Reply::Unwatched(false));
                }
                Some(Asked::Find { begun, at, .. }) => match at.front() {
                    Some(&next) => {
                        let Begun {
                            watch, expected, ..
                        } = &begun[next];
                        let inode = expected.and_then(|expected| expected.identity.inode);
                        let question = Question::WhereIs(inode.unwrap_or_default());
                        let request = M::ask(watch.netns, question);
                        self.asked = Some(Asked::Find {
                            begun,
                            at,
                            awaiting: true,
                        });
                        return Output::Request(request);
                    }
                    None => {
                        self.tell_begun(begun, now, outbox);
                        return Output::Reply(Reply::Watched(Ok(())));
                    }
                },
                asked => self.asked = asked,
            }
            if self.asked.is_none() && self.ending.is_none() {
                if let Some(netns) = self.gone {
                    self.ending = Some(Error::NetnsGone(netns));
                    self.machine.command(Command::Count);
                } else if outbox.is_full() {
                    return Output::Full;
                }
            }
            match self.machine.poll(now) {
                Step::Request(request) => return Output::Request(request),
                Step::Background(request) => return Output::Background(request),
                Step::Signal(signal) => self.signal(signal, outbox),
                Step::Done(outcome) => {
                    if let Some(output) = self.done(outcome, outbox) {
                        return output;
                    }
                }
                Step::Wait(until) => return Output::Wait(until),
                Step::Failed(error) => {
                    if let Some(output) = self.fail(error, outbox) {
                        return output;
                    }
                }
            }
        }
    }

    /// The answer to the request that was made last.
    pub(crate) fn answer(&mut self, now: &Now, answer: M::Answer) {
        match &mut self.asked {
            Some(Asked::Find {
                begun,
                at,
                awaiting,
            }) if *awaiting => {
                *awaiting = false;
                let place = match M::answered(answer) {
                    Some(Answer::Place(place)) => place,
                    _ => None,
                };
                if let Some(next) = at.pop_front()
                    && let Some(Begun {
                        expected: Some(expected),
                        ..
                    }) = begun.get_mut(next)
                {
                    expected.place = place;
                }
            }
            _ => self.machine.answer(now, answer),
        }
    }

    /// Nobody can say any more when there is something to read. There is no other way to hear of a
    /// change, so the monitor ends.
    pub(crate) fn cannot_wait(&mut self, error: io::Error) {
        self.broken = Some(Error::Wait(error));
    }

    /// The machine may be in the middle of something, so it is not even asked what it counted.
    fn end_broken(&mut self, error: Error, outbox: &mut Outbox) -> Output<M::Request> {
        if let Some(asked) = self.asked.take() {
            self.broken = Some(error);
            return Output::Reply(self.refuse(asked, outbox));
        }
        outbox.end(self.ending.take().unwrap_or(error));
        self.ended = true;
        Output::End(Counters::default())
    }

    /// Is the reply to the last one out, so that somebody may ask for more?
    pub(crate) fn is_free(&self) -> bool {
        let ends = self.ending.is_some() || self.broken.is_some() || self.ended;
        self.asked.is_none() && !ends
    }

    fn done(&mut self, outcome: Outcome, outbox: &mut Outbox) -> Option<Output<M::Request>> {
        let asked = self.asked.take();
        let reply = match (asked, outcome) {
            (Some(Asked::Drain(netns, targets)), Outcome::Synced) => {
                self.asked = Some(self.begin(netns, targets));
                return None;
            }
            (Some(Asked::WatchPatterns(netns, patterns)), Outcome::Watched(result)) => {
                match &result {
                    Ok(_) => self.gone = None,
                    Err(_) => self
                        .patterns
                        .retain(|(other, pattern)| *other != netns || !patterns.contains(pattern)),
                }
                Reply::Watched(result.map(|_| ()))
            }
            (Some(Asked::UnwatchPattern(netns, pattern)), Outcome::Unwatched) => {
                outbox.forget_pattern(netns, &pattern);
                Reply::Unwatched(self.patterns.remove(&(netns, pattern)))
            }
            (Some(Asked::Watch(watches)), Outcome::Watched(Ok(holders))) => {
                self.asked = Some(find(watches, &holders));
                return None;
            }
            (Some(Asked::Watch(_)), Outcome::Watched(Err(error))) => Reply::Watched(Err(error)),
            (Some(Asked::Unwatch(watch)), Outcome::Unwatched) => {
                outbox.forget(watch);
                Reply::Unwatched(self.tracker.end(watch))
            }
            (Some(Asked::Sync(mark)), Outcome::Synced) => {
                outbox.push(Item::Mark(mark));
                Reply::Synced
            }
            (Some(Asked::Count), Outcome::Counted(counters)) => Reply::Counted(counters),
            (_, Outcome::Counted(counters)) if self.ending.is_some() => {
                if let Some(error) = self.ending.take() {
                    outbox.end(error);
                }
                self.ended = true;
                return Some(Output::End(counters));
            }
            (asked, outcome) => {
                debug_assert!(false, "{outcome:?} to {asked:?}");
                return None;
            }
        };
        Some(Output::Reply(reply))
    }

    /// It cannot go on: whoever asked is told, and what was counted is asked for the last time.
    fn fail(&mut self, error: Error, outbox: &mut Outbox) -> Option<Output<M::Request>> {
        if let Some(first) = self.ending.take() {
            // Not even counting works.
            outbox.end(first);
            self.ended = true;
            return Some(Output::End(Counters::default()));
        }
        self.ending = Some(error);
        self.machine.command(Command::Count);
        let asked = self.asked.take()?;
        Some(Output::Reply(self.refuse(asked, outbox)))
    }

    /// The reply to what was asked, when nothing comes of it any more.
    fn refuse(&mut self, asked: Asked, outbox: &mut Outbox) -> Reply {
        match asked {
            Asked::WatchPatterns(netns, patterns) => {
                // That they are watched may be said already.
                for pattern in &patterns {
                    outbox.forget_pattern(netns, pattern);
                }
                Reply::Watched(Err(Error::Stopped))
            }
            Asked::Drain(..) | Asked::Watch(_) | Asked::Find { .. } => {
                Reply::Watched(Err(Error::Stopped))
            }
            Asked::UnwatchPattern(netns, pattern) | Asked::ForgetPattern(netns, pattern) => {
                outbox.forget_pattern(netns, &pattern);
                Reply::Unwatched(self.patterns.remove(&(netns, pattern)))
            }
            Asked::Unwatch(watch) | Asked::Forget(watch) => {
                outbox.forget(watch);
                Reply::Unwatched(self.tracker.end(watch))
            }
            Asked::Sync(_) => Reply::Synced,
            Asked::Count => Reply::Counted(Counters::default()),
            Asked::Reply(reply) => reply,
        }
    }

    /// Lets the tracker decide on a signal.
    fn signal(&mut self, signal: Signal, outbox: &mut Outbox) {
        let gone = match signal {
            Signal::NetnsGone { netns, .. } => Some(netns),
            Signal::Pattern {
                netns,
                told,
                time,
                by,
            } => return self.tell_pattern(netns, told, time, by, outbox),
            Signal::Change { .. } | Signal::Resync { .. } => None,
        };
        let mut verdicts = Vec::new();
        let (time, by) = signal.decide(&mut self.tracker, &mut verdicts);
        if let Some(netns) = gone {
            // No verdict says that, and whoever has its name next is not watched.
            log::info!("network namespace {netns} has ended, and so have the watches in it");
        }
        for verdict in verdicts {
            self.tell(verdict, time, by.clone(), outbox);
        }
        let asked = self.asked.as_ref();
        let is_new = |place| is_about_to_be(asked, place);
        if self.tracker.is_empty() && self.patterns.iter().all(is_new) {
            self.gone = gone.or(self.gone);
        }
    }

    /// The first words about watches that have begun.
    fn tell_begun(&mut self, begun: Vec<Begun>, now: &Now, outbox: &mut Outbox) {
        self.gone = None;
        let mut verdicts = Vec::new();
        let begun = begun
            .into_iter()
            .map(|begun| (begun.watch, begun.holder, begun.expected));
        self.tracker.begin(begun, &mut verdicts);
        for verdict in verdicts {
            self.tell(verdict, now.wall, None, outbox);
        }
    }

    fn tell(
        &self,
        verdict: Verdict,
        time: std::time::SystemTime,
        by: Option<Actor>,
        outbox: &mut Outbox,
    ) {
        let Verdict {
            watch: Watch { netns, name },
            kind,
            recovered,
        } = verdict;
        outbox.push(Item::Event(Event {
            time,
            interface: name,
            pattern: None,
            matches: None,
            link_kind: None,
            netns,
            kind,
            backend: self.kind,
            by,
            recovered,
        }));
    }
}

impl<M> Engine<M> {
    fn tell_pattern(
        &self,
        netns: NetnsId,
        told: PatternVerdict,
        time: std::time::SystemTime,
        by: Option<Actor>,
        outbox: &mut Outbox,
    ) {
        let PatternVerdict {
            pattern,
            name,
            link_kind,
            kind,
            recovered,
            matches,
        } = told;
        outbox.push(Item::Event(Event {
            time,
            interface: name.unwrap_or(InterfaceName::NONE),
            pattern: Some(pattern),
            matches,
            link_kind,
            netns,
            kind,
            backend: self.kind,
            by: by.filter(|_| !recovered),
            recovered,
        }));
    }
}

/// What is known of watches that have begun, and which of the expected devices are to be looked
/// for.
fn find(watches: Vec<(Watch, Option<Identity>)>, holders: &[Option<Holder>]) -> Asked {
    let begun: Vec<Begun> = watches
        .into_iter()
        .zip(holders)
        .map(|((watch, expected), holder)| {
            let identity = holder.map(|Holder { device, inode }| Identity {
                ifindex: device.ifindex,
                inode,
            });
            let is_met = |expected: Identity| identity.is_some_and(|held| held.may_be(expected));
            Begun {
                watch,
                holder: holder.map(|holder| holder.device),
                expected: expected
                    .filter(|&expected| !is_met(expected))
                    .map(|identity| Expectation {
                        identity,
                        place: None,
                    }),
            }
        })
        .collect();
    let is_sought = |begun: &Begun| {
        begun.holder.is_none()
            && begun
                .expected
                .is_some_and(|expected| expected.identity.inode.is_some())
    };
    let at = begun
        .iter()
        .enumerate()
        .filter_map(|(at, begun)| is_sought(begun).then_some(at))
        .collect();
    Asked::Find {
        begun,
        at,
        awaiting: false,
    }
}

/// Is this pattern asked for, and not watched yet?
fn is_about_to_be(asked: Option<&Asked>, (netns, pattern): &(NetnsId, Pattern)) -> bool {
    matches!(
        asked,
        Some(Asked::WatchPatterns(other, patterns)) if other == netns && patterns.contains(pattern)
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::machine::Source;

    /// A backend that does what it was told before.
    #[derive(Debug)]
    struct Scripted(VecDeque<Step<()>>);

    impl Machine for Scripted {
        type Request = ();
        type Answer = ();

        fn poll(&mut self, _: &Now) -> Step<()> {
            self.0.pop_front().unwrap_or(Step::Wait(None))
        }

        fn answer(&mut self, _: &Now, (): ()) {}
        fn ready(&mut self, _: Source) {}
        fn command(&mut self, _: Command) {}
    }

    impl Asking for Scripted {
        fn ask(_: NetnsId, _: Question) {}

        fn answered((): ()) -> Option<Answer> {
            None
        }
    }

    #[test]
    fn it_ends_when_all_has_ended_also_where_patterns_were_about_to_begin() {
        let (first, second) = (NetnsId(1), NetnsId(2));
        let name: InterfaceName = "wg0".parse().expect("a good name");
        let watched = |result| Step::Done(Outcome::Watched(result));
        let machine = Scripted(VecDeque::from([
            watched(Ok(vec![None])),
            Step::Signal(Signal::NetnsGone {
                netns: first,
                time: SystemTime::UNIX_EPOCH,
                by: None,
            }),
            watched(Err(Error::NothingToWatch)),
            Step::Done(Outcome::Counted(Counters::default())),
        ]));
        let mut engine = Engine::new(BackendKind::Fentry, machine);
        let (mut outbox, now) = (Outbox::default(), Now::at(Instant::now()));
        engine.ask(Ask::Watch {
            netns: first,
            targets: vec![(name, None)],
        });
        let reply = engine.poll(&now, &mut outbox);
        assert!(
            matches!(reply, Output::Reply(Reply::Watched(Ok(())))),
            "{reply:?}"
        );
        engine.ask(Ask::WatchPatterns {
            netns: second,
            patterns: vec![Pattern::new("wg*").expect("a good pattern")],
        });
        let reply = engine.poll(&now, &mut outbox);
        assert!(
            matches!(reply, Output::Reply(Reply::Watched(Err(_)))),
            "{reply:?}"
        );
        let end = engine.poll(&now, &mut outbox);
        assert!(matches!(end, Output::End(_)), "{end:?}");
        let last = std::iter::from_fn(|| outbox.pop()).last();
        assert!(
            matches!(last, Some(Item::Error(Error::NetnsGone(netns))) if netns == first),
            "{last:?}"
        );
    }
}
