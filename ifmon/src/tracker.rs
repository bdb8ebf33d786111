//! Decides: signals and rechecks in, verdicts out.
//!
//! Pure: it knows no kernel, no clock and no I/O. Every backend feeds the same tracker, so that a
//! verdict cannot depend on how its cause was learnt. A backend's part is to tell devices apart: it
//! gives each registration of a device an *id* of its own, and uses it again only when it knows
//! that the device is the same one.

use std::{collections::BTreeMap, num::NonZeroU32};

use crate::{EventKind, Identity, InterfaceName, NetnsId, packed};

/// What is watched: a name in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Watch {
    /// The namespace.
    pub(crate) netns: NetnsId,
    /// The name.
    pub(crate) name: InterfaceName,
}

impl Watch {
    /// Comes before every watch of the namespace.
    pub(crate) const fn first_of(netns: NetnsId) -> Self {
        Self {
            netns,
            name: InterfaceName::LEAST,
        }
    }
}

/// One registration of a device, as its holding of a watched name shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// The index in the namespace of the watch.
    pub(crate) ifindex: u32,
    /// Never the same for two registrations, even where the index is.
    pub(crate) id: u64,
}

/// Where a device went that left a watched name. What the backend cannot know is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The namespace.
    pub(crate) netns: Option<NetnsId>,
    /// The index there.
    pub(crate) ifindex: Option<u32>,
    /// The name there.
    pub(crate) name: Option<InterfaceName>,
}

/// A change of who holds a watched name. A device that goes from one watched name to another leaves
/// first, then takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The device no longer has the name.
    Left {
        /// The watch.
        watch: Watch,
        /// Id of the device.
        id: u64,
        /// Where it is now; `None` when it was unregistered.
        to: Option<Destination>,
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
pub(crate) struct Observed {
    /// Who holds the name.
    pub(crate) holder: Option<Device>,
    /// While nobody does: the id of a device that did, and where it is now, if it still is
    /// anywhere.
    pub(crate) away: Option<(u64, Destination)>,
}

/// A verdict on one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The watch.
    pub(crate) watch: Watch,
    /// What happened.
    pub(crate) kind: EventKind,
    /// Found by reading the state again.
    pub(crate) recovered: bool,
}

/// The device that a user expected to hold a name, and that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expectation {
    pub(crate) identity: Identity,
    /// Where it is now, if that is known.
    pub(crate) place: Option<Destination>,
}

/// The id of a device that no backend has ever seen.
const NOBODY: u64 = u64::MAX;

/// What the tracker knows of one watch. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug)]
struct WatchState {
    /// Index of who holds the name, or held it last. `None` until somebody held it; no device has
    /// the index 0.
    ifindex: Option<NonZeroU32>,
    /// Its id.
    id: u64,
    /// It holds the name now.
    held: bool,
}

/// The state of all watches.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    watches: BTreeMap<Watch, WatchState>,
}

impl Tracker {
    /// Begins watches, each with the state read once the backend was live, and with the device that
    /// was expected to hold the name where it does not.
    pub(crate) fn begin(
        &mut self,
        begun: impl IntoIterator<Item = (Watch, Option<Device>, Option<Expectation>)>,
        verdicts: &mut Vec<Verdict>,
    ) {
        let begun = begun
            .into_iter()
            .map(|(watch, holder, expected)| {
                (watch, WatchState::begin(watch, holder, expected, verdicts))
            })
            .collect();
        packed::extend(&mut self.watches, begun);
    }

    /// Ends a watch; false when there was none.
    pub(crate) fn end(&mut self, watch: Watch) -> bool {
        self.watches.remove(&watch).is_some()
    }

    /// Is nothing watched?
    pub(crate) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Is there such a watch?
    pub(crate) fn is_watching(&self, watch: Watch) -> bool {
        self.watches.contains_key(&watch)
    }

    /// The watches, in order.
    pub(crate) fn watches(&self) -> impl Iterator<Item = Watch> {
        self.watches.keys().copied()
    }

