//! What one client is told of one name, held against what happened to it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::plot::{Departure, Device, Turn};

/// The device that a client knows as the last one to hold the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Seen(Device),
    /// One that it said to expect, and which nobody has seen.
    Expected(u32),
}

impl Known {
    fn ifindex(self) -> u32 {
        match self {
            Self::Seen(device) => device.ifindex,
            Self::Expected(ifindex) => ifindex,
        }
    }

    fn is(self, device: Device) -> bool {
        matches!(self, Self::Seen(seen) if seen.serial == device.serial)
    }

    /// Was the device away in another namespace since?
    fn has_moved(self, device: Device) -> bool {
        matches!(self, Self::Seen(seen) if seen.moves != device.moves)
    }
}

const DEPARTURES: [&str; 3] = ["deleted", "renamed", "moved"];

/// What the agent can know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Means {
    /// It hears of everything. Else it need not say what a new device did before it was known, if
    /// that was undone.
    pub(super) is_exact: bool,
    /// It knows a device again that was in another namespace. Else it has to look at the device, which
    /// can have left by then.
    pub(super) follows_moves: bool,
}

/// Where in the turns of a name a client may be, and whom it knows then.
type Place = (usize, Option<Known>);

/// The account of a client and a name.
#[derive(Clone, Debug)]
pub(super) struct Account {
    /// The index of the device that is expected to hold the name.
    pub(super) expected: Option<u32>,
    /// How many turns there had been when it asked. Once it is told something, `places` say more.
    asked: usize,
    places: BTreeSet<Place>,
    held: bool,
    /// A verdict has to follow that leads to the present state.
    owed: bool,
    has_begun: bool,
    /// Events that it was told were lost, where that is known.
    pub(super) lost: u64,
    pub(super) resyncs: u64,
}

impl Account {
    pub(super) fn new(expected: Option<u32>, asked: usize) -> Self {
        Self {
            expected,
            asked,
            places: BTreeSet::new(),
            held: false,
            owed: false,
            has_begun: false,
            lost: 0,
            resyncs: 0,
        }
    }

    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Takes the next event, which must follow from those before it and from what has happened.
    ///
    pub(super) fn take(&mut self, turns: &[Turn], event: &Value, means: Means) -> Result<()> {
        let before = self.clone();
        self.follow(turns, event, means)
            .and_then(|()| {
                ensure!(!self.places.is_empty(), "this did not happen");
                Ok(())
            })
            .with_context(|| {
                let from = before.places.first().map_or(self.asked, |&(at, _)| at);
                let near = turns.get(from.saturating_sub(3)..turns.len().min(from + 4));
                format!(
                    "{event} after {before:?}; near {from} of {}: {near:?}",
                    turns.len()
                )
            })
    }

    fn follow(&mut self, turns: &[Turn], event: &Value, means: Means) -> Result<()> {
        let kind = event["event"].as_str().context("no event")?;
        let ifindex = match event["ifindex"].as_u64() {
            Some(ifindex) => Some(u32::try_from(ifindex)?),
            None => None,
        };
        ensure!(self.has_begun != (kind == "watching"), "out of place");
        let is_recovered = event["recovered"] == true;
        // What follows from one loss may be lost itself.
        let is_lost = kind == "resynced";
        ensure!(self.owed == is_recovered || is_lost, "recovered or not");
        let restart = ["deleted", "renamed", "moved", "recreated"].contains(&kind);
        ensure!(event["restart"] == restart, "restart is wrong");
        match kind {
            "watching" => self.begin(turns, ifindex),
            "resynced" => self.resync(turns, event, ifindex, means)?,
            _ if is_recovered => self.catch_up(turns, event, ifindex, means),
            _ => {
                if !means.is_exact {
                    self.overlook(turns);
                }
                let mut places = BTreeSet::new();
                for &(at, known) in &self.places {
                    let turn = turns.get(at);
                    if let Some(turn) = turn
                        && self.is_told(turn, known, event, ifindex, means)
                    {
                        let known = match turn {
                            Turn::Came(device) => Some(Known::Seen(*device)),
                            Turn::Left(..) => known,
                        };
                        places.insert((at + 1, known));
                    }
                }
                self.places = places;
                self.held = !self.held;
            }
        }
        Ok(())
    }

