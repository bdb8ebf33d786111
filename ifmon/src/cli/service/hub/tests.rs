//! Cases by themselves. That what each client is told adds up, whatever the host and the other
//! clients do, is for the simulator (`sim/`), and what that looks at is here.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, SystemTime},
};

use ifmon::{BackendChoice, BackendKind, Event, EventKind, InterfaceName, Monitor, Netns, NetnsId};

use super::{
    Client, ClientId, ClientItem, Hub, LibraryRequest, NetnsUse, Refusal, ServedName, ServedNetns,
    WatchKey,
};
use crate::cli::{
    output::facts::EventFacts,
    service::{
        event_reply::Trust,
        limits::{self, Owner},
    },
};

impl Hub {
    /// All that the library watches.
    pub(crate) fn watches(&self) -> BTreeSet<WatchKey> {
        self.names.keys().copied().collect()
    }

    /// Has its call not ended?
    pub(crate) fn is_watching(&self, id: ClientId) -> bool {
        let client = self.clients.get(&id);
        client.is_some_and(|client| !client.watches.is_empty())
    }

    pub(crate) fn has_namespace(&self, netns: NetnsId) -> bool {
        self.namespaces.contains_key(&netns)
    }

    /// No client takes more memory than it may.
    pub(crate) fn check_bounds(&self) {
        let owners: HashSet<_> = self.clients.values().map(|one| one.owner).collect();
        assert_eq!(self.users.len(), owners.len());
        for client in self.clients.values() {
            let Client {
                watches,
                queue,
                events,
                bytes,
                ..
            } = client;
            assert!(*events <= limits::QUEUED_EVENTS && *bytes <= limits::QUEUED_BYTES);
            // What is told of a state, and what follows from one.
            assert!(queue.len() <= events + watches.len() + 1, "{client:?}");
        }
    }
}

/// When the hub reads a state: after all events, whose times are their numbers.
fn later() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(1)
}

fn place() -> ServedNetns {
    ServedNetns {
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
        Some(ClientItem::Refused(Refusal::Failed(why))) if why == "no room"
    ));
    // The other client wanted the good name alone, and gets it.
    assert!(hub.next(two, later()).is_none());
    let again = hub.request();
    assert!(matches!(
        &again,
        Some(LibraryRequest::Watch { names, asker, .. }) if names[..] == [good] && *asker == two
    ));
    assert!(hub.request().is_none());
    assert!(!hub.is_watching(one) && hub.is_watching(two));
    assert_eq!(hub.counts(), (2, 1, 1));
}

