//! Who knows better: what was handed out must add up to what happened.
//!
//! What there is to say is worked out from the states of the host alone. A verdict on a watch is
//! right when it is what there was to say at some moment after the one of the verdict before, and
//! where nothing was lost, at the first at which there was anything to say.
//!
//! To which moment a verdict belongs is not always certain, so all that are possible are followed
//! up.

use std::collections::HashSet;

use super::host::{Device, Host, HostEvent, Spot, departure};
use crate::{EventKind, Identity};

/// What a side can know of a host, and how strict its reader may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// Is every change heard, so that each has to be told as what it was?
    pub(crate) is_lossless: bool,
    /// Is it said of each loss whom it hit? Then all else has to be told as what it was.
    pub(crate) is_exact: bool,
    /// Does what was told, and said to be lost, come to as many changes as there were?
    pub(crate) is_counted: bool,
    /// It is a client of the agent, which may know what became of an expected device that it saw
    /// with the name; and what is to follow from a loss can be lost too.
    pub(crate) is_served: bool,
    /// What was known before a message was missed counts for nothing, but for inodes.
    pub(crate) forgets: bool,
    /// What had a name before is forgotten for want of room, when a loss hides another holder.
    pub(crate) can_forget: bool,
    /// Who had a name last, and has taken another one since, is forgotten for want of room.
    pub(crate) forgets_earlier: bool,
    /// Messages or records can be lost, or what is asked not be answered.
    pub(crate) can_lose: bool,
    /// Can a device be known by its index? Where messages are not heard and indexes used again,
    /// what follows may be about another device, and only the look at the end says so.
    pub(crate) is_certain: bool,
    /// Nothing happens while anything is unread.
    pub(crate) calm: bool,
    pub(crate) reuses: bool,
    pub(crate) overwrites: bool,
    /// Nobody can tell an inode.
    pub(crate) hides_inodes: bool,
    /// It hears of devices in one namespace at a time, and has to know one that comes back by its
    /// inode.
    pub(crate) is_local: bool,
}

impl Means {
    /// Is another device with the index and the name of one that matched told from it, whatever was
    /// lost?
    pub(crate) const fn tells_matches_apart(&self) -> bool {
        !(self.hides_inodes && self.reuses)
    }

    /// The same of one that held a name.
    const fn tells_apart(&self) -> bool {
        !self.is_local || self.tells_matches_apart()
    }
}

/// One watch, from its `watching` on.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) spot: Spot,
    means: Means,
    /// In which of the states it began.
    window: (usize, usize),
    beliefs: Vec<Belief>,
    /// Index of the device that was told to have the name.
    known: Option<u32>,
    /// A resync said that this follows: the index that the name has then.
    follows: Option<Option<u32>>,
    /// What became of the expected device is to follow.
    expected: Option<Identity>,
    /// Or is not: nobody can tell whether it was met.
    is_expected_perhaps: bool,
    /// Id of the device that had the name when all was at rest.
    rested: Option<u32>,
    /// Which watch the kernel's side has counted changes of when all was at rest, how many more
    /// than were told of.
    counted: Option<(u32, u64)>,
    /// How many changes were told of, or said to be lost.
    accounted: u64,
    /// A loss may have hidden another holder.
    is_obscured: bool,
    /// A verdict since then called for a restart.
    has_restarted: bool,
}

/// What was told, if the last verdict belonged to this moment.
#[derive(Clone, Copy, Debug)]
struct Belief {
    told: HostEvent,
    /// The state that comes next.
    at: usize,
}

/// The most moments that are followed up.
const MANY: usize = 1000;

