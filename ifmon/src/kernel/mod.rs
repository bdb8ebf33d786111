//! What is known of the running kernel, in one place.

pub mod btf;
mod facts;
pub(crate) mod load;
mod unavailable;

pub use facts::{Facts, Lockdown};
pub use unavailable::Unavailable;

use aya::{Btf, Endianness};
use ifmon_ebpf::{HOOK, Offsets};

/// Where the kernel keeps what the programs read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) offsets: Offsets,
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
        Ok(Self {
            offsets: Offsets {
                info_dev: offsets.notifier_info_dev,
                dev_name: offsets.dev_name,
                dev_ifindex: offsets.dev_ifindex,
                dev_net: offsets.dev_net,
                dev_reg_state: offsets.dev_reg_state.offset,
                reg_state_shift: offsets.dev_reg_state.shift,
                reg_state_mask: offsets.dev_reg_state.mask,
                net_inum: offsets.net_inum,
                task_flags: offsets.task_flags,
                event_register: events.register,
                event_unregister: events.unregister,
                event_change_name: events.change_name,
            },
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
