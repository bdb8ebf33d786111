//! What is kept while it runs, and what is left when it is killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use super::{
    Settings,
    follow::{MARK, WATCHED, begin},
};
use crate::{
    namespace::Namespace,
    program::{Ifmon, PATIENCE},
};

const CAP_BPF: u64 = 1 << 39;

fn field(pid: u32, name: &str, radix: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no {name} in /proc/PID/status"))?;
    Ok(u64::from_str_radix(value.trim(), radix)?)
}

/// No capability but what the backend needs, and none can be had again; with `--exec` the commands have them all.
pub(super) fn privileges(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let mut kept = Vec::new();
    for exec in [false, true] {
        let mut args = vec!["--backend", &settings.backend, WATCHED, MARK];
        if exec {
            args.extend(["--exec", "true"]);
        }
        let ifmon = Ifmon::start(&namespace, &args)?;
        begin(&ifmon)?;
        let caps = ["CapEff", "CapPrm"].map(|name| field(ifmon.pid(), name, 16));
        let [effective, permitted] = caps;
        let (effective, permitted) = (effective?, permitted?);
        let no_new = field(ifmon.pid(), "NoNewPrivs", 10)?;
        if exec {
            ensure!(permitted & !CAP_BPF != 0, "--exec has no privileges left");
        } else {
            let allowed = if settings.is_bpf() { CAP_BPF } else { 0 };
            ensure!(
                (effective | permitted) & !allowed == 0 && no_new == 1,
                "CapEff {effective:x}, CapPrm {permitted:x}, NoNewPrivs {no_new}"
            );
        }
        kept.push(format!("{permitted:x}/{no_new}"));
        ifmon.stop()?;
    }
    Ok(format!(
        "CapPrm/NoNewPrivs {}, with --exec {}",
        kept[0], kept[1]
    ))
}

/// How many BPF programs, maps and links the kernel has.
fn objects() -> Result<[u32; 3]> {
    // `enum bpf_cmd` of include/uapi/linux/bpf.h: BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID.
    let mut counts = [0; 3];
    for (count, command) in counts.iter_mut().zip([11, 12, 31]) {
        // start_id, next_id, open_flags
        let mut attributes = [0_u32; 3];
        loop {
            // SAFETY: the attributes of these commands, with their size; the kernel writes `next_id`.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    command,
                    attributes.as_mut_ptr(),
                    size_of_val(&attributes),
                )
            };
            if result != 0 {
                break;
            }
            *count += 1;
            attributes[0] = attributes[1];
        }
    }
    Ok(counts)
}

/// How many netlink sockets there are in a namespace. The first line is a heading.
fn sockets(namespace: &Namespace) -> Result<usize> {
    let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))??;
    Ok(table.lines().skip(1).count())
}

/// Killed without warning, it leaves nothing in the kernel.
pub(super) fn death(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let mounts = || std::fs::read_to_string("/proc/self/mounts");
    let (mounts_before, before) = (mounts()?, (objects()?, sockets(&namespace)?));
    let ifmon = Ifmon::start(&namespace, &["--backend", &settings.backend, WATCHED, MARK])?;
    begin(&ifmon)?;
    let during = (objects()?, sockets(&namespace)?);
    if settings.is_bpf() {
        ensure!(
            during
                .0
                .iter()
                .zip(before.0)
                .all(|(during, before)| *during >= before)
                && during.0 != before.0,
            "no BPF objects while it runs: {before:?} and {during:?}"
        );
        ensure!(
            during.1 == before.1,
            "a socket keeps the namespace alive: {before:?} and {during:?}"
        );
    } else {
        ensure!(
            during.0 == before.0 && during.1 > before.1,
            "not by netlink: {before:?} and {during:?}"
        );
    }
    ifmon.signal(Signal::KILL)?;
    ifmon.finish()?;
    // The kernel frees them after a grace period.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = (objects()?, sockets(&namespace)?);
        if after == before {
            break;
        }
        if Instant::now() > deadline {
            bail!("programs, maps, links and sockets: {before:?} before, {after:?} after");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ensure!(mounts()? == mounts_before, "a mount is left");
    Ok(format!(
        "programs, maps, links, and sockets in the namespace: {before:?} before and after, {during:?} during"
    ))
}
