//! The agent: a monitor with its backend, the hub, and a connection for each client.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;

use super::{
    host::{self, Host, Notice, SPACES, Spot},
    is_told,
    run::{Answer, KINDS_OF_REQUESTS, Request, Setting, Side, endure, strikes},
    shrink::Decisions,
    tell,
};
use crate::{
    EventKind, InterfaceName, Netns, NetnsId,
    cli::{
        output::facts::EventFacts,
        service::{
            call::{Call, Fault, Method, reply},
            event_reply::Trust,
            hub::{self, ClientId, ClientItem, Hub, Refusal, ServedNetns},
            limits::Owner,
        },
    },
    engine::{Ask, Engine, Output, Reply},
    machine::Machine as _,
    outbox::{Item, Outbox},
    tracker,
};

/// A connection, as both ends have it.
pub(crate) type WireId = u64;

/// So much is done with nothing happening by an agent that runs in circles.
const TOO_MANY: u32 = 5000;
/// A monitor watches something; nobody asks for this name.
const ANCHOR: &str = "lo";
/// When the hub reads a state, which is later than everything that happens: so it can be told what
/// it says of itself.
const LATER: Duration = Duration::from_secs(3_000_000_000);

/// What is on its way between a client and the agent.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Where the client is.
    pub(crate) space: usize,
    /// What the kernel keeps for a client that does not read.
    pub(crate) room: usize,
    pub(crate) to_agent: Vec<u8>,
    pub(crate) to_client: VecDeque<u8>,
    pub(crate) is_hung_up: bool,
    pub(crate) has_ended: bool,
    /// Something came for the client, or the end.
    pub(crate) is_ready: bool,
}

impl Wire {
    pub(crate) fn new(space: usize, room: usize) -> Self {
        Self {
            space,
            room,
            to_agent: Vec::new(),
            to_client: VecDeque::new(),
            is_hung_up: false,
            has_ended: false,
            is_ready: false,
        }
    }

    pub(crate) fn end(&mut self) {
        self.has_ended = true;
        self.is_ready = true;
    }
}

pub(crate) type Wires = BTreeMap<WireId, Wire>;

/// One life of the agent.
#[derive(Debug)]
pub(crate) struct Process<A: Side> {
    setting: Setting,
    side: A,
    engine: Engine<A::Machine>,
    outbox: Outbox,
    hub: Hub,
    connections: BTreeMap<WireId, Connection>,
    /// Its own watch has begun.
    is_serving: bool,
    /// It is stopped.
    pub(crate) is_asleep: bool,
    /// What is asked of the monitor, one after the other.
    asks: VecDeque<Asker>,
    asked: Option<Asker>,
    /// Something that the hub wants is among them.
    is_busy: bool,
    mark: u64,
    /// A system call that has begun.
    request: Option<Request<A>>,
    /// Until when the monitor waits.
    until: Option<Instant>,
    faults: [u32; KINDS_OF_REQUESTS],
    /// Nothing fails any more.
    is_healed: bool,
    /// What all that the hub was told of each watch comes to.
    sums: BTreeMap<Watch, u64>,
    /// What a loss comes to that the hub tells together with what follows from it.
    midway: BTreeMap<Watch, u64>,
    has_ended: bool,
    in_vain: u32,
}

type Watch = (NetnsId, InterfaceName);

/// Who asks the monitor for something.
#[derive(Debug)]
enum Asker {
    /// At the start.
    Anchor,
    Hub(hub::LibraryRequest),
    Sync(WireId),
}

/// The agent's end of a connection.
#[derive(Debug)]
struct Connection {
    client: ClientId,
    trust: Trust,
    space: usize,
    input: Vec<u8>,
    /// What the client has not had room for.
    output: VecDeque<u8>,
    /// The names that are watched, from the call on.
    watching: Option<BTreeMap<InterfaceName, ServedEvent>>,
    is_woken: bool,
    /// It says what there is to say.
    is_telling: bool,
    /// It waits for this mark.
    sync: Option<(u64, Sync)>,
    has_synced: bool,
}

