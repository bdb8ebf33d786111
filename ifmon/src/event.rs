//! The verdicts, as a caller sees them.

use std::{fmt, time::SystemTime};

use crate::{Error, InterfaceName, NetnsId};

/// Something happened to a watched interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When the kernel made the change where the backend knows it (the BPF ones), else when it was read.
    pub time: SystemTime,
    /// The watched name, whatever the device is called by now.
    pub interface: InterfaceName,
    /// The namespace of the watch.
    pub netns: NetnsId,
    /// What happened.
    pub kind: EventKind,
    /// How it was learnt.
    pub backend: BackendKind,
    /// Who did it; `None` where the backend cannot know (netlink never says).
    pub by: Option<Actor>,
    /// The change was found by reading the state again after a loss, so its time is that of the reading.
    pub recovered: bool,
}

/// What happened to a watched interface. An `ifindex` is the kernel's index of a device within its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The watch is live and the state was read after that. Once, first.
    Watching {
        /// `None` while no interface has the name.
        ifindex: Option<u32>,
    },
    /// The device was unregistered, by whatever cause.
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
    /// Nobody had the name since the watch began, and now somebody has.
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
    /// Events were lost on the way and the state was read again. What had changed follows as an event of its own.
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

impl Event {
    /// Is the interface no longer the one that its user set up? See [`EventKind::should_restart`].
    pub const fn should_restart(&self) -> bool {
        self.kind.should_restart()
    }

    /// The event as an error, for those that leave the watch without its interface: deleted, renamed, moved.
    ///
    /// `None` for the others; a recreated interface calls for a restart, but nothing is wrong with it.
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
pub enum BackendKind {
    /// A BPF program at the entry of `rtnetlink_event`, through a BPF trampoline.
    Fentry,
    /// The same program at the same place, through a kprobe.
    Kprobe,
    /// A netlink subscription with a filter in the kernel.
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
            Self::Netlink => "netlink",
            Self::NetlinkUnfiltered => "netlink-unfiltered",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The task that made a change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Actor {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Name of the thread, 15 bytes at most, as in `/proc/PID/comm`.
    pub comm: String,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Id of its cgroup: the inode number of the cgroup's directory (version 2).
    pub cgroup: u64,
    /// A kernel thread acted for somebody (a namespace ended, hardware was unplugged), so `pid` is not who wanted it.
    pub kthread: bool,
}
