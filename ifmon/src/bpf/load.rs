//! Loads the BPF object, and finds the plain reason when the kernel does not take it.

use std::{
    borrow::Cow, error::Error as _, fs, io, os::unix::fs::MetadataExt as _, path::Path, thread,
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{ProgramError, ProgramType, kprobe::KProbeError},
    sys::{BpfHelper, is_helper_supported},
};
use ifmon_ebpf::{OBJECT, OBJECT_OF_NAMES, OBJECT_WITH_LOG};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};

use super::{btf::VMLINUX, layout::KernelLayout, shared};
use crate::{
    Unavailable,
    error::again,
    host::facts::{
        Lockdown, has, has_kprobes, initial_user_namespace, lockdown, memlock_limit,
        perf_event_paranoid,
    },
    netns::on_a_thread,
};

/// Bytes of the ring buffer. A record takes at most 184 of them, with the header that the kernel puts before it.
const RING: u32 = 256 * 1024;
/// The smallest sizes, for hosts with a tight limit on locked memory.
const SMALL_RING: u32 = 4096;
/// What the maps take at their usual sizes, generously.
const ROOMY_LIMIT: u64 = 4 << 20;
/// Watches that fit without being asked for: adding some later should not need a restart.
const WATCHES: usize = 1024;
/// Devices that may match a pattern at a time, where there are patterns. With more than these the
/// programs let all through.
const MATCHING: u32 = 16 * 1024;
/// The same for hosts with a tight limit on locked memory.
const TIGHT_MATCHING: u32 = 64;
/// Namespaces with patterns that fit without being asked for.
const SPARE_PATTERNS: usize = 4;
/// Namespaces that there is room for where patterns are those of all.
const NAMESPACES: u32 = 8 * 1024;
/// Of these, namespaces with patterns of their own: the one that is being read, and those for whose
/// devices `MATCHING` has no room. They take 150 KiB, and how many devices there are is up to others.
const READ_NAMESPACES: u32 = 256;
/// The waits for locked memory that was given back double from the first to the last; 310 ms in
/// all.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAIT: Duration = Duration::from_millis(160);

/// What is known to stand in the way of tracing before anything is tried.
pub(crate) fn check_tracing() -> Result<(), Unavailable> {
    if OBJECT.is_none() {
        return Err(Unavailable::NoObject);
    }
    if let Some(missing) = missing_capabilities(&[CAP_BPF, CAP_PERFMON]) {
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

/// What is known to stand in the way of a socket filter with maps.
pub(crate) fn check_socket_filter() -> Result<(), Unavailable> {
    if OBJECT.is_none() {
        return Err(Unavailable::NoObject);
    }
    if let Some(missing) = missing_capabilities(&[CAP_BPF]) {
        return Err(missing);
    }
    if initial_user_namespace() == Some(false) {
        return Err(Unavailable::UserNamespace);
    }
    Ok(())
}

/// How the programs find out who makes a change, which differs with the kernel, the type of the
/// program and the capabilities (`ifmon-ebpf/src/constants.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) pid: Pid,
    pub(crate) uid: bool,
    pub(crate) cgroup: bool,
    pub(crate) comm: bool,
    pub(crate) kthread: bool,
}

/// By what the process is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pid {
    Unknown,
    /// As the initial pid namespace knows it.
    Initial,
    /// The same, read from the task.
    OfTask,
    /// As the pid namespace of this process knows it.
    Own {
        dev: u64,
        ino: u64,
    },
}

impl Who {
    /// All that a tracing program may ask.
    pub(crate) fn all() -> Self {
        Self {
            pid: Pid::by_helper(),
            uid: true,
            cgroup: true,
            comm: true,
            kthread: true,
        }
    }

    /// The names of what is known.
    pub(crate) fn known(self) -> Vec<&'static str> {
        let Self {
            pid,
            uid,
            cgroup,
            comm,
            kthread,
        } = self;
        // In the initial pid namespace, /proc says whether a process is one of the kernel's.
        let kthread = kthread || (pid == Pid::Initial && kernel_threads_are_shown());
        [
            ("pid", pid != Pid::Unknown),
            ("comm", comm),
            ("uid", uid),
            ("cgroup", cgroup),
            ("kthread", kthread),
        ]
        .into_iter()
        .filter_map(|(name, known)| known.then_some(name))
        .collect()
    }

    /// Nothing.
    pub(crate) const NOBODY: Self = Self {
        pid: Pid::Unknown,
        uid: false,
        cgroup: false,
        comm: false,
        kthread: false,
    };
}