impl Follower {
    /// It began in one of these states, with this holder; `None` when it had it in none of them.
    pub(crate) fn begin(
        spot: Spot,
        means: Means,
        host: &Host,
        window: (usize, usize),
        ifindex: Option<u32>,
        expected: Option<Identity>,
    ) -> Option<Self> {
        let mut follower = Self {
            spot,
            means,
            window,
            beliefs: Vec::new(),
            known: ifindex,
            follows: None,
            expected: None,
            is_expected_perhaps: false,
            rested: None,
            counted: None,
            accounted: 0,
            is_obscured: false,
            has_restarted: false,
        };
        for (at, state) in host
            .states
            .iter()
            .enumerate()
            .take(window.1 + 1)
            .skip(window.0)
        {
            let told = HostEvent::new(spot, state);
            if told.holder.map(|device| device.ifindex) == ifindex {
                follower.add(Belief { told, at: at + 1 }, host);
            }
        }
        let first = follower.beliefs.first()?;
        let id = |belief: &Belief| belief.told.holder.map(|device| device.id);
        let first = id(first);
        // Its inode could not be read, perhaps; once all is at rest it was.
        let is_known = means.calm && !means.can_lose && means.tells_apart();
        follower.rested =
            first.filter(|_| is_known && follower.beliefs.iter().all(|one| id(one) == first));
        if let Some(identity) = expected {
            let holders = follower.beliefs.iter().map(|belief| belief.told.holder);
            let mut is_met = holders.flat_map(|holder| {
                let by_index = holder.is_some_and(|device| device.ifindex == identity.ifindex);
                let by_inode = identity
                    .inode
                    .map(|inode| holder.is_some_and(|device| u64::from(device.id) == inode));
                // Its inode could not be read, perhaps.
                let is_unknown =
                    by_inode.is_none() || !means.calm || means.can_lose || means.hides_inodes;
                [Some(by_index).filter(|_| is_unknown), by_inode]
            });
            let is_met = is_met.by_ref().flatten().collect::<Vec<_>>();
            follower.is_expected_perhaps = is_met.contains(&true);
            follower.expected = expected.filter(|_| is_met.contains(&false));
        }
        Some(follower)
    }

    fn add(&mut self, mut belief: Belief, host: &Host) {
        // Up to where there is nothing to say, one moment is as good as another.
        while let Some(state) = host.states.get(belief.at) {
            let mut then = belief.told;
            if then.tell(state).is_some() || then.holder != belief.told.holder {
                break;
            }
            belief.at += 1;
        }
        let same = |other: &Belief| key(&other.told) == key(&belief.told);
        // The earlier one can say all that the later one can, unless each change has to be told.
        let is_known = self
            .beliefs
            .iter()
            .any(|other| (!self.means.is_exact || other.at == belief.at) && same(other));
        if !is_known && self.beliefs.len() < MANY {
            self.beliefs.push(belief);
        }
    }

    /// Who was told to have the name.
    #[cfg(feature = "cli")]
    pub(crate) const fn known(&self) -> Option<u32> {
        self.known
    }

    /// Takes a verdict.
    pub(crate) fn take(&mut self, kind: &EventKind, recovered: bool, host: &Host) {
        if let EventKind::Resynced {
            changed,
            ifindex,
            lost,
        } = *kind
        {
            assert!(!self.means.is_lossless, "resynced, and nothing was lost");
            self.expected.take_if(|_| self.is_expected_perhaps);
            self.follows.take_if(|_| self.means.is_served);
            assert!(self.follows.is_none() && self.expected.is_none());
            // Where all are counted, somebody else counts from now on.
            self.accounted = lost.map_or(0, |lost| self.accounted + lost);
            self.is_obscured |= self.means.can_forget;
            if self.means.is_exact {
                assert!(lost.is_some_and(|lost| lost > 0), "{kind:?}");
            }
            if changed {
                self.follows = Some(ifindex);
            } else {
                assert_eq!(
                    self.known.is_some(),
                    ifindex.is_some(),
                    "{kind:?} of {self:?}"
                );
                self.known = ifindex;
                self.skip(ifindex, host);
            }
            return;
        }
        self.accounted += u64::from(!recovered);
        self.has_restarted |= kind.should_restart();
        let is_free = self.follows.is_none() && !recovered;
        self.expected
            .take_if(|_| self.is_expected_perhaps && is_free);
        self.know(kind);
        if let Some(expected) = self.expected.take() {
            assert!(recovered, "{kind:?} before {expected:?} was told of");
            return self.take_expected(kind, expected, host);
        }
        match self.follows.take() {
            Some(ifindex) => {
                assert!(recovered, "{kind:?} after a resync that changed something");
                assert_eq!(self.known, ifindex, "{kind:?} after a resync");
            }
            None => assert!(!recovered, "{kind:?} is recovered from nothing"),
        }
        if !self.means.is_certain {
            return;
        }
        let before = std::mem::take(&mut self.beliefs);
        for belief in &before {
            self.follow(*belief, kind, recovered, host);
        }
        self.is_obscured &= self.known.is_none();
        if self.beliefs.is_empty()
            && matches!(kind, EventKind::Deleted { .. })
            && self.is_over_unheard(host)
        {
            self.beliefs.clone_from(&before);
            self.end(host);
        }
        assert!(
            !self.beliefs.is_empty(),
            "{kind:?} was never true, or is not all that there was to say: {before:?}, {:?}",
            before
                .iter()
                .map(|belief| belief.next(host))
                .collect::<Vec<_>>()
        );
        if recovered && self.means.is_served {
            // How a device left is remembered, and others came and went since.
            self.skip(self.known, host);
        }
    }

