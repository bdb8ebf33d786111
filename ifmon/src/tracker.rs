//! Decides: signals and rechecks in, verdicts out.
//!
//! Pure: it knows no kernel, no clock and no I/O. Every backend feeds the same tracker, so that a verdict cannot depend
//! on how its cause was learnt. A backend's part is to tell devices apart: it gives each registration of a device a
//! *generation* of its own, and uses it again only when it knows that the device is the same one.

use std::{collections::BTreeMap, num::NonZeroU32};

use crate::{EventKind, InterfaceName, NetnsId, packed};

/// What is watched: a name in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Watch {
    /// The namespace.
    pub netns: NetnsId,
    /// The name.
    pub name: InterfaceName,
}

/// One registration of a device, as its holding of a watched name shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The index in the namespace of the watch.
    pub ifindex: u32,
    /// Never the same for two registrations, even where the index is.
    pub generation: u64,
}

/// Where a device went that left a watched name. What the backend cannot know is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The namespace.
    pub netns: Option<NetnsId>,
    /// The index there.
    pub ifindex: Option<u32>,
    /// The name there.
    pub name: Option<InterfaceName>,
}

/// A change of who holds a watched name. A device that goes from one watched name to another leaves first, then takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The device no longer has the name.
    Left {
        /// The watch.
        watch: Watch,
        /// Generation of the device.
        generation: u64,
        /// Where it is now; `None` when it was unregistered.
        to: Option<Place>,
    },
    /// The device has the name now.
    Took {
        /// The watch.
        watch: Watch,
        /// The device.
        device: Device,
    },
}

/// The state of a name as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Who holds the name.
    pub holder: Option<Device>,
    /// While nobody does: the generation of a device that did, and where it is now, if it still is anywhere.
    pub away: Option<(u64, Place)>,
}

/// A verdict on one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The watch.
    pub watch: Watch,
    /// What happened.
    pub kind: EventKind,
    /// Found by reading the state again.
    pub recovered: bool,
}

impl Verdict {
    /// The first verdict of a watch, with the index of the interface, while there is one.
    pub fn watching(watch: Watch, ifindex: Option<u32>) -> Self {
        Self {
            watch,
            kind: EventKind::Watching { ifindex },
            recovered: false,
        }
    }
}

/// What the tracker knows of one watch. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Index of who holds the name, or held it last. `None` until somebody held it; no device has the index 0.
    ifindex: Option<NonZeroU32>,
    /// Its generation.
    generation: u64,
    /// It holds the name now.
    held: bool,
}

/// The state of all watches.
#[derive(Debug, Default)]
pub struct Tracker {
    watches: BTreeMap<Watch, Known>,
}

impl Tracker {
    /// Begins a watch with the state read once the backend was live.
    pub fn begin(&mut self, watch: Watch, holder: Option<Device>) -> Verdict {
        self.begin_all(std::iter::once((watch, holder)));
        Verdict::watching(watch, holder.map(|device| device.ifindex))
    }

    /// Begins many watches; [`Verdict::watching`] is the first verdict of each.
    pub fn begin_all(&mut self, begun: impl Iterator<Item = (Watch, Option<Device>)>) {
        let begun = begun.map(|(watch, holder)| (watch, Known::new(holder)));
        packed::extend(&mut self.watches, begun.collect());
    }

    /// Ends a watch; false when there was none.
    pub fn end(&mut self, watch: Watch) -> bool {
        self.watches.remove(&watch).is_some()
    }

    /// Is there such a watch?
    pub fn is_watching(&self, watch: Watch) -> bool {
        self.watches.contains_key(&watch)
    }

    /// The watches, in order.
    pub fn watches(&self) -> impl Iterator<Item = Watch> {
        self.watches.keys().copied()
    }

    /// Takes one change, in the order in which the kernel made them.
    pub fn change(&mut self, change: &Change, verdicts: &mut Vec<Verdict>) {
        let (Change::Left { watch, .. } | Change::Took { watch, .. }) = *change;
        let Some(known) = self.watches.get_mut(&watch) else {
            return;
        };
        let kind = match *change {
            Change::Left { generation, to, .. } => known.leave(watch, generation, to),
            Change::Took { device, .. } => known.take(device),
        };
        verdicts.extend(kind.map(|kind| Verdict {
            watch,
            kind,
            recovered: false,
        }));
    }

