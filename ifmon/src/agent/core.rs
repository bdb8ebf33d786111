//! The deciding part: the agent while it answers, netlink in its place while it does not.
//!
//! Watches of the own namespace are with the agent, or with the netlink that stands in; those of
//! other namespaces, in which the agent would not believe us to be, are with netlink always.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    CallId, Reply, Request, call,
    call::{AgentEvent, AgentMessage, AgentVerdict, Input},
    names::{AgentNames, Found},
    refused,
};
use crate::{
    Counters, Error, InterfaceName, NetnsId,
    engine::Asking,
    machine::{Answer, Command, Holder, Machine, Now, Outcome, Question, Source, Step, Wanted},
    netlink::{self, core::Netlink},
    retry,
    signal::Signal,
    tracker::{Device, Watch},
};

/// How many names a call has; the agent takes 1,024, of as many bytes as a call may have.
const NAMES_OF_CALL: usize = 512;
/// How long the agent may take to answer. Whoever sleeps for longer is of no use as an agent.
const PATIENCE: Duration = Duration::from_secs(5);
/// An agent that is away is called again after waits that double.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(64);

/// The agent and what stands in for it.
#[derive(Debug)]
pub(crate) struct Agent {
    home: NetnsId,
    is_filtered: bool,
    /// A refusal is an error, and not a reason to stand in.
    is_strict: bool,
    names: AgentNames,
    calls: BTreeMap<CallId, AgentCall>,
    last_call: CallId,
    /// Names about to be with the agent.
    begin: Option<Handover>,
    /// While the agent is away.
    stand_in: Option<StandIn>,
    /// How often in a row one could not begin, with nothing from the agent but its first answers
    /// between.
    refusals: u32,
    /// Other namespaces.
    others: Netlink,
    command: Option<(Command, CommandProgress)>,
    said: VecDeque<AgentOutput>,
    /// What was told to be lost; `None` once not all of it was counted.
    lost: Option<u64>,
    /// To be let go of.
    closing: VecDeque<Request>,
    awaiting: AwaitedPart,
    /// It cannot go on; it is asked what was counted, and nothing else.
    has_failed: bool,
}

/// Something to be handed on.
#[derive(Debug)]
enum AgentOutput {
    Signal(Signal),
    Done(Outcome),
}

/// A connection to the agent.
#[derive(Debug)]
struct AgentCall {
    names: BTreeSet<InterfaceName>,
    /// What is to be sent, first the call itself.
    outgoing: VecDeque<Vec<u8>>,
    is_connected: bool,
    input: Input,
    is_readable: bool,
}

/// How far the command is.
#[derive(Debug)]
enum CommandProgress {
    New,
    /// Begun, and what it waits for says when it is done.
    Begun,
    /// These calls have yet to say that all was said, until then.
    Sync(BTreeSet<CallId>, Instant),
    /// What concerns the own namespace is done.
    Others,
}

/// Names about to be with the agent, in the order in which they were asked for.
#[derive(Debug)]
struct Handover {
    why: Why,
    wanted: Vec<Wanted>,
    found: BTreeMap<InterfaceName, Option<Found>>,
    /// What was said of names that have begun before others have.
    early: Vec<AgentEvent>,
    until: Instant,
}

/// Why names change hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The command asks for them.
    Command,
    /// The agent is back.
    Return,
}

/// Netlink in the place of the agent.
#[derive(Debug)]
struct StandIn {
    netlink: Netlink,
    busy: Option<Busy>,
    /// It could not watch what the agent watched, and tries again at this moment.
    retry: Option<Instant>,
    failures: u32,
    /// When the agent is called again.
    again: Instant,
    /// What it has said since then, for the case that the agent does not say how things are.
    held: Vec<Signal>,
}

/// What the stand-in is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Busy {
    /// To take these names.
    Take(Vec<InterfaceName>),
    /// To say all, before the agent is called again.
    Return,
    Command,
}

/// Whose answer comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum AwaitedPart {
    #[default]
    Nobody,
    Call(CallId),
    StandIn,
    Others,
}

impl StandIn {
    /// It watches what the agent watched.
    fn has_taken(&self) -> bool {
        self.retry.is_none() && !matches!(self.busy, Some(Busy::Take(_)))
    }

