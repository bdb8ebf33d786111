//! Loads the BPF object, and finds the plain reason when the kernel does not take it.

use std::{error::Error as _, io, thread, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{ProgramError, kprobe::KProbeError},
};
use ifmon_ebpf::{OBJECT, OBJECT_WITH_LOG};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};

use super::{
    Layout, Unavailable,
    facts::{Lockdown, has, initial_user_namespace, lockdown, memlock_limit, perf_event_paranoid},
};

/// Bytes of the ring buffer. A record is 160 bytes long.
const RING: u32 = 256 * 1024;
/// The smallest sizes, for hosts with a tight limit on locked memory.
const SMALL_RING: u32 = 4096;
/// What the maps take at their usual sizes, generously.
const ROOMY_LIMIT: u64 = 4 << 20;
/// Watches that fit without being asked for: adding some later should not need a restart.
const WATCHES: usize = 1024;
/// The waits for locked memory that was given back double from the first to the last; 310 ms in all.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAIT: Duration = Duration::from_millis(160);

/// What is known to stand in the way before anything is tried.
pub(crate) fn check() -> Result<(), Unavailable> {
    if OBJECT.is_none() {
        return Err(Unavailable::NoObject);
    }
    if let Some(missing) = missing_capabilities() {
        return Err(missing);
    }
    if lockdown() == Some(Lockdown::Confidentiality) {
        return Err(Unavailable::Lockdown);
    }
    if initial_user_namespace() == Some(false) {
        return Err(Unavailable::UserNamespace);
    }
    Ok(())
}

/// Parses the object, creates its maps and sets its constants. Says how many devices it has room for in `DEVICES`.
pub(crate) fn object(
    layout: &Layout,
    watches: usize,
    ring_bytes: Option<u32>,
) -> Result<(Ebpf, u32), Unavailable> {
    let code = if wants_log() { OBJECT_WITH_LOG } else { OBJECT };
    let code = code.ok_or(Unavailable::NoObject)?;
    let roomy = (watches.max(WATCHES), ring_bytes.unwrap_or(RING));
    let tight = (watches.max(8), ring_bytes.unwrap_or(SMALL_RING));
    let mut last = None;
    // Maps that were tried and given back count for a while longer, so where they are counted (before 5.11, against a
    // limit that is 64 KiB by default) the small ones come first.
    let sizes: &[(usize, u32)] = match memlock_limit() {
        Some(limit) if limit < ROOMY_LIMIT => &[tight],
        _ => &[roomy, tight],
    };
    for &(watches, ring) in sizes {
        let entries = u32::try_from(watches.next_power_of_two()).unwrap_or(u32::MAX);
        let devices = entries.saturating_mul(2);
        let mut loader = loader();
        for (name, value) in &layout.constants {
            loader.override_global(name, value, true);
        }
        let result = loader
            .btf(None)
            // The reason of a refusal and no more. With none at all, aya's second attempt, which is made with a buffer,
            // would be refused for that, and the errno of the first one be lost.
            .verifier_log_level(VerifierLogLevel::STATS)
            .map_max_entries("NAMES", entries)
            .map_max_entries("DEVICES", devices)
            .map_max_entries("SEEDS", entries)
            .map_max_entries("NAMESPACES", entries)
            .map_max_entries("EVENTS", ring)
            .load(code);
        match result {
            Ok(object) => return Ok((object, devices)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(Unavailable::NoObject, |error| object_refused(&error)))
}

/// Loads by `attempt`, and again a little later when the limit on locked memory stood in the way.
///
/// Where the kernel counts BPF objects against that limit, those that were given back a moment ago still count until a
/// grace period of RCU has passed: of the backend that was tried before, of aya's look at what the kernel can do, of the
/// ifmon that is being restarted.
pub(crate) fn with_memory<T>(
    attempt: impl Fn() -> Result<T, Unavailable>,
) -> Result<T, Unavailable> {
    let mut wait = FIRST_WAIT;
    loop {
        match attempt() {
            Err(Unavailable::Memlock) if wait <= LAST_WAIT => thread::sleep(wait),
            result => return result,
        }
        wait *= 2;
    }
}

/// Is the kernel side to say what it sees?
pub(crate) fn wants_log() -> bool {
    log::log_enabled!(target: "ifmon_ebpf", log::Level::Debug)
}

/// A loader that has not parsed the kernel's BTF.
///
/// aya 0.14 does that whenever it makes a loader: some 10 ms and 16 MB, for relocations that our object does not have. So
/// the loader is made on a thread that does not see `/sys`. Who may not do that pays the price.
fn loader() -> EbpfLoader<'static> {
    let hidden = thread::spawn(|| {
        // SAFETY: this thread alone gets a root directory of its own, and ends with the closure.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.ok()?;
        // A directory that is always there and has nothing in it that could be opened by that path.
        rustix::process::chroot("/proc/self/fdinfo").ok()?;
        Some(EbpfLoader::new())
    });
    hidden.join().ok().flatten().unwrap_or_default()
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
        // Under lockdown the verifier says no, with a text that leads astray.
        _ if lockdown() == Some(Lockdown::Confidentiality) => Some(Unavailable::Lockdown),
        _ => None,
    }
}

/// Why "operation not permitted"?
fn not_permitted() -> Unavailable {
    if let Some(missing) = missing_capabilities() {
        missing
    } else if lockdown() == Some(Lockdown::Confidentiality) {
        Unavailable::Lockdown
    } else if initial_user_namespace() == Some(false) {
        Unavailable::UserNamespace
    } else if memlock_limit().is_some() {
        Unavailable::Memlock
    } else {
        Unavailable::Forbidden
    }
}

fn missing_capabilities() -> Option<Unavailable> {
    if has(CapabilitySet::SYS_ADMIN) {
        return None;
    }
    let missing: Vec<&str> = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|&(capability, _)| !has(capability))
    .map(|(_, name)| name)
    .collect();
    (!missing.is_empty()).then(|| Unavailable::NotPermitted {
        missing: format!(
            "{} {}",
            missing.join(" and "),
            if missing.len() == 1 { "is" } else { "are" }
        ),
    })
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
