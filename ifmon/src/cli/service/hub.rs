//! Decides who is told what: clients and what they watch, events of the library in, replies out.
//!
//! Pure: it knows no socket and no kernel. Whatever a client does, no other is held up by it, and
//! what is kept for it is bounded by the numbers in `limits.rs`.
//!
//! A name is watched once in the library, however many clients ask for it. Each client is told of
//! it as if it had a watch of its own: what the agent knows of the name, and what this client was
//! told of it, are kept apart, and the difference is a verdict. That one rule serves a client that
//! comes late, one that expects another device, and one that did not read for a while.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    ops::Bound,
    rc::Rc,
    time::SystemTime,
};

use ifmon::{Event, EventKind, InterfaceName, Netns, NetnsId};

use super::{
    event_reply::{EventReply, Trust},
    holding::{NameHistory, View},
    limits::{self, Limit, Owner},
};
use crate::cli::{output::facts::EventFacts, watches::WatchKey};

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(u64);

/// A namespace in which names are watched. It lives as long as they are.
#[derive(Clone, Debug)]
pub(crate) struct ServedNetns {
    pub(crate) netns: Netns,
    /// What the host calls it.
    pub(crate) name: Option<Rc<OsString>>,
}

/// Why a client does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There are too many of these.
    Limit(&'static str),
    /// The library cannot watch it.
    Failed(String),
}

/// What the library is to do. One after the other, in this order.
#[derive(Debug)]
pub(crate) enum LibraryRequest {
    Watch {
        place: ServedNetns,
        names: Vec<InterfaceName>,
        /// Whoever asked first.
        asker: ClientId,
    },
    Unwatch(WatchKey),
}

/// What there is for a client to read.
#[derive(Debug)]
pub(crate) enum ClientItem {
    Event(Rc<EventReply>),
    /// Its call has ended.
    Refused(Refusal),
}

/// A name and who has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) watch: WatchKey,
    pub(crate) ifindex: Option<u32>,
    /// Since when.
    pub(crate) since: SystemTime,
    pub(crate) clients: usize,
}

/// All that is known of clients and names.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    clients: HashMap<ClientId, Client>,
    names: BTreeMap<WatchKey, ServedName>,
    users: HashMap<Owner, User>,
    namespaces: HashMap<NetnsId, NetnsUse>,
    /// How many watches all clients have.
    watches: usize,
    requests: VecDeque<LibraryRequest>,
    woken: Vec<ClientId>,
    next_client: u64,
}

#[derive(Debug)]
struct Client {
    owner: Owner,
    trust: Trust,
    watches: Vec<WatchKey>,
    queue: VecDeque<QueueEntry>,
    /// The events in the queue, and their bytes. What is told of a state does not count: there is
    /// one for each watch at most.
    events: usize,
    bytes: usize,
    /// It has been told that there is something to read.
    is_woken: bool,
}

/// Something in the queue of a client.
#[derive(Debug)]
enum QueueEntry {
    Event(Rc<EventReply>),
    /// What there is to say of this watch when the client gets here.
    State(WatchKey),
    /// What follows from a state that was told just now.
    Verdict(Rc<EventReply>),
    Refused(Refusal),
}

/// What one user has.
#[derive(Debug, Default)]
struct User {
    clients: usize,
    watches: usize,
}

/// A namespace in which there are names.
#[derive(Debug)]
struct NetnsUse {
    place: ServedNetns,
    names: usize,
}