    /// Watches what the agent watched.
    fn take(&mut self, netns: NetnsId, names: &AgentNames) {
        let names: Vec<_> = names.iter().collect();
        let wanted = names.iter().copied().map(wanted).collect();
        self.netlink.command(Command::Watch { netns, wanted });
        self.busy = Some(Busy::Take(names));
        self.retry = None;
    }
}

impl Agent {
    pub(crate) fn new(home: NetnsId, is_filtered: bool, is_strict: bool) -> Self {
        Self {
            home,
            is_filtered,
            is_strict,
            names: AgentNames::new(home),
            calls: BTreeMap::new(),
            last_call: 0,
            begin: None,
            stand_in: None,
            refusals: 0,
            others: Netlink::new(is_filtered),
            command: None,
            said: VecDeque::new(),
            lost: Some(0),
            closing: VecDeque::new(),
            awaiting: AwaitedPart::Nobody,
            has_failed: false,
        }
    }

    /// What the agent is asked for.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> impl Iterator<Item = InterfaceName> {
        self.calls.values().flat_map(|call| &call.names).copied()
    }

    #[cfg(test)]
    pub(crate) fn others(&self) -> &Netlink {
        &self.others
    }

    /// Calls the agent for these names.
    fn call(&mut self, why: Why, wanted: Vec<Wanted>, now: &Now) {
        for part in wanted.chunks(NAMES_OF_CALL) {
            let names: BTreeSet<_> = part.iter().map(|wanted| wanted.name).collect();
            self.last_call += 1;
            let call = AgentCall {
                outgoing: VecDeque::from([call::watch(&names)]),
                names,
                is_connected: false,
                input: Input::default(),
                is_readable: false,
            };
            self.calls.insert(self.last_call, call);
        }
        self.begin = Some(Handover {
            why,
            wanted,
            found: BTreeMap::new(),
            early: Vec::new(),
            until: now.instant + PATIENCE,
        });
    }

    /// The agent does not answer any more, or never did, or refuses.
    fn fail(&mut self, reason: &str, now: &Now) {
        for (&id, call) in &self.calls {
            if call.is_connected {
                self.closing.push_back(Request::Hang(id));
            }
        }
        self.calls.clear();
        let begin = self.begin.take().map(|begin| begin.why);
        if let Some((command, progress)) = &mut self.command {
            match progress {
                CommandProgress::Begun if begin == Some(Why::Command) => {
                    if self.is_strict && self.names.is_empty() {
                        let error = refused(reason);
                        self.said
                            .push_back(AgentOutput::Done(Outcome::Watched(Err(error))));
                        self.command = None;
                        return;
                    }
                    *progress = CommandProgress::New;
                }
                CommandProgress::Sync(..) => *progress = CommandProgress::New,
                CommandProgress::New | CommandProgress::Begun | CommandProgress::Others => {}
            }
            debug_assert!(begin != Some(Why::Command) || matches!(command, Command::Watch { .. }));
        }
        if let Some(stand_in) = &mut self.stand_in {
            log::debug!("the agent is not back: {reason}");
            stand_in.failures += 1;
            stand_in.again = now.instant + retry::doubled(FIRST_WAIT, LAST_WAIT, stand_in.failures);
            for signal in std::mem::take(&mut stand_in.held) {
                let signal = self.names.translate(signal);
                self.said.extend(signal.map(AgentOutput::Signal));
            }
            return;
        }
        log::warn!("{reason}; watching by netlink until the agent serves");
        let mut stand_in = StandIn {
            netlink: Netlink::new(self.is_filtered),
            busy: None,
            retry: None,
            failures: 0,
            again: now.instant + FIRST_WAIT,
            held: Vec::new(),
        };
        if !self.names.is_empty() {
            stand_in.take(self.home, &self.names);
        }
        self.stand_in = Some(stand_in);
    }

    /// Takes what came from the agent.
    fn take(&mut self, id: CallId, bytes: &[u8], now: &Now) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let (messages, result) = call.input.take(bytes);
        let names = call.names.clone();
        for message in messages {
            match message {
                // A name that is not watched any more can be so in a later call.
                AgentMessage::Event(told) if !names.contains(&told.name) => {}
                AgentMessage::Event(told) => self.told(told, now),
                AgentMessage::Synced => self.synced(id),
                AgentMessage::Refused(why) => {
                    return self.fail(&format!("the agent refuses ({why})"), now);
                }
            }
        }
        if let Err(why) = result {
            self.fail(&format!("the agent cannot be asked: {why}"), now);
        }
    }

    fn told(&mut self, told: AgentEvent, now: &Now) {
        if let Some(begin) = &mut self.begin
            && begin.wanted.iter().any(|wanted| wanted.name == told.name)
        {
            let AgentVerdict::Watching(ifindex) = told.what else {
                begin.early.push(told);
                return;
            };
            let mark = self.names.new_mark();
            let found = ifindex.map(|ifindex| Found { ifindex, mark });
            begin.found.insert(told.name, found);
            if begin.found.len() == begin.wanted.len()
                && let Some(begin) = self.begin.take()
            {
                self.begun(begin, now);
            }
            return;
        }
        self.refusals = 0;
        self.said
            .extend(self.names.tell(told).map(AgentOutput::Signal));
    }

    /// All these names are with the agent.
    fn begun(&mut self, begin: Handover, now: &Now) {
        let Handover {
            why,
            wanted,
            found,
            early,
            until: _,
        } = begin;
        let found = |wanted: &Wanted| found.get(&wanted.name).copied().flatten();
        match why {
            Why::Command => {
                let holders = wanted.iter().map(|wanted| {
                    let device = self.names.begin(wanted.name, found(wanted))?;
                    // By the time that it could be read, it would be another device's.
                    let inode = None;
                    Some(Holder { device, inode })
                });
                let watched = Outcome::Watched(Ok(holders.collect()));
                self.command = None;
                self.said.push_back(AgentOutput::Done(watched));
            }
            Why::Return => {
                for wanted in &wanted {
                    self.resume(wanted.name, found(wanted), now);
                }
                log::info!("the agent is back");
                self.dismiss();
            }
        }
        for told in early {
            self.said
                .extend(self.names.tell(told).map(AgentOutput::Signal));
        }
    }

    /// A name has changed hands.
    fn resume(&mut self, name: InterfaceName, found: Option<Found>, now: &Now) {
        let netns = self.home;
        self.said.push_back(AgentOutput::Signal(Signal::Resync {
            watch: Watch { netns, name },
            observed: self.names.resume(name, found),
            lost: None,
            time: now.wall,
        }));
    }

    fn synced(&mut self, id: CallId) {
        self.refusals = 0;
        if let Some((_, CommandProgress::Sync(missing, _))) = &mut self.command {
            missing.remove(&id);
        }
    }

    /// The agent is back: nobody has to stand in for it any more.
    fn dismiss(&mut self) {
        self.stand_in = None;
        self.closing
            .push_back(Request::Netlink(netlink::Request::Close(self.home)));
    }

    /// Goes on with the command, if that can be done now. True when there is something new to do.
    fn go_on(&mut self, now: &Now) -> bool {
        if self.begin.is_some() {
            return false;
        }
        let Some((command, progress)) = &mut self.command else {
            return false;
        };
        let netns = match command {
            Command::Watch { netns, .. }
            | Command::WatchPatterns { netns, .. }
            | Command::UnwatchPattern(netns, _) => Some(*netns),
            Command::Unwatch(watch) => Some(watch.netns),
            Command::Sync | Command::Count => None,
        };
        let is_elsewhere = netns.is_some_and(|netns| netns != self.home);
        match progress {
            CommandProgress::New if matches!(command, Command::Count) => {
                self.command = None;
                let counted = Outcome::Counted(self.counters());
                self.said.push_back(AgentOutput::Done(counted));
            }
            CommandProgress::New if is_elsewhere => {
                self.others.command(command.clone());
                *progress = CommandProgress::Begun;
            }
            // There is none here.
            CommandProgress::New if matches!(command, Command::UnwatchPattern(..)) => {
                self.command = None;
                self.said.push_back(AgentOutput::Done(Outcome::Unwatched));
            }
            CommandProgress::New if matches!(command, Command::WatchPatterns { .. }) => {
                let error = refused("a pattern cannot be asked of the agent");
                self.command = None;
                self.said
                    .push_back(AgentOutput::Done(Outcome::Watched(Err(error))));
            }
            CommandProgress::New => {
                let is_text = |wanted: &Wanted| std::str::from_utf8(wanted.name.as_bytes()).is_ok();
                if let Command::Watch { wanted, .. } = command
                    && !wanted.iter().all(is_text)
                {
                    let error = refused("a name that is not UTF-8 cannot be asked of the agent");
                    self.command = None;
                    self.said
                        .push_back(AgentOutput::Done(Outcome::Watched(Err(error))));
                    return true;
                }
                if let Some(stand_in) = &mut self.stand_in {
                    if stand_in.busy.is_some() || !stand_in.has_taken() {
                        return false;
                    }
                    stand_in.netlink.command(command.clone());
                    stand_in.busy = Some(Busy::Command);
                    *progress = CommandProgress::Begun;
                    return true;
                }
                match command {
                    Command::Watch { wanted, .. } => {
                        let wanted = wanted.clone();
                        *progress = CommandProgress::Begun;
                        self.call(Why::Command, wanted, now);
                    }
                    Command::WatchPatterns { .. }
                    | Command::UnwatchPattern(..)
                    | Command::Unwatch(_)
                    | Command::Sync
                    | Command::Count => {
                        for call in self.calls.values_mut() {
                            call.outgoing.push_back(call::sync());
                        }
                        let calls = self.calls.keys().copied().collect();
                        *progress = CommandProgress::Sync(calls, now.instant + PATIENCE);
                    }
                }
            }
            CommandProgress::Sync(missing, _) if missing.is_empty() => match *command {
                Command::Unwatch(watch) => {
                    self.command = None;
                    self.end(watch.name);
                    self.said.push_back(AgentOutput::Done(Outcome::Unwatched));
                }
                Command::Sync
                | Command::Watch { .. }
                | Command::WatchPatterns { .. }
                | Command::UnwatchPattern(..)
                | Command::Count => {
                    *progress = CommandProgress::Others;
                    self.others.command(Command::Sync);
                }
            },
            CommandProgress::Begun | CommandProgress::Sync(..) | CommandProgress::Others => {
                return false;
            }
        }
        true
    }

    /// A name is not watched any more. A call without names has nothing to say.
    fn end(&mut self, name: InterfaceName) {
        self.names.end(name);
        let Some((&id, call)) = self
            .calls
            .iter_mut()
            .find(|(_, call)| call.names.contains(&name))
        else {
            return;
        };
        call.names.remove(&name);
        if call.names.is_empty() {
            self.calls.remove(&id);
            self.closing.push_back(Request::Hang(id));
        }
    }

    /// The stand-in has done what it was asked.
    fn stood_in(&mut self, outcome: Outcome, now: &Now) -> Result<(), Error> {
        let busy = self
            .stand_in
            .as_mut()
            .and_then(|stand_in| stand_in.busy.take());
        match (busy, outcome) {
            (Some(Busy::Take(names)), Outcome::Watched(Ok(holders))) => {
                self.refusals = 0;
                for (name, holder) in names.into_iter().zip(holders) {
                    self.resume(name, holder.map(|holder| found(holder.device)), now);
                }
            }
            (Some(Busy::Take(_)), Outcome::Watched(Err(error))) => {
                let Some(stand_in) = &mut self.stand_in else {
                    return Err(error);
                };
                self.refusals += 1;
                let Some(wait) = retry::wait_after(self.refusals) else {
                    return Err(error);
                };
                log::warn!(
                    "netlink cannot stand in for the agent ({error}); trying again in {} ms",
                    wait.as_millis()
                );
                stand_in.retry = Some(now.instant + wait);
                // Nobody watches meanwhile.
                stand_in.again = stand_in.again.min(now.instant + wait);
            }
            (Some(Busy::Return), Outcome::Synced) => {
                let wanted = self.names.iter().map(wanted).collect();
                self.call(Why::Return, wanted, now);
            }
            (Some(Busy::Command), Outcome::Synced) => {
                self.others.command(Command::Sync);
                if let Some((_, progress)) = &mut self.command {
                    *progress = CommandProgress::Others;
                }
            }
            (Some(Busy::Command), outcome) => {
                let command = self.command.take().map(|(command, _)| command);
                let outcome = match (command, outcome) {
                    (Some(Command::Watch { wanted, .. }), Outcome::Watched(Ok(holders))) => {
                        let holders = wanted.iter().zip(holders).map(|(wanted, holder)| {
                            let device = holder.map(|holder| found(holder.device));
                            let device = self.names.begin(wanted.name, device)?;
                            let inode = holder.and_then(|holder| holder.inode);
                            Some(Holder { device, inode })
                        });
                        Outcome::Watched(Ok(holders.collect()))
                    }
                    (Some(Command::Unwatch(watch)), outcome) => {
                        self.names.end(watch.name);
                        outcome
                    }
                    (_, outcome) => outcome,
                };
                self.said.push_back(AgentOutput::Done(outcome));
            }
            (busy, outcome) => debug_assert!(false, "{outcome:?} to {busy:?}"),
        }
        Ok(())
    }

    /// Calls the agent again, if it is time for that.
    fn come_back(&mut self, now: &Now) -> bool {
        let is_free = self.begin.is_none();
        let Some(stand_in) = self.stand_in.as_mut().filter(|_| is_free) else {
            return false;
        };
        if stand_in.busy.is_some() || now.instant < stand_in.again {
            return false;
        }
        if self.names.is_empty() {
            // The next watch will show whether it is.
            self.dismiss();
            return true;
        }
        stand_in.netlink.command(Command::Sync);
        stand_in.busy = Some(Busy::Return);
        true
    }

    /// Until when the agent may take to answer.
    fn patience(&self) -> Option<Instant> {
        let begin = self.begin.as_ref().map(|begin| begin.until);
        let sync = match self.command {
            Some((_, CommandProgress::Sync(_, until))) => Some(until),
            _ => None,
        };
        begin.into_iter().chain(sync).min()
    }

    /// The next request of a call.
    fn converse(&mut self) -> Option<Request> {
        let (&id, call) = self
            .calls
            .iter_mut()
            .find(|(_, call)| !call.outgoing.is_empty() || call.is_readable)?;
        self.awaiting = AwaitedPart::Call(id);
        Some(match call.outgoing.pop_front() {
            Some(message) if call.is_connected => Request::Send(id, message),
            Some(message) => Request::Call(id, message),
            None => Request::Receive(id),
        })
    }

    /// Is what stands in kept back, while the agent says how things are now? It is read all the
    /// same: a socket with something to read would be no wait.
    fn is_held(&self) -> bool {
        self.begin.as_ref().map(|begin| begin.why) == Some(Why::Return)
    }
}

