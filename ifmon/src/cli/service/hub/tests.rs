//! What each client is told adds up, whatever the host and the other clients do.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use ifmon::{BackendChoice, BackendKind, Event, EventKind, InterfaceName, Monitor, Netns};

use super::{ClientId, Hub, Next, Place, Refusal, Request};
use crate::cli::{
    output::facts::Facts,
    service::{
        limits::{self, Owner},
        told::Trust,
    },
};

/// When the hub reads a state: after all events, whose times are their numbers.
fn later() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(1)
}

fn numbered(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(number)
}

fn place() -> Place {
    Place {
        netns: Netns::current().expect("a namespace"),
        name: None,
    }
}

fn interface(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a good name")
}

/// An event that a real monitor told, to be changed.
fn sample() -> Event {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut monitor = Monitor::builder()
            .backend(BackendChoice::Only(BackendKind::Netlink))
            .watch("lo")
            .start()
            .await
            .expect("a monitor");
        monitor.next().await.expect("an event").expect("no error")
    })
}

/// A generator of numbers (SplitMix64), so that a seed says what happens.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let Self(state) = self;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// A device of the model: its index, and which one it is.
type Device = (u32, u64);

/// A name on the host, and what the library knows of it.
#[derive(Default)]
struct Named {
    holder: Option<Device>,
    /// Devices that had the name and still exist elsewhere.
    away: Vec<Device>,
    watch: Option<Watched>,
}

/// A watch in the library.
#[derive(Default)]
struct Watched {
    last: Option<Device>,
    held: bool,
}

/// Host and library: changes in, events out.
struct Model {
    random: Random,
    sample: Event,
    names: BTreeMap<InterfaceName, Named>,
    outbox: VecDeque<Event>,
    devices: u64,
    reuses_indexes: bool,
}

impl Model {
    fn push(&mut self, interface: InterfaceName, kind: EventKind, recovered: bool) {
        let mut event = self.sample.clone();
        event.interface = interface;
        event.kind = kind;
        event.recovered = recovered;
        self.outbox.push_back(event);
    }

    fn watch(&mut self, interface: InterfaceName) {
        let named = self.names.entry(interface).or_default();
        assert!(named.watch.is_none(), "{interface} is watched twice");
        let holder = named.holder;
        named.watch = Some(Watched {
            last: holder,
            held: holder.is_some(),
        });
        let ifindex = holder.map(|(ifindex, _)| ifindex);
        self.push(interface, EventKind::Watching { ifindex }, false);
    }

    fn unwatch(&mut self, interface: InterfaceName) {
        let named = self.names.get_mut(&interface).expect("a name");
        assert!(named.watch.take().is_some(), "{interface} is not watched");
        self.outbox.retain(|event| event.interface != interface);
    }

    /// One change of the host; how the device left, if it did.
    fn change(&mut self, interface: InterfaceName) -> Option<EventKind> {
        let fate = self.random.below(3);
        let is_new = self.random.one_in(2);
        let named = self.names.get_mut(&interface).expect("a name");
        if let Some((ifindex, id)) = named.holder.take() {
            return Some(match fate {
                0 => EventKind::Deleted { ifindex },
                1 => {
                    named.away.push((ifindex, id));
                    EventKind::Renamed {
                        ifindex,
                        to: interface,
                    }
                }
                _ => {
                    named.away.push((ifindex, id));
                    EventKind::Moved {
                        ifindex,
                        to_netns: None,
                        to_ifindex: None,
                    }
                }
            });
        }
        let back = if is_new { None } else { named.away.pop() };
        named.holder = Some(back.unwrap_or_else(|| {
            self.devices += 1;
            let index = if self.reuses_indexes {
                self.devices % 2 + 7
            } else {
                self.devices
            };
            (index as u32, self.devices)
        }));
        None
    }

    /// What the library says once it knows of the present state.
    fn tell(&mut self, interface: InterfaceName, left: Option<EventKind>) -> Option<EventKind> {
        let named = self.names.get_mut(&interface).expect("a name");
        let watched = named.watch.as_mut()?;
        let known = watched.last.filter(|_| watched.held);
        match (known, named.holder) {
            (None, None) => None,
            (Some(known), Some(holder)) if known == holder => None,
            (Some((ifindex, _)), None) => {
                watched.held = false;
                Some(left.unwrap_or(EventKind::Deleted { ifindex }))
            }
            (_, Some((ifindex, id))) => {
                watched.held = true;
                Some(match watched.last.replace((ifindex, id)) {
                    None => EventKind::Appeared { ifindex },
                    Some((_, last)) if last == id => EventKind::Returned { ifindex },
                    Some((old_ifindex, _)) => EventKind::Recreated {
                        ifindex,
                        old_ifindex,
                    },
                })
            }
        }
    }

