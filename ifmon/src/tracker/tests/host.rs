//! A model of a host: namespaces with devices, the changes that a kernel would allow, and what a watch must say of them.
//!
//! What must be said is worked out from the states before and after a change alone. It shares neither code nor notion
//! with the tracker, which is told of changes and never sees a state.

use proptest::prelude::*;

use crate::{EventKind, InterfaceName, NetnsId, tracker::Watch};

/// Few of each, so that everything meets everything.
pub(crate) const SPACES: u8 = 2;
const NAMES: [&str; 5] = ["a", "b", "c", "aa", "fifteen-bytes-x"];
/// The first index that a device can have: 1 is the loopback device's.
const FIRST_INDEX: u32 = 2;
const LAST_INDEX: u32 = 5;
const DEVICES: usize = 4;

/// The namespaces of the model.
pub(crate) const fn netns(space: u8) -> NetnsId {
    NetnsId(4_026_531_840 + space as u32)
}

pub(crate) fn name(number: u8) -> InterfaceName {
    InterfaceName::new(NAMES[usize::from(number) % NAMES.len()]).expect("a valid name")
}

/// The watches of the model: two names of one namespace, and one of them in the other namespace too.
pub(crate) fn watches() -> [Watch; 3] {
    [(0, 0), (0, 1), (1, 0)].map(|(space, number)| Watch {
        netns: netns(space),
        name: name(number),
    })
}

/// A device, where it is and what it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// No two devices have the same, ever: what the inode number in sysfs is.
    pub(crate) id: u64,
    pub(crate) space: u8,
    pub(crate) ifindex: u32,
    pub(crate) name: InterfaceName,
}

impl Device {
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            netns: netns(self.space),
            name: self.name,
        }
    }
}

/// What somebody does to the host: four bytes, so that any sequence of bytes is a sequence of attempts, and a failing
/// one stays one when it is made shorter.
pub(crate) type Attempt = [u8; 4];

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Created(Device),
    Deleted(Device),
    Renamed {
        old: Device,
        new: Device,
    },
    Moved {
        old: Device,
        new: Device,
    },
    /// Something else of the device changed.
    Altered(Device),
    /// The device is no longer the port of a bridge.
    Released(Device),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) devices: Vec<Device>,
    /// No index is ever used twice, as where nobody asks for one.
    pub(crate) fresh_indexes: bool,
    pub(crate) ids: u64,
}

impl Host {
    pub(crate) fn by_name(&self, watch: Watch) -> Option<Device> {
        let has = |device: &&Device| device.watch() == watch;
        self.devices.iter().find(has).copied()
    }

    pub(crate) fn by_index(&self, space: u8, ifindex: u32) -> Option<Device> {
        let has = |device: &&Device| (device.space, device.ifindex) == (space, ifindex);
        self.devices.iter().find(has).copied()
    }

    pub(crate) fn by_id(&self, id: u64) -> Option<Device> {
        self.devices.iter().find(|device| device.id == id).copied()
    }

    /// Tries something; `None` when a kernel would refuse it.
    pub(crate) fn attempt(&mut self, [what, which, x, y]: Attempt) -> Option<Done> {
        let creates = what % 16 < 4;
        if creates {
            let space = which % SPACES;
            let ifindex = if self.fresh_indexes {
                self.ids as u32 + FIRST_INDEX
            } else {
                FIRST_INDEX + u32::from(y) % (LAST_INDEX - FIRST_INDEX + 1)
            };
            let device = Device {
                id: self.ids + 1,
                space,
                ifindex,
                name: name(x),
            };
            if self.devices.len() == DEVICES || self.collides(&device) {
                return None;
            }
            self.ids += 1;
            self.devices.push(device);
            return Some(Done::Created(device));
        }
        let at = usize::from(which) % self.devices.len().max(1);
        let old = *self.devices.get(at)?;
        match what % 16 {
            4..=6 => {
                self.devices.remove(at);
                Some(Done::Deleted(old))
            }
            7..=10 => {
                let new = Device {
                    name: name(x),
                    ..old
                };
                // Renaming to the same name does nothing and is told to nobody.
                self.put(at, new)
                    .map(|()| Done::Renamed { old, new })
                    .filter(|_| new != old)
            }
            11..=13 => {
                // The index stays unless it is taken; a new name can come with the move.
                let space = (old.space + 1) % SPACES;
                let free = |&ifindex: &u32| self.by_index(space, ifindex).is_none();
                let new = Device {
                    space,
                    ifindex: std::iter::once(old.ifindex)
                        .chain(FIRST_INDEX..=LAST_INDEX)
                        .find(free)?,
                    name: if y % 4 == 0 { name(x) } else { old.name },
                    ..old
                };
                self.put(at, new).map(|()| Done::Moved { old, new })
            }
            14 => Some(Done::Altered(old)),
            _ => Some(Done::Released(old)),
        }
    }

