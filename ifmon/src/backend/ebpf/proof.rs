//! Proves that the program reads the kernel right.

use std::{io, thread};

use ifmon_ebpf::{
    Control, LOOPBACK_IFINDEX, NETREG_REGISTERED, Name, Place as WirePlace, Record, flag,
};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};

use super::Maps;
use crate::{InterfaceName, NetnsId, kernel::Unavailable};

impl Maps {
    /// Proves on a live device that the program reads the right name, index and namespace: a fresh network namespace
    /// registers a `lo` of its own, and disturbs nobody. A wrong offset would otherwise be wrong for ever, and silent.
    pub(super) fn prove(&mut self) -> Result<(), Unavailable> {
        let settings = self.settings();
        let control = &mut self.control;
        let made = thread::scope(|scope| {
            scope
                .spawn(|| -> io::Result<NetnsId> {
                    let traced = Control {
                        traced_thread: gettid().as_raw_nonzero().get().unsigned_abs(),
                        ..settings
                    };
                    control.set(0, traced, 0).map_err(io::Error::other)?;
                    // SAFETY: this thread ends with the closure and shares its namespace with nobody.
                    let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
                    let id = made
                        .map_err(Into::into)
                        .and_then(|()| crate::netns::current_id());
                    control.set(0, settings, 0).map_err(io::Error::other)?;
                    id
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let netns = match made {
            Ok(netns) => netns,
            Err(error) => {
                log::warn!(
                    "could not prove that the BPF program reads this kernel right, for want of a network namespace of \
                     its own ({error}); going by the kernel's BTF alone"
                );
                return Ok(());
            }
        };
        let loopback = Name::new(b"lo").unwrap_or_default();
        let mut seen = None;
        let ring = &mut self.events.get_mut().0;
        while let Some(item) = ring.next() {
            let Some(record) = Record::read(&item) else {
                continue;
            };
            let right = record.to
                == (WirePlace {
                    name: loopback,
                    netns: netns.0,
                    ifindex: LOOPBACK_IFINDEX,
                })
                && record.reg_state == NETREG_REGISTERED
                && record.pid == std::process::id()
                && record.flags & flag::KTHREAD == 0;
            if right {
                return Ok(());
            }
            seen = Some(record);
        }
        Err(Unavailable::Misread {
            netns,
            seen: seen.map(|record| {
                let WirePlace {
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
}