    fn act(&mut self, interface: InterfaceName) {
        if self.random.one_in(8) {
            // The library misses a few changes, and reads the state again.
            for _ in 0..self.random.below(4) {
                self.change(interface);
            }
            let verdict = self.tell(interface, None);
            let named = &self.names[&interface];
            if named.watch.is_some() {
                let resynced = EventKind::Resynced {
                    lost: Some(1),
                    changed: verdict.is_some(),
                    ifindex: named.holder.map(|(ifindex, _)| ifindex),
                };
                self.push(interface, resynced, false);
            }
            if let Some(verdict) = verdict {
                self.push(interface, verdict, true);
            }
        } else {
            let left = self.change(interface);
            if let Some(kind) = self.tell(interface, left) {
                self.push(interface, kind, false);
            }
        }
    }
}

/// What a client was told of one name, checked line by line.
#[derive(Debug)]
struct Heard {
    expected: Option<u32>,
    has_begun: bool,
    /// The index of the device that it knows, and whether that holds the name.
    last: Option<u32>,
    held: bool,
    /// How many events of the library it knows of, the dropped ones included.
    number: u64,
    /// A verdict has to follow, that leads to this holder.
    owed: Option<Option<u32>>,
    drops: u64,
}

impl Heard {
    fn new(expected: Option<u32>) -> Self {
        Self {
            expected,
            has_begun: false,
            last: None,
            held: false,
            number: 0,
            owed: None,
            drops: 0,
        }
    }

    /// Takes a line, when the hub has taken so many events of the library for this name.
    fn hear(&mut self, event: &Event, taken: u64) {
        let is_own = event.time == later();
        if !is_own {
            assert!(self.has_begun && self.owed.is_none(), "{event:?} {self:?}");
            self.number += 1;
            assert_eq!(event.time, numbered(self.number), "{event:?} {self:?}");
        }
        assert!(self.owed.is_none() || event.recovered, "{event:?} {self:?}");
        match event.kind {
            EventKind::Watching { ifindex } => {
                assert!(is_own && !self.has_begun, "{event:?} {self:?}");
                self.has_begun = true;
                self.number = taken;
                (self.last, self.held) = (ifindex, ifindex.is_some());
                if let Some(expected) = self.expected
                    && ifindex != Some(expected)
                {
                    (self.last, self.held) = (Some(expected), true);
                    self.owed = Some(ifindex);
                }
                return;
            }
            EventKind::Resynced {
                lost,
                changed,
                ifindex,
            } => {
                if is_own {
                    self.number += lost.expect("the hub counts");
                    self.drops += 1;
                    assert_eq!(self.number, taken, "{event:?} {self:?}");
                    if changed {
                        self.owed = Some(ifindex);
                    } else {
                        self.last = ifindex.or(self.last);
                    }
                }
                return;
            }
            EventKind::Deleted { ifindex }
            | EventKind::Renamed { ifindex, .. }
            | EventKind::Moved { ifindex, .. } => {
                assert!(
                    self.held && self.last == Some(ifindex),
                    "{event:?} {self:?}"
                );
                self.held = false;
            }
            EventKind::Appeared { ifindex } => {
                assert!(!self.held && self.last.is_none(), "{event:?} {self:?}");
                (self.last, self.held) = (Some(ifindex), true);
            }
            EventKind::Recreated {
                ifindex,
                old_ifindex,
            } => {
                assert_eq!(self.last, Some(old_ifindex), "{event:?} {self:?}");
                (self.last, self.held) = (Some(ifindex), true);
            }
            EventKind::Returned { ifindex } => {
                assert!(
                    !self.held && self.last == Some(ifindex),
                    "{event:?} {self:?}"
                );
                self.held = true;
            }
            // The model makes no others.
            ref other => panic!("{other:?}"),
        }
        if is_own {
            let holder = self.last.filter(|_| self.held);
            assert_eq!(self.owed.take(), Some(holder), "{event:?} {self:?}");
        }
    }
}