/// A watch in the library.
#[derive(Debug)]
struct ServedName {
    place: ServedNetns,
    phase: LibraryWatch,
    state: NameHistory,
    since: SystemTime,
    /// Any event of it, for what all events of it have in common.
    sample: Option<Event>,
    /// A loss of which nothing was told yet.
    resynced: Option<Event>,
    clients: BTreeMap<ClientId, ClientWatch>,
    /// Whose room it takes while nobody needs it and it has not ended: that of whoever left last.
    last_owner: Owner,
    /// It is watched even when no client asks for it.
    is_kept: bool,
    /// The library is to be asked to end the watch, unless somebody comes before that.
    is_ending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LibraryWatch {
    /// The library was asked to watch it and has not yet said that it does.
    Asked,
    Live,
    /// The library was asked to end the watch. What it still says is of the past.
    Leaving,
}

/// What one client was told of one name.
#[derive(Debug)]
struct ClientWatch {
    owner: Owner,
    view: View,
    pending: Option<Pending>,
}

/// What will be told of the state, once the client gets there.
#[derive(Debug)]
enum Pending {
    /// The first event; with the index of the device that is expected to hold the name.
    Begin(Option<u32>),
    /// Events were dropped: how many, and how the device left that the client knows as the holder.
    Resync {
        lost: Option<u64>,
        departure: Option<EventKind>,
    },
}

impl Client {
    fn has_room_for(&self, bytes: usize) -> bool {
        self.events < limits::QUEUED_EVENTS && self.bytes + bytes <= limits::QUEUED_BYTES
    }
}

impl Hub {
    /// Takes a client.
    pub(crate) fn connect(&mut self, owner: Owner, trust: Trust) -> Result<ClientId, Refusal> {
        let all = self.clients.len();
        let user = self.users.entry(owner).or_default();
        if !limits::CLIENTS.has_room(owner, 1, all, user.clients) {
            // An entry for a user without clients is of no use to anybody.
            if user.clients == 0 {
                self.users.remove(&owner);
            }
            return Err(limits::CLIENTS.refusal());
        }
        user.clients += 1;
        self.next_client += 1;
        let id = ClientId(self.next_client);
        let client = Client {
            owner,
            trust,
            watches: Vec::new(),
            queue: VecDeque::new(),
            events: 0,
            bytes: 0,
            is_woken: false,
        };
        self.clients.insert(id, client);
        Ok(id)
    }

    /// A client has gone, and takes its watches with it.
    pub(crate) fn disconnect(&mut self, id: ClientId) {
        self.end_call(id);
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        if let Some(user) = self.users.get_mut(&client.owner) {
            user.clients -= 1;
            if user.clients == 0 {
                self.users.remove(&client.owner);
            }
        }
    }

    /// A client watches these names, each with the index of the device that it expects to hold it.
    ///
    /// # Errors
    /// When there would be too many; nothing has changed then.
    pub(crate) fn watch(
        &mut self,
        id: ClientId,
        place: &ServedNetns,
        targets: &BTreeMap<InterfaceName, Option<u32>>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let netns = place.netns.id();
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        let count = targets.len();
        if client.watches.len() + count > limits::WATCHES_OF_CLIENT {
            return Err(Refusal::Limit("watches of one client"));
        }
        let of_user = self.users.get(&client.owner).map_or(0, |user| user.watches);
        if !limits::WATCHES.has_room(client.owner, count, self.watches, of_user) {
            return Err(limits::WATCHES.refusal());
        }
        let new: Vec<InterfaceName> = targets
            .keys()
            .copied()
            .filter(|&name| !self.names.contains_key(&(netns, name)))
            .collect();
        // What others ask for too counts for each of them, or who came first would pay for who stays.
        let owner = client.owner;
        let own = self.names.iter().filter(|(_, name)| name.is_of(owner));
        let mut namespaces: Vec<NetnsId> = own.map(|(&(netns, _), _)| netns).collect();
        let joined = targets.keys().filter(|&&name| {
            let other = self.names.get(&(netns, name));
            other.is_some_and(|other| !other.is_of(owner))
        });
        let (all, of_owner) = (self.names.len(), namespaces.len() + joined.count());
        if !limits::NAMES.has_room(owner, new.len(), all, of_owner) {
            return Err(limits::NAMES.refusal());
        }
        namespaces.dedup();
        let is_new = !self.namespaces.contains_key(&netns);
        let is_joined = !is_new && !namespaces.contains(&netns);
        let of_owner = namespaces.len() + usize::from(is_joined);
        let all = self.namespaces.len();
        if !limits::NAMESPACES.has_room(owner, usize::from(is_new), all, of_owner) {
            return Err(limits::NAMESPACES.refusal());
        }
        let place = match self.namespaces.get_mut(&netns) {
            Some(namespace) => {
                namespace.names += new.len();
                namespace.place.clone()
            }
            None => {
                let place = place.clone();
                let namespace = NetnsUse {
                    place: place.clone(),
                    names: new.len(),
                };
                self.namespaces.insert(netns, namespace);
                place
            }
        };
        for (&interface, &expected) in targets {
            let watch = (netns, interface);
            let name = self
                .names
                .entry(watch)
                .or_insert_with(|| ServedName::asked(place.clone(), owner, now));
            let subscription = ClientWatch {
                owner,
                view: View::begin(&name.state, expected),
                pending: Some(Pending::Begin(expected)),
            };
            name.clients.insert(id, subscription);
            client.watches.push(watch);
            if name.phase == LibraryWatch::Live {
                client.queue.push_back(QueueEntry::State(watch));
            }
        }
        self.watches += count;
        if let Some(user) = self.users.get_mut(&client.owner) {
            user.watches += count;
        }
        if !new.is_empty() {
            self.requests.push_back(LibraryRequest::Watch {
                place,
                names: new,
                asker: id,
            });
        }
        self.wake(id);
        Ok(())
    }