impl Machine for Agent {
    type Request = Request;
    type Answer = Reply;

    fn poll(&mut self, now: &Now) -> Step<Request> {
        loop {
            match self.said.pop_front() {
                Some(AgentOutput::Signal(signal)) => return self.tell(signal),
                Some(AgentOutput::Done(outcome)) => return Step::Done(outcome),
                None => {}
            }
            if self.has_failed {
                return match self.command.take() {
                    Some(_) => Step::Done(Outcome::Counted(self.counters())),
                    None => Step::Wait(None),
                };
            }
            if let Some(request) = self.closing.pop_front() {
                self.awaiting = AwaitedPart::Nobody;
                return Step::Request(request);
            }
            if let Some(request) = self.converse() {
                return Step::Request(request);
            }
            let mut until = self.patience();
            if until.is_some_and(|until| until <= now.instant) {
                self.fail("the agent does not answer", now);
                continue;
            }
            if self.go_on(now) || self.come_back(now) {
                continue;
            }
            let mut wait = |at: Option<Instant>| {
                until = until.into_iter().chain(at).min();
            };
            match self.others.poll(now) {
                Step::Wait(at) => wait(at),
                Step::Done(outcome) => {
                    self.command = None;
                    return Step::Done(outcome);
                }
                step => return self.pass_on(step, AwaitedPart::Others),
            }
            let is_held = self.is_held();
            if let Some(stand_in) = &mut self.stand_in {
                let is_free = stand_in.busy.is_none() && !is_held;
                wait(Some(stand_in.again).filter(|_| is_free));
                if is_free && stand_in.retry.is_some_and(|at| at <= now.instant) {
                    stand_in.take(self.home, &self.names);
                }
                wait(stand_in.retry.filter(|_| is_free));
                match stand_in.netlink.poll(now) {
                    Step::Wait(at) => wait(at),
                    Step::Done(outcome) => {
                        if let Err(error) = self.stood_in(outcome, now) {
                            return self.give_up(error);
                        }
                        continue;
                    }
                    Step::Signal(signal) if is_held => {
                        stand_in.held.push(signal);
                        continue;
                    }
                    Step::Signal(signal) => {
                        // Before its watches have begun it says what is not asked for.
                        if stand_in.has_taken()
                            && let Some(signal) = self.names.translate(signal)
                        {
                            return self.tell(signal);
                        }
                        continue;
                    }
                    step => return self.pass_on(step, AwaitedPart::StandIn),
                }
            }
            return Step::Wait(until);
        }
    }

