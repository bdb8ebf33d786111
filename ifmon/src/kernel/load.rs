//! Loads the BPF object, and finds the plain reason when the kernel does not take it.

use std::{error::Error as _, fs, io};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{ProgramError, kprobe::KProbeError},
};
use ifmon_ebpf::OBJECT;
use rustix::thread::{CapabilitySet, capabilities};

use super::{Layout, Unavailable};

/// Bytes of the ring buffer. A record is 160 bytes long.
const RING: u32 = 256 * 1024;
/// The smallest sizes, for hosts with a tight limit on locked memory.
const SMALL_RING: u32 = 4096;
/// Watches that fit without being asked for: adding some later should not need a restart.
const WATCHES: usize = 1024;

/// What is known to stand in the way before anything is tried.
pub(crate) fn check() -> Result<(), Unavailable> {
    if OBJECT.is_none() {
        return Err(Unavailable::NoObject);
    }
    if lockdown().as_deref() == Some("confidentiality") {
        return Err(Unavailable::Lockdown);
    }
    Ok(())
}

/// Parses the object, creates its maps and sets its constants.
pub(crate) fn object(
    layout: &Layout,
    watches: usize,
    ring_bytes: Option<u32>,
) -> Result<Ebpf, Unavailable> {
    let code = OBJECT.ok_or(Unavailable::NoObject)?;
    let roomy = watches.max(WATCHES);
    let tight = watches.max(8);
    let mut last = None;
    // Before 5.11 maps count against RLIMIT_MEMLOCK: what does not fit is tried again smaller.
    for (watches, ring) in [
        (roomy, ring_bytes.unwrap_or(RING)),
        (tight, ring_bytes.unwrap_or(SMALL_RING)),
    ] {
        let entries = u32::try_from(watches.next_power_of_two()).unwrap_or(u32::MAX);
        let level: u8 = if log::log_enabled!(target: "ifmon_ebpf", log::Level::Debug) {
            4
        } else {
            0
        };
        let result = EbpfLoader::new()
            .btf(None)
            .verifier_log_level(VerifierLogLevel::DISABLE)
            .override_global("OFFSETS", &layout.offsets, true)
            .override_global("AYA_LOG_LEVEL", &level, false)
            .map_max_entries("AYA_LOGS", if level == 0 { 4096 } else { 64 * 1024 })
            .map_max_entries("NAMES", entries)
            .map_max_entries("DEVICES", entries.saturating_mul(2))
            .map_max_entries("SEEDS", entries)
            .map_max_entries("NAMESPACES", entries)
            .map_max_entries("EVENTS", ring)
            .load(code);
        match result {
            Ok(object) => return Ok(object),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(Unavailable::NoObject, |error| object_refused(&error)))
}

fn object_refused(error: &EbpfError) -> Unavailable {
    let refused = match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => Some(io_error),
        EbpfError::MapError(MapError::SyscallError(error)) => Some(&error.io_error),
        _ => None,
    };
    match refused {
        Some(error) => from_errno(error).unwrap_or_else(|| Unavailable::other(error)),
        None => Unavailable::other(error),
    }
}

/// The plain reason why a program was not loaded or not attached.
pub(crate) fn refused(error: &ProgramError) -> Unavailable {
    // ENOTSUPP, which never leaves the kernel but here: no trampoline on this architecture.
    const ENOTSUPP: i32 = 524;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            if let Some(reason) = from_errno(io_error) {
                return reason;
            }
            let log = verifier_log.to_string();
            let summary = log
                .lines()
                .rev()
                .find(|line| !line.is_empty() && !line.starts_with("processed "))
                .map_or_else(|| io_error.to_string(), str::to_owned);
            Unavailable::Verifier { summary }
        }
        ProgramError::KProbeError(KProbeError::FileError { .. }) => Unavailable::NoKprobes,
        ProgramError::Btf(_) => Unavailable::NoFunction,
        error => {
            let io_error = root_cause(error);
            match io_error.and_then(io::Error::raw_os_error) {
                Some(ENOTSUPP) => Unavailable::NoTrampoline,
                Some(libc::ENOENT) => Unavailable::NoSymbol,
                Some(libc::EACCES | libc::EPERM) => match perf_event_paranoid() {
                    Some(level) if level > 1 && !has(CapabilitySet::SYS_ADMIN) => {
                        Unavailable::PerfEventParanoid { level }
                    }
                    _ => io_error
                        .and_then(from_errno)
                        .unwrap_or_else(|| Unavailable::other(error)),
                },
                _ => Unavailable::other(error),
            }
        }
    }
}

/// What an error of bpf(2) means on this host; `None` when it is not about permission.
fn from_errno(error: &io::Error) -> Option<Unavailable> {
    match error.raw_os_error()? {
        libc::ENOSYS => Some(Unavailable::NoBpf),
        libc::EPERM | libc::EACCES => Some(not_permitted()),
        _ if lockdown().as_deref() == Some("confidentiality") => Some(Unavailable::Lockdown),
        _ => None,
    }
}

/// Why "operation not permitted"?
fn not_permitted() -> Unavailable {
    let missing: Vec<&str> = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|&(capability, _)| !has(capability) && !has(CapabilitySet::SYS_ADMIN))
    .map(|(_, name)| name)
    .collect();
    if !missing.is_empty() {
        return Unavailable::NotPermitted {
            missing: format!(
                "{} {}",
                missing.join(" and "),
                if missing.len() == 1 { "is" } else { "are" }
            ),
        };
    }
    if lockdown().as_deref() == Some("confidentiality") {
        return Unavailable::Lockdown;
    }
    if !has(CapabilitySet::SYS_RESOURCE) && counts_locked_memory() {
        return Unavailable::Memlock;
    }
    Unavailable::Forbidden
}

fn has(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The mode of lockdown; `None` where it cannot be known.
pub(crate) fn lockdown() -> Option<String> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, mode) = modes.split_once('[')?;
    let (mode, _) = mode.split_once(']')?;
    Some(mode.to_owned())
}

fn perf_event_paranoid() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Before 5.11 BPF memory counts against RLIMIT_MEMLOCK; later it is the memory cgroup's.
fn counts_locked_memory() -> bool {
    aya::util::KernelVersion::current()
        .is_ok_and(|version| version < aya::util::KernelVersion::new(5, 11, 0))
}

fn root_cause(error: &ProgramError) -> Option<&io::Error> {
    let mut cause = error.source();
    let mut found = None;
    while let Some(error) = cause {
        found = error.downcast_ref::<io::Error>().or(found);
        cause = error.source();
    }
    found
}