    /// Takes the state of a name that was read again because events may have been lost, and how many, if known.
    pub fn resync(
        &mut self,
        watch: Watch,
        observed: &Observed,
        lost: Option<u64>,
        verdicts: &mut Vec<Verdict>,
    ) {
        let Some(known) = self.watches.get_mut(&watch) else {
            return;
        };
        let found = known.observe(watch, observed);
        verdicts.push(Verdict {
            watch,
            kind: EventKind::Resynced {
                lost,
                changed: found.is_some(),
                ifindex: known.holder().map(|device| device.ifindex),
            },
            recovered: false,
        });
        verdicts.extend(found.map(|kind| Verdict {
            watch,
            kind,
            recovered: true,
        }));
    }

    /// The namespace ended: whatever was in it is gone. Its watches end with it.
    pub fn netns_gone(&mut self, netns: NetnsId, verdicts: &mut Vec<Verdict>) {
        let gone: Vec<Watch> = self
            .watches()
            .filter(|watch| watch.netns == netns)
            .collect();
        for watch in gone {
            if let Some(known) = self.watches.remove(&watch)
                && let Some(Device { ifindex, .. }) = known.holder()
            {
                verdicts.push(Verdict {
                    watch,
                    kind: EventKind::Deleted { ifindex },
                    recovered: false,
                });
            }
        }
    }
}

impl Known {
    fn new(holder: Option<Device>) -> Self {
        let mut known = Self {
            ifindex: None,
            generation: 0,
            held: holder.is_some(),
        };
        if let Some(device) = holder {
            known.set_last(device);
        }
        known
    }

    /// Who holds the name, or held it last.
    fn last(&self) -> Option<Device> {
        self.ifindex.map(|ifindex| Device {
            ifindex: ifindex.get(),
            generation: self.generation,
        })
    }

    fn set_last(&mut self, device: Device) {
        self.ifindex = NonZeroU32::new(device.ifindex);
        self.generation = device.generation;
    }

    /// Who holds the name now.
    fn holder(&self) -> Option<Device> {
        self.last().filter(|_| self.held)
    }

    /// The device of this generation no longer has the name: what became of it, if it was ours.
    fn leave(&mut self, watch: Watch, generation: u64, to: Option<Place>) -> Option<EventKind> {
        let Device { ifindex, .. } = self
            .holder()
            .filter(|device| device.generation == generation)?;
        self.held = false;
        Some(match to {
            None => EventKind::Deleted { ifindex },
            Some(Place {
                netns,
                name: Some(to),
                ..
            }) if netns == Some(watch.netns) => EventKind::Renamed { ifindex, to },
            Some(place) => EventKind::Moved {
                ifindex,
                to_netns: place.netns,
                to_ifindex: place.ifindex,
            },
        })
    }

    /// A device has the name now: is it the one that had it before?
    fn take(&mut self, device: Device) -> Option<EventKind> {
        if self.holder() == Some(device) {
            return None;
        }
        let Device {
            ifindex,
            generation,
        } = device;
        let last = self.last();
        self.set_last(device);
        self.held = true;
        Some(match last {
            None => EventKind::Appeared { ifindex },
            Some(last) if last.generation == generation => EventKind::Returned { ifindex },
            Some(last) => EventKind::Recreated {
                ifindex,
                old_ifindex: last.ifindex,
            },
        })
    }

    /// The difference between what is known and what was read, as one verdict: a change that was undone needs none.
    fn observe(&mut self, watch: Watch, observed: &Observed) -> Option<EventKind> {
        let holder = self.holder();
        match observed.holder {
            // The same device at another index went away and came back by two moves; it is what it was.
            Some(device) if holder.is_some_and(|holder| holder.generation == device.generation) => {
                self.set_last(device);
                None
            }
            Some(device) => self.take(device),
            None => {
                let generation = holder?.generation;
                let place = observed
                    .away
                    .filter(|&(away, _)| away == generation)
                    .map(|(_, place)| place);
                self.leave(watch, generation, place)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
