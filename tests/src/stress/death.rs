//! What is kept while it runs, and what is left when it is killed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

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

/// No capability but what the backend needs, and none can be had again; with `--exec` the commands
/// have them all.
pub(super) fn privileges(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let mut kept = Vec::new();
    for exec in [false, true] {
        let mut args = vec!["--backend", settings.backend.as_str(), WATCHED, MARK];
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
            let allowed = if settings.backend.is_ebpf() {
                CAP_BPF
            } else {
                0
            };
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

/// The ids of the BPF programs, maps and links of the kernel. It gives none of them twice.
#[derive(Debug)]
struct Objects([BTreeSet<u32>; 3]);

impl Objects {
    fn now() -> Self {
        // `enum bpf_cmd` of include/uapi/linux/bpf.h: BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID,
        // BPF_LINK_GET_NEXT_ID.
        Self([11, 12, 31].map(|command| {
            let mut ids = BTreeSet::new();
            // start_id, next_id, open_flags
            let mut attributes = [0_u32; 3];
            loop {
                // SAFETY: the attributes of these commands, with their size; the kernel writes
                // `next_id`.
                let result = unsafe {
                    libc::syscall(
                        libc::SYS_bpf,
                        command,
                        attributes.as_mut_ptr(),
                        size_of_val(&attributes),
                    )
                };
                if result != 0 {
                    return ids;
                }
                ids.insert(attributes[1]);
                attributes[0] = attributes[1];
            }
        }))
    }

    /// Those that were not there before.
    fn since(&self, before: &Self) -> Self {
        let Self([programs, maps, links]) = self;
        let Self([programs_before, maps_before, links_before]) = before;
        Self([
            programs - programs_before,
            maps - maps_before,
            links - links_before,
        ])
    }

    /// Those of these that there still are.
    fn left(&self) -> Self {
        let Self([programs, maps, links]) = self;
        let Self([programs_now, maps_now, links_now]) = Self::now();
        Self([
            programs & &programs_now,
            maps & &maps_now,
            links & &links_now,
        ])
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeSet::is_empty)
    }
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
    // What an ifmon before this one had may still be on its way out.
    let (mounts_before, before) = (mounts()?, Objects::now());
    let sockets_before = sockets(&namespace)?;
    let ifmon = Ifmon::start(
        &namespace,
        &["--backend", settings.backend.as_str(), WATCHED, MARK],
    )?;
    begin(&ifmon)?;
    let own = Objects::now().since(&before);
    let Objects([programs, maps, links]) = &own;
    ensure!(
        settings.backend.is_ebpf() != (programs.is_empty() || maps.is_empty())
            && (settings.backend.is_ebpf() || own.is_empty()),
        "programs, maps and links while it runs: {own:?}"
    );
    let counts = [programs, maps, links].map(BTreeSet::len);
    let sockets_during = sockets(&namespace)?;
    ensure!(
        (sockets_during > sockets_before) == settings.backend.keeps_netns_alive(),
        "a socket keeps a namespace alive: {sockets_before} before and {sockets_during}"
    );
    ifmon.signal(Signal::KILL)?;
    ifmon.finish()?;
    // The kernel frees them after a grace period.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (left, sockets_after) = (own.left(), sockets(&namespace)?);
        if left.is_empty() && sockets_after == sockets_before {
            break;
        }
        if Instant::now() > deadline {
            bail!(
                "programs, maps and links that are left: {left:?}; \
                 sockets: {sockets_before} before, {sockets_after} after"
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ensure!(mounts()? == mounts_before, "a mount is left");
    Ok(format!(
        "programs, maps, links: {counts:?} while it ran, none left; \
         sockets in the namespace: {sockets_before}, {sockets_during}, {sockets_before}"
    ))
}