/// Why a connection waits for all that happened before.
#[derive(Debug)]
enum Sync {
    /// The client asks.
    Asked,
    Call(crate::cli::service::call::WatchParameters),
}

/// What was told of a name on a connection.
#[derive(Clone, Copy, Debug, Default)]
struct ServedEvent {
    has_begun: bool,
    /// What was told of what the hub was told, or said to be lost of it.
    heard: u64,
    /// The changes that were told or said to be lost; unknown once any loss was.
    changes: Option<u64>,
}

/// What one event comes to, of those that count.
fn weight(kind: &EventKind) -> u64 {
    match *kind {
        EventKind::Resynced { lost, .. } => lost.unwrap_or_default(),
        _ => 1,
    }
}

fn place(space: usize) -> ServedNetns {
    ServedNetns {
        netns: Netns::simulated(host::netns(space)),
        name: None,
    }
}

fn anchor() -> InterfaceName {
    ANCHOR.parse().expect("a good name")
}

fn later() -> SystemTime {
    SystemTime::UNIX_EPOCH + LATER
}

impl<A: Side> Process<A> {
    pub(crate) fn new(setting: Setting) -> Self {
        let setting = Setting {
            kind: setting.behind.expect("an agent has a backend"),
            // Who is refused for want of room would ask for ever.
            is_crowded: false,
            ..setting
        };
        let side = A::new(setting);
        let mut hub = Hub::default();
        hub.keep(place(0), anchor(), later());
        Self {
            setting,
            engine: Engine::new(setting.kind, side.machine()),
            side,
            outbox: Outbox::default(),
            hub,
            connections: BTreeMap::new(),
            is_serving: false,
            is_asleep: false,
            asks: VecDeque::from([Asker::Anchor]),
            asked: None,
            is_busy: false,
            mark: 0,
            request: None,
            until: None,
            faults: [0; KINDS_OF_REQUESTS],
            is_healed: false,
            sums: BTreeMap::new(),
            midway: BTreeMap::new(),
            has_ended: false,
            in_vain: 0,
        }
    }

    pub(crate) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(crate) fn heal(&mut self, is_healed: bool) {
        self.is_healed = is_healed;
        self.faults = [0; KINDS_OF_REQUESTS];
    }

    /// Hears of a change.
    pub(crate) fn notice(
        &mut self,
        decisions: &mut Decisions,
        host: &Host,
        misses: bool,
        notice: Notice,
    ) {
        self.in_vain = 0;
        self.side.notice(decisions, host, misses, notice);
    }

    pub(crate) fn finish(&mut self) {
        self.side.finish();
    }

    /// Does the process hold that namespace?
    pub(crate) fn is_holding(&self, space: usize) -> bool {
        let asks = self.asks.iter().chain(&self.asked);
        let mut asked = asks.filter_map(|asker| match asker {
            Asker::Hub(hub::LibraryRequest::Watch { place, .. }) => Some(place.netns.id()),
            _ => None,
        });
        self.side.is_holding(space)
            || self.hub.has_namespace(host::netns(space))
            || asked.any(|netns| netns == host::netns(space))
    }

    /// Does one thing of all that there may be to do; false when that was nothing.
    pub(crate) fn turn(
        &mut self,
        decisions: &mut Decisions,
        host: &Host,
        wires: &mut Wires,
    ) -> bool {
        if self.is_asleep || self.has_ended {
            return false;
        }
        match decisions.below(8) {
            0..3 => self.monitor(decisions, host),
            3..5 => self.read(),
            5 => self.want(),
            6.. => {
                let at = decisions.index(wires.len().max(1));
                let id = wires.keys().nth(at).copied();
                id.is_some_and(|id| self.converse(id, decisions, wires))
            }
        }
    }

    /// Does all that there is to do.
    pub(crate) fn rest(&mut self, host: &Host, wires: &mut Wires) -> bool {
        let mut none = Decisions::none();
        let mut any = false;
        loop {
            let mut more = self.monitor(&mut none, host);
            more |= self.read();
            more |= self.want();
            for id in wires.keys().copied().collect::<Vec<_>>() {
                more |= self.converse(id, &mut none, wires);
            }
            if !more || self.has_ended {
                return any;
            }
            any = true;
        }
    }