    fn begin(&mut self, turns: &[Turn], ifindex: Option<u32>) {
        self.has_begun = true;
        self.held = ifindex.is_some();
        self.owed = self
            .expected
            .is_some_and(|expected| ifindex != Some(expected));
        for at in self.asked..=turns.len() {
            let holder = holder(turns, at);
            if holder.map(|device| device.ifindex) != ifindex {
                continue;
            }
            self.places.insert((at, holder.map(Known::Seen)));
        }
        if self.owed
            && let Some(expected) = self.expected
        {
            self.held = true;
            // Was it the last one? Then the agent may have seen it.
            let mut places = BTreeSet::new();
            for &(at, _) in &self.places {
                places.insert((at, Some(Known::Expected(expected))));
                if let Some(Turn::Left(device, _)) = at.checked_sub(1).and_then(|at| turns.get(at))
                    && device.ifindex == expected
                {
                    places.insert((at, Some(Known::Seen(*device))));
                }
            }
            self.places = places;
        }
    }

    fn resync(
        &mut self,
        turns: &[Turn],
        event: &Value,
        ifindex: Option<u32>,
        means: Means,
    ) -> Result<()> {
        self.resyncs += 1;
        let changed = event["changed"].as_bool().context("changed or not?")?;
        let lost = event["lost"].as_u64();
        self.lost += lost.unwrap_or_default();
        // What the agent has not heard of, it cannot count.
        let lost = lost
            .filter(|_| means.is_exact)
            .map(usize::try_from)
            .transpose()?;
        let mut places = BTreeSet::new();
        for &(from, known) in &self.places {
            let told = known.filter(|_| self.held);
            let (first, last) = match lost {
                Some(lost) => (from + lost, from + lost),
                None => (from, turns.len()),
            };
            for at in first..=last.min(turns.len()) {
                let holder = holder(turns, at);
                let is_same = match (told, holder) {
                    (Some(told), Some(holder)) => told.is(holder),
                    (told, holder) => told.is_none() && holder.is_none(),
                };
                // The agent knows nobody again after others have come and gone.
                let came = |turn: &Turn| matches!(turn, Turn::Came(new) if Some(new.serial) != holder.map(|holder| holder.serial));
                let is_right = is_same != changed
                    || holder.is_some() && is_same && turns[from..at].iter().any(came);
                if is_right && holder.map(|device| device.ifindex) == ifindex {
                    places.insert((at, known));
                }
            }
        }
        self.places = places;
        self.owed = changed;
        Ok(())
    }

    /// A verdict that leads from what the client knows to the state that it was told.
    fn catch_up(&mut self, turns: &[Turn], event: &Value, ifindex: Option<u32>, means: Means) {
        self.owed = false;
        let held = self.held;
        let mut places = BTreeSet::new();
        let mut holds = false;
        for &(at, known) in &self.places {
            let Some(new) = holder(turns, at) else {
                let has_left = DEPARTURES.iter().any(|how| event["event"] == *how);
                if held && has_left && known.map(Known::ifindex) == ifindex {
                    places.insert((at, known));
                }
                continue;
            };
            if self.is_arrival(new, known, event, ifindex, means) {
                places.insert((at, Some(Known::Seen(new))));
                holds = true;
            }
        }
        self.places = places;
        self.held = holds;
    }

    /// Whatever was undone may have been overlooked.
    fn overlook(&mut self, turns: &[Turn]) {
        let mut places = BTreeSet::new();
        for &(from, known) in &self.places {
            let before = holder(turns, from);
            places.extend(
                (from..=turns.len())
                    .filter(|&at| holder(turns, at) == before)
                    .map(|at| (at, known)),
            );
        }
        self.places = places;
    }

    /// Is it this that the event says?
    fn is_told(
        &self,
        turn: &Turn,
        known: Option<Known>,
        event: &Value,
        ifindex: Option<u32>,
        means: Means,
    ) -> bool {
        match turn {
            Turn::Came(device) => self.is_arrival(*device, known, event, ifindex, means),
            Turn::Left(device, departure) => {
                let is_right = event["event"] == departure.event()
                    && match departure {
                        Departure::Renamed(to) => event["to"] == *to,
                        Departure::Deleted | Departure::Moved => true,
                    };
                // Or it is told what became of it since.
                let has_left = DEPARTURES.iter().any(|how| event["event"] == *how);
                (is_right || !means.is_exact && has_left) && ifindex == Some(device.ifindex)
            }
        }
    }

