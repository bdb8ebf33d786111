//! Who makes and deletes how many interfaces, and where: events in, sums out.

use std::{collections::HashMap, fmt, hash::Hash};

use ifmon::{Container, Event, EventKind, LinkKind, NetnsId, Origin};
use serde::Serialize;

use super::output::{facts::EventFacts, stderr::printable, text::container};

/// How many makers are told apart, and how many namespaces and kinds. A host has hundreds of containers;
/// whoever comes after these many is counted all the same, under nobody's name.
const MOST: usize = 1024;

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// A device appeared, another one than before or the first.
    pub(crate) made: u64,
    pub(crate) deleted: u64,
    /// A device was renamed or moved, or came back.
    pub(crate) other: u64,
}

impl Counts {
    /// What an event adds. What only says what is so adds nothing.
    fn of(kind: &EventKind) -> Option<Self> {
        let mut counts = Self::default();
        match kind {
            EventKind::Appeared { .. } | EventKind::Recreated { .. } => counts.made = 1,
            EventKind::Deleted { .. } => counts.deleted = 1,
            EventKind::Renamed { .. } | EventKind::Moved { .. } | EventKind::Returned { .. } => {
                counts.other = 1;
            }
            _ => return None,
        }
        Some(counts)
    }

    pub(crate) const fn all(self) -> u64 {
        self.made + self.deleted + self.other
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.made += more.made;
        self.deleted += more.deleted;
        self.other += more.other;
    }
}

/// Who made changes, by the nearest that is known: the container, the unit, or the command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Maker {
    Container {
        runtime: Option<&'static str>,
        id: String,
    },
    Unit(String),
    Comm(String),
    /// The backend does not tell, or there were more than [`MOST`].
    Unknown,
}

impl Maker {
    fn of(event: &Event, origin: &Origin) -> Self {
        let Origin {
            container, unit, ..
        } = origin;
        let comm = event.by.as_ref().and_then(|actor| actor.comm.clone());
        match (container, unit, comm) {
            (Some(Container { runtime, id, .. }), ..) => Self::Container {
                runtime: *runtime,
                id: id.clone(),
            },
            (None, Some(unit), _) => Self::Unit(unit.clone()),
            (None, None, Some(comm)) => Self::Comm(comm),
            (None, None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { runtime, id } => f.write_str(&container(*runtime, id)),
            Self::Unit(name) | Self::Comm(name) => f.write_str(&printable(name)),
            Self::Unknown => f.write_str("somebody"),
        }
    }
}

/// What happened in a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) all: Counts,
    pub(crate) makers: HashMap<Maker, Counts>,
    /// `None` stands for all that have no room.
    pub(crate) places: HashMap<Option<NetnsId>, Counts>,
    /// Of those whose kind was told, which is that of devices that match a pattern.
    pub(crate) kinds: HashMap<Option<LinkKind>, Counts>,
    lost: u64,
    /// Something was lost that nobody counted.
    lost_more: bool,
}

impl Tally {
    pub(crate) fn event(&mut self, event: &Event, facts: &EventFacts) {
        if let EventKind::Resynced { lost, .. } = event.kind {
            match lost {
                Some(lost) => self.lost += lost,
                None => self.lost_more = true,
            }
        }
        if let Some(counts) = Counts::of(&event.kind) {
            self.add(counts, Maker::of(event, &facts.origin), event.netns);
            if let Some(kind) = event.link_kind {
                self.add_kind(counts, kind);
            }
        }
    }

    pub(crate) fn add(&mut self, counts: Counts, maker: Maker, place: NetnsId) {
        self.all.add(counts);
        entry(&mut self.makers, maker, Maker::Unknown).add(counts);
        entry(&mut self.places, Some(place), None).add(counts);
    }

    pub(crate) fn add_kind(&mut self, counts: Counts, kind: LinkKind) {
        entry(&mut self.kinds, Some(kind), None).add(counts);
    }

    /// Takes what happened in another time into this one.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.all.add(other.all);
        for (maker, &counts) in &other.makers {
            entry(&mut self.makers, maker.clone(), Maker::Unknown).add(counts);
        }
        for (&place, &counts) in &other.places {
            entry(&mut self.places, place, None).add(counts);
        }
        for (&kind, &counts) in &other.kinds {
            entry(&mut self.kinds, kind, None).add(counts);
        }
        self.lost += other.lost;
        self.lost_more |= other.lost_more;
    }

    /// How many events were lost on the way, and made good; `None` where not all were counted.
    pub(crate) fn lost(&self) -> Option<u64> {
        (!self.lost_more).then_some(self.lost)
    }
}

fn entry<K: Hash + Eq>(counts: &mut HashMap<K, Counts>, key: K, others: K) -> &mut Counts {
    let has_room = counts.len() < MOST || counts.contains_key(&key);
    counts
        .entry(if has_room { key } else { others })
        .or_default()
}

/// The busiest first; those that are as busy as each other by name.
pub(crate) fn busiest<K: Ord>(counts: &HashMap<K, Counts>) -> Vec<(&K, Counts)> {
    let mut rows: Vec<_> = counts.iter().map(|(key, &counts)| (key, counts)).collect();
    rows.sort_by(|(a, of_a), (b, of_b)| of_b.all().cmp(&of_a.all()).then_with(|| a.cmp(b)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: Counts = Counts {
        made: 1,
        deleted: 0,
        other: 0,
    };

    #[test]
    fn whoever_has_no_room_is_counted_as_nobody() {
        let mut tally = Tally::default();
        for number in 0..2 * MOST {
            tally.add(MADE, Maker::Unit(number.to_string()), NetnsId(1));
        }
        tally.add_kind(MADE, LinkKind::new("veth").expect("a good kind"));
        // Who is known stays known.
        tally.add(MADE, Maker::Unit("7".to_owned()), NetnsId(2));
        let mut twice = tally.clone();
        twice.extend(&tally);
        for (tally, times) in [(tally, 1), (twice, 2)] {
            let count = |maker: &Maker| tally.makers.get(maker).map(|counts| counts.made);
            assert_eq!(tally.makers.len(), MOST + 1);
            assert_eq!(count(&Maker::Unit("7".to_owned())), Some(2 * times));
            assert_eq!(count(&Maker::Unknown), Some(MOST as u64 * times));
            assert_eq!(tally.all.made, (2 * MOST as u64 + 1) * times);
            assert_eq!(tally.places.len(), 2);
            let kinds: Vec<u64> = tally.kinds.values().map(|counts| counts.made).collect();
            assert_eq!(kinds, [times]);
        }
    }

    #[test]
    fn the_busiest_comes_first() {
        let mut tally = Tally::default();
        for (name, count) in [("b", 2), ("c", 1), ("a", 2), ("d", 3)] {
            for _ in 0..count {
                tally.add(MADE, Maker::Comm(name.to_owned()), NetnsId(1));
            }
        }
        let rows = busiest(&tally.makers);
        let names: Vec<String> = rows.iter().map(|(maker, _)| maker.to_string()).collect();
        assert_eq!(names, ["d", "a", "b", "c"]);
    }
}