    /// What was told is true again, whatever happened in between.
    fn skip(&mut self, ifindex: Option<u32>, host: &Host) {
        if !self.means.is_certain {
            return;
        }
        let is_it = |told: &HostEvent| told.holder.map(|device| device.ifindex) == ifindex;
        let mut before = std::mem::take(&mut self.beliefs);
        before.sort_by_key(|belief| belief.at);
        let mut followed = HashSet::new();
        for &Belief { told, at } in &before {
            if is_it(&told) {
                self.add(Belief { told, at }, host);
            }
            // From there on an earlier one has come by all that this one can.
            if !followed.insert(key(&told)) {
                continue;
            }
            for (at, state) in host.states.iter().enumerate().skip(at) {
                let mut then = told;
                if then.tell(state).is_none() && is_it(&then) {
                    self.add(
                        Belief {
                            told: then,
                            at: at + 1,
                        },
                        host,
                    );
                }
            }
        }
        assert!(
            !self.beliefs.is_empty(),
            "unchanged, {ifindex:?} has the name: that was never true of {before:?}"
        );
    }

    /// Where this verdict can belong, if the one before belonged there.
    fn follow(&mut self, belief: Belief, kind: &EventKind, recovered: bool, host: &Host) {
        let Belief { told, at } = belief;
        if recovered && self.is_not_known_again(kind, told, host) {
            self.add(belief, host);
        }
        let mut was_undone = true;
        for (at, state) in host.states.iter().enumerate().skip(at) {
            let mut then = told;
            let Some(truth) = then.tell(state) else {
                // A device that was away and is back has another index, perhaps: nobody was told.
                was_undone = true;
                if recovered && self.is_not_known_again(kind, then, host) {
                    self.add(
                        Belief {
                            told: then,
                            at: at + 1,
                        },
                        host,
                    );
                }
                continue;
            };
            let last = told.last.or(then.last);
            let has_travelled = last.is_some_and(|(id, _)| host.has_travelled(id));
            // The program was not shown who has the name by then.
            let is_elsewhere = self.means.forgets
                && recovered
                && told.holder.is_some_and(|Device { id, ifindex, .. }| {
                    let there = state.by_id(id).filter(|there| there.name != self.spot.name);
                    there.is_some() && *kind == departure(self.spot, ifindex, there, state)
                });
            if is_elsewhere {
                let told = HostEvent {
                    holder: None,
                    ..told
                };
                self.add(Belief { told, ..belief }, host);
            }
            if self.says(kind, recovered, &truth, has_travelled) {
                // That its holder left the name, nobody heard: then who has it now is found out,
                // not heard of; unless a record comes before the news that a message was missed.
                if was_undone || recovered || then.holder.is_none() || self.means.forgets {
                    self.add(
                        Belief {
                            told: then,
                            at: at + 1,
                        },
                        host,
                    );
                }
            }
            if self.means.is_exact && !recovered {
                return;
            }
            was_undone = false;
        }
    }

    /// Is it the device that had the name before, and was forgotten, or is back from elsewhere?
    fn is_not_known_again(&self, kind: &EventKind, told: HostEvent, host: &Host) -> bool {
        let EventKind::Recreated { ifindex, .. } = *kind else {
            return false;
        };
        told.holder.is_some_and(|device| {
            device.ifindex == ifindex
                && (self.is_obscured
                    || self.means.forgets_earlier
                    || self.means.forgets
                    || self.means.is_local && host.has_travelled(device.id))
        })
    }

