//! Who knows better what there is to say of a pattern.
//!
//! Where nothing can be lost, what was handed out must be all that happened, in order. Where
//! something can, it must add up for each device: at rest, what was told makes up what there is.
//! Until then what was missed of one device says nothing of the others.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    host::{self, Device, Host, SPACES, Spot, State, netns},
    oracle::Means,
};
use crate::{Event, EventKind, InterfaceName, Pattern};

/// A pattern in one namespace, not in the next one with its inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name has no meaning.
    pub(crate) spot: Spot,
    pub(crate) pattern: Pattern,
    /// It is watched in all namespaces, and so in any that has the number.
    pub(crate) is_everywhere: bool,
}

/// One watch of a pattern, from its `watching` on.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) place: Place,
    means: Means,
    /// Where nothing can be lost.
    beliefs: Vec<Belief>,
    /// Where something can: by index, what the device may be known as; `None` when it may be known
    /// not to match.
    known: BTreeMap<u32, BTreeSet<Option<InterfaceName>>>,
    /// Who has which name for a reader that goes by names, and takes one away from nobody else than
    /// who was told to have it. Names of which nothing was told are not in it.
    names: BTreeMap<InterfaceName, Option<u32>>,
    /// The first state that it can have seen.
    from: usize,
    /// A resync said that something has changed.
    follows: bool,
    /// What was found by reading may come.
    recovers: bool,
    /// Ids of the devices that matched when all was at rest, by index, and that nothing was told of
    /// since that ends a device.
    rested: BTreeMap<u32, u32>,
}

/// What was told, if the last verdict belonged to this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Belief {
    /// The state that comes next.
    at: usize,
    /// The devices that were told to match.
    held: BTreeMap<u32, InterfaceName>,
    /// What is left to say of the step before that.
    left: Vec<(InterfaceName, EventKind)>,
}

impl Place {
    fn holds(&self, state: &State, device: &Device) -> bool {
        device.space == self.spot.space
            && state.is_there(self.spot_in(state))
            && self.pattern.accepts(&device.name, device.kind)
    }

    fn spot_in(&self, state: &State) -> Spot {
        let era = if self.is_everywhere {
            state.eras[self.spot.space]
        } else {
            self.spot.era
        };
        Spot { era, ..self.spot }
    }

    fn held(&self, state: &State) -> BTreeMap<u32, InterfaceName> {
        state
            .devices()
            .filter(|device| self.holds(state, device))
            .map(|device| (device.ifindex, device.name))
            .collect()
    }

    /// What there is to say of the step from one state to the next.
    fn changes(&self, old: &State, new: &State) -> Vec<(InterfaceName, EventKind)> {
        let mut changes = Vec::new();
        for before in old.devices().filter(|device| self.holds(old, device)) {
            let now = new.by_id(before.id);
            let is_here = now.is_some_and(|now| now.space == before.space);
            let spot = self.spot_in(new);
            if now == Some(before) && new.is_there(spot) {
                continue;
            }
            let there = now.filter(|_| !is_here || new.is_there(spot));
            let kind = host::departure(spot, before.ifindex, there, new);
            changes.push((before.name, kind));
        }
        for after in new.devices().filter(|device| self.holds(new, device)) {
            let is_known = old
                .by_id(after.id)
                .is_some_and(|before| self.holds(old, &before));
            if !is_known {
                let ifindex = after.ifindex;
                changes.push((after.name, EventKind::Appeared { ifindex }));
            }
        }
        changes
    }
}

impl Follower {
    /// It began in one of these states, with so many devices; `None` when it had so many in none.
    pub(crate) fn begin(
        place: Place,
        means: Means,
        host: &Host,
        window: (usize, usize),
        matches: Option<u32>,
    ) -> Option<Self> {
        let mut follower = Self {
            place,
            means,
            beliefs: Vec::new(),
            known: BTreeMap::new(),
            names: BTreeMap::new(),
            from: window.0,
            follows: false,
            recovers: false,
            rested: BTreeMap::new(),
        };
        let states = host.states.iter().enumerate();
        let held: Vec<_> = states
            .take(window.1 + 1)
            .skip(window.0)
            .map(|(at, state)| (at, follower.place.held(state)))
            .collect();
        if !means.is_lossless {
            for ifindex in held.iter().flat_map(|(_, held)| held.keys()) {
                let names = held.iter().map(|(_, held)| held.get(ifindex).copied());
                follower.known.insert(*ifindex, names.collect());
            }
            return follower.may_match(matches).then_some(follower);
        }
        for (at, held) in held {
            if matches == u32::try_from(held.len()).ok() {
                let (at, left) = (at + 1, Vec::new());
                follower.add(Belief { at, held, left }, host);
            }
        }
        (!follower.beliefs.is_empty()).then_some(follower)
    }