    fn answer(&mut self, now: &Now, reply: Reply) {
        match (std::mem::take(&mut self.awaiting), reply) {
            (AwaitedPart::Call(id), Reply::Done(result)) => match result {
                Ok(()) => {
                    if let Some(call) = self.calls.get_mut(&id) {
                        call.is_connected = true;
                    }
                }
                Err(error) => self.fail(&format!("the agent cannot be asked: {error}"), now),
            },
            (AwaitedPart::Call(id), Reply::Received(result)) => match result {
                Ok(Some(bytes)) => self.take(id, &bytes, now),
                Ok(None) => {
                    if let Some(call) = self.calls.get_mut(&id) {
                        call.is_readable = false;
                    }
                }
                Err(error) => self.fail(&format!("the agent has gone: {error}"), now),
            },
            (AwaitedPart::Others, Reply::Netlink(reply)) => self.others.answer(now, reply),
            (AwaitedPart::StandIn, Reply::Netlink(reply)) => {
                if let Some(stand_in) = &mut self.stand_in {
                    stand_in.netlink.answer(now, reply);
                }
            }
            (AwaitedPart::Nobody, _) => {}
            (awaiting, reply) => debug_assert!(false, "{reply:?} for {awaiting:?}"),
        }
    }

    fn ready(&mut self, source: Source) {
        match source {
            Source::Call => {
                for call in self.calls.values_mut() {
                    call.is_readable = call.is_connected;
                }
            }
            Source::Socket(netns) if netns == self.home => {
                if let Some(stand_in) = &mut self.stand_in {
                    stand_in.netlink.ready(source);
                }
            }
            Source::Socket(_) => self.others.ready(source),
            Source::Ring => {}
        }
    }