    /// When the monitor goes on, if nothing happens.
    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The monitor's task.
    fn monitor(&mut self, decisions: &mut Decisions, host: &Host) -> bool {
        let now = host.clock();
        if let Some(request) = self.request.take() {
            if A::waits(host, &request) && host.is_busy() {
                self.request = Some(request);
                return false;
            }
            let answer = self.answer(decisions, host, request);
            self.engine.answer(&now, answer);
            return true;
        }
        if self.engine.is_free()
            && self.asked.is_none()
            && let Some(asker) = self.asks.pop_front()
        {
            self.ask(asker);
            return true;
        }
        let machine = &mut self.engine.machine;
        let mut is_ready = false;
        self.side.take_ready(|source| {
            machine.ready(source);
            is_ready = true;
        });
        if is_ready || self.until.is_none_or(|until| until <= now.instant) {
            self.until = None;
        }
        self.in_vain += 1;
        assert!(self.in_vain < TOO_MANY, "it runs in circles: {self:?}");
        match self.engine.poll(&now, &mut self.outbox) {
            Output::Request(request) | Output::Background(request) => self.request = Some(request),
            Output::Reply(reply) => self.replied(reply),
            Output::Wait(until) => {
                self.until = until;
                self.in_vain = 0;
                return is_ready;
            }
            Output::Full => {
                self.in_vain = 0;
                return is_ready;
            }
            Output::End(counters) => tell(|| format!("  agent: end: {counters:?}")),
        }
        true
    }

    fn answer(&mut self, decisions: &mut Decisions, host: &Host, request: Request<A>) -> Answer<A> {
        let line = is_told().then(|| format!("{request:?}"));
        let fault = &mut self.faults[A::kind_of(&request)];
        let can_fail = self.setting.is_faulty && !self.is_healed;
        if strikes(fault, can_fail, decisions)
            && let Some(answer) = self.side.fail(&request)
        {
            endure(fault);
            tell(|| format!("  agent: {request:?} fails"));
            return answer;
        }
        // The host does nothing meanwhile.
        host.asked_at.set(host.at());
        let answer = self.side.serve(decisions, host, request);
        tell(|| format!("  agent: {} -> {answer:?}", line.unwrap_or_default()));
        answer
    }

    fn ask(&mut self, asker: Asker) {
        let targets = |names: &[InterfaceName]| names.iter().map(|&name| (name, None)).collect();
        let ask = match &asker {
            Asker::Anchor => Ask::Watch {
                netns: host::netns(0),
                targets: targets(&[anchor()]),
            },
            Asker::Hub(hub::LibraryRequest::Watch { place, names, .. }) => Ask::Watch {
                netns: place.netns.id(),
                targets: targets(names),
            },
            &Asker::Hub(hub::LibraryRequest::Unwatch((netns, name))) => {
                Ask::Unwatch(tracker::Watch { netns, name })
            }
            Asker::Sync(id) => {
                self.mark += 1;
                if let Some(Connection {
                    sync: Some((mark, _)),
                    ..
                }) = self.connections.get_mut(id)
                {
                    *mark = self.mark;
                }
                Ask::Sync(self.mark)
            }
        };
        tell(|| format!("  agent: ask: {ask:?}"));
        self.engine.ask(ask);
        self.asked = Some(asker);
    }

    fn replied(&mut self, reply: Reply) {
        tell(|| format!("  agent: reply: {reply:?}"));
        let asker = self.asked.take().expect("somebody asked");
        match (asker, reply) {
            (Asker::Anchor, Reply::Watched(result)) => {
                self.is_serving = result.is_ok();
                self.has_ended = result.is_err();
            }
            (Asker::Hub(request), Reply::Watched(result)) => {
                self.done(request, result.map_err(|error| error.to_string()));
            }
            (Asker::Hub(request), Reply::Unwatched(_)) => {
                if let &hub::LibraryRequest::Unwatch(watch) = &request {
                    self.sums.remove(&watch);
                    self.midway.remove(&watch);
                }
                self.done(request, Ok(()));
            }
            // When the mark is read.
            (Asker::Sync(_), Reply::Synced) => {}
            (asker, reply) => panic!("{reply:?} to {asker:?}"),
        }
    }

