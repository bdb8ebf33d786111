//! Proves that a tracing program reads the kernel right.

use std::io;

use ifmon_ebpf::{LOOPBACK_IFINDEX, NETREG_REGISTERED, Name, Place, Record, flag};
use rustix::thread::{UnshareFlags, set_name, unshare_unsafe};

use super::shared::Shared;
use crate::{InterfaceName, Netns, NetnsId, Unavailable, netns::on_a_thread};

/// Has a device made whose name, index and namespace are known, and looks at what the program says
/// of it: a fresh network namespace registers a `lo` of its own, and disturbs nobody. A wrong
/// offset would otherwise be wrong for ever, and silent.
///
/// `record` gives the next record that the program has sent. The namespace lives as long as what is
/// returned; there is none where it could not be had.
pub(super) fn run(
    shared: &mut Shared,
    mut record: impl FnMut() -> Option<Record>,
) -> Result<Option<Netns>, Unavailable> {
    // The thread is known to the program by its name, which is the same in every pid namespace.
    let comm = comm();
    let made = on_a_thread(|| -> io::Result<Netns> {
        let name = comm.split(|&byte| byte == 0).next().unwrap_or_default();
        set_name(&std::ffi::CString::new(name)?)?;
        shared.trace(comm);
        // SAFETY: this thread ends with the closure and shares its namespace with nobody.
        let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        let known = made.map_err(Into::into).and_then(|()| known());
        shared.trace_nobody();
        known
    });
    let netns = match made {
        Ok(netns) => netns,
        Err(error) => {
            // A process without CAP_SYS_ADMIN was not meant to: nothing for anybody to mend.
            let level = match error.kind() {
                io::ErrorKind::PermissionDenied => log::Level::Info,
                _ => log::Level::Warn,
            };
            log::log!(
                level,
                "could not prove that the BPF program reads this kernel right, because a network \
                 namespace of its own could not be had ({error}); going by the kernel's BTF alone"
            );
            return Ok(None);
        }
    };
    let expected = Place {
        name: Name::new(b"lo").unwrap_or_default(),
        netns: netns.id().0,
        ifindex: LOOPBACK_IFINDEX,
    };
    let mut seen = None;
    while let Some(record) = record() {
        let is_process = record.flags & flag::HAS_PID == 0 || record.pid == std::process::id();
        if record.to == expected
            && record.reg_state == NETREG_REGISTERED
            && is_process
            && record.flags & flag::KTHREAD == 0
        {
            return Ok(Some(netns));
        }
        seen = Some(record);
    }
    Err(Unavailable::Misread {
        netns: netns.id(),
        seen: seen.map(|record| {
            let Place {
                name,
                netns,
                ifindex,
            } = record.to;
            let name = InterfaceName::from_kernel(&name.to_bytes())
                .map_or_else(|| "?".to_owned(), |name| name.to_string());
            format!("{name}, index {ifindex}, in namespace {netns}")
        }),
    })
}

/// The calling thread's namespace, whose id is known without `/proc`, too.
fn known() -> io::Result<Netns> {
    let netns = Netns::current().map_err(io::Error::other)?;
    match netns.id() {
        NetnsId(0) => Err(io::Error::other("the kernel does not say which it is")),
        _ => Ok(netns),
    }
}

/// A thread's name that no other thread has.
fn comm() -> [u8; 16] {
    let mut comm = [0; 16];
    let unique = format!("ifmon{:010}", std::process::id());
    let length = unique.len().min(15);
    comm[..length].copy_from_slice(&unique.as_bytes()[..length]);
    comm
}