/// A client of the model.
struct Listener {
    heard: HashMap<InterfaceName, Heard>,
    /// It reads everything at once.
    is_eager: bool,
}

/// Hub, library and clients.
struct World {
    hub: Hub,
    model: Model,
    place: Place,
    clients: BTreeMap<ClientId, Listener>,
    in_flight: Option<Request>,
    /// How many events of each name the hub has taken.
    taken: HashMap<InterfaceName, u64>,
    drops: u64,
}

impl World {
    fn new(seed: u64, sample: &Event) -> Self {
        Self {
            hub: Hub::default(),
            model: Model {
                random: Random(seed),
                sample: sample.clone(),
                names: (0..3)
                    .map(|number| (interface(&format!("if{number}")), Named::default()))
                    .collect(),
                outbox: VecDeque::new(),
                devices: 0,
                reuses_indexes: seed.is_multiple_of(2),
            },
            place: place(),
            clients: BTreeMap::new(),
            in_flight: None,
            taken: HashMap::new(),
            drops: 0,
        }
    }

    fn any_name(&mut self) -> InterfaceName {
        let at = self.model.random.below(self.model.names.len() as u64);
        *self.model.names.keys().nth(at as usize).expect("a name")
    }

    fn any_client(&mut self) -> Option<ClientId> {
        let count = self.clients.len() as u64;
        let at = (count > 0).then(|| self.model.random.below(count))?;
        self.clients.keys().nth(at as usize).copied()
    }

    fn connect(&mut self) {
        let id = self
            .hub
            .connect(Owner::User(1000), Trust::Plain)
            .expect("room");
        let targets: BTreeMap<_, _> = self
            .model
            .names
            .keys()
            .filter_map(|&name| {
                let random = &mut self.model.random;
                let expected = random.one_in(3).then(|| random.below(10) as u32 + 1);
                (!random.one_in(3)).then_some((name, expected))
            })
            .collect();
        let heard = targets
            .iter()
            .map(|(&name, &expected)| (name, Heard::new(expected)))
            .collect();
        let asked = self.hub.watch(id, &self.place, &targets, later());
        assert_eq!(asked, Ok(()));
        let is_eager = self.model.random.one_in(3);
        self.clients.insert(id, Listener { heard, is_eager });
    }

    /// The hub takes the next event of the library.
    fn take(&mut self) {
        let Some(mut event) = self.model.outbox.pop_front() else {
            return;
        };
        let taken = self.taken.entry(event.interface).or_default();
        *taken += 1;
        event.time = numbered(*taken);
        self.hub.event(event, Facts::default());
        let woken = self.hub.take_woken();
        for id in woken {
            if self.clients.get(&id).is_some_and(|client| client.is_eager) {
                self.read(id, u64::MAX);
            }
        }
    }

    fn read(&mut self, id: ClientId, lines: u64) {
        let client = self.clients.get_mut(&id).expect("a client");
        for _ in 0..lines {
            let told = match self.hub.next(id, later()) {
                Some(Next::Event(told)) => told,
                Some(Next::Refused(refusal)) => panic!("{refusal:?}"),
                None => return,
            };
            let name = told.event.interface;
            let heard = client.heard.get_mut(&name).expect("a name that it watches");
            let taken = self.taken.get(&name).copied().unwrap_or_default();
            heard.hear(&told.event, taken);
        }
    }

    /// The library begins what it was asked for, or ends what it has begun.
    fn library(&mut self) {
        match self.in_flight.take() {
            None => {
                self.in_flight = self.hub.request();
            }
            Some(request) => {
                match &request {
                    Request::Watch { names, .. } => {
                        for &name in names {
                            self.model.watch(name);
                        }
                    }
                    Request::Unwatch((_, name)) => self.model.unwatch(*name),
                }
                self.hub.done(request, Ok(()));
            }
        }
    }

    fn step(&mut self) {
        match self.model.random.below(20) {
            0 if self.clients.len() < 8 => self.connect(),
            1 if self.model.random.one_in(4) => {
                if let Some(id) = self.any_client() {
                    self.hub.disconnect(id);
                    self.leave(id);
                }
            }
            2..4 => self.library(),
            4..6 => {
                if let Some(id) = self.any_client() {
                    let lines = self.model.random.below(5);
                    self.read(id, lines);
                }
            }
            6..14 => {
                let name = self.any_name();
                self.model.act(name);
            }
            _ => self.take(),
        }
    }

