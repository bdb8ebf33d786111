//! What is known of the running kernel and of what this process may do with it, gathered in one
//! place.

use std::{fs, io, path::Path};

use rustix::{
    fs::OFlags,
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use super::{Unavailable, mount};
use crate::bpf;

/// Lockdown of the kernel (`Documentation/admin-guide/kernel-parameters.txt`, `lockdown=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lockdown {
    /// Not locked down.
    None,
    /// Changes of the running kernel are refused; BPF tracing is not among them.
    Integrity,
    /// Reading kernel memory is refused too, and with it BPF tracing.
    Confidentiality,
}

/// What stands for or against the BPF backends on this host. `None` is what cannot be known from
/// here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Facts {
    /// Release of the kernel, as `uname -r` gives it.
    pub release: String,
    /// Whether ifmon has a BPF program for this processor.
    pub has_object: bool,
    /// Lockdown; `None` where securityfs cannot be read.
    pub lockdown: Option<Lockdown>,
    /// CAP_BPF, or CAP_SYS_ADMIN, which includes it.
    pub cap_bpf: bool,
    /// CAP_PERFMON, or CAP_SYS_ADMIN.
    pub cap_perfmon: bool,
    /// CAP_SYS_ADMIN: other namespaces, kprobes under a strict `perf_event_paranoid`, and the
    /// loader's proof.
    pub cap_sys_admin: bool,
    /// The process is in the initial user namespace: elsewhere capabilities do not count for BPF.
    pub initial_user_namespace: Option<bool>,
    /// Where the kernel keeps the fields that are read, or why its BTF does not say.
    layout: Result<(), Unavailable>,
    /// The kernel has the function that is hooked.
    pub has_function: Option<bool>,
    /// The kernel has kprobes, and a PMU to open them through.
    pub has_kprobes: Option<bool>,
    /// `kernel.perf_event_paranoid`
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.unprivileged_bpf_disabled`
    pub unprivileged_bpf_disabled: Option<i32>,
    /// RLIMIT_MEMLOCK in bytes, where it limits BPF maps (before 5.11, without CAP_SYS_RESOURCE).
    pub memlock_limit: Option<u64>,
    /// `net.core.rmem_max` in bytes, which limits a socket's queue without CAP_NET_ADMIN.
    pub rmem_max: Option<u64>,
}

impl Facts {
    /// Looks at the kernel. Changes nothing and loads nothing.
    pub fn gather() -> Self {
        let admin = has(CapabilitySet::SYS_ADMIN);
        Self {
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            has_object: bpf::HAS_OBJECT,
            lockdown: lockdown(),
            cap_bpf: admin || has(CapabilitySet::BPF),
            cap_perfmon: admin || has(CapabilitySet::PERFMON),
            cap_sys_admin: admin,
            initial_user_namespace: initial_user_namespace(),
            layout: bpf::read_layout(),
            has_function: has_symbol("rtnetlink_event"),
            has_kprobes: has_kprobes(),
            perf_event_paranoid: setting("kernel/perf_event_paranoid"),
            unprivileged_bpf_disabled: setting("kernel/unprivileged_bpf_disabled"),
            memlock_limit: memlock_limit(),
            rmem_max: setting("net/core/rmem_max"),
        }
    }

    /// Whether the kernel's BTF says where everything is that the BPF programs read, or why not.
    ///
    /// # Errors
    /// What is missing, in a sentence.
    pub fn btf(&self) -> Result<(), String> {
        self.layout.as_ref().copied().map_err(ToString::to_string)
    }
}

/// Is the capability in effect?
pub(crate) fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The lockdown mode. Where securityfs is not mounted (`ip netns exec` hides it), it is mounted for
/// the moment, on no path.
pub(crate) fn lockdown() -> Option<Lockdown> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown")
        .or_else(|_| read_securityfs("lockdown"))
        .ok()?;
    let (_, mode) = modes.split_once('[')?;
    match mode.split_once(']')?.0 {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

fn read_securityfs(name: &str) -> io::Result<String> {
    let file = mount::open("securityfs", name, OFlags::RDONLY)?;
    io::read_to_string(fs::File::from(file))
}

pub(crate) fn perf_event_paranoid() -> Option<i32> {
    setting("kernel/perf_event_paranoid")
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    fs::read_to_string(Path::new("/proc/sys").join(name))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Maps every user of the namespace to itself only in the initial one.
pub(crate) fn initial_user_namespace() -> Option<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    Some(map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Is the function among the kernel's symbols? Their names are shown to everybody, their addresses
/// are not.
fn has_symbol(name: &str) -> Option<bool> {
    use io::BufRead as _;
    let symbols = io::BufReader::new(fs::File::open("/proc/kallsyms").ok()?);
    let mut any = false;
    for line in symbols.lines() {
        let line = line.ok()?;
        any = true;
        if line.split(' ').nth(2) == Some(name) {
            return Some(true);
        }
    }
    any.then_some(false)
}

/// `None` where that is not shown.
pub(crate) fn has_kprobes() -> Option<bool> {
    const PMUS: &str = "/sys/bus/event_source/devices";
    Path::new(PMUS)
        .exists()
        .then(|| Path::new(PMUS).join("kprobe/type").exists())
}

/// Before 5.11 BPF maps count against RLIMIT_MEMLOCK; later they are the memory cgroup's.
pub(crate) fn memlock_limit() -> Option<u64> {
    let uname = rustix::system::uname();
    let mut version = uname
        .release()
        .to_bytes()
        .split(|byte| !byte.is_ascii_digit());
    let mut number = || str::from_utf8(version.next()?).ok()?.parse::<u32>().ok();
    let counted = number()
        .zip(number())
        .is_some_and(|version| version < (5, 11));
    if !counted || has(CapabilitySet::SYS_RESOURCE) {
        return None;
    }
    getrlimit(Resource::Memlock).current
}