/// What the helpers of this kernel tell a socket filter with the capabilities that this process
/// has. Found out by programs of two instructions, since it differs with the version.
pub(crate) fn who_by_helpers() -> Result<Who, Unavailable> {
    let pid = Pid::by_helper();
    let helper = match pid {
        Pid::Own { .. } => Some(BpfHelper::BPF_FUNC_get_ns_current_pid_tgid),
        Pid::Initial | Pid::OfTask => Some(BpfHelper::BPF_FUNC_get_current_pid_tgid),
        Pid::Unknown => None,
    };
    let mut who = Who {
        pid,
        uid: may_call(BpfHelper::BPF_FUNC_get_current_uid_gid)?,
        cgroup: may_call(BpfHelper::BPF_FUNC_get_current_cgroup_id)?,
        comm: may_call(BpfHelper::BPF_FUNC_get_current_comm)?,
        kthread: false,
    };
    if let Some(helper) = helper
        && !may_call(helper)?
    {
        // The task has its id in the initial namespace.
        who.kthread = pid == Pid::Initial
            && may_call(BpfHelper::BPF_FUNC_get_current_task)?
            && may_call(BpfHelper::BPF_FUNC_probe_read_kernel)?;
        who.pid = if who.kthread {
            Pid::OfTask
        } else {
            Pid::Unknown
        };
    }
    Ok(who)
}

/// May a socket filter of this process call this helper?
fn may_call(helper: BpfHelper) -> Result<bool, Unavailable> {
    with_memory(|| {
        is_helper_supported(ProgramType::SocketFilter, helper).map_err(|error| {
            root_cause(&error)
                .and_then(from_errno)
                .unwrap_or_else(|| Unavailable::other(error))
        })
    })
}

/// Does `/proc` show this process those of others (`hidepid` in proc(5))? `kthreadd` is always
/// there, and has this id in the initial pid namespace.
pub(crate) fn kernel_threads_are_shown() -> bool {
    fs::read("/proc/2/stat").is_ok()
}

impl Pid {
    /// The helper that tells ids by which this process knows others. In a pid namespace of its own,
    /// ids of the initial one would be those of strangers; so it may be where nothing says which
    /// one this is.
    pub(crate) fn by_helper() -> Self {
        /// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`
        const INITIAL: u64 = 0xefff_fffc;
        match fs::metadata("/proc/self/ns/pid") {
            Ok(own) if own.ino() != INITIAL => Self::Own {
                // The helper wants it as the kernel has it, of a device without a disk.
                dev: u64::from(rustix::fs::minor(own.dev())),
                ino: own.ino(),
            },
            Ok(_) => Self::Initial,
            // A kernel without pid namespaces has the process and not the link.
            Err(_) if Path::new("/proc/self/stat").exists() => Self::Initial,
            Err(_) => Self::Unknown,
        }
    }
}

/// What an object is loaded with.
pub(crate) struct Load<'a> {
    /// Where the kernel keeps what tracing programs read.
    pub(crate) layout: Option<&'a KernelLayout>,
    pub(crate) who: Who,
    pub(crate) watches: usize,
    /// In how many namespaces there may be patterns.
    pub(crate) patterns: usize,
    /// There may be some for all namespaces.
    pub(crate) everywhere: bool,
    pub(crate) ring_bytes: Option<u32>,
    /// The kernel side says what it sees.
    pub(crate) logs: bool,
}

