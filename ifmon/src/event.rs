//! The verdicts, as a caller sees them.

use std::{fmt, time::SystemTime};

use crate::{Error, InterfaceName, LinkKind, NetnsId, Pattern};

/// Something happened to a watched interface.
///
/// With the feature `serde` it is one flat map: `kind` becomes `event`, its name, and what it
/// tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Event {
    /// When the kernel made the change where the backend knows it (the BPF ones), else when it was
    /// read.
    pub time: SystemTime,
    /// The watched name, whatever the device is called by now. Of a pattern: what the device was
    /// called until now, or has just come to be called; [`InterfaceName::NONE`] in what is said of
    /// the pattern as a whole, which is `Watching` and `Resynced`.
    pub interface: InterfaceName,
    /// The pattern that is watched, where it is one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub pattern: Option<Pattern>,
    /// How many devices match, in what is said of a pattern as a whole.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub matches: Option<u32>,
    /// Of a pattern, when a device appears or is deleted: its kind, if it has one.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "kind", skip_serializing_if = "Option::is_none")
    )]
    pub link_kind: Option<LinkKind>,
    /// The namespace of the watch.
    pub netns: NetnsId,
    /// What happened.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub kind: EventKind,
    /// How it was learnt.
    pub backend: BackendKind,
    /// Who did it; `None` where the backend cannot know (netlink never says).
    pub by: Option<Actor>,
    /// The change was found by reading the state, after a loss or because another device was
    /// [expected](crate::Target::expect), so its time is that of the reading.
    pub recovered: bool,
}

/// What happened to a watched interface. An `ifindex` is the kernel's index of a device within its
/// namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum EventKind {
    /// The watch is live and the state was read after that. Once, first.
    Watching {
        /// `None` while no interface has the name, and for a pattern (see [`Event::matches`]).
        ifindex: Option<u32>,
    },
    /// The device was unregistered, by whatever cause. If its network namespace has ended, as `fentry`
    /// and `kprobe` tell, so have the watches in it.
    Deleted {
        /// Of the device that is gone.
        ifindex: u32,
    },
    /// The device has another name now.
    Renamed {
        /// Of the device, which keeps it.
        ifindex: u32,
        /// Its new name.
        to: InterfaceName,
    },
    /// The device went to another network namespace.
    Moved {
        /// Its index before.
        ifindex: u32,
        /// The namespace that it went to, where that can be known.
        to_netns: Option<NetnsId>,
        /// Its index there, where that can be known.
        to_ifindex: Option<u32>,
    },
    /// Nobody had the name since the watch began, and now somebody has. Of a pattern: a device matches
    /// that did not, be it new, renamed or moved.
    Appeared {
        /// Of the new device.
        ifindex: u32,
    },
    /// The name exists again, on another device.
    Recreated {
        /// Of the new device.
        ifindex: u32,
        /// Of the device that had the name before; it can be the same number.
        old_ifindex: u32,
    },
    /// The name exists again, on the device that had it before.
    Returned {
        /// Of the device.
        ifindex: u32,
    },
    /// Events were lost on the way and the state was read again. What had changed follows as an
    /// event of its own.
    Resynced {
        /// How many, where that is known.
        lost: Option<u64>,
        /// Whether the state was found changed.
        changed: bool,
        /// Of the device that has the name now.
        ifindex: Option<u32>,
    },
}

impl EventKind {
    /// Every name that [`Self::as_str`] gives, in the order of the variants.
    pub const NAMES: &'static [&'static str] = &[
        "watching",
        "deleted",
        "renamed",
        "moved",
        "appeared",
        "recreated",
        "returned",
        "resynced",
    ];

    /// The name of the event in JSON and in `IFMON_EVENT`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Watching { .. } => "watching",
            Self::Deleted { .. } => "deleted",
            Self::Renamed { .. } => "renamed",
            Self::Moved { .. } => "moved",
            Self::Appeared { .. } => "appeared",
            Self::Recreated { .. } => "recreated",
            Self::Returned { .. } => "returned",
            Self::Resynced { .. } => "resynced",
        }
    }

    /// The index that the event is about, if any.
    pub const fn ifindex(&self) -> Option<u32> {
        match *self {
            Self::Watching { ifindex } | Self::Resynced { ifindex, .. } => ifindex,
            Self::Deleted { ifindex }
            | Self::Renamed { ifindex, .. }
            | Self::Moved { ifindex, .. }
            | Self::Appeared { ifindex }
            | Self::Recreated { ifindex, .. }
            | Self::Returned { ifindex } => Some(ifindex),
        }
    }

    /// Is the interface no longer the one that its user set up?
    pub const fn should_restart(&self) -> bool {
        match self {
            Self::Deleted { .. }
            | Self::Renamed { .. }
            | Self::Moved { .. }
            | Self::Recreated { .. } => true,
            Self::Watching { .. }
            | Self::Appeared { .. }
            | Self::Returned { .. }
            | Self::Resynced { .. } => false,
        }
    }
}

