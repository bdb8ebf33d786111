//! A host: namespaces with devices, and what a kernel would let somebody do to them.
//!
//! A change is made in steps, as a kernel makes it under RTNL: first it can be seen, then those who
//! listen are told. Between two steps a system call that does not need RTNL may come.

use std::{
    cell::Cell,
    collections::{HashSet, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use super::shrink::Decisions;
use crate::{EventKind, InterfaceName, LinkKind, NetnsId, Pattern, machine::Now};

/// Few of each, so that everything meets everything. The first namespace never ends.
pub(crate) const SPACES: usize = 2;
const NAMES: [&str; 5] = ["a", "b", "aa", "c", "fifteen-bytes-x"];
/// The first so many names are watched now and then.
pub(crate) const WATCHED: u32 = 3;
/// What is watched beside them now and then: patterns, and of what kinds. The last so many are narrowed.
const PATTERNS: [(&str, &[&str]); 10] = [
    ("a*", &[]),
    ("?", &[]),
    ("*", &[]),
    ("[!ac]*", &[]),
    ("b", &[]),
    ("*", &["veth"]),
    ("*", &["veth", "bridge"]),
    ("a*", &["bridge"]),
    ("?", &["veth", "fifteen-bytes-x"]),
    ("a*", &["veth"]),
];
const NARROWED: u32 = 5;
/// Kinds of devices; one without a kind is as frequent.
const KINDS: [&str; 2] = ["veth", "bridge"];
/// The first index that a device can have: 1 is the loopback device's.
const FIRST_INDEX: u32 = 2;
const LAST_INDEX: u32 = 5;
const DEVICES: usize = 4;
const FIRST_NETNS: u32 = 4_026_531_840;

/// The place of what is watched in all of them.
pub(crate) const EVERYWHERE: usize = SPACES;

/// The inode number of the namespace that is in this place. Whatever namespace comes there next has
/// the same.
pub(crate) const fn netns(space: usize) -> NetnsId {
    if space == EVERYWHERE {
        return NetnsId::ALL;
    }
    NetnsId(FIRST_NETNS + space as u32)
}

/// What a loopback device is called.
pub(crate) fn loopback() -> InterfaceName {
    InterfaceName::new("lo").expect("a valid name")
}

/// The place of the namespace with this inode number.
pub(crate) fn space_of(netns: NetnsId) -> usize {
    (netns.0 - FIRST_NETNS) as usize
}

pub(crate) fn name(number: u32) -> InterfaceName {
    let name = NAMES[number as usize % NAMES.len()];
    InterfaceName::new(name).expect("a valid name")
}

/// One of the patterns; `is_narrowed`: to some kinds for sure.
pub(crate) fn pattern(decisions: &mut Decisions, is_narrowed: bool) -> Pattern {
    let count = PATTERNS.len() as u32;
    let number = if is_narrowed {
        count - 1 - decisions.below(NARROWED)
    } else {
        decisions.below(count)
    };
    let (pattern, kinds) = PATTERNS[number as usize];
    let kinds = kinds.iter().copied().map(kind);
    Pattern::new(pattern)
        .expect("a valid pattern")
        .of_kinds(kinds)
}

fn kind(kind: &str) -> LinkKind {
    LinkKind::new(kind).expect("a valid kind")
}

/// A name in one namespace, not in the next one with its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) space: usize,
    /// How many namespaces there were in this place before.
    pub(crate) era: u32,
    pub(crate) name: InterfaceName,
}

/// A device, where it is and what it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// No two devices have the same, ever: what the inode number in sysfs is.
    pub(crate) id: u32,
    pub(crate) space: usize,
    pub(crate) ifindex: u32,
    pub(crate) name: InterfaceName,
    pub(crate) kind: Option<LinkKind>,
}

/// How the host is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    devices: [Option<Device>; DEVICES],
    pub(crate) eras: [u32; SPACES],
    /// There is no namespace in this place.
    pub(crate) has_ended: [bool; SPACES],
}

