//! Reads kernel structures through the offsets that the loader took from the running kernel's BTF.
//!
//! Rust cannot emit CO-RE relocations, so the offsets are constants of the loaded program: the verifier folds them.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
};
use ifmon_ebpf::{Name, Place};

/// A constant that the loader sets, by its name. Each stands alone, since a load reads the whole of a global.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

constants! {
    /// `netdev_notifier_info.dev`
    INFO_DEV,
    /// `net_device.name`
    DEV_NAME,
    /// `net_device.ifindex`
    DEV_IFINDEX,
    /// `net_device.nd_net.net`
    DEV_NET,
    /// The 32-bit word that holds `net_device.reg_state`, which is a bit field on some kernels …
    DEV_REG_STATE,
    /// … to be shifted right by this …
    REG_STATE_SHIFT,
    /// … and masked with this.
    REG_STATE_MASK,
    /// `net.ns.inum`
    NET_INUM,
    /// `task_struct.flags`
    TASK_FLAGS,
    /// `NETDEV_REGISTER`
    EVENT_REGISTER,
    /// `NETDEV_UNREGISTER`
    EVENT_UNREGISTER,
    /// `NETDEV_CHANGENAME`
    EVENT_CHANGE_NAME,
}

/// The events of `enum netdev_cmd` that change who holds a name.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Event {
    Register = 1,
    Unregister = 2,
    ChangeName = 3,
}

impl Event {
    #[inline(always)]
    pub(crate) fn of(event: u64) -> Option<Self> {
        if event == u64::from(EVENT_REGISTER.load()) {
            Some(Self::Register)
        } else if event == u64::from(EVENT_UNREGISTER.load()) {
            Some(Self::Unregister)
        } else if event == u64::from(EVENT_CHANGE_NAME.load()) {
            Some(Self::ChangeName)
        } else {
            None
        }
    }
}

/// A `struct net_device *`.
#[derive(Clone, Copy)]
pub(crate) struct Device(pub(crate) u64);

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails on a fault; any bits are a valid integer.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}

impl Device {
    /// The device of a `struct netdev_notifier_info *`.
    #[inline(always)]
    pub(crate) fn of(info: u64) -> Option<Self> {
        read(info, INFO_DEV.load()).map(Self)
    }

    /// The inode number of its namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> Option<u32> {
        let Self(device) = self;
        read(read(device, DEV_NET.load())?, NET_INUM.load())
    }

    /// Where it is, in this namespace.
    #[inline(always)]
    pub(crate) fn place(self, netns: u32) -> Option<Place> {
        let Self(device) = self;
        Some(Place {
            name: self.name()?,
            netns,
            ifindex: read(device, DEV_IFINDEX.load())?,
        })
    }

    /// The name up to its NUL. What follows in `net_device.name` may be left over from a longer one, so it is not read.
    #[inline(always)]
    fn name(self) -> Option<Name> {
        let Self(device) = self;
        let mut name = Name([0; 2]);
        // SAFETY: the destination has the 16 bytes that are said, and the helper checks the source.
        let length = unsafe {
            bpf_probe_read_kernel_str(
                (&raw mut name).cast(),
                size_of::<Name>() as u32,
                device.wrapping_add(u64::from(DEV_NAME.load())) as *const _,
            )
        };
        (length > 0).then_some(name)
    }

    #[inline(always)]
    pub(crate) fn reg_state(self) -> Option<u32> {
        let Self(device) = self;
        let word: u32 = read(device, DEV_REG_STATE.load())?;
        Some(word >> (REG_STATE_SHIFT.load() & 31) & REG_STATE_MASK.load())
    }
}

/// Is the current task a kernel thread?
#[inline(always)]
pub(crate) fn is_kernel_thread() -> bool {
    // SAFETY: takes no argument; the task is only read through the checked helper.
    let task = unsafe { bpf_get_current_task() };
    read::<u32>(task, TASK_FLAGS.load()).is_some_and(|flags| flags & PF_KTHREAD != 0)
}
