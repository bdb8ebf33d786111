//! The constants of the loaded programs. The loader sets them by name, and the verifier folds them,
//! so that what a constant rules out is not seen by it, and need not be allowed.

use aya_ebpf::Global;

/// Each stands alone, since a load reads the whole of a global.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<$type> = Global::new(0);)*
    };
}

// Where the kernel keeps what the programs read, from its BTF: Rust cannot emit CO-RE relocations.
constants! {
    /// `netdev_notifier_info.dev`
    INFO_DEV: u32,
    /// `net_device.name`
    DEV_NAME: u32,
    /// `net_device.ifindex`
    DEV_IFINDEX: u32,
    /// `net_device.nd_net.net`
    DEV_NET: u32,
    /// The 32-bit word that holds `net_device.reg_state`, which is a bit field on some kernels …
    DEV_REG_STATE: u32,
    /// … to be shifted right by this …
    REG_STATE_SHIFT: u32,
    /// … and masked with this.
    REG_STATE_MASK: u32,
    /// `net.ns.inum`
    NET_INUM: u32,
    /// `task_struct.flags`
    TASK_FLAGS: u32,
    /// `task_struct.tgid`
    TASK_TGID: u32,
    /// `NETDEV_REGISTER`
    EVENT_REGISTER: u32,
    /// `NETDEV_UNREGISTER`
    EVENT_UNREGISTER: u32,
    /// `NETDEV_CHANGENAME`
    EVENT_CHANGE_NAME: u32,
}

// The same for patterns.
#[cfg(feature = "patterns")]
constants! {
    /// `net_device.rtnl_link_ops`
    DEV_LINK_OPS: u32,
    /// `rtnl_link_ops.kind`
    LINK_OPS_KIND: u32,
}

// What is to be found out about who makes a change, and how: which of it a program may is a matter
// of the kernel, of the program's type and of capabilities.
constants! {
    /// 0: nothing. 1: `bpf_get_current_pid_tgid`. 2: `task_struct.tgid` at `TASK_TGID` of the current
    /// task. 3: `bpf_get_ns_current_pid_tgid`, as the process is known in the pid namespace …
    WHO_PID: u32,
    /// … with this device …
    PIDNS_DEV: u64,
    /// … and this inode number.
    PIDNS_INO: u64,
    /// 1: `bpf_get_current_uid_gid`
    WHO_UID: u32,
    /// 1: `bpf_get_current_cgroup_id`
    WHO_CGROUP: u32,
    /// 1: `bpf_get_current_comm`
    WHO_COMM: u32,
    /// 1: `task_struct.flags` at `TASK_FLAGS` of the current task
    WHO_KTHREAD: u32,
}