/// How a kernel with this host goes about it, and how much it lets whoever listens fall behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conduct {
    /// How many messages or records the queue takes.
    pub(crate) room: usize,
    /// Nothing happens but when everything before was read and looked up.
    pub(crate) calm: bool,
    /// Indexes are used again at once.
    pub(crate) reuses: bool,
    /// Linux 5.10 overwrites the name before it tells that a device went elsewhere and is called
    /// otherwise there.
    pub(crate) overwrites: bool,
    /// Linux 7.2 answers a question about one link without waiting for RTNL: the answer can be
    /// ahead of what is told.
    pub(crate) lockless: bool,
    /// There is no sysfs that shows the right devices.
    pub(crate) hides_inodes: bool,
    /// No message says that a device was registered which could not be set up.
    pub(crate) is_silent: bool,
    /// That it was registered is told, and not that it is gone; nor does anything else happen until
    /// that was found out.
    pub(crate) is_half_silent: bool,
}

/// A step of a change.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// From now on this is what can be seen.
    Show(State),
    /// The same, but nobody will ever be told.
    ShowSilently(State),
    /// Those who listen are told.
    Tell(Notice),
    /// The namespace that was in this place is no more.
    End(usize),
}

/// What those who listen are told of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notice {
    Registered(Device),
    Renamed(Device),
    Unregistered(Device),
    /// It goes to another namespace, as this.
    Leaving(Device, Device),
    /// It comes from another namespace.
    Arrived(Device),
    /// Something else of the device changed.
    Altered(Device),
    /// The device is no longer the port of a bridge.
    Released(Device),
    /// It was unregistered before, and somebody has a reference to it still.
    Repeated(Device),
    /// The loopback device of the namespace in this place was unregistered, the last of all.
    NetnsGone(usize),
    /// That of another one was registered, the first of all.
    NetnsNew(usize),
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) conduct: Conduct,
    /// What can be seen.
    pub(crate) now: State,
    /// What is still to be done of the change that is being made: RTNL is held.
    steps: VecDeque<Step>,
    ids: u32,
    /// Every state that there was.
    pub(crate) states: Vec<State>,
    /// A deleted device that is referred to still.
    leaking: Option<Device>,
    /// Id of the device that was picked last.
    last: u32,
    /// Namespaces that end as soon as nobody holds them.
    doomed: [bool; SPACES],
    /// Namespaces whose end has begun.
    is_ending: [bool; SPACES],
    /// From which state to which the last end of each took.
    ends: [(usize, usize); SPACES],
    /// Devices that were in another namespace: they cannot always be known again.
    travellers: HashSet<u32>,
    /// How many changes were made.
    pub(crate) changes: u64,
    /// The last state in which no change was being made.
    settled: usize,
    /// The state in which the question was asked that is answered next.
    pub(crate) asked_at: Cell<usize>,
    start: Instant,
    time: Duration,
}

impl State {
    pub(crate) fn devices(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().flatten().copied()
    }

    pub(crate) fn by_name(&self, space: usize, name: InterfaceName) -> Option<Device> {
        self.devices()
            .find(|device| device.space == space && device.name == name)
    }

