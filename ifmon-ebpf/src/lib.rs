//! What the kernel side of ifmon and its userspace share: the layout of every map and record.
//!
//! All types are `repr(C)` without implicit padding, because both sides copy them as bytes and because a hash map
//! compares its keys with `memcmp`. Numbers are in the host's byte order.

#![no_std]

mod object;
mod wire;

pub use object::{OBJECT, OBJECT_WITH_LOG};
pub use wire::{
    Control, Counters, DeviceState, Link, Name, NameKey, NameState, Place, Record, Seed, flag,
};

/// The kernel function that both programs hook: the notifier callback that turns `NETDEV_*` into `RTM_*` messages.
///
/// It is address-taken (so never inlined away), has one prototype from 5.10 to 7.3, and is called under RTNL on the
/// register, unregister and rename paths (`net/core/rtnetlink.c`).
pub const HOOK: &str = "rtnetlink_event";

/// Program names in the object, by the way they attach.
pub const FENTRY_PROGRAM: &str = "ifmon_fentry";
/// See [`FENTRY_PROGRAM`].
pub const KPROBE_PROGRAM: &str = "ifmon_kprobe";

/// `NETREG_REGISTERED` of `enum netreg_state` (`include/linux/netdevice.h`).
pub const NETREG_REGISTERED: u32 = 1;
/// `NETREG_UNREGISTERING`. The notification is repeated with `NETREG_UNREGISTERED` (3) while references leak.
pub const NETREG_UNREGISTERING: u32 = 2;

/// The loopback device is the first of its namespace and goes with it: `net/core/dev.c` insists on this index.
pub const LOOPBACK_IFINDEX: u32 = 1;
