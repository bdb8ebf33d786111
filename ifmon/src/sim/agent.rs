//! An agent that comes and goes, who else asks it, and the kernel as the netlink meets it that
//! stands in for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    clients::Client,
    host::{self, Host, Notice, Spot},
    netlink::{self, Sockets},
    patterns,
    run::{Setting, Side, failure},
    serving::{Process, Wire, WireId, Wires},
    shrink::Decisions,
    tell,
};
use crate::{
    BackendKind, Counters,
    agent::{CallId, Reply, Request, core::Agent},
    machine::Source,
};

/// The namespace in which the agent is asked by the library.
const HOME: usize = 0;
const OWN_KINDS: usize = 4;
/// So many others ask it at a time.
const CLIENTS: usize = 4;

/// The agent with its kernel's side, its clients, and sockets.
#[derive(Debug)]
pub(crate) struct Service<A: Side> {
    setting: Setting,
    process: Option<Process<A>>,
    wires: Wires,
    last_wire: WireId,
    /// Those of the library.
    calls: BTreeMap<CallId, WireId>,
    clients: Vec<Client>,
    sockets: Sockets,
    rests: u32,
    /// How many events the clients were told.
    served: u64,
}

impl<A: Side> Service<A> {
    fn connect(&mut self, decisions: &mut Decisions, space: usize) -> WireId {
        let room = [1 << 20, 100, 1000][decisions.index(3)];
        self.last_wire += 1;
        self.wires.insert(self.last_wire, Wire::new(space, room));
        self.last_wire
    }

    fn die(&mut self) {
        tell(|| String::from("  agent: dies"));
        self.process = None;
        self.wires.values_mut().for_each(Wire::end);
    }

    fn start(&mut self) {
        if self.process.is_none() {
            tell(|| String::from("  agent: starts"));
            self.process = Some(Process::new(self.setting));
        }
    }

    /// The agent does one thing; false when it has nothing to do.
    fn serve_clients(&mut self, decisions: &mut Decisions, host: &Host) -> bool {
        let Some(process) = &mut self.process else {
            return false;
        };
        let any = process.turn(decisions, host, &mut self.wires);
        if process.has_ended() {
            self.die();
        }
        any
    }

    /// A client does something.
    fn ask(&mut self, decisions: &mut Decisions, host: &Host) {
        let at = decisions.index(CLIENTS);
        if at >= self.clients.len() {
            if decisions.chance(3) {
                let client = Client::new(decisions, host, self.setting.means_of_client());
                self.clients.extend(client);
            }
            return;
        }
        if decisions.chance(30) {
            // It ends, in the midst of whatever it does.
            let client = self.clients.swap_remove(at);
            tell(|| format!("  {client}: goes"));
            client.hang_up(&mut self.wires);
            return;
        }
        if self.clients[at].is_away() && self.process.is_some() {
            let wire = self.connect(decisions, self.clients[at].space);
            self.clients[at].call(wire);
            return;
        }
        self.served += self.clients[at].turn(decisions, host, &mut self.wires);
    }

    fn receive(&mut self, decisions: &mut Decisions, id: CallId) -> Reply {
        let wire = self.calls.get(&id).and_then(|id| self.wires.get_mut(id));
        let wire = wire.expect("a call that is there");
        let count = match decisions.below(4) {
            3 => 1 + decisions.index(200),
            _ => 4096,
        };
        let count = count.min(wire.to_client.len());
        let bytes: Vec<u8> = wire.to_client.drain(..count).collect();
        Reply::Received(match bytes.len() {
            0 if wire.has_ended => Err(failure()),
            0 => Ok(None),
            _ => Ok(Some(bytes)),
        })
    }
}

impl<A: Side> Side for Service<A> {
    type Machine = Agent;

    const KINDS: &'static [BackendKind] = &[BackendKind::Agent];
    const BEHIND: &'static [BackendKind] = A::KINDS;

    fn new(setting: Setting) -> Self {
        Self {
            setting,
            process: Some(Process::new(setting)),
            wires: Wires::new(),
            last_wire: 0,
            calls: BTreeMap::new(),
            clients: Vec::new(),
            sockets: Sockets::new(Setting {
                kind: BackendKind::Netlink,
                ..setting
            }),
            rests: 0,
            served: 0,
        }
    }

    fn machine(&self) -> Agent {
        Agent::new(host::netns(HOME), true, false)
    }

    fn kind_of(request: &Request) -> usize {
        match request {
            Request::Call(..) => 0,
            Request::Send(..) => 1,
            Request::Receive(_) => 2,
            Request::Hang(_) => 3,
            Request::Netlink(request) => OWN_KINDS + Sockets::kind_of(request),
        }
    }

    fn waits(host: &Host, request: &Request) -> bool {
        match request {
            Request::Netlink(request) => Sockets::waits(host, request),
            Request::Call(..) | Request::Send(..) | Request::Receive(_) | Request::Hang(_) => false,
        }
    }

    fn fail(&mut self, request: &Request) -> Option<Reply> {
        match request {
            Request::Send(..) => Some(Reply::Done(Err(failure()))),
            Request::Netlink(request) => self.sockets.fail(request).map(Reply::Netlink),
            // That the agent comes and goes is failure enough.
            Request::Call(..) | Request::Receive(_) | Request::Hang(_) => None,
        }
    }