impl Load<'_> {
    /// Parses the object, creates its maps and sets its constants. Says how many watches there is
    /// room for.
    pub(crate) fn object(&self) -> Result<(Ebpf, usize), Unavailable> {
        // With patterns the verifier walks some five times as many instructions, and each of their maps
        // is a page at least.
        let code = match self.patterns {
            _ if self.logs => OBJECT_WITH_LOG,
            0 => OBJECT_OF_NAMES,
            _ => OBJECT,
        };
        let code = code.ok_or(Unavailable::NoObject)?;
        let code = if Path::new(VMLINUX).exists() {
            Cow::Borrowed(code)
        } else {
            Cow::Owned(without_types(code))
        };
        let Self {
            watches,
            patterns,
            everywhere,
            ring_bytes,
            ..
        } = *self;
        // Some later should not need a restart.
        let patterns = patterns.next_power_of_two().max(SPARE_PATTERNS);
        let patterns = u32::try_from(patterns).unwrap_or(u32::MAX);
        let (patterns, pattern_states) = if everywhere {
            (patterns.max(READ_NAMESPACES), NAMESPACES)
        } else {
            (patterns, patterns)
        };
        let roomy = (watches.max(WATCHES), MATCHING, ring_bytes.unwrap_or(RING));
        let tight = (
            watches.max(8),
            TIGHT_MATCHING,
            ring_bytes.unwrap_or(SMALL_RING),
        );
        let mut last = None;
        // Maps that were tried and given back count for a while longer, so where they are counted
        // (before 5.11, against a limit that is 64 KiB by default) the small ones come
        // first.
        let sizes: &[(usize, u32, u32)] = match memlock_limit() {
            Some(limit) if limit < ROOMY_LIMIT => &[tight],
            _ => &[roomy, tight],
        };
        let shared = shared::elements()?;
        let constants = self.constants();
        for &(watches, matching, ring) in sizes {
            let entries = u32::try_from(watches.next_power_of_two()).unwrap_or(u32::MAX);
            let devices = entries.saturating_mul(2);
            let mut loader = loader();
            for (name, value) in &constants {
                loader.override_global(name, value, true);
            }
            if let Pid::Own { dev, ino } = &self.who.pid {
                loader
                    .override_global("PIDNS_DEV", dev, true)
                    .override_global("PIDNS_INO", ino, true);
            }
            let result = loader
                .btf(None)
                // The reason of a refusal and no more. With none at all, aya's second attempt, which is made with a buffer,
                // would be refused for that, and the errno of the first one be lost.
                .verifier_log_level(VerifierLogLevel::STATS)
                .map_max_entries("SHARED", shared)
                .map_max_entries("NAMES", entries)
                .map_max_entries("DEVICES", devices)
                .map_max_entries("LINKS", devices)
                // Some of them are gone.
                .map_max_entries("REMEMBERED", devices.saturating_mul(2))
                // And a socket for each.
                .map_max_entries("NAMESPACES", entries.saturating_mul(2))
                .map_max_entries("PATTERNS", patterns)
                .map_max_entries("PATTERN_STATES", pattern_states)
                .map_max_entries("MATCHING", matching)
                .map_max_entries("EVENTS", ring)
                .load(&code);
            match result {
                Ok(object) => {
                    if watches < WATCHES {
                        log::info!(
                            "memory for the BPF maps is limited: there is room for {entries} watches"
                        );
                    }
                    return Ok((object, entries as usize));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or(Unavailable::NoObject, |error| object_refused(&error)))
    }

    fn constants(&self) -> Vec<(&'static str, u32)> {
        let Who {
            pid,
            uid,
            cgroup,
            comm,
            kthread,
        } = self.who;
        let pid = match pid {
            Pid::Unknown => 0,
            Pid::Initial => 1,
            Pid::OfTask => 2,
            Pid::Own { .. } => 3,
        };
        let mut constants = vec![
            ("WHO_PID", pid),
            ("WHO_UID", u32::from(uid)),
            ("WHO_CGROUP", u32::from(cgroup)),
            ("WHO_COMM", u32::from(comm)),
            ("WHO_KTHREAD", u32::from(kthread)),
        ];
        if let Some(layout) = self.layout {
            constants.extend(layout.constants());
            if self.patterns > 0 {
                constants.extend(layout.constants_for_patterns().into_iter().flatten());
            }
        }
        constants
    }
}

/// Loads by `attempt`, and again a little later when the limit on locked memory stood in the way.
///
/// Where the kernel counts BPF objects against that limit, those that were given back a moment ago
/// still count until a grace period of RCU has passed: of the backend that was tried before, of
/// aya's look at what the kernel can do, of the ifmon that is being restarted.
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

/// Loads by `attempt`, which is told whether the kernel side is to say what it sees; and again with
/// nothing of that where it is in the way. The verifier walks more instructions then than it does for
/// whoever lacks CAP_PERFMON.
pub(crate) fn with_log<T>(
    attempt: impl Fn(bool) -> Result<T, Unavailable>,
) -> Result<T, Unavailable> {
    if !log::log_enabled!(target: "ifmon_ebpf", log::Level::Debug) {
        return attempt(false);
    }
    attempt(true).or_else(|reason| {
        let loaded = attempt(false)?;
        log::debug!(
            "nothing is heard from the kernel side, which could not be loaded so: {reason}"
        );
        Ok(loaded)
    })
}

/// The object without BTF of its own: then its global functions are none.
///
/// The verifier goes through a global function once and not at each call, and needs the kernel's BTF
/// to know its arguments (`btf_get_prog_ctx_type` in `kernel/bpf/btf.c`). A kernel that has none
/// goes the long way.
fn without_types(object: &[u8]) -> Vec<u8> {
    const SECTIONS: &[u8] = b".BTF";
    const NO_SECTIONS: &[u8] = b".btf";
    let mut without = object.to_vec();
    // Names of sections alone: what else is called so is looked for by nobody.
    for at in 0..without.len() {
        if without[at..].starts_with(SECTIONS) {
            without[at..at + SECTIONS.len()].copy_from_slice(NO_SECTIONS);
        }
    }
    without
}

/// A loader that has not parsed the kernel's BTF.
///
/// aya 0.14 does that whenever it makes a loader: some 10 ms and 16 MB, for relocations that our
/// object does not have. So the loader is made on a thread that does not see `/sys`. Who may not do
/// that pays the price.
fn loader() -> EbpfLoader<'static> {
    let hidden = on_a_thread(|| {
        // SAFETY: this thread alone gets a root directory of its own, and ends with the closure.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        // A directory that is always there and has nothing in it that could be opened by that path.
        rustix::process::chroot("/proc/self/fdinfo")?;
        Ok(EbpfLoader::new())
    });
    hidden.unwrap_or_default()
}