    /// Is this verdict what there was to say, as far as it can be known?
    fn says(
        &self,
        kind: &EventKind,
        recovered: bool,
        truth: &EventKind,
        has_travelled: bool,
    ) -> bool {
        let Means {
            is_lossless,
            can_lose,
            calm,
            reuses,
            overwrites,
            hides_inodes,
            is_local,
            forgets_earlier,
            ..
        } = self.means;
        match (kind, truth) {
            (
                EventKind::Moved {
                    ifindex,
                    to_netns,
                    to_ifindex,
                },
                EventKind::Moved {
                    ifindex: old,
                    to_netns: netns,
                    to_ifindex: new,
                },
            ) => {
                ifindex == old
                    && to_ifindex == new
                    && (to_netns == netns || to_netns.is_none() && can_lose)
            }
            // Where a device is that is not here any more cannot be seen afterwards, and when its
            // renaming was lost its deletion is what was heard; nor can a device under another name
            // be known again whose inode nobody had time to read before. It could be
            // another one with its index.
            (
                EventKind::Deleted { ifindex },
                EventKind::Moved { ifindex: old, .. } | EventKind::Renamed { ifindex: old, .. },
            ) => (is_local && (recovered || can_lose) || self.is_obscured) && ifindex == old,
            // Its renaming was lost, and the name that it got with the move overwrote the other
            // one: it is the old one again.
            (EventKind::Moved { ifindex, .. }, EventKind::Renamed { ifindex: old, .. }) => {
                is_local && overwrites && can_lose && ifindex == old
            }
            // For the same reasons, or because it was too late to read the inode of a device that
            // came back from elsewhere.
            (EventKind::Recreated { ifindex, .. }, EventKind::Returned { ifindex: back }) => {
                let is_unread = !calm || hides_inodes;
                let is_forgotten = self.is_obscured || forgets_earlier;
                (is_local && (!is_lossless || has_travelled && is_unread) || is_forgotten)
                    && ifindex == back
            }
            // Another device with the name *and* the index of the one that is expected back, gone
            // before its inode could be read, while that one does come back: the answer is right a
            // moment too early, and its `deleted` follows.
            (EventKind::Returned { ifindex: back }, EventKind::Recreated { ifindex, .. }) => {
                is_local && reuses && !calm && has_travelled && ifindex == back
            }
            (kind, truth) => kind == truth,
        }
    }

    /// Takes the verdict on a device that was expected and does not hold the name.
    fn take_expected(&mut self, kind: &EventKind, expected: Identity, host: &Host) {
        let old = expected.ifindex;
        let before = host.states[..=self.window.1]
            .iter()
            .filter_map(|state| state.holder(self.spot))
            .find(|device| self.means.is_served && device.ifindex == old);
        if let Some(device) = before {
            self.remember(device);
        }
        for belief in &mut self.beliefs {
            if belief.told.holder.is_none() && belief.told.last.is_none() {
                belief.told.last = Some((u32::MAX, old));
            }
        }
        let spot = self.spot;
        let is_true = self.beliefs.iter().any(|belief| match belief.told.holder {
            Some(Device { ifindex, .. }) => {
                let truth = EventKind::Recreated {
                    ifindex,
                    old_ifindex: old,
                };
                *kind == truth
            }
            None => {
                *kind == EventKind::Deleted { ifindex: old }
                    && (expected.inode.is_none() || self.means.can_lose || self.means.hides_inodes)
                    || host.states[self.window.0..=self.window.1]
                        .iter()
                        .any(|state| {
                            let there = expected.inode.and_then(|inode| state.by_id(inode as u32));
                            *kind == departure(spot, old, there, state)
                        })
                    || before.is_some_and(|device| {
                        host.states[..=self.window.1].iter().any(|state| {
                            let truth = departure(spot, old, state.by_id(device.id), state);
                            self.says(kind, true, &truth, false)
                        })
                    })
            }
        });
        assert!(is_true, "{kind:?}, expected {expected:?}");
    }

    /// The agent may know the expected device, and may not.
    fn remember(&mut self, device: Device) {
        let last = Some((device.id, device.ifindex));
        let known: Vec<_> = self
            .beliefs
            .iter()
            .filter(|belief| belief.told.holder.is_none())
            .map(|belief| Belief {
                told: HostEvent {
                    last,
                    ..belief.told
                },
                ..*belief
            })
            .collect();
        self.beliefs.extend(known);
    }