    fn command(&mut self, command: Command) {
        self.command = Some((command, CommandProgress::New));
    }
}

impl Agent {
    fn tell(&mut self, signal: Signal) -> Step<Request> {
        if let Signal::Resync { lost, .. } = signal {
            self.lost = self.lost.zip(lost).map(|(before, lost)| before + lost);
        }
        Step::Signal(signal)
    }

    fn counters(&self) -> Counters {
        Counters {
            lost: self.lost,
            // Only the agent could count these.
            ..Counters::default()
        }
    }

    /// Hands on a step of netlink that is not for us.
    fn pass_on(&mut self, step: Step<netlink::Request>, awaiting: AwaitedPart) -> Step<Request> {
        self.awaiting = awaiting;
        match step {
            Step::Request(request) => Step::Request(Request::Netlink(request)),
            Step::Background(request) => Step::Background(Request::Netlink(request)),
            Step::Signal(signal) => self.tell(signal),
            Step::Done(outcome) => Step::Done(outcome),
            Step::Wait(until) => Step::Wait(until),
            Step::Failed(error) => self.give_up(error),
        }
    }

    fn give_up(&mut self, error: Error) -> Step<Request> {
        self.has_failed = true;
        self.command = None;
        Step::Failed(error)
    }
}

impl Asking for Agent {
    fn ask(netns: NetnsId, question: Question) -> Request {
        Request::Netlink(netlink::Request::Ask(netns, question))
    }

    fn answered(reply: Reply) -> Option<Answer> {
        match reply {
            Reply::Netlink(reply) => Netlink::answered(reply),
            Reply::Done(_) | Reply::Received(_) => None,
        }
    }
}

fn wanted(name: InterfaceName) -> Wanted {
    Wanted { name, inode: false }
}

fn found(device: Device) -> Found {
    Found {
        ifindex: device.ifindex,
        mark: device.id,
    }
}
