//! The netlink backend without its I/O: a subscription for each namespace, one command at a time.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Instant,
};

use super::{
    Reply, Request,
    subscription::{MessageTally, Next, Subscription},
};
use crate::{
    Counters, NetnsId,
    engine::Asking,
    machine::{Answer, Command, Machine, Now, Outcome, Question, Source, Step},
};

/// The deciding part of the netlink backend.
#[derive(Debug)]
pub(crate) struct Netlink {
    filtered: bool,
    subscriptions: BTreeMap<NetnsId, Subscription>,
    /// Those that may have something to do, each in turn.
    active: VecDeque<NetnsId>,
    /// The same, each once.
    queued: HashSet<NetnsId>,
    /// Whose request is awaiting its answer; `None` for one that nobody waits for.
    awaiting: Option<NetnsId>,
    /// Namespaces to be let go of.
    closing: VecDeque<NetnsId>,
    command: Option<Command>,
    /// What subscriptions have counted that are no more.
    tally: MessageTally,
}

impl Netlink {
    pub(crate) fn new(filtered: bool) -> Self {
        Self {
            filtered,
            subscriptions: BTreeMap::new(),
            active: VecDeque::new(),
            queued: HashSet::new(),
            awaiting: None,
            closing: VecDeque::new(),
            command: None,
            tally: MessageTally::default(),
        }
    }

    /// How many devices are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        let subscriptions = self.subscriptions.values();
        subscriptions.map(Subscription::remembered).sum()
    }

    /// How much is remembered for patterns.
    #[cfg(test)]
    pub(crate) fn remembered_of_patterns(&self) -> usize {
        let subscriptions = self.subscriptions.values();
        subscriptions
            .map(Subscription::remembered_of_patterns)
            .sum()
    }

    fn counters(&self) -> Counters {
        let mut sum = self.tally;
        for subscription in self.subscriptions.values() {
            sum.add(subscription.tally);
        }
        let MessageTally {
            seen,
            matched,
            has_lost,
        } = sum;
        Counters {
            // What the filter drops, nobody counts.
            seen: (!self.filtered).then_some(seen),
            matched: Some(matched),
            ignored: (!self.filtered).then_some(seen - matched),
            // How many messages were lost, nobody says.
            lost: (!has_lost).then_some(0),
        }
    }

    /// Lets go of a subscription that nobody needs any more.
    fn close_if_idle(&mut self, netns: NetnsId) {
        if let Some(subscription) = self.subscriptions.get(&netns)
            && subscription.is_idle()
        {
            self.tally.add(subscription.tally);
            self.subscriptions.remove(&netns);
            self.closing.push_back(netns);
        }
    }

    /// The subscription to a namespace, which is made if there is none.
    fn subscription(&mut self, netns: NetnsId) -> &mut Subscription {
        let filtered = self.filtered;
        self.subscriptions
            .entry(netns)
            .or_insert_with(|| Subscription::new(netns, filtered))
    }

    /// The subscription may have something to do.
    fn activate(&mut self, netns: NetnsId) {
        if self.queued.insert(netns) {
            self.active.push_back(netns);
        }
    }

    /// Goes on with the command, if that can be done now.
    fn go_on(&mut self) -> Option<Outcome> {
        match self.command.take()? {
            Command::Count => return Some(Outcome::Counted(self.counters())),
            Command::Sync => {
                // Not before each was asked: there may be a thousand of them.
                let mut all = self.subscriptions.values();
                if self.active.is_empty() && all.all(Subscription::is_certain) {
                    return Some(Outcome::Synced);
                }
                self.command = Some(Command::Sync);
            }
            Command::Unwatch(watch) => {
                let subscription = self.subscriptions.get_mut(&watch.netns);
                let Some(subscription) = subscription else {
                    return Some(Outcome::Unwatched);
                };
                if subscription.is_drained() {
                    subscription.unwatch(watch.name);
                    self.activate(watch.netns);
                    self.close_if_idle(watch.netns);
                    return Some(Outcome::Unwatched);
                }
                self.command = Some(Command::Unwatch(watch));
            }
            Command::UnwatchPattern(netns, pattern) => {
                let Some(subscription) = self.subscriptions.get_mut(&netns) else {
                    return Some(Outcome::Unwatched);
                };
                if subscription.is_drained() {
                    subscription.unwatch_pattern(&pattern);
                    self.activate(netns);
                    self.close_if_idle(netns);
                    return Some(Outcome::Unwatched);
                }
                self.command = Some(Command::UnwatchPattern(netns, pattern));
            }
            Command::WatchPatterns { netns, patterns } => {
                let subscription = self.subscription(netns);
                if subscription.is_drained() || subscription.is_idle() {
                    subscription.join_patterns(patterns);
                } else {
                    self.command = Some(Command::WatchPatterns { netns, patterns });
                }
                self.activate(netns);
            }
            Command::Watch { netns, wanted } => {
                let subscription = self.subscription(netns);
                if subscription.is_drained() || subscription.is_idle() {
                    subscription.join(wanted);
                } else {
                    self.command = Some(Command::Watch { netns, wanted });
                }
                self.activate(netns);
            }
        }
        None
    }
}