    fn serve(&mut self, decisions: &mut Decisions, host: &Host, request: Request) -> Reply {
        match request {
            Request::Call(id, message) => {
                if decisions.below(3) == 0 {
                    self.start();
                }
                if self.process.is_none() {
                    return Reply::Done(Err(failure()));
                }
                let wire = self.connect(decisions, HOME);
                self.calls.insert(id, wire);
                if let Some(wire) = self.wires.get_mut(&wire) {
                    wire.to_agent = message;
                }
                Reply::Done(Ok(()))
            }
            Request::Send(id, message) => {
                let wire = self.calls.get(&id).and_then(|id| self.wires.get_mut(id));
                let wire = wire.expect("a call that is there");
                if wire.has_ended {
                    return Reply::Done(Err(failure()));
                }
                wire.to_agent.extend(message);
                Reply::Done(Ok(()))
            }
            Request::Receive(id) => self.receive(decisions, id),
            Request::Hang(id) => {
                let wire = self.calls.remove(&id).expect("a call that is there");
                if let Some(wire) = self.wires.get_mut(&wire) {
                    wire.is_hung_up = true;
                }
                Reply::Done(Ok(()))
            }
            Request::Netlink(request) => {
                Reply::Netlink(self.sockets.serve(decisions, host, request))
            }
        }
    }

    fn notice(&mut self, decisions: &mut Decisions, host: &Host, misses: bool, notice: Notice) {
        if let Some(process) = &mut self.process {
            process.notice(decisions, host, misses, notice);
        }
        self.sockets.notice(decisions, host, misses, notice);
        self.turn(decisions, host);
    }

    fn finish(&mut self) {
        if let Some(process) = &mut self.process {
            process.finish();
        }
        self.sockets.finish();
    }

    fn turn(&mut self, decisions: &mut Decisions, host: &Host) {
        match decisions.below(1000) {
            999 => self.die(),
            970..999 => self.start(),
            950..970 => {
                if let Some(process) = &mut self.process {
                    process.is_asleep = decisions.chance(4);
                }
            }
            _ => {}
        }
        for _ in 0..decisions.below(8) {
            self.serve_clients(decisions, host);
        }
        for _ in 0..decisions.below(3) {
            self.ask(decisions, host);
        }
        self.wires
            .retain(|_, wire| !(wire.is_hung_up && wire.has_ended));
    }

    fn rest(&mut self, host: &Host) -> Option<Instant> {
        let mut none = Decisions::none();
        self.start();
        if let Some(process) = &mut self.process {
            process.is_asleep = false;
            process.heal(true);
        }
        loop {
            let mut more = self
                .process
                .as_mut()
                .is_some_and(|process| process.rest(host, &mut self.wires));
            if self.process.as_ref().is_some_and(Process::has_ended) {
                self.die();
                self.start();
                more = true;
            }
            for at in 0..self.clients.len() {
                if self.clients[at].is_away() {
                    let wire = self.connect(&mut none, self.clients[at].space);
                    self.clients[at].call(wire);
                    more = true;
                }
                more |= self.clients[at].rest(host, &mut self.wires);
            }
            self.wires
                .retain(|_, wire| !(wire.is_hung_up && wire.has_ended));
            if !more {
                return self.process.as_ref().and_then(Process::until);
            }
        }
    }

    fn served(&self) -> u64 {
        self.served
    }

    fn take_ready(&mut self, mut ready: impl FnMut(Source)) {
        for id in self.calls.values() {
            if let Some(wire) = self.wires.get_mut(id)
                && std::mem::take(&mut wire.is_ready)
            {
                ready(Source::Call);
            }
        }
        self.sockets.take_ready(ready);
    }

    fn sources(&self, mut source: impl FnMut(Source)) {
        source(Source::Call);
        self.sockets.sources(source);
    }

    fn is_holding(&self, space: usize) -> bool {
        space == HOME
            || self.sockets.is_holding(space)
            || self.clients.iter().any(|client| client.space == space)
            || (self.process.as_ref()).is_some_and(|process| process.is_holding(space))
    }

    /// An agent cannot be asked for any.
    fn takes_patterns(space: usize) -> bool {
        space != HOME
    }

    /// What was said of the name in the call that has it.
    fn changes(&self, spot: &Spot) -> Option<(u32, u64)> {
        let process = self.process.as_ref().filter(|_| spot.space == HOME)?;
        let changes = |id: &WireId| Some((*id as u32, process.changes(*id, spot.name)?));
        // A call before may have had it too.
        self.calls.values().rev().find_map(changes)
    }

    fn check_rest(
        &mut self,
        host: &Host,
        machine: &Agent,
        watched: &[Spot],
        patterns: &[patterns::Place],
    ) {
        self.rests += 1;
        let (own, others): (Vec<Spot>, Vec<Spot>) =
            watched.iter().partition(|spot| spot.space == HOME);
        let asked: BTreeSet<_> = machine.asked().collect();
        let own: BTreeSet<_> = own.iter().map(|spot| spot.name).collect();
        assert_eq!(asked, own, "the agent is asked for these");
        assert!(!self.sockets.is_holding(HOME), "nobody has to stand in");
        self.sockets
            .check_rest(host, machine.others(), &others, patterns);
        let process = self.process.as_mut().expect("it was started");
        process.check_rest(host, &self.wires);
        process.heal(false);
        for client in &mut self.clients {
            client.check_rest(host, self.rests.is_multiple_of(2));
        }
        let count = self.calls.len() + self.clients.len();
        assert_eq!(self.wires.len(), count, "{:?}", self.wires);
    }

    fn check_counters(&self, counters: &Counters, _: bool, _: bool) {
        let expected = Counters {
            lost: counters.lost,
            ..Counters::default()
        };
        assert_eq!(*counters, expected);
    }
}

/// What netlink is asked, as its own side takes it.
const _: () = assert!(netlink::KINDS_OF_QUESTIONS + OWN_KINDS + 5 <= 32);