    fn leave(&mut self, id: ClientId) {
        let client = self.clients.remove(&id).expect("a client");
        self.drops += client.heard.values().map(|heard| heard.drops).sum::<u64>();
    }

    /// Everything is done and read: each client knows who holds each name that it watches.
    fn settle(&mut self) {
        while let Some(request) = self.in_flight.take().or_else(|| self.hub.request()) {
            self.in_flight = Some(request);
            self.library();
        }
        while !self.model.outbox.is_empty() {
            self.take();
        }
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.read(id, u64::MAX);
            for (name, heard) in &self.clients[&id].heard {
                let holder = self.model.names[name].holder.map(|(ifindex, _)| ifindex);
                let told = heard.last.filter(|_| heard.held);
                assert_eq!(told, holder, "{name} {heard:?}");
                assert!(heard.has_begun && heard.owed.is_none(), "{name} {heard:?}");
            }
        }
    }
}

#[test]
fn what_each_client_is_told_adds_up() {
    let sample = sample();
    let mut drops = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, &sample);
        for _ in 0..6_000 {
            world.step();
        }
        world.settle();
        for id in world.clients.keys().copied().collect::<Vec<_>>() {
            world.hub.disconnect(id);
            world.leave(id);
        }
        world.settle();
        assert_eq!(world.hub.counts(), (0, 0, 0));
        assert!(world.hub.names.is_empty() && world.hub.users.is_empty());
        assert!(world.hub.namespaces.is_empty() && world.hub.requests.is_empty());
        assert!(world.model.names.values().all(|name| name.watch.is_none()));
        drops += world.drops;
    }
    // Otherwise a client that does not read was not tried.
    assert!(drops > 100, "{drops}");
}

#[test]
fn names_that_cannot_be_watched_fail_for_those_that_asked_for_them() {
    let place = place();
    let (bad, good) = (interface("bad"), interface("good"));
    let mut hub = Hub::default();
    let one = hub.connect(Owner::Root, Trust::Plain).expect("room");
    let two = hub.connect(Owner::Root, Trust::Plain).expect("room");
    let both = BTreeMap::from([(bad, None), (good, None)]);
    let only = BTreeMap::from([(good, None)]);
    assert_eq!(hub.watch(one, &place, &both, later()), Ok(()));
    assert_eq!(hub.watch(two, &place, &only, later()), Ok(()));
    let request = hub.request().expect("a request");
    hub.done(request, Err("no room".to_owned()));
    assert!(matches!(
        hub.next(one, later()),
        Some(Next::Refused(Refusal::Failed(why))) if why == "no room"
    ));
    // The other client wanted the good name alone, and gets it.
    assert!(hub.next(two, later()).is_none());
    let again = hub.request();
    assert!(matches!(
        &again,
        Some(Request::Watch { names, asker, .. }) if names[..] == [good] && *asker == two
    ));
    assert!(hub.request().is_none());
    assert_eq!(hub.counts(), (2, 1, 1));
}

#[test]
fn each_limit_refuses_what_is_beyond_it_and_changes_nothing() {
    let place = place();
    let mut hub = Hub::default();
    let names = |prefix: &str, count: usize| -> BTreeMap<_, _> {
        (0..count)
            .map(|number| (interface(&format!("{prefix}{number}")), None))
            .collect()
    };
    let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
    let many = names("a", limits::WATCHES_OF_CLIENT);
    let more = names("a", limits::WATCHES_OF_CLIENT + 1);
    assert!(hub.watch(id, &place, &more, later()).is_err());
    assert_eq!(hub.counts(), (1, 0, 0));
    assert_eq!(hub.watch(id, &place, &many, later()), Ok(()));
    // The watches of a user.
    for _ in 1..limits::WATCHES.user / limits::WATCHES_OF_CLIENT {
        let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
        assert_eq!(hub.watch(id, &place, &many, later()), Ok(()));
    }
    let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
    let one = names("a", 1);
    assert_eq!(
        hub.watch(id, &place, &one, later()),
        Err(Refusal::Limit(limits::WATCHES.what))
    );
    // Different names: users fill three quarters, and the rest is there for root.
    for user in 0..10 {
        let id = hub
            .connect(Owner::User(2000 + user), Trust::Plain)
            .expect("room");
        let own = names(&format!("{user}b"), limits::WATCHES_OF_CLIENT);
        let refused = hub.watch(id, &place, &own, later()).is_err();
        assert_eq!(refused, user >= 5, "{user}");
    }
    let root = hub.connect(Owner::Root, Trust::Plain).expect("room");
    let own = names("r", limits::WATCHES_OF_CLIENT);
    assert_eq!(hub.watch(root, &place, &own, later()), Ok(()));
    // Clients of one user.
    let mut count = 0;
    while hub.connect(Owner::User(3000), Trust::Plain).is_ok() {
        count += 1;
    }
    assert_eq!(count, limits::CLIENTS.user);
}