    fn done(&mut self, request: hub::LibraryRequest, result: Result<(), String>) {
        self.hub.done(request, result);
        self.is_busy = false;
        self.wake();
    }

    /// Whatever the hub wants of the monitor is asked for next.
    fn want(&mut self) -> bool {
        if self.is_busy || !self.is_serving {
            return false;
        }
        let request = self.hub.request();
        self.is_busy = request.is_some();
        self.asks.extend(request.map(Asker::Hub));
        self.is_busy
    }

    fn wake(&mut self) {
        for client in self.hub.take_woken() {
            let mut connections = self.connections.values_mut();
            if let Some(connection) = connections.find(|one| one.client == client) {
                connection.is_woken = true;
            }
        }
        self.hub.check_bounds();
    }

    /// The next event of the monitor is for the hub.
    fn read(&mut self) -> bool {
        let Some(item) = self.outbox.pop() else {
            return false;
        };
        tell(|| format!("  agent: read: {item:?}"));
        match item {
            Item::Event(event) => {
                let watch = (event.netns, event.interface);
                let weight = match event.kind {
                    EventKind::Watching { .. } => 0,
                    ref kind => weight(kind),
                };
                if let EventKind::Resynced { changed: true, .. } = event.kind {
                    self.midway.insert(watch, weight);
                } else {
                    let before = self.midway.remove(&watch).unwrap_or_default();
                    *self.sums.entry(watch).or_default() += before + weight;
                }
                self.hub.event(event, EventFacts::default());
                self.wake();
            }
            Item::Mark(mark) => {
                let mut connections = self.connections.values_mut();
                let is_it =
                    |one: &&mut Connection| matches!(one.sync, Some((other, _)) if other == mark);
                if let Some(connection) = connections.find(is_it) {
                    connection.has_synced = true;
                }
            }
            // The agent ends with its monitor.
            Item::Error(_) => self.has_ended = true,
        }
        true
    }

    /// A connection's task; false when it waits.
    fn converse(&mut self, id: WireId, decisions: &mut Decisions, wires: &mut Wires) -> bool {
        if !self.is_serving {
            return false;
        }
        let Some(wire) = wires.get_mut(&id).filter(|wire| !wire.has_ended) else {
            return false;
        };
        if !self.connections.contains_key(&id) {
            self.accept(id, decisions, wire);
            return true;
        }
        match self.go_on(id, decisions, wire) {
            Ok(more) => more,
            Err(Gone) => {
                wire.end();
                if let Some(connection) = self.connections.remove(&id) {
                    self.hub.disconnect(connection.client);
                    self.hub.check_bounds();
                }
                true
            }
        }
    }

    fn accept(&mut self, id: WireId, decisions: &mut Decisions, wire: &mut Wire) {
        let trust = [Trust::Full, Trust::Plain][decisions.index(2)];
        let owner = [Owner::Root, Owner::User(1000)][decisions.index(2)];
        // There are too many of them now and then.
        if decisions.below(60) == 59 {
            return wire.end();
        }
        let client = self.hub.connect(owner, trust).expect("room");
        let connection = Connection {
            client,
            trust,
            space: wire.space,
            input: Vec::new(),
            output: VecDeque::new(),
            watching: None,
            is_woken: false,
            is_telling: false,
            sync: None,
            has_synced: false,
        };
        self.connections.insert(id, connection);
    }

