//! Who knows better what there is to say of a pattern.
//!
//! Where nothing can be lost, what was handed out must be all that happened, in order. Where
//! something can, it must add up: at rest, what was told makes up what there is.

use std::collections::BTreeMap;

use super::{
    host::{self, Device, Host, Spot, State, netns},
    oracle::Means,
};
use crate::{EventKind, InterfaceName, Pattern};

/// A pattern in one namespace, not in the next one with its inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name has no meaning.
    pub(crate) spot: Spot,
    pub(crate) pattern: Pattern,
}

/// One watch of a pattern, from its `watching` on.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) place: Place,
    means: Means,
    beliefs: Vec<Belief>,
    /// The first state that it can have seen.
    from: usize,
    /// A resync said that something has changed.
    follows: bool,
    /// What was found by reading may come.
    recovers: bool,
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
            && state.is_there(self.spot)
            && self.pattern.matches(&device.name)
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
            if now == Some(before) && new.is_there(self.spot) {
                continue;
            }
            let there = now.filter(|_| !is_here || new.is_there(self.spot));
            let kind = host::departure(self.spot, before.ifindex, there, new);
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
            from: window.0,
            follows: false,
            recovers: false,
        };
        for at in window.0..=window.1 {
            let held = follower.place.held(&host.states[at]);
            if matches == u32::try_from(held.len()).ok() {
                follower.add(
                    Belief {
                        at: at + 1,
                        held,
                        left: Vec::new(),
                    },
                    host,
                );
            }
        }
        (!follower.beliefs.is_empty()).then_some(follower)
    }

    /// More has happened since.
    fn catch_up(&mut self, host: &Host) {
        for belief in std::mem::take(&mut self.beliefs) {
            self.add(belief, host);
        }
    }

    fn add(&mut self, mut belief: Belief, host: &Host) {
        if !self.means.is_lossless {
            // All that counts is what was told to match.
            if !self.beliefs.iter().any(|other| other.held == belief.held) {
                self.beliefs.push(belief);
            }
            return;
        }
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
    pub(crate) fn take(
        &mut self,
        name: InterfaceName,
        kind: &EventKind,
        recovered: bool,
        matches: Option<u32>,
        host: &Host,
    ) {
        if let EventKind::Resynced { changed, .. } = *kind {
            assert!(!self.means.is_lossless, "resynced, and nothing was lost");
            assert!(!self.follows, "something was to follow");
            self.follows = changed;
            self.recovers = changed;
            if !changed {
                let is_it = |belief: &Belief| u32::try_from(belief.held.len()).ok() == matches;
                self.beliefs.retain(is_it);
                assert!(!self.beliefs.is_empty(), "not {matches:?} match");
            }
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
        let now = match *kind {
            EventKind::Appeared { ifindex } => Some((ifindex, name)),
            EventKind::Renamed { ifindex, to } => Some((ifindex, to)),
            _ => None,
        };
        if let Some((ifindex, name)) = now {
            let space = self.place.spot.space;
            let was = |state: &State| {
                let device = state.by_index(space, ifindex);
                device.is_some_and(|device| device.name == name)
            };
            assert!(
                host.states[self.from..].iter().rev().any(was),
                "{ifindex} was never called {name}"
            );
        }
        let before = std::mem::take(&mut self.beliefs);
        for belief in &before {
            let mut then = belief.clone();
            let ifindex = kind.ifindex().expect("a device");
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
            if self.means.is_lossless {
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
            }
            self.beliefs.push(then);
        }
        self.catch_up(host);
        assert!(
            !self.beliefs.is_empty(),
            "{kind:?} of {name} was never true, or is not all that there was to say: {before:?}"
        );
    }

    /// Everything that had happened before that state was handed out.
    pub(crate) fn check_up_to(&mut self, host: &Host, from: usize) {
        assert!(!self.follows, "something was to follow");
        self.catch_up(host);
        let is_told = if self.means.is_lossless {
            // It is where there is something to say.
            let is_there = |belief: &Belief| belief.left.is_empty() && belief.at > from;
            self.beliefs.iter().any(is_there)
        } else {
            host.states[from..].iter().any(|state| {
                let held = self.place.held(state);
                self.beliefs.iter().any(|belief| belief.held == held)
            })
        };
        assert!(is_told, "not all was told of {:?} up to {from}", self);
    }

    /// All is at rest, and this is how it is.
    pub(crate) fn rest(&mut self, host: &Host) {
        let now = host.states.last().expect("there is one");
        self.check_up_to(host, host.states.len() - 1);
        let held = self.place.held(now);
        self.beliefs.retain(|belief| belief.held == held);
        assert!(
            !self.beliefs.is_empty(),
            "{held:?} match in {}, and that was not told",
            netns(self.place.spot.space)
        );
    }
}