    /// Takes one change, in the order in which the kernel made them.
    pub(crate) fn change(&mut self, change: &Change, verdicts: &mut Vec<Verdict>) {
        let (Change::Left { watch, .. } | Change::Took { watch, .. }) = *change;
        let Some(known) = self.watches.get_mut(&watch) else {
            return;
        };
        let kind = match *change {
            Change::Left { id, to, .. } => known.leave(watch, id, to),
            Change::Took { device, .. } => known.take(device),
        };
        verdicts.extend(kind.map(|kind| Verdict {
            watch,
            kind,
            recovered: false,
        }));
    }

    /// Takes the state of a name that was read again because events may have been lost, and how
    /// many, if known.
    pub(crate) fn resync(
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
    pub(crate) fn netns_gone(&mut self, netns: NetnsId, verdicts: &mut Vec<Verdict>) {
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

impl WatchState {
    /// The first verdicts on a watch.
    fn begin(
        watch: Watch,
        holder: Option<Device>,
        expected: Option<Expectation>,
        verdicts: &mut Vec<Verdict>,
    ) -> Self {
        let mut known = Self::new(holder);
        verdicts.push(Verdict {
            watch,
            kind: EventKind::Watching {
                ifindex: holder.map(|device| device.ifindex),
            },
            recovered: false,
        });
        if let Some(Expectation { identity, place }) = expected {
            let ifindex = identity.ifindex;
            let kind = match holder {
                Some(device) => EventKind::Recreated {
                    ifindex: device.ifindex,
                    old_ifindex: ifindex,
                },
                None => {
                    known.set_last(Device {
                        ifindex,
                        id: NOBODY,
                    });
                    departure(watch, ifindex, place)
                }
            };
            verdicts.push(Verdict {
                watch,
                kind,
                recovered: true,
            });
        }
        known
    }

    fn new(holder: Option<Device>) -> Self {
        let mut known = Self {
            ifindex: None,
            id: 0,
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
            id: self.id,
        })
    }

    fn set_last(&mut self, device: Device) {
        self.ifindex = NonZeroU32::new(device.ifindex);
        self.id = device.id;
    }

    /// Who holds the name now.
    fn holder(&self) -> Option<Device> {
        self.last().filter(|_| self.held)
    }

    /// The device of this id no longer has the name: what became of it, if it was ours.
    fn leave(&mut self, watch: Watch, id: u64, to: Option<Destination>) -> Option<EventKind> {
        let Device { ifindex, .. } = self.holder().filter(|device| device.id == id)?;
        self.held = false;
        Some(departure(watch, ifindex, to))
    }

    /// A device has the name now: is it the one that had it before?
    fn take(&mut self, device: Device) -> Option<EventKind> {
        if self.holder() == Some(device) {
            return None;
        }
        let Device { ifindex, id } = device;
        let last = self.last();
        self.set_last(device);
        self.held = true;
        Some(match last {
            None => EventKind::Appeared { ifindex },
            Some(last) if last.id == id => EventKind::Returned { ifindex },
            Some(last) => EventKind::Recreated {
                ifindex,
                old_ifindex: last.ifindex,
            },
        })
    }

    /// The difference between what is known and what was read, as one verdict: a change that was
    /// undone needs none.
    fn observe(&mut self, watch: Watch, observed: &Observed) -> Option<EventKind> {
        let holder = self.holder();
        match observed.holder {
            // The same device at another index went away and came back by two moves; it is what it
            // was.
            Some(device) if holder.is_some_and(|holder| holder.id == device.id) => {
                self.set_last(device);
                None
            }
            Some(device) => self.take(device),
            None => {
                let id = holder?.id;
                let place = observed
                    .away
                    .filter(|&(away, _)| away == id)
                    .map(|(_, place)| place);
                self.leave(watch, id, place)
            }
        }
    }
}

/// What to say of a device that no longer has a watched name, and is somewhere else or nowhere.
fn departure(watch: Watch, ifindex: u32, to: Option<Destination>) -> EventKind {
    match to {
        None => EventKind::Deleted { ifindex },
        Some(Destination {
            netns,
            name: Some(to),
            ..
        }) if netns == Some(watch.netns) => EventKind::Renamed { ifindex, to },
        Some(place) => EventKind::Moved {
            ifindex,
            to_netns: place.netns,
            to_ifindex: place.ifindex,
        },
    }
}
