//! When a change was made, and who made it: as much as the loader asked for.

use core::mem::{MaybeUninit, transmute};

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_current_uid_gid,
        generated::{bpf_get_current_comm, bpf_get_ns_current_pid_tgid, bpf_ktime_get_boot_ns},
    },
};
use ifmon_ebpf::{Record, flag};

use crate::{
    constants::{
        PIDNS_DEV, PIDNS_INO, TASK_FLAGS, TASK_TGID, WHO_CGROUP, WHO_COMM, WHO_KTHREAD, WHO_PID,
        WHO_UID,
    },
    read::read,
};

// What a program may ask at all. The constants rule out more, but not to a verifier that also goes
// where a processor may go by a wrong guess: to who has no CAP_PERFMON, before 6.17, it refuses a
// helper that he may not call even there.

/// Nothing.
pub(crate) const NOTHING: u8 = 0;
/// `bpf_get_current_pid_tgid`, `bpf_get_ns_current_pid_tgid` and `bpf_get_current_cgroup_id`.
pub(crate) const PID_AND_CGROUP: u8 = 1;
/// Anything.
pub(crate) const ANYTHING: u8 = 2;

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// The current thread's name, padded with NULs; `None` where that must not be asked for.
///
/// As two words, because sixteen zeros are a call of `memset` otherwise: its arithmetic with
/// pointers is refused to who has no CAP_PERFMON.
#[inline(always)]
pub(crate) fn comm<const ASKS: u8>() -> Option<[u64; 2]> {
    if ASKS < ANYTHING || WHO_COMM.load() == 0 {
        return None;
    }
    let mut comm = MaybeUninit::<[u64; 2]>::uninit();
    let size = size_of::<[u64; 2]>() as u32;
    // SAFETY: the helper writes as many bytes as it is told, also when it fails.
    let (failed, comm) = unsafe {
        let failed = bpf_get_current_comm(comm.as_mut_ptr().cast(), size);
        (failed, comm.assume_init())
    };
    (failed == 0).then_some(comm)
}

/// Adds when the change was made, which is now, and who made it: the current task.
///
/// # Safety
/// The record is there to be written, and all of it was.
#[inline(always)]
pub(crate) unsafe fn add<const ASKS: u8, K>(record: *mut Record<K>) {
    // SAFETY: says the caller.
    let record = unsafe { &mut *record };
    // SAFETY: takes no argument.
    record.time = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(pid) = pid::<ASKS>() {
        record.pid = pid;
        record.flags |= flag::HAS_PID;
    }
    if ASKS >= ANYTHING && WHO_UID.load() != 0 {
        record.uid = bpf_get_current_uid_gid() as u32;
        record.flags |= flag::HAS_UID;
    }
    if ASKS >= PID_AND_CGROUP && WHO_CGROUP.load() != 0 {
        // SAFETY: takes no argument.
        record.cgroup = unsafe { bpf_get_current_cgroup_id() };
        record.flags |= flag::HAS_CGROUP;
    }
    if let Some(comm) = comm::<ASKS>() {
        // SAFETY: as many bytes, any of which are valid.
        record.comm = unsafe { transmute::<[u64; 2], [u8; 16]>(comm) };
        record.flags |= flag::HAS_COMM;
    }
    if ASKS >= ANYTHING
        && WHO_KTHREAD.load() != 0
        && let Some(task_flags) = of_task::<u32>(TASK_FLAGS.load())
    {
        record.flags |= flag::HAS_KTHREAD;
        if task_flags & PF_KTHREAD != 0 {
            record.flags |= flag::KTHREAD;
        }
    }
}

#[inline(always)]
fn pid<const ASKS: u8>() -> Option<u32> {
    if ASKS < PID_AND_CGROUP {
        return None;
    }
    let how = WHO_PID.load();
    if how == 1 {
        Some((bpf_get_current_pid_tgid() >> 32) as u32)
    } else if ASKS >= ANYTHING && how == 2 {
        of_task(TASK_TGID.load())
    } else if how == 3 {
        let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
        let size = size_of::<bpf_pidns_info>() as u32;
        let (dev, ino) = (PIDNS_DEV.load(), PIDNS_INO.load());
        // SAFETY: the helper writes as many bytes as it is told. It fails for a task of another
        // namespace, as a worker of the kernel is.
        let failed = unsafe { bpf_get_ns_current_pid_tgid(dev, ino, &raw mut info, size) };
        (failed == 0).then_some(info.tgid)
    } else {
        None
    }
}

/// A field of the current task.
#[inline(always)]
fn of_task<T>(offset: u32) -> Option<T> {
    // SAFETY: takes no argument; the task is only read through the checked helper.
    read(unsafe { bpf_get_current_task() }, offset)
}
