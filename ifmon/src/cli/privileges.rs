//! Gives up what is no longer needed once the watches are live.

use ifmon::BackendKind;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

/// Drops all capabilities but those that the backend still needs, for good.
///
/// With BPF that is CAP_BPF: before 5.19, reading a map takes it wherever
/// `kernel.unprivileged_bpf_disabled` is set (`kernel/bpf/syscall.c`). With netlink it is none. The
/// program has one thread, so this is the whole process.
pub(crate) fn drop_all(backend: BackendKind) -> rustix::io::Result<()> {
    let needed = if backend.is_ebpf() {
        CapabilitySet::BPF
    } else {
        CapabilitySet::empty()
    };
    drop_all_but(needed)
}

/// Drops what an agent does not need, which begins watches in any namespace at any time: BPF and
/// its filters, finding the namespace of a client (CAP_NET_ADMIN), going there (CAP_SYS_ADMIN).
pub(crate) fn keep_for_namespaces() -> rustix::io::Result<()> {
    drop_all_but(
        CapabilitySet::BPF
            | CapabilitySet::PERFMON
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::SYS_ADMIN,
    )
}

fn drop_all_but(needed: CapabilitySet) -> rustix::io::Result<()> {
    let CapabilitySets {
        effective,
        permitted,
        inheritable: _,
    } = capabilities(None)?;
    tell(permitted - needed, permitted & needed);
    set_no_new_privs(true)?;
    let _ = clear_ambient_capability_set();
    set_capabilities(
        None,
        CapabilitySets {
            effective: effective & needed,
            permitted: permitted & needed,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Names what is given up, as `capabilities(7)` does.
fn tell(dropped: CapabilitySet, kept: CapabilitySet) {
    let names = |set: CapabilitySet| {
        let names: Vec<_> = set
            .iter_names()
            .map(|(name, _)| format!("CAP_{name}"))
            .collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    if !dropped.is_empty() {
        log::info!(
            "capabilities dropped: {}; kept: {}",
            names(dropped),
            names(kept)
        );
    }
}