/// What an event tells beside its name, its index and what all events have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The name of an interface.
    Name(InterfaceName),
    /// A network namespace, where that can be known.
    Netns(Option<NetnsId>),
    /// The index of a device, or a count, where that can be known.
    Number(Option<u64>),
    /// True or false.
    Flag(bool),
}

impl EventKind {
    /// What it tells beside [`EventKind::ifindex`], with the names that this has in JSON, and in
    /// capitals for hooks.
    pub fn fields(&self) -> Vec<(&'static str, Field)> {
        let index = |ifindex: Option<u32>| Field::Number(ifindex.map(u64::from));
        match *self {
            Self::Watching { ifindex: _ }
            | Self::Deleted { ifindex: _ }
            | Self::Appeared { ifindex: _ }
            | Self::Returned { ifindex: _ } => vec![],
            Self::Renamed { ifindex: _, to } => vec![("to", Field::Name(to))],
            Self::Moved {
                ifindex: _,
                to_netns,
                to_ifindex,
            } => vec![
                ("to_netns", Field::Netns(to_netns)),
                ("to_ifindex", index(to_ifindex)),
            ],
            Self::Recreated {
                ifindex: _,
                old_ifindex,
            } => vec![("old_ifindex", index(Some(old_ifindex)))],
            Self::Resynced {
                lost,
                changed,
                ifindex: _,
            } => vec![
                ("lost", Field::Number(lost)),
                ("changed", Field::Flag(changed)),
            ],
        }
    }

    /// The index of the device that has the name after this event; `None` when no device has it.
    pub const fn holder(&self) -> Option<u32> {
        match *self {
            Self::Deleted { .. } | Self::Renamed { .. } | Self::Moved { .. } => None,
            Self::Watching { ifindex } | Self::Resynced { ifindex, .. } => ifindex,
            Self::Appeared { ifindex }
            | Self::Recreated { ifindex, .. }
            | Self::Returned { ifindex } => Some(ifindex),
        }
    }

    /// What happened to a name, in words for a person: of a pattern, [`Event::matches`] says how many
    /// there are. The caller knows what to call a namespace.
    pub fn describe(&self, netns: impl FnOnce(NetnsId) -> String) -> String {
        match self {
            Self::Watching { ifindex: None } => "does not exist yet".to_owned(),
            Self::Watching {
                ifindex: Some(ifindex),
            }
            | Self::Deleted { ifindex }
            | Self::Appeared { ifindex }
            | Self::Returned { ifindex } => format!("ifindex {ifindex}"),
            Self::Renamed { ifindex, to } => format!("ifindex {ifindex} is now {to}"),
            Self::Moved {
                ifindex,
                to_netns,
                to_ifindex,
            } => {
                let place = to_netns.map_or_else(|| "another network namespace".to_owned(), netns);
                let there = to_ifindex
                    .map_or_else(String::new, |ifindex| format!(", ifindex {ifindex} there"));
                format!("ifindex {ifindex} went to {place}{there}")
            }
            Self::Recreated {
                ifindex,
                old_ifindex,
            } => format!("ifindex {ifindex}, another device than the one before ({old_ifindex})"),
            Self::Resynced {
                lost,
                changed,
                ifindex: _,
            } => {
                let lost = match lost {
                    Some(1) => "1 event was".to_owned(),
                    Some(lost) => format!("{lost} events were"),
                    None => "some events were".to_owned(),
                };
                let found = if *changed { "changed" } else { "unchanged" };
                format!("{lost} lost, the state was read again and is {found}")
            }
        }
    }
}

impl Event {
    /// Is the interface no longer the one that its user set up? See [`EventKind::should_restart`].
    pub const fn should_restart(&self) -> bool {
        self.kind.should_restart()
    }

    /// The event as an error, for those that leave the watch without its interface: deleted,
    /// renamed, moved.
    ///
    /// `None` for the others; a recreated interface calls for a restart, but nothing is wrong with
    /// it.
    pub fn error(&self) -> Option<Error> {
        let interface = self.interface;
        match self.kind {
            EventKind::Deleted { .. } => Some(Error::Deleted { interface }),
            EventKind::Renamed { to, .. } => Some(Error::Renamed { interface, to }),
            EventKind::Moved { to_netns, .. } => Some(Error::Moved {
                interface,
                to_netns,
            }),
            EventKind::Watching { .. }
            | EventKind::Appeared { .. }
            | EventKind::Recreated { .. }
            | EventKind::Returned { .. }
            | EventKind::Resynced { .. } => None,
        }
    }
}

