//! An agent that comes and goes, and the kernel as the netlink meets it that stands in for it.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::{
    host::{self, Host, Notice, Spot, Told},
    netlink::{self, Sockets},
    patterns,
    run::{Side, failure},
    shrink::Decisions,
};
use crate::{
    BackendKind, Counters, EventKind, Field,
    agent::{CallId, Reply, Request, core::Agent},
    machine::Source,
};

/// The namespace in which the agent is asked.
const HOME: usize = 0;
const OWN_KINDS: usize = 4;

/// The agent, and sockets.
#[derive(Debug)]
pub(crate) struct Service {
    is_up: bool,
    calls: BTreeMap<CallId, Call>,
    sockets: Sockets,
}

/// A connection, as the agent has it.
#[derive(Debug, Default)]
struct Call {
    names: Vec<Told>,
    /// What it has not sent yet.
    late: VecDeque<u8>,
    sent: VecDeque<u8>,
    is_ready: bool,
    has_ended: bool,
}

impl Call {
    fn say(&mut self, parameters: &Value) {
        self.put(&json!({ "parameters": parameters, "continues": true }));
    }

    fn put(&mut self, reply: &Value) {
        self.late.extend(reply.to_string().bytes());
        self.late.push_back(0);
    }

    fn send(&mut self) {
        self.is_ready |= !self.late.is_empty();
        self.sent.append(&mut self.late);
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.is_ready = true;
    }
}

fn event(spot: Spot, kind: &EventKind) -> Value {
    let mut event = json!({
        "time": "1970-01-01T00:00:00Z",
        "event": kind.as_str(),
        "interface": spot.name.to_string(),
        "ifindex": kind.ifindex(),
    });
    for (name, field) in kind.fields() {
        event[name] = match field {
            Field::Name(name) => name.to_string().into(),
            Field::Netns(netns) => netns.map(|netns| netns.0).into(),
            Field::Number(number) => number.into(),
            Field::Flag(flag) => flag.into(),
        };
    }
    event
}

impl Service {
    fn call(
        &mut self,
        decisions: &mut Decisions,
        host: &Host,
        id: CallId,
        message: &[u8],
    ) -> Reply {
        if !self.is_up {
            // It is up again some time.
            self.is_up = decisions.below(3) == 0;
            if !self.is_up {
                return Reply::Done(Err(failure()));
            }
        }
        let mut call = Call::default();
        let text = message.strip_suffix(&[0]).expect("it ends with NUL");
        let asked: Value = serde_json::from_slice(text).expect("it is JSON");
        let names = asked["parameters"]["interfaces"].as_array();
        for name in names.expect("it names something") {
            let name = name.as_str().and_then(|name| name.parse().ok());
            let spot = Spot {
                space: HOME,
                era: 0,
                name: name.expect("a good name"),
            };
            call.names.push(Told::new(spot, &host.now));
        }
        match decisions.below(24) {
            // It is asleep.
            22 => call.names.clear(),
            23 => {
                call.names.clear();
                call.put(
                    &json!({ "error": "io.ifmon.TooMany", "parameters": { "what": "clients" } }),
                );
            }
            _ => {
                for at in 0..call.names.len() {
                    let Told { spot, holder, .. } = call.names[at];
                    let ifindex = holder.map(|device| device.ifindex);
                    call.say(&event(spot, &EventKind::Watching { ifindex }));
                }
            }
        }
        self.calls.insert(id, call);
        Reply::Done(Ok(()))
    }

    fn receive(&mut self, decisions: &mut Decisions, id: CallId) -> Reply {
        let call = self.calls.get_mut(&id).expect("a call that is there");
        let count = match decisions.below(4) {
            3 => 1 + decisions.index(200),
            _ => 4096,
        };
        let bytes: Vec<u8> = call.sent.drain(..count.min(call.sent.len())).collect();
        Reply::Received(match bytes.len() {
            0 if call.has_ended => Err(failure()),
            0 => Ok(None),
            _ => Ok(Some(bytes)),
        })
    }
}

impl Side for Service {
    type Machine = Agent;

    fn new(_: BackendKind, room: usize, is_crowded: bool) -> Self {
        Self {
            is_up: true,
            calls: BTreeMap::new(),
            sockets: Sockets::new(BackendKind::Netlink, room, is_crowded),
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
        if decisions.chance(4) {
            self.calls.values_mut().for_each(Call::send);
        }
        match request {
            Request::Call(id, message) => self.call(decisions, host, id, &message),
            Request::Send(id, _) => {
                let call = self.calls.get_mut(&id).expect("a call that is there");
                if call.has_ended {
                    return Reply::Done(Err(failure()));
                }
                if decisions.below(24) == 23 {
                    // It is asleep.
                    return Reply::Done(Ok(()));
                }
                call.say(
                    &json!({ "time": "1970-01-01T00:00:00Z", "event": "synced", "interface": "" }),
                );
                Reply::Done(Ok(()))
            }
            Request::Receive(id) => self.receive(decisions, id),
            Request::Hang(id) => {
                self.calls.remove(&id).expect("a call that is there");
                Reply::Done(Ok(()))
            }
            Request::Netlink(request) => {
                Reply::Netlink(self.sockets.serve(decisions, host, request))
            }
        }
    }

    fn notice(&mut self, decisions: &mut Decisions, host: &Host, misses: bool, notice: Notice) {
        for call in self.calls.values_mut().filter(|call| !call.has_ended) {
            for at in 0..call.names.len() {
                if let Some(kind) = call.names[at].tell(&host.now) {
                    let spot = call.names[at].spot;
                    call.say(&event(spot, &kind));
                }
            }
            if !decisions.chance(4) {
                call.send();
            }
        }
        if decisions.chance(30) {
            self.is_up = false;
            self.calls.values_mut().for_each(Call::end);
        }
        self.sockets.notice(decisions, host, misses, notice);
    }

    fn finish(&mut self) {
        self.sockets.finish();
    }

    fn take_ready(&mut self, mut ready: impl FnMut(Source)) {
        for call in self.calls.values_mut() {
            call.send();
            if std::mem::take(&mut call.is_ready) {
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
        space == HOME || self.sockets.is_holding(space)
    }

    /// An agent cannot be asked for any.
    fn takes_patterns(space: usize) -> bool {
        space != HOME
    }

    fn check_rest(
        &self,
        host: &Host,
        machine: &Agent,
        watched: &[Spot],
        patterns: &[patterns::Place],
    ) {
        let (own, others): (Vec<Spot>, Vec<Spot>) =
            watched.iter().partition(|spot| spot.space == HOME);
        for spot in &own {
            let mut names = self.calls.values().flat_map(|call| &call.names);
            assert!(
                names.any(|told| told.spot == *spot),
                "nobody asks for {spot:?}"
            );
        }
        for call in self.calls.values() {
            let is_of_use = call.names.iter().any(|told| own.contains(&told.spot));
            assert!(is_of_use && call.sent.is_empty(), "{call:?} is left");
        }
        assert!(!self.sockets.is_holding(HOME), "nobody has to stand in");
        self.sockets
            .check_rest(host, machine.others(), &others, patterns);
    }

    fn check_counters(&self, counters: &Counters, _: bool) {
        assert_eq!(*counters, Counters::default());
    }
}

/// What netlink is asked, as its own side takes it.
const _: () = assert!(netlink::KINDS_OF_QUESTIONS + OWN_KINDS + 4 <= 32);