    fn go_on(
        &mut self,
        id: WireId,
        decisions: &mut Decisions,
        wire: &mut Wire,
    ) -> Result<bool, Gone> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(false);
        };
        if !connection.output.is_empty() {
            if wire.is_hung_up {
                return Err(Gone);
            }
            let room = wire.room.saturating_sub(wire.to_client.len());
            let count = room.min(connection.output.len());
            wire.to_client.extend(connection.output.drain(..count));
            wire.is_ready |= count > 0;
            return Ok(count > 0);
        }
        if connection.sync.is_some() && !connection.has_synced {
            return Ok(false);
        }
        if connection.watching.is_some() {
            if connection.is_woken {
                connection.is_woken = false;
                connection.is_telling = true;
            }
            if connection.is_telling || connection.has_synced {
                return self.tell(id);
            }
        } else if connection.has_synced {
            return self.begin(id, decisions);
        }
        if let Some(end) = connection.input.iter().position(|&byte| byte == 0) {
            let mut message: Vec<u8> = connection.input.drain(..=end).collect();
            message.pop();
            return self.take(id, &message);
        }
        if wire.to_agent.is_empty() {
            return if wire.is_hung_up {
                Err(Gone)
            } else {
                Ok(false)
            };
        }
        connection.input.append(&mut wire.to_agent);
        Ok(true)
    }

    fn take(&mut self, id: WireId, message: &[u8]) -> Result<bool, Gone> {
        let Call {
            method,
            more,
            oneway,
        } = Call::parse(message).expect("a good call");
        let connection = self.connections.get_mut(&id).ok_or(Gone)?;
        let is_watching = connection.watching.is_some();
        let sync = match method.expect("a good method") {
            Method::Sync if is_watching && oneway => Sync::Asked,
            Method::Watch(watch) if !is_watching && more => Sync::Call(watch),
            Method::List if !is_watching => {
                let listed = self.hub.list(Some(host::netns(connection.space)), None).0;
                for name in listed {
                    assert!(name.clients > 0, "{name:?}");
                }
                connection.output.extend(reply(&json!({}), false).iter());
                return Ok(true);
            }
            method => panic!("{method:?}"),
        };
        connection.sync = Some((0, sync));
        connection.has_synced = false;
        self.asks.push_back(Asker::Sync(id));
        Ok(true)
    }

    fn begin(&mut self, id: WireId, decisions: &mut Decisions) -> Result<bool, Gone> {
        let connection = self.connections.get_mut(&id).ok_or(Gone)?;
        connection.has_synced = false;
        let Some((_, Sync::Call(watch))) = connection.sync.take() else {
            return Err(Gone);
        };
        // There are too many of these as well.
        let refusal = if decisions.below(60) == 59 {
            Err(Refusal::Limit("watches"))
        } else {
            let place = place(connection.space);
            let Connection { client, .. } = *connection;
            self.hub.watch(client, &place, &watch.targets, later())
        };
        match refusal {
            Ok(()) => {
                let names = watch.targets.keys();
                let told = ServedEvent {
                    changes: Some(0),
                    ..ServedEvent::default()
                };
                connection.watching = Some(names.map(|&name| (name, told)).collect());
                connection.is_telling = true;
            }
            Err(refusal) => connection
                .output
                .extend(Fault::from(refusal).reply().iter()),
        }
        self.wake();
        Ok(true)
    }

    /// Tells the client one thing.
    fn tell(&mut self, id: WireId) -> Result<bool, Gone> {
        let connection = self.connections.get_mut(&id).ok_or(Gone)?;
        let Some(next) = self.hub.next(connection.client, later()) else {
            connection.is_telling = false;
            if connection.has_synced {
                connection.has_synced = false;
                connection.sync = None;
                let synced = json!({
                    "time": "1970-01-01T00:00:00Z",
                    "event": "synced",
                    "interface": "",
                });
                connection.output.extend(reply(&synced, true).iter());
            }
            return Ok(true);
        };
        let told = match next {
            ClientItem::Event(told) => told,
            ClientItem::Refused(_) if connection.has_synced => return Err(Gone),
            ClientItem::Refused(refusal) => {
                connection.watching = None;
                connection.is_telling = false;
                let fault = Fault::from(refusal);
                connection.output.extend(fault.reply().iter());
                return Ok(true);
            }
        };
        connection
            .output
            .extend(told.reply(connection.trust).iter());
        let event = &told.event;
        let watch = (event.netns, event.interface);
        assert_eq!(watch.0, host::netns(connection.space));
        let watching = connection.watching.as_mut().expect("it watches");
        let account = watching.get_mut(&watch.1).expect("a name that it watches");
        let sum = self.sums.get(&watch).copied().unwrap_or_default();
        account.take(&event.kind, event.time == later(), event.recovered, sum);
        Ok(true)
    }

    /// How many changes of a name were told on a connection or said to be lost.
    pub(crate) fn changes(&self, id: WireId, name: InterfaceName) -> Option<u64> {
        self.connections
            .get(&id)?
            .watching
            .as_ref()?
            .get(&name)?
            .changes
    }

    /// All is at rest: whoever is connected has its watches, and nobody else has any.
    pub(crate) fn check_rest(&mut self, host: &Host, wires: &Wires) {
        assert!(self.outbox.is_empty() && self.asks.is_empty() && self.asked.is_none());
        let mut watches = BTreeMap::from([((host::netns(0), anchor()), 0)]);
        for (id, connection) in &self.connections {
            assert!(wires.contains_key(id), "{connection:?} is left");
            let is_slow = !connection.output.is_empty();
            if is_slow && !self.hub.is_watching(connection.client) {
                // It has not read that its call has failed.
                continue;
            }
            for name in connection.watching.iter().flat_map(BTreeMap::keys) {
                *watches
                    .entry((host::netns(connection.space), *name))
                    .or_default() += 1;
            }
            for (&name, told) in connection.watching.iter().flatten() {
                let watch = (host::netns(connection.space), name);
                let sum = self.sums.get(&watch).copied().unwrap_or_default();
                assert!(
                    is_slow || told.has_begun && told.heard == sum,
                    "{told:?} of {sum}"
                );
            }
        }
        let asked: usize = watches.values().sum();
        assert_eq!(
            self.hub.counts(),
            (self.connections.len(), asked, watches.len() - 1)
        );
        for listed in self.hub.list(None, None).0 {
            let (netns, name) = listed.watch;
            let holder = host.now.by_name(host::space_of(netns), name);
            assert_eq!(
                listed.ifindex,
                holder.map(|device| device.ifindex),
                "{listed:?}"
            );
            assert_eq!(
                Some(&listed.clients),
                watches.get(&listed.watch),
                "{listed:?}"
            );
        }
        let watches: BTreeSet<_> = watches.into_keys().collect();
        assert_eq!(self.hub.watches(), watches);
        for space in 0..SPACES {
            let netns = host::netns(space);
            let is_needed = watches.iter().any(|watch| watch.0 == netns);
            assert_eq!(self.hub.has_namespace(netns), is_needed);
        }
        let spot = |(netns, name)| {
            let space = host::space_of(netns);
            let era = host.now.eras[space];
            Spot { space, era, name }
        };
        let watched: Vec<_> = watches.into_iter().map(spot).collect();
        self.side
            .check_rest(host, &self.engine.machine, &watched, &[]);
    }
}

/// The client has gone.
struct Gone;

impl ServedEvent {
    /// What the hub says now: of its own, or handed on. `sum` is what all that it was told comes
    /// to.
    fn take(&mut self, kind: &EventKind, is_own: bool, recovered: bool, sum: u64) {
        match *kind {
            EventKind::Watching { .. } => {
                assert!(!self.has_begun, "it begins twice");
                self.has_begun = true;
                self.heard = sum;
            }
            EventKind::Resynced { lost, .. } => {
                assert!(self.has_begun);
                self.heard = match lost {
                    Some(lost) => self.heard + lost,
                    // The hub does not know how many these were.
                    None if is_own => sum,
                    None => self.heard,
                };
                let changes = self.changes.zip(lost);
                self.changes = changes.map(|(changes, lost)| changes + lost);
                assert!(!is_own || self.heard == sum, "{kind:?}: {self:?} of {sum}");
            }
            _ => {
                assert!(self.has_begun);
                self.heard += u64::from(!is_own);
                if let Some(changes) = &mut self.changes {
                    *changes += u64::from(!recovered);
                }
            }
        }
        assert!(self.heard <= sum, "{kind:?}: {self:?} of {sum}");
    }
}
