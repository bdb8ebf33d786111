//! What happens to the names that clients watch: decided in advance, so that it is known.

use std::collections::BTreeMap;

use anyhow::Result;

use super::super::Random;
use crate::room::Room;

/// Names that are watched.
const NAMES: usize = 12;
/// More devices than names, so that some are always called otherwise, or are elsewhere.
const DEVICES: usize = 16;
/// The index of the first device, above those that the kernel gives to their peers.
const FIRST: u32 = 1_000_000;

/// A device that held a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    pub(super) ifindex: u32,
    /// An index can be used again, this is not.
    pub(super) serial: u32,
    /// How often it has gone to another namespace.
    pub(super) moves: u32,
}

/// Something that happened to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Came(Device),
    Left(Device, Departure),
}

/// How a device left its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Deleted,
    Renamed(String),
    Moved,
}

impl Departure {
    pub(super) fn event(&self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Renamed(_) => "renamed",
            Self::Moved => "moved",
        }
    }
}

/// A change of the host.
#[derive(Debug)]
pub(super) enum Change {
    Add(String, u32),
    Rename(u32, String),
    MoveAway(u32),
    MoveBack(u32, String),
    Delete(u32),
    DeleteAway(u32),
}

impl Change {
    /// Makes it: one request.
    pub(super) fn make(&self, here: &Room, elsewhere: &Room) -> Result<()> {
        match self {
            Self::Add(name, index) => here.add(name, *index),
            Self::Rename(index, to) => here.rename(*index, to),
            // Many of its name can be there.
            Self::MoveAway(index) => here.move_to_as(*index, elsewhere, &format!("away{index}")),
            Self::MoveBack(index, name) => elsewhere.move_to_as(*index, here, name),
            Self::Delete(index) => here.delete(*index),
            Self::DeleteAway(index) => elsewhere.delete(*index),
        }
    }
}

/// The devices of the host, and what has happened to each name.
#[derive(Debug)]
pub(super) struct Plot {
    /// By index: which one it is, and its name, unless it is in another namespace.
    devices: BTreeMap<u32, (Device, Option<String>)>,
    /// Of each name, from the beginning.
    turns: BTreeMap<String, Vec<Turn>>,
    /// How many devices there were.
    serial: u32,
    /// Indexes of devices that were deleted.
    used: Vec<u32>,
}

impl Plot {
    pub(super) fn new() -> Self {
        let names = (0..NAMES).map(|number| (format!("if{number}"), Vec::new()));
        Self {
            devices: BTreeMap::new(),
            turns: names.collect(),
            serial: 0,
            used: Vec::new(),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.turns.keys()
    }

    pub(super) fn turns(&self, name: &str) -> &[Turn] {
        self.turns.get(name).map_or(&[], Vec::as_slice)
    }

    /// How many turns each name has had.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        let count = |(name, turns): (&String, &Vec<Turn>)| (name.clone(), turns.len());
        self.turns.iter().map(count).collect()
    }

    /// An index that a device has or had.
    pub(super) fn any_index(&self, random: &mut Random) -> u32 {
        FIRST + random.below(u64::from(self.serial) + 1) as u32
    }

    /// Decides what happens next.
    pub(super) fn go_on(&mut self, random: &mut Random) -> Change {
        let free: Vec<&String> = self
            .turns
            .iter()
            .filter(|(_, turns)| !matches!(turns.last(), Some(Turn::Came(_))))
            .map(|(name, _)| name)
            .collect();
        let free = (!free.is_empty()).then(|| free[random.below(free.len() as u64) as usize]);
        let free = free.cloned();
        let is_new =
            self.devices.is_empty() || self.devices.len() < DEVICES && random.below(48) == 0;
        if is_new && let Some(name) = &free {
            self.serial += 1;
            // Half of them with an index that was used before.
            let old = (random.below(2) == 0).then(|| self.used.pop()).flatten();
            let ifindex = old.unwrap_or(FIRST + self.serial);
            let device = Device {
                ifindex,
                serial: self.serial,
                moves: 0,
            };
            self.devices.insert(ifindex, (device, None));
            self.came(ifindex, name);
            return Change::Add(name.clone(), ifindex);
        }
        let at = random.below(self.devices.len() as u64) as usize;
        let ifindex = *self.devices.keys().nth(at).expect("a device");
        let is_here = self.devices[&ifindex].1.is_some();
        // What waits for a grace period of RCU takes as long as a hundred renamings.
        match (random.below(64), free) {
            (0, _) if is_here => {
                self.left(ifindex, Departure::Deleted);
                self.devices.remove(&ifindex);
                self.used.push(ifindex);
                Change::Delete(ifindex)
            }
            (0, _) => {
                self.devices.remove(&ifindex);
                self.used.push(ifindex);
                Change::DeleteAway(ifindex)
            }
            (1, _) if is_here => {
                self.left(ifindex, Departure::Moved);
                Change::MoveAway(ifindex)
            }
            (roll, free) => {
                let name = free
                    .filter(|_| roll < 52)
                    .unwrap_or_else(|| format!("o{ifindex}-{}", random.below(1000)));
                if is_here {
                    self.left(ifindex, Departure::Renamed(name.clone()));
                }
                self.came(ifindex, &name);
                if is_here {
                    Change::Rename(ifindex, name)
                } else {
                    Change::MoveBack(ifindex, name)
                }
            }
        }
    }

    /// A device has this name now.
    fn came(&mut self, ifindex: u32, name: &str) {
        let Some((device, has)) = self.devices.get_mut(&ifindex) else {
            return;
        };
        *has = Some(name.to_owned());
        if let Some(turns) = self.turns.get_mut(name) {
            turns.push(Turn::Came(*device));
        }
    }

    /// A device has not the name any more that it had.
    fn left(&mut self, ifindex: u32, departure: Departure) {
        let Some((device, has)) = self.devices.get_mut(&ifindex) else {
            return;
        };
        let left = *device;
        device.moves += u32::from(departure == Departure::Moved);
        if let Some(turns) = has.take().and_then(|name| self.turns.get_mut(&name)) {
            turns.push(Turn::Left(left, departure));
        }
    }
}