    pub(crate) fn by_index(&self, space: usize, ifindex: u32) -> Option<Device> {
        self.devices()
            .find(|device| device.space == space && device.ifindex == ifindex)
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<Device> {
        self.devices().find(|device| device.id == id)
    }

    /// Where in memory the device is.
    pub(crate) fn slot(&self, id: u32) -> usize {
        let is_it = |device: &Option<Device>| device.is_some_and(|device| device.id == id);
        self.devices.iter().position(is_it).unwrap_or(DEVICES)
    }

    /// Who has the name in that very namespace.
    pub(crate) fn holder(&self, spot: Spot) -> Option<Device> {
        self.is_there(spot)
            .then(|| self.by_name(spot.space, spot.name))?
    }

    /// Is it still that namespace?
    pub(crate) fn is_there(&self, spot: Spot) -> bool {
        self.eras[spot.space] == spot.era && !self.has_ended[spot.space]
    }

    fn collides(&self, new: &Device) -> bool {
        self.devices().any(|device| {
            device.id != new.id
                && device.space == new.space
                && (device.ifindex == new.ifindex || device.name == new.name)
        })
    }

    /// With one device more, or that device changed; `None` where a kernel would refuse it.
    fn with(mut self, new: Device) -> Option<Self> {
        if self.has_ended[new.space] || self.collides(&new) {
            return None;
        }
        let at = self
            .devices
            .iter()
            .position(|device| device.is_some_and(|device| device.id == new.id))
            .or_else(|| self.devices.iter().position(Option::is_none))?;
        self.devices[at] = Some(new);
        Some(self)
    }

    fn without(mut self, id: u32) -> Self {
        for device in &mut self.devices {
            device.take_if(|device| device.id == id);
        }
        self
    }
}

impl Host {
    pub(crate) fn new(conduct: Conduct) -> Self {
        Self {
            conduct,
            now: State::default(),
            steps: VecDeque::new(),
            ids: 0,
            states: vec![State::default()],
            leaking: None,
            last: 0,
            doomed: [false; SPACES],
            is_ending: [false; SPACES],
            ends: [(usize::MAX, 0); SPACES],
            travellers: HashSet::new(),
            changes: 0,
            settled: 0,
            asked_at: Cell::new(0),
            start: Instant::now(),
            time: Duration::from_secs(1_000_000),
        }
    }