    /// Has the library watch a name that no client asks for. It was asked already.
    pub(crate) fn keep(&mut self, place: ServedNetns, interface: InterfaceName, now: SystemTime) {
        let watch = (place.netns.id(), interface);
        let namespace = NetnsUse {
            place: place.clone(),
            names: 1,
        };
        self.namespaces.insert(place.netns.id(), namespace);
        let mut name = ServedName::asked(place, Owner::Root, now);
        name.is_kept = true;
        self.names.insert(watch, name);
    }

    /// Is all watched that this client has asked for?
    pub(crate) fn are_live(&self, id: ClientId) -> bool {
        let is_live = |watch| {
            self.names
                .get(watch)
                .is_none_or(|name| name.phase == LibraryWatch::Live)
        };
        let client = self.clients.get(&id);
        client.is_none_or(|client| client.watches.iter().all(is_live))
    }

    /// What the library is to do next.
    pub(crate) fn request(&mut self) -> Option<LibraryRequest> {
        loop {
            let request = self.requests.pop_front()?;
            let LibraryRequest::Unwatch(watch) = request else {
                return Some(request);
            };
            let Some(name) = self.names.get_mut(&watch) else {
                continue;
            };
            name.is_ending = false;
            // Somebody may have come meanwhile.
            if name.is_unused() && name.phase != LibraryWatch::Leaving {
                name.phase = LibraryWatch::Leaving;
                return Some(request);
            }
        }
    }

    /// The library has done it, or says why it cannot.
    pub(crate) fn done(&mut self, request: LibraryRequest, result: Result<(), String>) {
        match (request, result) {
            (LibraryRequest::Watch { .. }, Ok(())) => {}
            (
                LibraryRequest::Watch {
                    place,
                    names,
                    asker,
                },
                Err(why),
            ) => {
                let wanted = names.iter();
                let wanted = wanted.filter_map(|it| self.names.get(&(place.netns.id(), *it)));
                // One that was refused before may have called for something else since.
                let is_alone = names.len() == 1;
                let refused: BTreeSet<_> = wanted
                    .flat_map(|name| name.clients.keys().copied())
                    .filter(|&id| is_alone || id == asker)
                    .collect();
                for id in refused {
                    self.refuse(id, Refusal::Failed(why.clone()));
                }
                // Names begin together or not at all: those that others want are asked for again.
                for interface in names {
                    self.ask_again(&place, interface);
                }
            }
            // When it fails, the monitor has ended, and the agent ends with it.
            (LibraryRequest::Unwatch((netns, interface)), _) => {
                if let Some(name) = self.names.get(&(netns, interface)) {
                    let place = name.place.clone();
                    self.ask_again(&place, interface);
                }
            }
        }
    }

    /// The library does not watch a name any more: who wants it, asks again.
    fn ask_again(&mut self, place: &ServedNetns, interface: InterfaceName) {
        let watch = (place.netns.id(), interface);
        let Some(name) = self.names.get_mut(&watch) else {
            return;
        };
        if std::mem::take(&mut name.is_ending) {
            // There is nothing to end, and a watch that begins after this must not be ended by it.
            let ends = |request: &LibraryRequest| matches!(request, LibraryRequest::Unwatch(at) if *at == watch);
            self.requests.retain(|request| !ends(request));
        }
        let Some(&asker) = name.clients.keys().next() else {
            self.names.remove(&watch);
            if let Some(namespace) = self.namespaces.get_mut(&watch.0) {
                namespace.names -= 1;
                if namespace.names == 0 {
                    self.namespaces.remove(&watch.0);
                }
            }
            return;
        };
        name.phase = LibraryWatch::Asked;
        self.requests.push_back(LibraryRequest::Watch {
            place: place.clone(),
            names: vec![interface],
            asker,
        });
    }

    /// Takes an event of the library, with what was found out about it.
    ///
    /// A loss that has changed something is told together with what follows from it, so that no
    /// client comes in between.
    pub(crate) fn event(&mut self, event: Event, facts: EventFacts) {
        let watch = (event.netns, event.interface);
        let Some(name) = self.names.get_mut(&watch) else {
            return;
        };
        if matches!(event.kind, EventKind::Resynced { changed: true, .. }) {
            name.resynced = Some(event);
            return;
        }
        if let Some(resynced) = name.resynced.take() {
            self.hand_on(resynced, EventFacts::default());
        }
        self.hand_on(event, facts);
    }