impl MessageTally {
    fn add(&mut self, other: Self) {
        let Self {
            seen,
            matched,
            has_lost,
        } = other;
        self.seen += seen;
        self.matched += matched;
        self.has_lost |= has_lost;
    }
}

impl Machine for Netlink {
    type Request = Request;
    type Answer = Reply;

    fn poll(&mut self, now: &Now) -> Step<Request> {
        if let Some(netns) = self.closing.pop_front() {
            self.awaiting = None;
            return Step::Request(Request::Close(netns));
        }
        if let Some(outcome) = self.go_on() {
            return Step::Done(outcome);
        }
        let mut until: Option<Instant> = None;
        let mut resting = Vec::new();
        let step = loop {
            let Some(netns) = self.active.pop_front() else {
                break match self.go_on() {
                    Some(outcome) => Step::Done(outcome),
                    None => Step::Wait(until),
                };
            };
            self.queued.remove(&netns);
            let Some(subscription) = self.subscriptions.get_mut(&netns) else {
                continue;
            };
            match subscription.next(now) {
                Next::Request(request) => {
                    self.awaiting = Some(netns);
                    break Step::Request(request);
                }
                Next::Background(request) => {
                    self.awaiting = Some(netns);
                    break Step::Background(request);
                }
                Next::Signal(signal) => {
                    self.activate(netns);
                    break Step::Signal(signal);
                }
                Next::Joined(result) => {
                    self.activate(netns);
                    self.close_if_idle(netns);
                    break Step::Done(Outcome::Watched(result));
                }
                Next::Failed(error) => break Step::Failed(error),
                Next::Rest(Some(at)) => {
                    until = Some(until.map_or(at, |until| until.min(at)));
                    resting.push(netns);
                }
                Next::Rest(None) => {}
            }
            // The command may have waited for this.
            if let Some(outcome) = self.go_on() {
                break Step::Done(outcome);
            }
        };
        for netns in resting {
            self.activate(netns);
        }
        step
    }

    fn answer(&mut self, now: &Now, reply: Reply) {
        if let Some(netns) = self.awaiting.take()
            && let Some(subscription) = self.subscriptions.get_mut(&netns)
        {
            subscription.answer(now, reply);
            self.activate(netns);
        }
    }

    fn ready(&mut self, source: Source) {
        if let Source::Socket(netns) = source
            && let Some(subscription) = self.subscriptions.get_mut(&netns)
        {
            subscription.ready();
            self.activate(netns);
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
                let all: Vec<_> = self.subscriptions.keys().copied().collect();
                for netns in all {
                    self.ready(Source::Socket(netns));
                }
                self.subscriptions.values_mut().for_each(Subscription::owe);
                None
            }
            Command::Count => None,
        };
        if let Some(netns) = netns {
            self.ready(Source::Socket(netns));
        }
        self.command = Some(command);
    }
}

impl Asking for Netlink {
    fn ask(netns: NetnsId, question: Question) -> Request {
        Request::Ask(netns, question)
    }

    fn answered(reply: Reply) -> Option<Answer> {
        match reply {
            Reply::Answer(answer) => Some(answer),
            Reply::Done(_) | Reply::Read(_) => None,
        }
    }
}