    pub(crate) fn clock(&self) -> Now {
        Now {
            instant: self.start + self.time,
            wall: SystemTime::UNIX_EPOCH + self.time,
            boot: self.time,
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.time += time;
    }

    /// Where in the states the present one is.
    pub(crate) fn at(&self) -> usize {
        self.states.len() - 1
    }

    /// Where the last state is of which all was told: whoever makes a change may not have told of it.
    pub(crate) const fn settled(&self) -> usize {
        self.settled
    }

    /// Was the device ever in another namespace?
    pub(crate) fn has_travelled(&self, id: u32) -> bool {
        self.travellers.contains(&id)
    }

    /// Has the end of that very namespace begun?
    pub(crate) fn is_over(&self, spot: Spot) -> bool {
        !self.now.is_there(spot) || self.is_ending[spot.space]
    }

    /// Can anybody have that namespace?
    pub(crate) fn is_open(&self, space: usize) -> bool {
        !self.now.has_ended[space] && !self.is_ending[space]
    }

    /// Was it ending in one of these states? Then it has devices, and nobody can have it.
    pub(crate) fn was_ending(&self, space: usize, (from, to): (usize, usize)) -> bool {
        let (begin, end) = self.ends[space];
        begin <= to && from <= end
    }

    /// Is a change being made?
    pub(crate) fn is_busy(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Goes one step further with the change that is being made; says what is to be told.
    pub(crate) fn step(&mut self) -> Option<Notice> {
        let mut notice = None;
        match self.steps.pop_front()? {
            Step::Show(state) => self.show(state),
            Step::ShowSilently(state) => self.now = state,
            Step::Tell(told) => notice = Some(told),
            Step::End(space) => {
                let mut state = self.now;
                state.has_ended[space] = true;
                self.is_ending[space] = false;
                self.show(state);
                self.ends[space].1 = self.at();
            }
        }
        if !self.is_busy() {
            self.settled = self.at();
        }
        notice
    }

    fn show(&mut self, state: State) {
        self.now = state;
        self.states.push(state);
    }

    /// Somebody does something. Nothing may be under way.
    ///
    /// `is_held`: somebody holds the namespace in that place, which cannot end then.
    pub(crate) fn act(&mut self, decisions: &mut Decisions, is_held: impl Fn(usize) -> bool) {
        debug_assert!(!self.is_busy());
        if let Some(space) = (1..SPACES).find(|&space| self.doomed[space] && !is_held(space)) {
            self.doomed[space] = false;
            return self.end(decisions, space);
        }
        let before = self.steps.len();
        match decisions.below(64) {
            0 => {}
            1..16 => self.create(decisions, false),
            16..27 => self.delete(decisions),
            27..42 => self.rename(decisions, false),
            42..54 => self.relocate(decisions),
            54..57 => self.alter(decisions),
            57..59 => self.release(decisions),
            59..60 if self.conduct.calm && self.conduct.is_half_silent => {
                self.create(decisions, true);
            }
            // What is undone at once cannot be heard of in peace.
            59..61 if self.conduct.calm => {}
            59..60 => self.create(decisions, true),
            60..61 => self.rename(decisions, true),
            61..62 => {
                if let Some(device) = self.leaking.take() {
                    self.tell(Notice::Repeated(device));
                }
            }
            62.. => {
                let space = 1 + decisions.index(SPACES - 1);
                if self.now.has_ended[space] {
                    let mut state = self.now;
                    state.eras[space] += 1;
                    state.has_ended[space] = false;
                    self.tell(Notice::NetnsNew(space));
                    self.steps.push_back(Step::Show(state));
                } else {
                    self.doomed[space] = true;
                }
            }
        }
        self.changes += u64::from(self.steps.len() > before);
    }

    fn tell(&mut self, notice: Notice) {
        self.steps.push_back(Step::Tell(notice));
    }

    /// Who has just changed changes again, as often as not: some faults take several changes of one
    /// device that nobody has heard of.
    fn pick(&mut self, decisions: &mut Decisions) -> Option<Device> {
        let last = self.now.devices().find(|device| device.id == self.last);
        let picked = match last {
            Some(last) if decisions.chance(2) => last,
            _ => {
                let count = self.now.devices().count();
                self.now.devices().nth(decisions.index(count.max(1)))?
            }
        };
        self.last = picked.id;
        Some(picked)
    }

    /// `is_vetoed`: another listener objects, so it is undone at once.
    fn create(&mut self, decisions: &mut Decisions, is_vetoed: bool) {
        let space = decisions.index(SPACES);
        let name = name(decisions.below(NAMES.len() as u32));
        let ifindex = if self.conduct.reuses {
            FIRST_INDEX + decisions.below(LAST_INDEX - FIRST_INDEX + 1)
        } else {
            self.ids + FIRST_INDEX
        };
        let device = Device {
            id: self.ids + 1,
            space,
            ifindex,
            name,
            kind: KINDS
                .get(decisions.index(KINDS.len() + 1))
                .copied()
                .map(kind),
        };
        let Some(with) = self.now.with(device) else {
            return;
        };
        self.ids += 1;
        self.last = device.id;
        if is_vetoed && self.conduct.is_silent && !self.conduct.calm && decisions.chance(2) {
            self.steps.push_back(Step::ShowSilently(with));
            self.steps.push_back(Step::ShowSilently(self.now));
            return;
        }
        self.steps.push_back(Step::Show(with));
        self.tell(Notice::Registered(device));
        if is_vetoed {
            self.steps.push_back(Step::Show(self.now));
            if self.conduct.calm {
                return;
            }
            self.tell(Notice::Unregistered(device));
        }
    }

    fn delete(&mut self, decisions: &mut Decisions) {
        let Some(device) = self.pick(decisions) else {
            return;
        };
        if decisions.chance(4) {
            self.leaking = Some(device);
        }
        self.steps
            .push_back(Step::Show(self.now.without(device.id)));
        self.tell(Notice::Unregistered(device));
    }

    fn rename(&mut self, decisions: &mut Decisions, is_vetoed: bool) {
        let Some(old) = self.pick(decisions) else {
            return;
        };
        let name = name(decisions.below(NAMES.len() as u32));
        let new = Device { name, ..old };
        // Renaming to the same name does nothing and is told to nobody.
        if let Some(state) = self.now.with(new)
            && new != old
        {
            self.steps.push_back(Step::Show(state));
            self.tell(Notice::Renamed(new));
            if is_vetoed {
                self.steps.push_back(Step::Show(self.now));
                self.tell(Notice::Renamed(old));
            }
        }
    }

    /// The index stays unless it is taken; a new name can come with the move.
    fn relocate(&mut self, decisions: &mut Decisions) {
        let Some(old) = self.pick(decisions) else {
            return;
        };
        let space = (old.space + 1) % SPACES;
        let name = if decisions.chance(4) {
            name(decisions.below(NAMES.len() as u32))
        } else {
            old.name
        };
        self.go(self.now, old, space, name);
    }

    /// A device goes to another namespace; how the host is after that, where a kernel allows it.
    fn go(
        &mut self,
        state: State,
        old: Device,
        space: usize,
        name: InterfaceName,
    ) -> Option<State> {
        let ifindex = std::iter::once(old.ifindex)
            .chain(FIRST_INDEX..)
            .find(|&ifindex| state.by_index(space, ifindex).is_none())?;
        let new = Device {
            space,
            ifindex,
            name,
            ..old
        };
        let state = state.with(new)?;
        let called = if self.conduct.overwrites {
            new.name
        } else {
            old.name
        };
        let going = Device {
            name: called,
            ..old
        };
        self.travellers.insert(new.id);
        self.steps.push_back(Step::Show(state));
        self.tell(Notice::Leaving(going, new));
        self.tell(Notice::Arrived(new));
        Some(state)
    }

    fn alter(&mut self, decisions: &mut Decisions) {
        if let Some(device) = self.pick(decisions) {
            self.tell(Notice::Altered(device));
        }
    }

    fn release(&mut self, decisions: &mut Decisions) {
        if let Some(device) = self.pick(decisions) {
            self.tell(Notice::Released(device));
        }
    }

    /// A namespace ends. Some of its devices go to the first namespace, the others with it.
    fn end(&mut self, decisions: &mut Decisions, space: usize) {
        self.is_ending[space] = true;
        self.ends[space] = (self.at(), usize::MAX);
        let mut state = self.now;
        let inside: Vec<Device> = state
            .devices()
            .filter(|device| device.space == space)
            .collect();
        let mut gone = Vec::new();
        for device in inside {
            let is_physical = decisions.chance(4);
            match is_physical.then(|| self.go(state, device, 0, device.name)) {
                Some(Some(after)) => state = after,
                Some(None) | None => gone.push(device),
            }
        }
        for device in &gone {
            state = state.without(device.id);
        }
        self.steps.push_back(Step::Show(state));
        for device in gone {
            self.tell(Notice::Unregistered(device));
        }
        self.tell(Notice::NetnsGone(space));
        self.steps.push_back(Step::End(space));
        self.changes += 1;
    }
}

/// What a watch was last told, as states of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostEvent {
    pub(crate) spot: Spot,
    pub(crate) holder: Option<Device>,
    /// Id and index of who held the name last.
    pub(crate) last: Option<(u32, u32)>,
}

impl HostEvent {
    pub(crate) fn new(spot: Spot, state: &State) -> Self {
        let holder = state.holder(spot);
        Self {
            spot,
            holder,
            last: holder.map(|device| (device.id, device.ifindex)),
        }
    }