    fn hand_on(&mut self, event: Event, facts: EventFacts) {
        let watch = (event.netns, event.interface);
        let Some(name) = self.names.get_mut(&watch) else {
            return;
        };
        let begins = match name.phase {
            LibraryWatch::Asked => matches!(event.kind, EventKind::Watching { .. }),
            LibraryWatch::Live => false,
            LibraryWatch::Leaving => return,
        };
        if begins {
            name.phase = LibraryWatch::Live;
        } else if name.phase != LibraryWatch::Live {
            return;
        }
        let before = name.state.holding;
        name.state.apply(&event.kind);
        if begins || name.state.holding != before {
            name.since = event.time;
        }
        let mut sample = event.clone();
        sample.by = None;
        name.sample = Some(sample);
        let shared = Rc::new(EventReply::new(event, facts, name.place.name.clone()));
        let ServedName { state, clients, .. } = name;
        for (&id, subscription) in clients {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            match &mut subscription.pending {
                Some(Pending::Begin(_)) => {
                    if begins {
                        client.queue.push_back(QueueEntry::State(watch));
                    }
                }
                Some(Pending::Resync { lost, departure }) => {
                    add_lost(lost, &shared.event.kind);
                    if let Some(left) = subscription.view.departure(state) {
                        *departure = Some(left);
                    } else if subscription.view.is_right(state) {
                        // It has come back.
                        *departure = None;
                    }
                }
                None => {
                    let mut view = subscription.view;
                    let kind = if matches!(shared.event.kind, EventKind::Resynced { .. }) {
                        Some(shared.event.kind.clone())
                    } else {
                        view.catch_up(state, None)
                    };
                    let Some(kind) = kind else { continue };
                    let told = shared.with_kind(kind);
                    let bytes = told.reply(client.trust).len();
                    if client.has_room_for(bytes) {
                        subscription.view = view;
                        client.events += 1;
                        client.bytes += bytes;
                        client.queue.push_back(QueueEntry::Event(told));
                    } else {
                        let mut lost = Some(0);
                        add_lost(&mut lost, &shared.event.kind);
                        let departure = subscription.view.departure(state);
                        subscription.pending = Some(Pending::Resync { lost, departure });
                        client.queue.push_back(QueueEntry::State(watch));
                    }
                }
            }
            if !client.is_woken && !client.queue.is_empty() {
                client.is_woken = true;
                self.woken.push(id);
            }
        }
    }

    /// Clients that have something to read and were not told so yet.
    pub(crate) fn take_woken(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.woken)
    }

    /// What there is for a client to read, one after the other. After `None` it is woken again.
    pub(crate) fn next(&mut self, id: ClientId, now: SystemTime) -> Option<ClientItem> {
        let client = self.clients.get_mut(&id)?;
        loop {
            let Some(entry) = client.queue.pop_front() else {
                client.is_woken = false;
                // What was needed once is not needed for ever.
                client.queue.shrink_to(8);
                return None;
            };
            let told = match entry {
                QueueEntry::Event(told) => {
                    client.events -= 1;
                    client.bytes -= told.reply(client.trust).len();
                    told
                }
                QueueEntry::Verdict(told) => told,
                QueueEntry::Refused(refusal) => return Some(ClientItem::Refused(refusal)),
                QueueEntry::State(watch) => {
                    let Some(name) = self.names.get_mut(&watch) else {
                        continue;
                    };
                    let Some((first, verdict)) = name.tell(id, now) else {
                        continue;
                    };
                    if let Some(verdict) = verdict {
                        client.queue.push_front(QueueEntry::Verdict(verdict));
                    }
                    first
                }
            };
            return Some(ClientItem::Event(told));
        }
    }

    /// The call of a client has ended: its watches end, and what was to be told is dropped.
    pub(crate) fn end_call(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.queue = VecDeque::new();
        client.events = 0;
        client.bytes = 0;
        let watches = std::mem::take(&mut client.watches);
        self.watches -= watches.len();
        if let Some(user) = self.users.get_mut(&client.owner) {
            user.watches -= watches.len();
        }
        for watch in watches {
            if let Some(name) = self.names.get_mut(&watch) {
                name.clients.remove(&id);
                name.last_owner = client.owner;
                // Once, however often clients come and go before the library has time for it.
                if name.is_unused() && name.phase != LibraryWatch::Leaving && !name.is_ending {
                    name.is_ending = true;
                    self.requests.push_back(LibraryRequest::Unwatch(watch));
                }
            }
        }
    }

