//! What is known of each watched name, however that was heard of.
//!
//! Each way to hear of changes, a *session*, has marks of its own for devices. Here each device has
//! one id for as long as it is known, so that the tracker takes it for the same one when the agent
//! goes and netlink stands in, and the other way round.

use std::collections::BTreeMap;

use super::call::{AgentEvent, AgentVerdict};
use crate::{
    InterfaceName, NetnsId,
    signal::Signal,
    tracker::{Change, Destination, Device, Observed, Watch},
};

/// A device as a session marks it.
pub(super) type Mark = u64;

/// Who holds a name when a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ifindex: u32,
    pub(super) mark: Mark,
}

/// All watched names of the namespace.
#[derive(Debug)]
pub(super) struct AgentNames {
    netns: NetnsId,
    known: BTreeMap<InterfaceName, AgentName>,
    last_id: u64,
    last_mark: Mark,
}

#[derive(Debug, Default)]
struct AgentName {
    /// Who holds the name, or held it last.
    last: Option<Device>,
    held: bool,
    /// The last holder is not known again by its index: it is gone for good, or had left the name
    /// before this session began, and may have gone since. Another device can have that index.
    is_lost: bool,
    /// The last holder's mark; `None` while nobody held the name in this session.
    mark: Option<Mark>,
    /// The agent lost events and will say what has changed: how many.
    lost: Option<Option<u64>>,
}

