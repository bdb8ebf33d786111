//! What can be expected of each backend, as far as they differ.

use std::{collections::BTreeSet, fs, process::Command, sync::OnceLock};

use anyhow::{Context as _, Result, bail, ensure};
use ifmon::BackendKind;
use serde_json::Value;

use crate::program;

/// All of them, the best first.
pub const BACKENDS: [BackendKind; 5] = [
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::NetlinkEbpf,
    BackendKind::Netlink,
    BackendKind::NetlinkUnfiltered,
];
/// Those that run in the kernel.
pub const EBPF: &[BackendKind] = &[
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::NetlinkEbpf,
];
/// Those on a function of the kernel, which see every device of the host.
pub const TRACING: &[BackendKind] = &[BackendKind::Fentry, BackendKind::Kprobe];
/// Those that hear of the namespaces alone that they are told of, one by one.
pub const BY_NAMESPACE: &[BackendKind] = &[
    BackendKind::NetlinkEbpf,
    BackendKind::Netlink,
    BackendKind::NetlinkUnfiltered,
];
/// Those that work without privileges.
pub const UNPRIVILEGED: &[BackendKind] = &[BackendKind::Netlink, BackendKind::NetlinkUnfiltered];

/// The backend of this name.
pub fn named(name: &str) -> Result<BackendKind> {
    BACKENDS
        .into_iter()
        .find(|backend| backend.as_str() == name)
        .with_context(|| format!("there is no backend {name}"))
}

/// Does it say where a device goes, and what becomes of it there? Netlink says so only of
/// namespaces that have a name.
pub fn follows_moves(backend: BackendKind) -> bool {
    TRACING.contains(&backend)
}

/// Does it see a device that never gets as far as to be announced by a message?
pub fn sees_unannounced_devices(backend: BackendKind) -> bool {
    TRACING.contains(&backend)
}

/// Does it say how many changes of a watch a loss has cost?
pub fn counts_losses(backend: BackendKind) -> bool {
    EBPF.contains(&backend)
}

/// Does it hear what a device does right after it took a watched name? A classic filter has yet to
/// be told of the device then.
pub fn knows_new_devices(backend: BackendKind) -> bool {
    EBPF.contains(&backend)
}

/// Does it count the changes that it has seen? A classic filter counts nothing.
pub fn counts_changes(backend: BackendKind) -> bool {
    backend != BackendKind::Netlink
}

/// The parts of "who made a change".
pub const WHO: [&str; 5] = ["pid", "comm", "uid", "cgroup", "kthread"];

/// The parts that it tells here.
pub fn who(backend: BackendKind) -> Result<&'static BTreeSet<String>> {
    static ALL: OnceLock<BTreeSet<String>> = OnceLock::new();
    static BY_SOCKET: OnceLock<BTreeSet<String>> = OnceLock::new();
    static NONE: BTreeSet<String> = BTreeSet::new();
    if TRACING.contains(&backend) {
        return Ok(ALL.get_or_init(|| WHO.map(str::to_owned).into()));
    } else if !backend.is_ebpf() {
        return Ok(&NONE);
    }
    if let Some(parts) = BY_SOCKET.get() {
        return Ok(parts);
    }
    let parts = checked_who()?;
    Ok(BY_SOCKET.get_or_init(|| parts))
}

/// The version of the kernel, as far as it tells kernels apart here.
pub fn kernel() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("no version: {release}"),
    }
}

/// The parts that a kernel tells a socket filter, with CAP_PERFMON and without.
pub fn who_by_kernel(kernel: (u32, u32), perfmon: bool) -> BTreeSet<String> {
    let parts: &[&str] = match perfmon {
        // No helper, and a look at the task takes CAP_PERFMON.
        true if kernel < (6, 10) => &["pid", "kthread"],
        false if kernel < (6, 10) => &[],
        // The others came to all types of programs later; that for the name reads memory, which takes
        // CAP_PERFMON.
        _ if kernel < (6, 16) => &["pid", "cgroup", "kthread"],
        false => &["pid", "uid", "cgroup", "kthread"],
        true => &WHO,
    };
    parts.iter().map(|&part| part.to_owned()).collect()
}

/// What `--check` says of it; that this is what the kernel allows is a scenario of its own.
fn checked_who() -> Result<BTreeSet<String>> {
    let output = Command::new(program::path())
        .args(["--check", "--json"])
        .output()?;
    ensure!(output.status.success(), "--check failed: {output:?}");
    let check: Value = serde_json::from_slice(&output.stdout)?;
    let parts = check["who"].as_array().context("no who in --check")?;
    let parts = parts.iter().filter_map(Value::as_str).map(str::to_owned);
    Ok(parts.collect())
}
