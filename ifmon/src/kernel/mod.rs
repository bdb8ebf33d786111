//! What is known of the running kernel, in one place.

pub mod btf;
mod facts;
pub(crate) mod load;
pub(crate) mod pseudo;
mod unavailable;

pub use facts::{Facts, Lockdown};
pub use unavailable::Unavailable;

use aya::{Btf, Endianness};
use ifmon_ebpf::HOOK;

/// Where the kernel keeps what the programs read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The constants of the programs, by name (`ifmon-ebpf/src/netdev.rs`).
    pub(crate) constants: [(&'static str, u32); 12],
    /// BTF id of the function that is hooked.
    hook: Option<u32>,
}

impl Layout {
    /// From the BTF of the running kernel.
    pub(crate) fn read() -> Result<Self, Unavailable> {
        let btf::Layout {
            offsets,
            events,
            funcs,
        } = btf::read_layout(btf::VMLINUX).map_err(Unavailable::Btf)?;
        // The programs load 32 bits of `reg_state`, and mask them: on a little-endian machine, and ifmon has objects for
        // no other, the bits wanted are the same whatever the field's size.
        let reg_state = offsets.dev_reg_state;
        Ok(Self {
            constants: [
                ("INFO_DEV", offsets.notifier_info_dev),
                ("DEV_NAME", offsets.dev_name),
                ("DEV_IFINDEX", offsets.dev_ifindex),
                ("DEV_NET", offsets.dev_net),
                ("DEV_REG_STATE", reg_state.offset),
                ("REG_STATE_SHIFT", reg_state.shift),
                ("REG_STATE_MASK", reg_state.mask),
                ("NET_INUM", offsets.net_inum),
                ("TASK_FLAGS", offsets.task_flags),
                ("EVENT_REGISTER", events.register),
                ("EVENT_UNREGISTER", events.unregister),
                ("EVENT_CHANGE_NAME", events.change_name),
            ],
            hook: funcs.rtnetlink_event,
        })
    }

    /// A BTF in which the hooked function has the id that it has in the kernel, and nothing else is worth having: all
    /// that aya takes from it is that id, and parsing the kernel's own would cost tens of megabytes.
    pub(crate) fn hook_btf(&self) -> Result<Btf, Unavailable> {
        let btf = self
            .hook
            .and_then(|id| btf::btf_with_func(HOOK, id))
            .ok_or(Unavailable::NoFunction)?;
        Btf::parse(&btf, Endianness::default()).map_err(Unavailable::other)
    }
}