    /// Can so many be known to match, where something can be lost?
    fn may_match(&self, matches: Option<u32>) -> bool {
        let count = |is_it: fn(&BTreeSet<Option<InterfaceName>>) -> bool| {
            u32::try_from(self.known.values().filter(|names| is_it(names)).count()).ok()
        };
        let least = count(|names| names.iter().all(Option::is_some));
        let most = count(|names| names.iter().any(Option::is_some));
        least <= matches && matches <= most
    }

    /// The same in each of all namespaces, of which it is told together how many match.
    pub(crate) fn begin_everywhere(
        place: &Place,
        means: Means,
        host: &Host,
        window: (usize, usize),
        matches: Option<u32>,
    ) -> Option<Vec<Self>> {
        let (mut least, mut most) = (0, 0);
        let mut begin = |space| {
            let spot = Spot {
                space,
                ..place.spot
            };
            let place = Place {
                spot,
                ..place.clone()
            };
            let states = &host.states[window.0..=window.1];
            let counts = states.iter().map(|state| place.held(state).len());
            let (fewest, many) = (counts.clone().min()?, counts.max()?);
            most += many;
            if host.was_ending(space, window) {
                // It cannot be entered any more, so that what it has may not be known.
                let lossy = Means {
                    is_lossless: false,
                    ..means
                };
                let all = u32::try_from(many).ok();
                let mut follower = Self::begin(place, lossy, host, window, all)?;
                for names in follower.known.values_mut() {
                    names.insert(None);
                }
                return Some(follower);
            }
            least += fewest;
            let begun = (fewest..=many).filter_map(|count| {
                let count = u32::try_from(count).ok();
                Self::begin(place.clone(), means, host, window, count)
            });
            // However many it was in this one.
            begun.reduce(|mut all, other| {
                all.beliefs.extend(other.beliefs);
                all
            })
        };
        let followers = (0..SPACES).map(&mut begin).collect::<Option<_>>()?;
        let matches = usize::try_from(matches?).ok()?;
        (least..=most).contains(&matches).then_some(followers)
    }

    /// More has happened since.
    fn catch_up(&mut self, host: &Host) {
        for belief in std::mem::take(&mut self.beliefs) {
            self.add(belief, host);
        }
    }

    fn add(&mut self, mut belief: Belief, host: &Host) {
        // Up to where there is something to say, one moment is as good as another.
        while belief.left.is_empty() && belief.at < host.states.len() {
            let states = &host.states[belief.at - 1..=belief.at];
            if !self.place.changes(&states[0], &states[1]).is_empty() {
                break;
            }
            belief.at += 1;
        }
        if !self.beliefs.contains(&belief) {
            self.beliefs.push(belief);
        }
    }

    /// Takes a verdict.
    pub(crate) fn take(&mut self, event: &Event, host: &Host) {
        let Event {
            interface: name,
            ref kind,
            recovered,
            matches,
            link_kind,
            ..
        } = *event;
        if let EventKind::Resynced { changed, .. } = *kind {
            assert!(!self.means.is_lossless, "resynced, and nothing was lost");
            assert!(!self.follows, "something was to follow");
            self.follows = changed;
            self.recovers = changed;
            assert!(
                changed || self.may_match(matches),
                "not {matches:?} match: {self:?}"
            );
            return;
        }
        self.catch_up(host);
        assert_eq!(matches, None);
        assert!(recovered || !self.follows, "{kind:?} comes before the rest");
        assert!(
            !recovered || self.recovers,
            "{kind:?} is recovered of nothing"
        );
        self.follows = false;
        self.recovers = recovered;
        let pattern = &self.place.pattern;
        let stays = matches!(kind, EventKind::Renamed { to, .. } if pattern.matches(to));
        if let Some(ifindex) = kind.ifindex().filter(|_| !stays) {
            self.rested.remove(&ifindex);
        }
        let now = match *kind {
            EventKind::Appeared { ifindex } => Some((ifindex, name)),
            EventKind::Renamed { ifindex, to } => Some((ifindex, to)),
            _ => None,
        };
        if let Some((ifindex, name)) = now {
            let space = self.place.spot.space;
            let was = |state: &State| {
                let device = state.by_index(space, ifindex);
                device.is_some_and(|device| {
                    let is_it = !pattern.matches(&name) || pattern.accepts(&name, device.kind);
                    device.name == name && is_it
                })
            };
            assert!(
                host.states[self.from..].iter().rev().any(was),
                "{ifindex} was never called {name}, or not of the kind"
            );
        }
        if let EventKind::Appeared { ifindex } | EventKind::Deleted { ifindex } = *kind {
            let was = |state: &State| {
                let device = state.by_index(self.place.spot.space, ifindex);
                device.is_some_and(|device| (device.name, device.kind) == (name, link_kind))
            };
            assert!(
                host.states[self.from..].iter().rev().any(was),
                "{ifindex} was never a {link_kind:?} that is called {name}"
            );
        } else {
            assert_eq!(link_kind, None);
        }
        let ifindex = kind.ifindex().expect("a device");
        let holder = self.names.entry(name).or_insert(Some(ifindex));
        *holder = holder.filter(|holder| *holder != ifindex);
        if let Some((ifindex, name)) = now.filter(|(_, name)| pattern.matches(name)) {
            self.names.insert(name, Some(ifindex));
        }
        if !self.means.is_lossless {
            let old = match kind {
                EventKind::Appeared { .. } => None,
                _ => Some(name),
            };
            let new = now.map(|(_, name)| name);
            let new = new.filter(|name| self.place.pattern.matches(name));
            let known = self.known.insert(ifindex, BTreeSet::from([new]));
            let known = known.unwrap_or_else(|| BTreeSet::from([None]));
            assert!(
                known.contains(&old) && self.place.pattern.matches(&name),
                "{kind:?} of {name}, known as {known:?}"
            );
            return;
        }
        let before = std::mem::take(&mut self.beliefs);
        for belief in &before {
            let mut then = belief.clone();
            let old = then.held.remove(&ifindex);
            let is_known = match kind {
                EventKind::Appeared { .. } => old.is_none() && pattern.matches(&name),
                _ => old == Some(name),
            };
            if !is_known {
                continue;
            }
            if let Some((ifindex, name)) = now
                && self.place.pattern.matches(&name)
            {
                then.held.insert(ifindex, name);
            }
            if then.left.is_empty() && then.at < host.states.len() {
                let states = &host.states[then.at - 1..=then.at];
                then.left = self.place.changes(&states[0], &states[1]);
                then.at += 1;
            }
            let said = (name, kind.clone());
            let Some(at) = then.left.iter().position(|left| *left == said) else {
                continue;
            };
            then.left.remove(at);
            self.beliefs.push(then);
        }
        self.catch_up(host);
        assert!(
            !self.beliefs.is_empty(),
            "{kind:?} of {name} was never true, or is not all that there was to say: {before:?}"
        );
    }