#[test]
fn clients_that_come_and_go_leave_no_work_behind_them() {
    let place = place();
    let mut hub = Hub::default();
    let targets: BTreeMap<_, _> = (0..100)
        .map(|number| (interface(&format!("a{number}")), None))
        .collect();
    // The library has no time meanwhile.
    for _ in 0..1000 {
        let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
        assert_eq!(hub.watch(id, &place, &targets, later()), Ok(()));
        hub.disconnect(id);
    }
    assert!(
        hub.requests.len() <= 1 + targets.len(),
        "{}",
        hub.requests.len()
    );
    while let Some(request) = hub.request() {
        hub.done(request, Ok(()));
    }
    assert!(hub.names.is_empty() && hub.namespaces.is_empty());
}

#[test]
fn how_a_device_left_is_told_even_when_others_came_and_went_since() {
    let place = place();
    let name = interface("wg0");
    let mut event = sample();
    event.interface = name;
    let mut hub = Hub::default();
    let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
    let targets = BTreeMap::from([(name, None)]);
    assert_eq!(hub.watch(id, &place, &targets, later()), Ok(()));
    let mut happens = |hub: &mut Hub, kind: EventKind| {
        event.kind = kind;
        hub.event(event.clone(), Facts::default());
    };
    let ifindex = 7;
    let renamed = EventKind::Renamed {
        ifindex,
        to: interface("away"),
    };
    let watching = EventKind::Watching {
        ifindex: Some(ifindex),
    };
    happens(&mut hub, watching);
    assert!(matches!(hub.next(id, later()), Some(Next::Event(_))));
    for _ in 0..limits::QUEUED_EVENTS {
        happens(&mut hub, renamed.clone());
        happens(&mut hub, EventKind::Returned { ifindex });
    }
    let moved = EventKind::Moved {
        ifindex,
        to_netns: None,
        to_ifindex: None,
    };
    happens(&mut hub, moved.clone());
    let recreated = EventKind::Recreated {
        ifindex: 8,
        old_ifindex: ifindex,
    };
    happens(&mut hub, recreated);
    happens(&mut hub, EventKind::Deleted { ifindex: 8 });
    let mut told = Vec::new();
    while let Some(Next::Event(next)) = hub.next(id, later()) {
        told.push(next.event.kind.clone());
    }
    let lost = limits::QUEUED_EVENTS as u64 + 3;
    let resynced = EventKind::Resynced {
        lost: Some(lost),
        changed: true,
        ifindex: None,
    };
    assert_eq!(told.split_off(limits::QUEUED_EVENTS), [resynced, moved]);
}

#[test]
fn what_ended_a_watch_that_failed_does_not_end_the_next_one() {
    let place = place();
    let targets = BTreeMap::from([(interface("wg0"), None)]);
    let mut hub = Hub::default();
    let come = |hub: &mut Hub| {
        let id = hub.connect(Owner::Root, Trust::Plain).expect("room");
        assert_eq!(hub.watch(id, &place, &targets, later()), Ok(()));
        id
    };
    come(&mut hub);
    let request = hub.request().expect("a request");
    hub.done(request, Err("no room".to_owned()));
    // Another client comes and goes before the library has time.
    let id = come(&mut hub);
    hub.disconnect(id);
    let first = hub.request().expect("a request");
    assert!(matches!(first, Request::Watch { .. }), "{first:?}");
    hub.done(first, Ok(()));
    let second = hub.request().expect("a request");
    assert!(matches!(second, Request::Unwatch(_)), "{second:?}");
    hub.done(second, Ok(()));
    assert!(hub.request().is_none() && hub.names.is_empty());
}
