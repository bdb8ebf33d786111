//! What the programs are told of the running kernel.

use aya::Btf;
use ifmon_ebpf::HOOK;

use super::btf;
use crate::Unavailable;

/// Where the kernel keeps what the programs read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelLayout(btf::Layout);

impl KernelLayout {
    /// From the BTF of the running kernel.
    pub(crate) fn read() -> Result<Self, Unavailable> {
        btf::read_layout(btf::VMLINUX)
            .map(Self)
            .map_err(|error| Unavailable::Btf(Box::new(error)))
    }

    /// Can the process that makes a change be read from its task?
    pub(crate) fn has_tgid(&self) -> bool {
        self.0.offsets.task_tgid.is_some()
    }

    /// The constants of the programs for patterns; `None` where the kind of a device cannot be read.
    pub(crate) fn constants_for_patterns(&self) -> Option<[(&'static str, u32); 2]> {
        let kind = self.0.offsets.kind?;
        Some([
            ("DEV_LINK_OPS", kind.dev_link_ops),
            ("LINK_OPS_KIND", kind.link_ops_kind),
        ])
    }

    /// The constants of the programs, by name (`ifmon-ebpf/src/constants.rs`).
    pub(crate) fn constants(&self) -> [(&'static str, u32); 13] {
        let btf::Layout {
            offsets,
            events,
            funcs: _,
        } = self.0;
        // The programs load 32 bits of `reg_state`, and mask them: on a little-endian machine, and
        // ifmon has objects for no other, the bits wanted are the same whatever the field's size.
        let reg_state = offsets.dev_reg_state;
        [
            ("INFO_DEV", offsets.notifier_info_dev),
            ("DEV_NAME", offsets.dev_name),
            ("DEV_IFINDEX", offsets.dev_ifindex),
            ("DEV_NET", offsets.dev_net),
            ("DEV_REG_STATE", reg_state.offset),
            ("REG_STATE_SHIFT", reg_state.shift),
            ("REG_STATE_MASK", reg_state.mask),
            ("NET_INUM", offsets.net_inum),
            ("TASK_FLAGS", offsets.task_flags),
            ("TASK_TGID", offsets.task_tgid.unwrap_or_default()),
            ("EVENT_REGISTER", events.register),
            ("EVENT_UNREGISTER", events.unregister),
            ("EVENT_CHANGE_NAME", events.change_name),
        ]
    }

    /// A BTF in which the hooked function has the id that it has in the kernel, and nothing else is
    /// worth having: all that aya takes from it is that id, and parsing the kernel's own would cost
    /// tens of megabytes.
    pub(crate) fn hook_btf(&self) -> Result<Btf, Unavailable> {
        let hook = self.0.funcs.rtnetlink_event;
        hook.and_then(|id| btf::btf_with_func(HOOK, id))
            .ok_or(Unavailable::NoFunction)
    }
}
