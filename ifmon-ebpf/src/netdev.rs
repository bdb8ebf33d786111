//! Reads kernel structures through the offsets that the loader took from the running kernel's BTF.
//!
//! Rust cannot emit CO-RE relocations, so the offsets are constants of the loaded program: the verifier folds them.

use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str,
};
use ifmon_ebpf::{Name, Place};

use crate::maps::OFFSETS;

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
        let offsets = OFFSETS.load();
        if event == u64::from(offsets.event_register) {
            Some(Self::Register)
        } else if event == u64::from(offsets.event_unregister) {
            Some(Self::Unregister)
        } else if event == u64::from(offsets.event_change_name) {
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
        read(info, OFFSETS.load().info_dev).map(Self)
    }

    #[inline(always)]
    pub(crate) fn place(self) -> Option<Place> {
        let Self(device) = self;
        let offsets = OFFSETS.load();
        let net: u64 = read(device, offsets.dev_net)?;
        Some(Place {
            name: self.name()?,
            netns: read(net, offsets.net_inum)?,
            ifindex: read(device, offsets.dev_ifindex)?,
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
                device.wrapping_add(u64::from(OFFSETS.load().dev_name)) as *const _,
            )
        };
        (length > 0).then_some(name)
    }

    #[inline(always)]
    pub(crate) fn reg_state(self) -> Option<u32> {
        let Self(device) = self;
        let offsets = OFFSETS.load();
        let word: u32 = read(device, offsets.dev_reg_state)?;
        Some(word >> (offsets.reg_state_shift & 31) & offsets.reg_state_mask)
    }
}

/// Is the current task a kernel thread?
#[inline(always)]
pub(crate) fn is_kernel_thread() -> bool {
    // SAFETY: takes no argument; the task is only read through the checked helper.
    let task = unsafe { bpf_get_current_task() };
    read::<u32>(task, OFFSETS.load().task_flags).is_some_and(|flags| flags & PF_KTHREAD != 0)
}