#[test]
fn what_a_client_has_called_for_since_is_not_refused_for_what_it_called_for_before() {
    let place = place();
    let [a, b, c] = ["a", "b", "c"].map(interface);
    let mut hub = Hub::default();
    let one = hub.connect(Owner::Root, Trust::Plain).expect("room");
    let two = hub.connect(Owner::Root, Trust::Plain).expect("room");
    let both = BTreeMap::from([(a, None), (b, None)]);
    for id in [one, two] {
        assert_eq!(hub.watch(id, &place, &both, later()), Ok(()));
    }
    let request = hub.request().expect("a request");
    hub.done(request, Err("no room".to_owned()));
    // Asked for again, one by one, for the second client.
    let again = [(); 2].map(|()| hub.request().expect("a request"));
    for (at, request) in again.into_iter().enumerate() {
        hub.done(request, Err("no room".to_owned()));
        if at == 0 {
            assert!(matches!(
                hub.next(two, later()),
                Some(ClientItem::Refused(_))
            ));
            let other = BTreeMap::from([(c, None)]);
            assert_eq!(hub.watch(two, &place, &other, later()), Ok(()));
        }
    }
    assert!(hub.next(two, later()).is_none());
    assert!(hub.is_watching(two));
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
    // Different names: those of one user leave room for others.
    let one_user = Owner::User(1999);
    for number in 0..limits::NAMES.user / limits::WATCHES_OF_CLIENT + 1 {
        let id = hub.connect(one_user, Trust::Plain).expect("room");
        let own = names(&format!("{number}c"), limits::WATCHES_OF_CLIENT);
        let refused = hub.watch(id, &place, &own, later()).err();
        let is_one_too_many = number == limits::NAMES.user / limits::WATCHES_OF_CLIENT;
        let expected = is_one_too_many.then_some(Refusal::Limit(limits::NAMES.what));
        assert_eq!(refused, expected, "{number}");
    }
    // Different names: users fill three quarters, and the rest is there for root.
    for user in 0..10 {
        let id = hub
            .connect(Owner::User(2000 + user), Trust::Plain)
            .expect("room");
        let own = names(&format!("{user}b"), limits::WATCHES_OF_CLIENT);
        let refused = hub.watch(id, &place, &own, later()).is_err();
        assert_eq!(refused, user >= 3, "{user}");
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

/// Or whoever came first would have no room left, for names that others keep.
#[test]
fn a_name_takes_the_room_of_those_who_ask_for_it() {
    let mut hub = Hub::default();
    let names = |round: usize| -> BTreeMap<_, _> {
        (0..limits::WATCHES_OF_CLIENT)
            .map(|number| (interface(&format!("{round}a{number}")), None))
            .collect()
    };
    let one_more = BTreeMap::from([(interface("one"), None)]);
    let ask = |hub: &mut Hub, owner: Owner, names: &BTreeMap<_, _>| {
        let id = hub.connect(owner, Trust::Plain).expect("room");
        (id, hub.watch(id, &place(), names, later()))
    };
    let [first, other, third] = [1000, 1001, 1002].map(Owner::User);
    let refused = Err(Refusal::Limit(limits::NAMES.what));
    let rounds = limits::NAMES.user / limits::WATCHES_OF_CLIENT;
    for round in 0..=rounds {
        let (id, asked) = ask(&mut hub, first, &names(round));
        assert_eq!(asked, Ok(()));
        let (_, joined) = ask(&mut hub, other, &names(round));
        assert_eq!(joined.is_ok(), round < rounds, "{round}");
        hub.disconnect(id);
    }
    // What nobody needs takes room until the library has ended it.
    assert_eq!(ask(&mut hub, first, &names(rounds + 1)).1, Ok(()));
    assert_eq!(ask(&mut hub, first, &one_more).1, refused);
    // Where root has taken all that is left, what is watched already can be asked for.
    for round in rounds + 2..limits::NAMES.all / limits::WATCHES_OF_CLIENT {
        assert_eq!(ask(&mut hub, Owner::Root, &names(round)).1, Ok(()));
    }
    assert_eq!(ask(&mut hub, Owner::Root, &one_more).1, refused);
    assert_eq!(ask(&mut hub, third, &names(0)).1, Ok(()));
}

/// The same of namespaces, of which there is but one here: the others are made up.
#[test]
fn a_namespace_takes_the_room_of_those_who_watch_in_it() {
    let mut hub = Hub::default();
    let [first, other] = [1000, 1001].map(Owner::User);
    let wg0 = interface("wg0");
    for number in 1..=limits::NAMESPACES.user as u32 {
        let (place, names) = (place(), 1);
        let name = ServedName::asked(place.clone(), other, later());
        hub.names.insert((NetnsId(number), wg0), name);
        hub.namespaces
            .insert(NetnsId(number), NetnsUse { place, names });
    }
    let target = BTreeMap::from([(wg0, None)]);
    let refused = Err(Refusal::Limit(limits::NAMESPACES.what));
    // Also where somebody watches already.
    for (owner, expected) in [(other, refused.clone()), (first, Ok(())), (other, refused)] {
        let id = hub.connect(owner, Trust::Plain).expect("room");
        assert_eq!(hub.watch(id, &place(), &target, later()), expected);
    }
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
    assert!(hub.watches().is_empty() && !hub.has_namespace(place.netns.id()));
}

/// A client that has been told that wg0 is the device with the index 7.
struct Follower {
    hub: Hub,
    id: ClientId,
    /// What happened last.
    event: Event,
}

impl Follower {
    fn new() -> Self {
        let mut hub = Hub::default();
        let id = hub.connect(Owner::User(1000), Trust::Plain).expect("room");
        let mut event = sample();
        event.interface = interface("wg0");
        let targets = BTreeMap::from([(event.interface, None)]);
        assert_eq!(hub.watch(id, &place(), &targets, later()), Ok(()));
        let mut follower = Self { hub, id, event };
        follower.happens(EventKind::Watching { ifindex: Some(7) });
        assert_eq!(follower.told().len(), 1);
        follower
    }

    fn happens(&mut self, kind: EventKind) {
        self.event.kind = kind;
        self.hub.event(self.event.clone(), EventFacts::default());
    }

    /// It is renamed and renamed back, so many times.
    fn goes_and_comes(&mut self, times: usize) {
        for _ in 0..times {
            let to = interface("away");
            self.happens(EventKind::Renamed { ifindex: 7, to });
            self.happens(EventKind::Returned { ifindex: 7 });
        }
    }

    /// Another one takes the name, and goes.
    fn is_followed_by_another(&mut self) {
        self.happens(EventKind::Recreated {
            ifindex: 8,
            old_ifindex: 7,
        });
        self.happens(EventKind::Deleted { ifindex: 8 });
    }

    fn told(&mut self) -> Vec<EventKind> {
        let mut told = Vec::new();
        while let Some(ClientItem::Event(next)) = self.hub.next(self.id, later()) {
            told.push(next.event.kind.clone());
        }
        told
    }
}

#[test]
fn how_a_device_left_is_told_even_when_others_came_and_went_since() {
    let mut follower = Follower::new();
    follower.goes_and_comes(limits::QUEUED_EVENTS);
    follower.hub.check_bounds();
    let moved = EventKind::Moved {
        ifindex: 7,
        to_netns: None,
        to_ifindex: None,
    };
    follower.happens(moved.clone());
    follower.is_followed_by_another();
    let mut told = follower.told();
    let lost = limits::QUEUED_EVENTS as u64 + 3;
    let resynced = EventKind::Resynced {
        lost: Some(lost),
        changed: true,
        ifindex: None,
    };
    assert_eq!(told.split_off(limits::QUEUED_EVENTS), [resynced, moved]);
}

/// The client reads again when the device that came back has gone, which nobody has seen.
#[test]
fn how_a_device_left_is_not_told_once_it_has_come_back() {
    let mut follower = Follower::new();
    follower.goes_and_comes(limits::QUEUED_EVENTS + 1);
    follower.is_followed_by_another();
    let deleted = EventKind::Deleted { ifindex: 7 };
    assert_eq!(follower.told().last(), Some(&deleted));
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
    assert!(matches!(first, LibraryRequest::Watch { .. }), "{first:?}");
    hub.done(first, Ok(()));
    let second = hub.request().expect("a request");
    assert!(matches!(second, LibraryRequest::Unwatch(_)), "{second:?}");
    hub.done(second, Ok(()));
    assert!(hub.request().is_none() && hub.watches().is_empty());
}

#[test]
fn no_client_comes_between_a_loss_and_what_follows_from_it() {
    let place = place();
    let mut event = sample();
    event.interface = interface("wg0");
    let targets = BTreeMap::from([(event.interface, None)]);
    let mut hub = Hub::default();
    let come = |hub: &mut Hub| {
        let id = hub.connect(Owner::Root, Trust::Plain).expect("room");
        assert_eq!(hub.watch(id, &place, &targets, later()), Ok(()));
        id
    };
    let mut happens = |hub: &mut Hub, kind: &EventKind| {
        event.netns = place.netns.id();
        event.kind = kind.clone();
        hub.event(event.clone(), EventFacts::default());
    };
    let watching = EventKind::Watching { ifindex: Some(7) };
    let resynced = EventKind::Resynced {
        lost: Some(2),
        changed: true,
        ifindex: None,
    };
    let deleted = EventKind::Deleted { ifindex: 7 };
    come(&mut hub);
    happens(&mut hub, &watching);
    happens(&mut hub, &resynced);
    let id = come(&mut hub);
    let mut told = Vec::new();
    let mut read = |hub: &mut Hub| {
        while let Some(ClientItem::Event(next)) = hub.next(id, later()) {
            told.push(next.event.kind.clone());
        }
    };
    read(&mut hub);
    happens(&mut hub, &deleted);
    read(&mut hub);
    assert_eq!(told, [watching, resynced, deleted]);
}