    /// Is the verdict one on the device that was told to have the name?
    fn know(&mut self, kind: &EventKind) {
        let before = self.known;
        let expected = self.expected.map(|expected| expected.ifindex);
        self.known = match *kind {
            EventKind::Watching { .. } | EventKind::Resynced { .. } => before,
            EventKind::Deleted { ifindex }
            | EventKind::Renamed { ifindex, .. }
            | EventKind::Moved { ifindex, .. } => {
                assert!(
                    before == Some(ifindex) || before.is_none() && expected == Some(ifindex),
                    "{kind:?}, and {before:?} had the name"
                );
                None
            }
            EventKind::Appeared { ifindex } | EventKind::Returned { ifindex } => {
                assert_eq!(before, None, "{kind:?}");
                Some(ifindex)
            }
            EventKind::Recreated { ifindex, .. } => Some(ifindex),
        };
    }

    /// That the namespace has ended was found out: what had happened in it before cannot be read
    /// any more.
    fn is_over_unheard(&self, host: &Host) -> bool {
        self.means.can_lose && self.known.is_none() && host.is_over(self.spot)
    }

    /// Nothing is left to say.
    fn end(&mut self, host: &Host) {
        self.beliefs.truncate(1);
        for Belief { told, at } in &mut self.beliefs {
            *at = host.states.len();
            told.holder = None;
        }
    }

    /// Everything that had happened before that state was handed out.
    pub(crate) fn check_up_to(&mut self, host: &Host, from: usize) {
        assert_eq!(self.follows, None, "something was to follow");
        if !self.means.is_certain {
            return;
        }
        let is_told = |belief: &Belief| {
            let Belief { mut told, at } = *belief;
            if self.means.is_exact {
                // Nothing is left to say up to there.
                let end = (from + 1).max(at);
                return host.states[at..end]
                    .iter()
                    .all(|state| told.tell(state).is_none());
            }
            let from = from.max(at.saturating_sub(1));
            host.states[from..]
                .iter()
                .any(|state| told.clone().tell(state).is_none())
        };
        let before = self.beliefs.clone();
        self.beliefs.retain(is_told);
        if self.beliefs.is_empty() && self.is_over_unheard(host) {
            self.beliefs.clone_from(&before);
            self.end(host);
        }
        assert!(
            !self.beliefs.is_empty(),
            "not all was told of {:?}: {before:?}, {:?}",
            self.spot,
            before
                .iter()
                .map(|belief| belief.next(host))
                .collect::<Vec<_>>()
        );
    }

    /// All is at rest, and this is how it is.
    pub(crate) fn rest(&mut self, host: &Host, changes: Option<(u32, u64)>) {
        let now = host.states.last().expect("there is one");
        self.expected.take_if(|_| self.is_expected_perhaps);
        assert_eq!(self.expected, None, "nothing was said of it");
        self.check_up_to(host, host.states.len() - 1);
        if let Some((epoch, count)) = changes
            && self.means.is_counted
            && !host.is_over(self.spot)
        {
            let rest = count.checked_sub(self.accounted);
            let rest = rest.unwrap_or_else(|| panic!("{self:?}, of {count} changes"));
            assert!(
                self.means.is_exact || rest == 0,
                "{self:?}, of {count} changes"
            );
            if let Some((same, before)) = self.counted
                && same == epoch
            {
                assert_eq!(rest, before, "changes that were neither told nor lost");
            }
            self.counted = Some((epoch, rest));
        }
        let holder = now.holder(self.spot);
        assert_eq!(
            self.known,
            holder.map(|device| device.ifindex),
            "of {:?} this was told; it is {holder:?}",
            self.spot
        );
        // Whatever was said on the way: that it is another device was said.
        let id = holder.map(|device| device.id);
        assert!(
            self.has_restarted || self.rested.is_none() || self.rested == id,
            "{:?} is another device, and no restart was called for",
            self.spot
        );
        self.rested = id.filter(|_| self.means.tells_apart());
        self.has_restarted = false;
        if self.means.is_certain && !self.means.is_exact {
            for belief in &mut self.beliefs {
                belief.told.tell(now);
                belief.at = host.states.len();
            }
            let before = std::mem::take(&mut self.beliefs);
            for belief in before {
                self.add(belief, host);
            }
        }
    }
}

/// What makes two the same, whenever they were told.
fn key(told: &HostEvent) -> (Option<u32>, Option<(u32, u32)>) {
    (told.holder.map(|device| device.id), told.last)
}

impl Belief {
    /// What there would be to say next.
    fn next(&self, host: &Host) -> Vec<EventKind> {
        let mut told = self.told;
        let following = host.states.iter().skip(self.at);
        following
            .filter_map(|state| told.tell(state))
            .take(6)
            .collect()
    }
}