    fn refuse(&mut self, id: ClientId, refusal: Refusal) {
        self.end_call(id);
        if let Some(client) = self.clients.get_mut(&id) {
            client.queue.push_back(QueueEntry::Refused(refusal));
        }
        self.wake(id);
    }

    fn wake(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.is_woken
            && !client.queue.is_empty()
        {
            client.is_woken = true;
            self.woken.push(id);
        }
    }

    /// Names that are watched for clients, of one namespace or of all, after this one; so many at
    /// most that they fit into one reply; and whether these are the last.
    pub(crate) fn list(
        &self,
        netns: Option<NetnsId>,
        after: Option<WatchKey>,
    ) -> (Vec<Listed>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self
            .names
            .range((from, Bound::Unbounded))
            .filter(|((of, _), name)| netns.is_none_or(|netns| netns == *of) && name.is_told())
            .map(|(&watch, name)| Listed {
                watch,
                ifindex: name.state.holding.ifindex(),
                since: name.since,
                clients: name.clients.len(),
            });
        let page = rest.by_ref().take(limits::LISTED).collect();
        (page, rest.next().is_none())
    }

    /// What the host calls a namespace in which something is watched.
    pub(crate) fn netns_name(&self, watch: WatchKey) -> Option<&OsString> {
        self.names.get(&watch)?.place.name.as_deref()
    }

    /// How many clients there are, how many watches they have, and of how many names.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let names = self.names.values().filter(|name| !name.clients.is_empty());
        (self.clients.len(), self.watches, names.count())
    }
}

impl ServedName {
    fn asked(place: ServedNetns, last_owner: Owner, now: SystemTime) -> Self {
        Self {
            place,
            last_owner,
            phase: LibraryWatch::Asked,
            state: NameHistory::default(),
            since: now,
            sample: None,
            resynced: None,
            clients: BTreeMap::new(),
            is_kept: false,
            is_ending: false,
        }
    }

    /// Does it take a user's room?
    fn is_of(&self, owner: Owner) -> bool {
        if self.is_unused() {
            return self.last_owner == owner;
        }
        self.clients.values().any(|client| client.owner == owner)
    }

    fn is_unused(&self) -> bool {
        self.clients.is_empty() && !self.is_kept
    }

    /// Is its state known, and somebody told of it?
    fn is_told(&self) -> bool {
        self.phase == LibraryWatch::Live && !self.clients.is_empty()
    }

    /// Tells a client of the present state, and of what that means for it.
    fn tell(
        &mut self,
        id: ClientId,
        now: SystemTime,
    ) -> Option<(Rc<EventReply>, Option<Rc<EventReply>>)> {
        let subscription = self.clients.get_mut(&id)?;
        let ifindex = self.state.holding.ifindex();
        let (first, verdict) = match subscription.pending.take()? {
            Pending::Begin(expected) => {
                subscription.view = View::begin(&self.state, expected);
                let verdict = subscription.view.catch_up(&self.state, None);
                (EventKind::Watching { ifindex }, verdict)
            }
            Pending::Resync { lost, departure } => {
                let verdict = subscription.view.catch_up(&self.state, departure.as_ref());
                let changed = verdict.is_some();
                let first = EventKind::Resynced {
                    lost,
                    changed,
                    ifindex,
                };
                (first, verdict)
            }
        };
        let sample = self.sample.as_ref()?;
        let told = |kind, recovered| {
            let mut event = sample.clone();
            event.kind = kind;
            event.time = now;
            event.recovered = recovered;
            Rc::new(EventReply::new(
                event,
                EventFacts::default(),
                self.place.name.clone(),
            ))
        };
        Some((told(first, false), verdict.map(|kind| told(kind, true))))
    }
}

impl Limit {
    fn refusal(self) -> Refusal {
        Refusal::Limit(self.what)
    }
}

/// One more event was dropped; where it says itself that some were lost, these are meant.
fn add_lost(lost: &mut Option<u64>, kind: &EventKind) {
    let more = if let EventKind::Resynced { lost, .. } = *kind {
        lost
    } else {
        Some(1)
    };
    *lost = lost.zip(more).map(|(lost, more)| lost + more);
}

#[cfg(test)]
mod tests;