    /// Can the device be known so, where something can be lost?
    fn may_be(&self, ifindex: u32, name: Option<InterfaceName>) -> bool {
        let known = self.known.get(&ifindex);
        known.map_or(name.is_none(), |known| known.contains(&name))
    }

    /// Everything that had happened before that state was handed out.
    pub(crate) fn check_up_to(&mut self, host: &Host, from: usize) {
        assert!(!self.follows, "something was to follow");
        self.catch_up(host);
        let is_told = if self.means.is_lossless {
            // It is where there is something to say; of the end of a namespace, perhaps a part was said.
            let told = |belief: &Belief| belief.at - usize::from(!belief.left.is_empty());
            self.beliefs.iter().any(|belief| told(belief) > from)
        } else {
            let states = host.states[from..].iter();
            let held: Vec<_> = states.map(|state| self.place.held(state)).collect();
            let mut all = held
                .iter()
                .flat_map(BTreeMap::keys)
                .chain(self.known.keys());
            all.all(|ifindex| {
                let mut names = held.iter().map(|held| held.get(ifindex).copied());
                names.any(|name| self.may_be(*ifindex, name))
            })
        };
        assert!(is_told, "not all was told of {:?} up to {from}", self);
    }

    /// All is at rest, and this is how it is.
    pub(crate) fn rest(&mut self, host: &Host) {
        let now = host.states.last().expect("there is one");
        self.check_up_to(host, host.states.len() - 1);
        let held = self.place.held(now);
        let is_told = if self.means.is_lossless {
            self.beliefs.retain(|belief| belief.held == held);
            !self.beliefs.is_empty()
        } else {
            let mut all = self.known.keys().chain(held.keys());
            let is_told = all.all(|ifindex| self.may_be(*ifindex, held.get(ifindex).copied()));
            let known = held.iter();
            self.known = known
                .map(|(&ifindex, &name)| (ifindex, BTreeSet::from([Some(name)])))
                .collect();
            is_told
        };
        assert!(
            is_told,
            "{held:?} match in {}, and that was not told",
            netns(self.place.spot.space)
        );
        let by_name: BTreeMap<_, _> = held
            .iter()
            .map(|(ifindex, name)| (*name, *ifindex))
            .collect();
        for (name, told) in &self.names {
            let is = by_name.get(name).copied();
            assert_eq!(
                is, *told,
                "who has {name}, and who was told to have it last"
            );
        }
        // Whatever was said on the way: that it is another device was said.
        let matching = now.devices().filter(|device| self.place.holds(now, device));
        let ids: BTreeMap<u32, u32> = matching.map(|device| (device.ifindex, device.id)).collect();
        for (ifindex, id) in &self.rested {
            let now = ids.get(ifindex);
            assert!(
                now.is_none_or(|now| now == id),
                "{ifindex} is another device, and that was not told"
            );
        }
        if self.means.tells_matches_apart() {
            self.rested = ids;
        }
    }
}
