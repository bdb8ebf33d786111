//! What the kernel side of ifmon and its userspace share: the layout of every map and record, and
//! the filter, which the tests of the userspace side run between maps of their own.
//!
//! All types are `repr(C)` without implicit padding, because both sides copy them as bytes and
//! because a hash map compares its keys with `memcmp`. Numbers are in the host's byte order.

#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(
        internal_features,
        reason = "the only name that an atomic addition has on BPF"
    )
)]

#[doc(hidden)]
pub mod filter;
mod object;
mod wire;

pub use object::{OBJECT, OBJECT_OF_NAMES, OBJECT_WITH_LOG};
pub use wire::{
    Control, Counters, DeviceState, EVERYWHERE, KERNEL_EPOCH, Leaving, Link, MASKS, Match, Name,
    NameKey, NameMask, NameState, PatternSet, PatternState, Place, Record, Shared, USERSPACE_ID,
    flag, namespace_key,
};

/// The kernel function that both tracing programs hook: the notifier callback that turns `NETDEV_*`
/// into `RTM_*` messages.
///
/// It is address-taken (so never inlined away), has one prototype from 5.10 to 7.3, and is called
/// under RTNL on the register, unregister and rename paths (`net/core/rtnetlink.c`).
pub const HOOK: &str = "rtnetlink_event";

/// Program names in the object, by the way they attach.
pub const FENTRY_PROGRAM: &str = "ifmon_fentry";
/// See [`FENTRY_PROGRAM`].
pub const KPROBE_PROGRAM: &str = "ifmon_kprobe";
/// See [`FENTRY_PROGRAM`]: the filter of a `NETLINK_ROUTE` socket that is subscribed to link
/// messages.
pub const SOCKET_PROGRAM: &str = "ifmon_socket";
/// The same for who has no CAP_PERFMON before 6.17: of who makes a change it asks pid and cgroup
/// alone.
pub const SOCKET_PID_PROGRAM: &str = "ifmon_socket_pid";
/// The same where not even these may be asked for, before 6.10: it asks nothing.
pub const SOCKET_NOBODY_PROGRAM: &str = "ifmon_socket_nobody";

/// `NETREG_REGISTERED` of `enum netreg_state` (`include/linux/netdevice.h`).
pub const NETREG_REGISTERED: u32 = 1;
/// `NETREG_UNREGISTERING`. The notification is repeated with `NETREG_UNREGISTERED` (3) while
/// references leak.
pub const NETREG_UNREGISTERING: u32 = 2;

/// The loopback device is the first of its namespace and goes with it: `loopback_net_init` of
/// `drivers/net/loopback.c` insists on this index.
pub const LOOPBACK_IFINDEX: u32 = 1;