/// The way in which events reach ifmon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum BackendKind {
    /// A BPF program at the entry of `rtnetlink_event`, through a BPF trampoline.
    Fentry,
    /// The same program at the same place, through a kprobe.
    Kprobe,
    /// A BPF program as the filter of a netlink socket.
    NetlinkEbpf,
    /// The agent of the host (`ifmon --serve`), and netlink while it is away.
    Agent,
    /// A netlink subscription with a filter in the kernel (classic BPF).
    Netlink,
    /// A netlink subscription that is woken for every link of its namespace.
    NetlinkUnfiltered,
}

impl BackendKind {
    /// The name on the command line and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::NetlinkEbpf => "netlink-ebpf",
            Self::Agent => "agent",
            Self::Netlink => "netlink",
            Self::NetlinkUnfiltered => "netlink-unfiltered",
        }
    }

    /// Is it one with a BPF program, which takes CAP_BPF, and can tell who made a change?
    pub const fn is_ebpf(self) -> bool {
        match self {
            Self::Fentry | Self::Kprobe | Self::NetlinkEbpf => true,
            Self::Agent | Self::Netlink | Self::NetlinkUnfiltered => false,
        }
    }

    /// Does watching another network namespace keep it alive?
    pub const fn keeps_netns_alive(self) -> bool {
        match self {
            Self::Fentry | Self::Kprobe => false,
            Self::NetlinkEbpf | Self::Agent | Self::Netlink | Self::NetlinkUnfiltered => true,
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The task that made a change. What the kernel does not say, or must not say to us, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Actor {
    /// Process id in the pid namespace of this process; `None` for a process that has none there.
    pub pid: Option<u32>,
    /// Name of the thread, 15 bytes at most, as in `/proc/PID/comm`.
    pub comm: Option<String>,
    /// User id in the initial user namespace.
    pub uid: Option<u32>,
    /// Id of its cgroup: the inode number of the cgroup's directory (version 2).
    pub cgroup: Option<u64>,
    /// A kernel thread acted for somebody (a namespace ended, hardware was unplugged), so `pid` is
    /// not who wanted it.
    pub kthread: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_its_name_in_the_list() {
        let ifindex = 7;
        let to = InterfaceName::new("wg1").expect("a good name");
        let mut kind = EventKind::Watching { ifindex: None };
        for name in EventKind::NAMES {
            assert_eq!(kind.as_str(), *name);
            let restarts = ["deleted", "renamed", "moved", "recreated"];
            assert_eq!(kind.should_restart(), restarts.contains(name), "{name}");
            #[cfg(feature = "serde")]
            assert_eq!(serde_json::json!(kind)["event"], *name);
            // A new variant does not compile before it has its place here; then the list is too
            // short for it.
            kind = match kind {
                EventKind::Watching { .. } => EventKind::Deleted { ifindex },
                EventKind::Deleted { .. } => EventKind::Renamed { ifindex, to },
                EventKind::Renamed { .. } => EventKind::Moved {
                    ifindex,
                    to_netns: None,
                    to_ifindex: None,
                },
                EventKind::Moved { .. } => EventKind::Appeared { ifindex },
                EventKind::Appeared { .. } => EventKind::Recreated {
                    ifindex,
                    old_ifindex: ifindex,
                },
                EventKind::Recreated { .. } => EventKind::Returned { ifindex },
                EventKind::Returned { .. } => EventKind::Resynced {
                    lost: None,
                    changed: false,
                    ifindex: None,
                },
                EventKind::Resynced { .. } => EventKind::Watching { ifindex: None },
            };
        }
        assert_eq!(kind, EventKind::Watching { ifindex: None });
    }

    #[cfg(feature = "serde")]
    #[test]
    fn an_event_is_one_flat_map() {
        let event = Event {
            time: SystemTime::UNIX_EPOCH,
            interface: InterfaceName::new(b"wg\xff").expect("a good name"),
            pattern: None,
            matches: None,
            link_kind: None,
            netns: NetnsId(4_026_531_840),
            kind: EventKind::Moved {
                ifindex: 7,
                to_netns: None,
                to_ifindex: Some(9),
            },
            backend: BackendKind::NetlinkEbpf,
            by: Some(Actor {
                pid: Some(4242),
                ..Actor::default()
            }),
            recovered: false,
        };
        assert_eq!(
            serde_json::to_value(event).expect("nothing that JSON lacks"),
            serde_json::json!({
                "time": {"secs_since_epoch": 0, "nanos_since_epoch": 0},
                "interface": "wg\u{fffd}",
                "netns": 4_026_531_840_u32,
                "event": "moved",
                "ifindex": 7,
                "to_netns": null,
                "to_ifindex": 9,
                "backend": "netlink-ebpf",
                "by": {"pid": 4242, "comm": null, "uid": null, "cgroup": null, "kthread": null},
                "recovered": false,
            })
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_backend_has_its_name_with_serde() {
        for kind in crate::backend::ALL {
            assert_eq!(serde_json::json!(kind), kind.as_str());
        }
    }
}