impl AgentNames {
    pub(super) fn new(netns: NetnsId) -> Self {
        Self {
            netns,
            known: BTreeMap::new(),
            last_id: 0,
            last_mark: 0,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = InterfaceName> {
        self.known.keys().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// A mark that no device has.
    pub(super) fn new_mark(&mut self) -> Mark {
        self.last_mark += 1;
        self.last_mark
    }

    /// Begins to watch a name.
    pub(super) fn begin(&mut self, name: InterfaceName, found: Option<Found>) -> Option<Device> {
        self.known.insert(name, AgentName::default());
        found.and_then(|found| self.take(name, found))
    }

    pub(super) fn end(&mut self, name: InterfaceName) {
        self.known.remove(&name);
    }

    /// A session begins: who holds the name now.
    ///
    /// What became of a device that held it cannot be asked: the answer would be ahead of what the
    /// session says next. So it counts as deleted.
    pub(super) fn resume(&mut self, name: InterfaceName, found: Option<Found>) -> Observed {
        let Some(known) = self.known.get_mut(&name) else {
            return Observed::default();
        };
        known.mark = None;
        known.lost = None;
        known.is_lost |= !known.held;
        match found {
            Some(found) => holder(self.take(name, found)),
            None => {
                if known.held {
                    known.leave(None);
                }
                Observed::default()
            }
        }
    }

    /// Takes an event of the agent.
    pub(super) fn tell(&mut self, told: AgentEvent) -> Option<Signal> {
        let AgentEvent {
            name,
            time,
            by,
            what,
        } = told;
        let netns = self.netns;
        let watch = Watch { netns, name };
        let another = self.new_mark();
        let known = self.known.get_mut(&name)?;
        let id = known.last.map(|device| device.id);
        let mark = match what {
            AgentVerdict::Another(_) => another,
            _ => known.mark.unwrap_or(another),
        };
        let change = match what {
            AgentVerdict::Watching(_) => return None,
            AgentVerdict::Resynced {
                lost,
                changed: true,
                ..
            } => {
                known.lost = Some(known.lost_with(lost));
                return None;
            }
            AgentVerdict::Resynced { lost, ifindex, .. } => {
                // What was to follow from a loss before can be lost too, and undone.
                let lost = known.lost_with(lost);
                known.lost = None;
                if let (Some(ifindex), Some(device)) = (ifindex, &mut known.last) {
                    // After two moves the same device can have another index.
                    device.ifindex = ifindex;
                }
                let observed = holder(known.last.filter(|_| known.held));
                return Some(Signal::Resync {
                    watch,
                    observed,
                    lost,
                    time,
                });
            }
            AgentVerdict::Deleted => known.leave(None),
            AgentVerdict::Renamed(to) => known.leave(Some(Destination {
                netns: Some(netns),
                ifindex: None,
                name: Some(to),
            })),
            AgentVerdict::Moved { netns, ifindex } => known.leave(Some(Destination {
                netns,
                ifindex,
                name: None,
            })),
            AgentVerdict::Another(ifindex) | AgentVerdict::Returned(ifindex) => {
                let found = Found { ifindex, mark };
                Left::Taken(self.take(name, found)?)
            }
        };
        let known = self.known.get_mut(&name)?;
        if let Some(lost) = known.lost.take() {
            let observed = match change {
                Left::Taken(device) => holder(Some(device)),
                Left::To(to) => Observed {
                    holder: None,
                    away: id.zip(to),
                },
            };
            return Some(Signal::Resync {
                watch,
                observed,
                lost,
                time,
            });
        }
        let change = match change {
            Left::Taken(device) => Change::Took { watch, device },
            Left::To(to) => Change::Left { watch, id: id?, to },
        };
        Some(Signal::Change { change, time, by })
    }

    /// Gives the devices in a signal of netlink the ids that they have here.
    pub(super) fn translate(&mut self, signal: Signal) -> Option<Signal> {
        match signal {
            Signal::Pattern { .. } => Some(signal),
            Signal::Change { change, time, by } => {
                let change = match change {
                    Change::Took { watch, device } => Change::Took {
                        watch,
                        device: self.take(watch.name, Found::of(device))?,
                    },
                    Change::Left { watch, id, to } => {
                        let known = self.known.get_mut(&watch.name)?;
                        let own = known.last.filter(|_| known.mark == Some(id))?.id;
                        known.leave(to);
                        Change::Left { watch, id: own, to }
                    }
                };
                Some(Signal::Change { change, time, by })
            }
            Signal::Resync {
                watch,
                observed,
                lost,
                time,
            } => {
                let observed = match observed.holder {
                    Some(device) => holder(self.take(watch.name, Found::of(device))),
                    None => {
                        let known = self.known.get_mut(&watch.name)?;
                        let own = known.last.map(|device| device.id);
                        let away = observed.away.filter(|&(mark, _)| known.mark == Some(mark));
                        if known.held {
                            known.leave(away.map(|(_, place)| place));
                        }
                        Observed {
                            holder: None,
                            away: own.zip(away.map(|(_, place)| place)),
                        }
                    }
                };
                Some(Signal::Resync {
                    watch,
                    observed,
                    lost,
                    time,
                })
            }
            Signal::NetnsGone { .. } => Some(signal),
        }
    }

    /// A device has the name. In a session that has not shown the last one yet, its index says
    /// whether it is that one.
    fn take(&mut self, name: InterfaceName, found: Found) -> Option<Device> {
        let Found { ifindex, mark } = found;
        let known = self.known.get_mut(&name)?;
        let last = known.last.filter(|last| match known.mark {
            Some(held) => held == mark,
            None => last.ifindex == ifindex && !known.is_lost,
        });
        let id = last.map_or_else(
            || {
                self.last_id += 1;
                self.last_id
            },
            |last| last.id,
        );
        let device = Device { ifindex, id };
        known.last = Some(device);
        known.held = true;
        known.is_lost = false;
        known.mark = Some(mark);
        Some(device)
    }
}

/// How a name changed hands.
enum Left {
    Taken(Device),
    To(Option<Destination>),
}

impl AgentName {
    /// How many events were lost, with these and those of which the agent has not yet said what has
    /// changed.
    fn lost_with(&self, lost: Option<u64>) -> Option<u64> {
        match self.lost {
            None => lost,
            Some(before) => before.zip(lost).map(|(before, lost)| before + lost),
        }
    }

    fn leave(&mut self, to: Option<Destination>) -> Left {
        self.held = false;
        self.is_lost = to.is_none();
        Left::To(to)
    }
}

impl Found {
    fn of(device: Device) -> Self {
        Self {
            ifindex: device.ifindex,
            mark: device.id,
        }
    }
}

fn holder(holder: Option<Device>) -> Observed {
    Observed { holder, away: None }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_follows_from_a_loss_can_be_lost_too() {
        let name: InterfaceName = "wg0".parse().expect("a good name");
        let mut names = AgentNames::new(NetnsId(1));
        let mark = names.new_mark();
        let holder = names.begin(name, Some(Found { ifindex: 7, mark }));
        let mut tell = |what| {
            names.tell(AgentEvent {
                name,
                time: SystemTime::UNIX_EPOCH,
                by: None,
                what,
            })
        };
        let resynced = |lost, changed| AgentVerdict::Resynced {
            lost: Some(lost),
            changed,
            ifindex: Some(7),
        };
        assert!(tell(resynced(2, true)).is_none());
        // It was undone meanwhile.
        let signal = tell(resynced(3, false));
        assert!(
            matches!(signal, Some(Signal::Resync { observed, lost: Some(5), .. }) if observed.holder == holder),
            "{signal:?}"
        );
        // So what comes next is an event like any other.
        let signal = tell(AgentVerdict::Deleted);
        assert!(matches!(signal, Some(Signal::Change { .. })), "{signal:?}");
    }

    /// While nobody watched the namespace where it was, the device can have ended, and another one
    /// have its index.
    #[test]
    fn who_was_away_when_a_session_began_is_not_known_by_an_index() {
        let name: InterfaceName = "wg0".parse().expect("a good name");
        let mut names = AgentNames::new(NetnsId(1));
        let mark = names.new_mark();
        let told = |what| AgentEvent {
            name,
            time: SystemTime::UNIX_EPOCH,
            by: None,
            what,
        };
        let first = names.begin(name, Some(Found { ifindex: 7, mark }));
        let moved = AgentVerdict::Moved {
            netns: None,
            ifindex: None,
        };
        names.tell(told(moved));
        let returned = names.tell(told(AgentVerdict::Returned(7)));
        let is_it = |device| matches!(returned, Some(Signal::Change { change: Change::Took { device: other, .. }, .. }) if Some(other) == device);
        assert!(is_it(first), "{returned:?}");
        names.tell(told(AgentVerdict::Renamed(name)));
        names.resume(name, None);
        let mark = names.new_mark();
        let observed = names.resume(name, Some(Found { ifindex: 7, mark }));
        assert_ne!(
            observed.holder.map(|device| device.id),
            first.map(|device| device.id)
        );
    }
}