    fn put(&mut self, at: usize, new: Device) -> Option<()> {
        if self.collides(&new) {
            return None;
        }
        self.devices[at] = new;
        Some(())
    }

    fn collides(&self, new: &Device) -> bool {
        self.devices.iter().any(|device| {
            device.id != new.id
                && device.space == new.space
                && (device.ifindex == new.ifindex || device.name == new.name)
        })
    }
}

/// How a kernel with this host goes about it, and how much it lets whoever listens fall behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conduct {
    /// How many messages or records the queue takes.
    pub(crate) room: usize,
    /// Nothing happens but when everything before was read and looked up.
    pub(crate) calm: bool,
    /// Indexes are used again at once.
    pub(crate) reuses: bool,
    /// Linux 5.10 overwrites the name before it tells that a device went elsewhere and is called otherwise there.
    pub(crate) overwrites: bool,
    /// Linux 7.2 answers a question about one link without waiting for RTNL: the answer can be ahead of what is told.
    pub(crate) lockless: bool,
}

/// The least that can go wrong.
pub(crate) const CALM: Conduct = Conduct {
    room: usize::MAX,
    calm: true,
    reuses: false,
    overwrites: false,
    lockless: false,
};

impl Conduct {
    /// A host where this much has happened before anybody looks.
    pub(crate) fn host(self, before: impl IntoIterator<Item = (u8, Attempt)>) -> Host {
        let mut host = Host {
            fresh_indexes: !self.reuses,
            ..Host::default()
        };
        for (_, attempt) in before {
            host.attempt(attempt);
        }
        host
    }

    /// A device that moves, as the kernel shows it when it tells of its going.
    pub(crate) fn going(self, old: Device, new: Device) -> Device {
        let name = if self.overwrites { new.name } else { old.name };
        Device { name, ..old }
    }
}

pub(crate) fn conduct() -> impl Strategy<Value = Conduct> {
    let room = prop_oneof![Just(usize::MAX), 1_usize..6];
    let flags = any::<[bool; 4]>();
    (room, flags).prop_map(|(room, [calm, reuses, overwrites, lockless])| Conduct {
        room,
        calm,
        reuses,
        overwrites,
        lockless,
    })
}

/// What will happen, each after so many system calls.
pub(crate) fn script(most: usize) -> impl Strategy<Value = Vec<(u8, Attempt)>> {
    prop::collection::vec((0_u8..12, any::<Attempt>()), 0..most)
}

/// At least so many sequences; `PROPTEST_CASES` asks for more.
pub(crate) fn cases(least: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(least),
        failure_persistence: None,
        ..default
    }
}

/// What a watch was last told, as states of the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) watch: Watch,
    pub(crate) holder: Option<Device>,
    /// Who held the name last.
    pub(crate) last: Option<Device>,
}

impl Told {
    pub(crate) fn new(watch: Watch, host: &Host) -> Self {
        let holder = host.by_name(watch);
        Self {
            watch,
            holder,
            last: holder,
        }
    }

    /// What is to be said now, whatever happened in between; it counts as told.
    pub(crate) fn tell(&mut self, host: &Host) -> Option<EventKind> {
        let now = host.by_name(self.watch);
        let kind = match (self.holder, now) {
            (None, None) => None,
            (Some(old), Some(new)) if old.id == new.id => None,
            (_, Some(Device { id, ifindex, .. })) => Some(match self.last {
                None => EventKind::Appeared { ifindex },
                Some(last) if last.id == id => EventKind::Returned { ifindex },
                Some(last) => EventKind::Recreated {
                    ifindex,
                    old_ifindex: last.ifindex,
                },
            }),
            (Some(Device { id, ifindex, .. }), None) => Some(match host.by_id(id) {
                None => EventKind::Deleted { ifindex },
                Some(there) if netns(there.space) == self.watch.netns => EventKind::Renamed {
                    ifindex,
                    to: there.name,
                },
                Some(there) => EventKind::Moved {
                    ifindex,
                    to_netns: Some(netns(there.space)),
                    to_ifindex: Some(there.ifindex),
                },
            }),
        };
        self.holder = now;
        self.last = now.or(self.last);
        kind
    }
}

/// Numbers that look random and depend on the seed alone (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// So many attempts, each after fewer system calls than `pace`.
    pub(crate) fn script(&mut self, burst: u64, pace: u64) -> Vec<(u8, Attempt)> {
        (0..burst)
            .map(|_| ((self.next() % pace) as u8, self.bytes()))
            .collect()
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// How long a run with a seed is, and the seed: `IFMON_MODEL_STEPS`, `IFMON_MODEL_SEED`.
pub(crate) fn run_length(default: u64) -> (u64, u64) {
    let number = |variable: &str| std::env::var(variable).ok()?.parse().ok();
    (
        number("IFMON_MODEL_STEPS").unwrap_or(default),
        number("IFMON_MODEL_SEED").unwrap_or(1),
    )
}