fn object_refused(error: &EbpfError) -> Unavailable {
    let refused = match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => Some(io_error),
        EbpfError::MapError(MapError::SyscallError(error)) => Some(&error.io_error),
        _ => None,
    };
    match refused {
        Some(error) => from_errno(error).unwrap_or_else(|| Unavailable::Maps(again(error))),
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
            // The log ends with figures of what was verified so far; the reason stands before them.
            let is_figure = |line: &str| {
                ["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|start| line.starts_with(start))
            };
            let summary = log
                .lines()
                .rev()
                .find(|line| !line.is_empty() && !is_figure(line))
                .map_or_else(|| io_error.to_string(), str::to_owned);
            Unavailable::Verifier { summary }
        }
        ProgramError::KProbeError(KProbeError::FileError { io_error, .. }) => match has_kprobes() {
            Some(false) => Unavailable::NoKprobes,
            Some(true) => {
                from_errno(io_error).unwrap_or_else(|| Unavailable::Attach(again(io_error)))
            }
            None => Unavailable::other(
                "kprobes are opened through /sys/bus/event_source, which this process is not shown",
            ),
        },
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
                // `BPF_MAX_TRAMP_LINKS` of `include/linux/bpf.h`.
                Some(libc::E2BIG) => Unavailable::TooManyPrograms,
                _ => match io_error {
                    Some(io_error) => Unavailable::Attach(again(io_error)),
                    None => Unavailable::other(error),
                },
            }
        }
    }
}

/// What an error of bpf(2) means on this host; `None` when it is not about permission.
fn from_errno(error: &io::Error) -> Option<Unavailable> {
    match error.raw_os_error()? {
        libc::ENOSYS => Some(Unavailable::NoBpf),
        libc::EPERM | libc::EACCES => Some(not_permitted()),
        libc::EMFILE => Some(Unavailable::OpenFiles),
        // Under lockdown the verifier says no, with a text that leads astray.
        _ if lockdown() == Some(Lockdown::Confidentiality) => Some(Unavailable::Lockdown),
        _ => None,
    }
}

/// Why "operation not permitted"?
fn not_permitted() -> Unavailable {
    if let Some(missing) = missing_capabilities(&[CAP_BPF, CAP_PERFMON]) {
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

/// A capability and its name.
type Capability = (CapabilitySet, &'static str);

const CAP_BPF: Capability = (CapabilitySet::BPF, "CAP_BPF");
const CAP_PERFMON: Capability = (CapabilitySet::PERFMON, "CAP_PERFMON");

/// The reason why programs for patterns were refused, where that is a capability: without it the
/// verifiers of older kernels (6.1 is one) walk ten times as far through them, and give up.
pub(crate) fn refused_to_patterns(reason: Unavailable) -> Unavailable {
    match (missing_capabilities(&[CAP_PERFMON]), reason) {
        (Some(missing), Unavailable::Verifier { .. }) => missing,
        (_, reason) => reason,
    }
}

fn missing_capabilities(wanted: &[Capability]) -> Option<Unavailable> {
    if has(CapabilitySet::SYS_ADMIN) {
        return None;
    }
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|&(_, name)| name)
        .collect();
    (!missing.is_empty()).then(|| Unavailable::NotPermitted {
        missing: format!(
            "{} {}",
            missing.join(" and "),
            if missing.len() == 1 { "is" } else { "are" }
        ),
    })
}

pub(super) fn root_cause(error: &ProgramError) -> Option<&io::Error> {
    let mut cause = error.source();
    let mut found = None;
    while let Some(error) = cause {
        found = error.downcast_ref::<io::Error>().or(found);
        cause = error.source();
    }
    found
}