    /// Is it this device's coming that the event says?
    fn is_arrival(
        &self,
        device: Device,
        known: Option<Known>,
        event: &Value,
        ifindex: Option<u32>,
        means: Means,
    ) -> bool {
        let kind = &event["event"];
        let is_right = match known {
            None => kind == "appeared",
            // It is not known again if others came and went in what was lost.
            Some(known) if known.is(device) => {
                let is_certain =
                    self.resyncs == 0 && (means.follows_moves || !known.has_moved(device));
                kind == "returned" || !is_certain && kind == "recreated"
            }
            Some(known) => kind == "recreated" && event["old_ifindex"] == known.ifindex(),
        };
        is_right && ifindex == Some(device.ifindex)
    }

    /// Can it be that it was told everything?
    pub(super) fn can_be_done(&self, turns: &[Turn], means: Means) -> bool {
        let mut account = self.clone();
        account.done(turns, means).is_ok()
    }

    /// It was told everything.
    pub(super) fn done(&mut self, turns: &[Turn], means: Means) -> Result<()> {
        let before = self.clone();
        if !means.is_exact {
            self.overlook(turns);
        }
        self.places.retain(|&(at, _)| at == turns.len());
        ensure!(
            self.has_begun && !self.owed && !self.places.is_empty(),
            "not all of {} turns was told: {before:?}",
            turns.len()
        );
        Ok(())
    }
}

/// Who has the name after so many turns.
fn holder(turns: &[Turn], at: usize) -> Option<Device> {
    match at.checked_sub(1).and_then(|last| turns.get(last)) {
        Some(Turn::Came(device)) => Some(*device),
        Some(Turn::Left(..)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn happened() -> Vec<Turn> {
        let device = |ifindex, serial| Device {
            ifindex,
            serial,
            moves: 0,
        };
        vec![
            Turn::Came(device(7, 1)),
            Turn::Left(device(7, 1), Departure::Renamed("away".to_owned())),
            Turn::Came(device(7, 1)),
            Turn::Left(device(7, 1), Departure::Deleted),
            Turn::Came(device(7, 2)),
        ]
    }

    fn told() -> Vec<Value> {
        vec![
            json!({ "event": "watching", "restart": false }),
            json!({ "event": "appeared", "ifindex": 7, "restart": false }),
            json!({ "event": "renamed", "ifindex": 7, "to": "away", "restart": true }),
            json!({ "event": "returned", "ifindex": 7, "restart": false }),
            json!({ "event": "deleted", "ifindex": 7, "restart": true }),
            json!({ "event": "recreated", "ifindex": 7, "old_ifindex": 7, "restart": true }),
        ]
    }

    fn adds_up(told: &[Value]) -> Result<()> {
        let means = Means {
            is_exact: true,
            follows_moves: true,
        };
        let turns = happened();
        let mut account = Account::new(None, 0);
        for event in told {
            account.take(&turns, event, means)?;
        }
        account.done(&turns, means)
    }

    #[test]
    fn what_happened_adds_up() {
        adds_up(&told()).expect("it is what happened");
    }

    #[test]
    fn an_event_that_is_missing_repeated_or_early_does_not_add_up() {
        for at in 0..told().len() {
            let mut missing = told();
            missing.remove(at);
            assert!(adds_up(&missing).is_err(), "without {at}");
            let mut repeated = told();
            repeated.insert(at, told()[at].clone());
            assert!(adds_up(&repeated).is_err(), "{at} twice");
            let mut early = told();
            early.swap(at, at.saturating_sub(1));
            assert_eq!(adds_up(&early).is_err(), at > 0, "{at} early");
        }
    }

    #[test]
    fn a_loss_stands_for_as_many_events_as_it_says() {
        for (lost, is_right) in [(2, true), (1, false), (3, false), (4, false)] {
            let mut told = told();
            let loss = json!({ "event": "resynced", "ifindex": 7, "lost": lost, "changed": false, "restart": false });
            told.splice(2..4, [loss]);
            assert_eq!(adds_up(&told).is_ok(), is_right, "{lost}");
        }
    }
}
