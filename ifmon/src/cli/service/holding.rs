//! Who holds a name, as the agent knows it and as a client was told it: the difference is a
//! verdict.

use ifmon::EventKind;

/// A device that holds a name, or held it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ServedDevice {
    ifindex: u32,
    /// Which of those that held the name it is. An index can be used again, this is not.
    serial: u64,
}

/// The device of which a client says that it set it up, and which the agent has never seen.
const UNSEEN: u64 = 0;

/// The device that holds a name or held it last, and whether it still does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    last: Option<ServedDevice>,
    held: bool,
}

impl Holding {
    fn holder(&self) -> Option<ServedDevice> {
        self.last.filter(|_| self.held)
    }

    /// The index of the device that has the name.
    pub(super) fn ifindex(&self) -> Option<u32> {
        self.holder().map(|device| device.ifindex)
    }
}

/// What the events of a watch in the library have said of its name.
#[derive(Clone, Debug, Default)]
pub(super) struct NameHistory {
    pub(super) holding: Holding,
    /// How the last holder left, while nobody holds the name.
    departure: Option<EventKind>,
    /// How many devices have held the name.
    devices: u64,
}

impl NameHistory {
    /// Takes the next event of the watch.
    pub(super) fn apply(&mut self, kind: &EventKind) {
        if let EventKind::Resynced {
            changed, ifindex, ..
        } = *kind
        {
            // The device that holds the name can have another index, after two moves. What else
            // has changed follows as an event of its own.
            if let (false, Some(ifindex), Some(ServedDevice { serial, .. })) =
                (changed, ifindex, self.holding.holder())
            {
                self.holding.last = Some(ServedDevice { ifindex, serial });
            }
            return;
        }
        let is_first = matches!(kind, EventKind::Watching { .. });
        let is_back = matches!(kind, EventKind::Returned { .. });
        let last = match (kind.holder(), self.holding.last) {
            (Some(ifindex), Some(ServedDevice { serial, .. })) if is_back => {
                Some(ServedDevice { ifindex, serial })
            }
            (Some(ifindex), _) => Some(self.another(ifindex)),
            (None, _) if is_first => None,
            (None, last) => last,
        };
        let held = kind.holder().is_some();
        let holding = Holding { last, held };
        let departure = (!held && !is_first).then(|| kind.clone());
        self.holding = holding;
        self.departure = departure;
    }

    fn another(&mut self, ifindex: u32) -> ServedDevice {
        self.devices += 1;
        let serial = UNSEEN + self.devices;
        ServedDevice { ifindex, serial }
    }
}

/// What a client was told of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View(Holding);

impl View {
    /// Of a watch that begins now: a device that held the name before is not the client's concern,
    /// unless it is the one that the client expects to hold it.
    pub(super) fn begin(state: &NameHistory, expected: Option<u32>) -> Self {
        let now = state.holding;
        let Some(ifindex) = expected else {
            return Self(Holding {
                last: now.holder(),
                held: now.held,
            });
        };
        let last = now.last.filter(|last| last.ifindex == ifindex);
        Self(Holding {
            last: last.or(Some(ServedDevice {
                ifindex,
                serial: UNSEEN,
            })),
            held: true,
        })
    }

    /// How the device left that the client knows as the holder, if it was the last one to hold the
    /// name and has left.
    pub(super) fn departure(&self, state: &NameHistory) -> Option<EventKind> {
        let Self(told) = self;
        let old = told.holder()?.serial;
        let is_last = state.holding.last.is_some_and(|last| last.serial == old);
        state.departure.clone().filter(|_| is_last)
    }

    /// Who holds the name is who the client knows as the holder.
    pub(super) fn is_right(&self, state: &NameHistory) -> bool {
        let Self(told) = self;
        let serial = |holding: &Holding| holding.holder().map(|device| device.serial);
        serial(told) == serial(&state.holding)
    }

    /// Tells the client of the present state: the verdict that leads there, if it is another one.
    ///
    /// `departure` is how the device left that the client knows as the holder, where that was
    /// remembered.
    pub(super) fn catch_up(
        &mut self,
        state: &NameHistory,
        departure: Option<&EventKind>,
    ) -> Option<EventKind> {
        let last_departure = self.departure(state);
        let Self(told) = self;
        let now = &state.holding;
        match (told.holder(), now.holder()) {
            (None, None) => None,
            (Some(old), Some(new)) if old.serial == new.serial => {
                told.last = Some(new);
                None
            }
            (Some(old), None) => {
                told.held = false;
                let known = last_departure.or_else(|| departure.cloned());
                let ifindex = old.ifindex;
                Some(known.unwrap_or(EventKind::Deleted { ifindex }))
            }
            (_, Some(new)) => {
                let ifindex = new.ifindex;
                let last = told.last.replace(new);
                told.held = true;
                Some(match last {
                    None => EventKind::Appeared { ifindex },
                    Some(last) if last.serial == new.serial => EventKind::Returned { ifindex },
                    Some(last) => EventKind::Recreated {
                        ifindex,
                        old_ifindex: last.ifindex,
                    },
                })
            }
        }
    }
}