    /// What is to be said now, whatever happened in between; it counts as told.
    pub(crate) fn tell(&mut self, state: &State) -> Option<EventKind> {
        let now = state.holder(self.spot);
        let kind = match (self.holder, now) {
            (None, None) => None,
            (Some(old), Some(new)) if old.id == new.id => None,
            (_, Some(Device { id, ifindex, .. })) => Some(match self.last {
                None => EventKind::Appeared { ifindex },
                Some((last, _)) if last == id => EventKind::Returned { ifindex },
                Some((_, old_ifindex)) => EventKind::Recreated {
                    ifindex,
                    old_ifindex,
                },
            }),
            (Some(Device { id, ifindex, .. }), None) => {
                Some(departure(self.spot, ifindex, state.by_id(id), state))
            }
        };
        self.holder = now;
        self.last = now.map(|device| (device.id, device.ifindex)).or(self.last);
        kind
    }
}

/// What there is to say of a device that has left a name, and is there now, if anywhere.
pub(crate) fn departure(
    spot: Spot,
    ifindex: u32,
    there: Option<Device>,
    state: &State,
) -> EventKind {
    match there {
        None => EventKind::Deleted { ifindex },
        Some(there) if there.space == spot.space && state.is_there(spot) => EventKind::Renamed {
            ifindex,
            to: there.name,
        },
        Some(there) => EventKind::Moved {
            ifindex,
            to_netns: Some(netns(there.space)),
            to_ifindex: Some(there.ifindex),
        },
    }
}
