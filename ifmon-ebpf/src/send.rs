//! Fills a record and sends it.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid, generated::bpf_ktime_get_boot_ns,
};
use ifmon_ebpf::{Record, flag};

use crate::{filter::Change, maps, netdev};

/// Is the current thread's every change wanted, or everybody's?
#[inline(always)]
pub(crate) fn is_traced() -> bool {
    maps::control().is_some_and(|control| {
        control.open != 0
            || control.traced_thread != 0
                && control.traced_thread == bpf_get_current_pid_tgid() as u32
    })
}

/// Sends the change with who made it; `false` when the ring buffer is full.
#[inline(always)]
pub(crate) fn send(change: &Change) -> bool {
    let Some(mut entry) = maps::reserve() else {
        return false;
    };
    let kernel_thread = if netdev::is_kernel_thread() {
        flag::KTHREAD
    } else {
        0
    };
    entry.write(Record {
        // SAFETY: takes no argument.
        time: unsafe { bpf_ktime_get_boot_ns() },
        generation: change.generation,
        from: change.from,
        to: change.to,
        from_count: change.from_count,
        to_count: change.to_count,
        // SAFETY: takes no argument.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        comm: bpf_get_current_comm().unwrap_or_default(),
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        flags: change.flags | kernel_thread,
        reg_state: change.reg_state,
    });
    entry.submit(0);
    true
}
