//! Obstacles to BPF, and what ifmon has to say of each.

mod child;
mod process;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rustix::thread::CapabilitySet;

use self::child::Setting;
use crate::backend;

/// How an obstacle was met.
#[derive(Debug)]
pub enum Result {
    /// As it should be.
    Passed,
    /// The obstacle cannot be made here.
    LeftOut(String),
    /// Otherwise.
    Failed(anyhow::Error),
}

impl From<anyhow::Result<()>> for Result {
    fn from(result: anyhow::Result<()>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Passed)
    }
}

/// An obstacle.
#[derive(Clone, Copy)]
pub struct Obstacle {
    /// What it is.
    pub name: &'static str,
    /// Makes it and runs ifmon into it.
    pub meet: fn() -> Result,
}

/// All of them. Lockdown comes last: a kernel cannot be unlocked again.
pub const ALL: &[Obstacle] = &[
    Obstacle {
        name: "none: fentry or kprobe is taken",
        meet: none,
    },
    Obstacle {
        name: "no capabilities",
        meet: no_capabilities,
    },
    Obstacle {
        name: "CAP_BPF alone",
        meet: half_of_the_capabilities,
    },
    Obstacle {
        name: "CAP_BPF and CAP_PERFMON alone",
        meet: just_enough_capabilities,
    },
    Obstacle {
        name: "a user namespace",
        meet: user_namespace,
    },
    Obstacle {
        name: "no /sys",
        meet: no_sys,
    },
    Obstacle {
        name: "a seccomp filter answers EPERM to bpf(2)",
        meet: seccomp_eperm,
    },
    Obstacle {
        name: "a seccomp filter answers ENOSYS to bpf(2)",
        meet: seccomp_enosys,
    },
    Obstacle {
        name: "no BTF",
        meet: no_btf,
    },
    Obstacle {
        name: "BTF without a field",
        meet: btf_without_field,
    },
    Obstacle {
        name: "BTF without the function",
        meet: btf_without_function,
    },
    Obstacle {
        name: "BTF with a wrong offset",
        meet: btf_with_wrong_offset,
    },
    Obstacle {
        name: "BTF cut short",
        meet: btf_cut_short,
    },
    Obstacle {
        name: "a limit of 64 KiB on locked memory",
        meet: memlock,
    },
    Obstacle {
        name: "a limit of 4 KiB on locked memory",
        meet: memlock_far_too_small,
    },
    Obstacle {
        name: "little memory for the filters of a socket",
        meet: little_socket_memory,
    },
    Obstacle {
        name: "a pid namespace of its own",
        meet: process::pid_namespace,
    },
    Obstacle {
        name: "a time namespace of its own",
        meet: process::time_namespace,
    },
    Obstacle {
        name: "no second thread",
        meet: process::one_thread,
    },
    Obstacle {
        name: "no /proc",
        meet: process::no_proc,
    },
    Obstacle {
        name: "no /proc, and hardly a capability",
        meet: process::no_proc_and_no_rights,
    },
    Obstacle {
        name: "no /sys but its BTF",
        meet: process::bare_sys,
    },
    Obstacle {
        name: "as many programs on the function as it takes",
        meet: process::crowded_function,
    },
    Obstacle {
        name: "lockdown=integrity",
        meet: lockdown_integrity,
    },
    Obstacle {
        name: "lockdown=confidentiality",
        meet: lockdown_confidentiality,
    },
];

/// The backends on a function of the kernel; fentry is not on every architecture.
const TRACING: &[&str] = &["fentry", "kprobe"];
/// What is left where tracing is refused.
const SOCKET: &[&str] = &["netlink-ebpf"];
const NETLINK: &[&str] = &["netlink"];

fn none() -> Result {
    Setting::default().steps_to(TRACING, &[]).into()
}

/// Everything that stands in the way of tracing: `auto` takes the filter of a netlink socket and
/// says why, once; asked for by name, a tracing backend is an error that says the same.
fn tracing_refused(setting: &Setting, why: &str) -> Result {
    (|| {
        setting.steps_to(SOCKET, &[why])?;
        setting.takes("ebpf", SOCKET, &[why])?;
        setting.fails("fentry", why)?;
        setting.fails("kprobe", why)
    })()
    .into()
}

/// What stands in the way of all BPF, for `tracing` and `socket` reasons: `auto` takes netlink.
fn refused_for(setting: &Setting, tracing: &str, socket: &str) -> Result {
    (|| {
        setting.steps_to(NETLINK, &[tracing])?;
        setting.fails("fentry", tracing)?;
        setting.fails("kprobe", tracing)?;
        setting.fails("netlink-ebpf", socket)?;
        setting.fails("ebpf", tracing)
    })()
    .into()
}

/// The same where one reason holds for all.
fn refused(setting: &Setting, why: &str) -> Result {
    refused_for(setting, why, why)
}

fn no_capabilities() -> Result {
    refused_for(
        &Setting {
            capabilities: Some(CapabilitySet::empty()),
            ..Setting::default()
        },
        "CAP_BPF and CAP_PERFMON are needed",
        "CAP_BPF is needed",
    )
}

/// Enough for the filter of a socket, which then tells of who made a change what takes no look at
/// the kernel's memory.
fn half_of_the_capabilities() -> Result {
    let setting = Setting {
        capabilities: Some(CapabilitySet::BPF),
        ..Setting::default()
    };
    match tracing_refused(&setting, "CAP_PERFMON is needed") {
        Result::Passed => who_is(&setting, false).into(),
        other => other,
    }
}

/// Of who made a change, `--check` promises what this kernel tells.
fn who_is(setting: &Setting, perfmon: bool) -> anyhow::Result<()> {
    let expected = backend::who_by_kernel(backend::kernel()?, perfmon);
    let said = setting.who()?;
    ensure!(
        said == expected,
        "--check says {said:?} of who made a change, not {expected:?}"
    );
    Ok(())
}

/// Debian's `perf_event_paranoid` of 3 refuses kprobes, and fentry still works where there are
/// trampolines. There is no right to make a namespace, so the loader's proof cannot be had: nothing
/// that whoever gave these capabilities has to mend, so that nothing is said.
fn just_enough_capabilities() -> Result {
    let setting = Setting {
        capabilities: Some(CapabilitySet::BPF | CapabilitySet::PERFMON),
        ..Setting::default()
    };
    (|| {
        fs::write("/proc/sys/kernel/perf_event_paranoid", "3\n")
            .context("cannot set perf_event_paranoid")?;
        setting.fails("kprobe", "kernel.perf_event_paranoid is 3")?;
        if Setting::has_fentry()? {
            setting.steps_to(&["fentry"], &[])?;
        } else {
            setting.steps_to(SOCKET, &["kernel.perf_event_paranoid is 3"])?;
        }
        setting.takes("netlink-ebpf", SOCKET, &[])?;
        who_is(&setting, true)
    })()
    .into()
}

fn user_namespace() -> Result {
    refused(
        &Setting {
            user_namespace: true,
            ..Setting::default()
        },
        "initial user namespace",
    )
}

fn no_sys() -> Result {
    // How many processors have counters of their own is said there, too.
    refused_for(
        &Setting {
            hide: Some(PathBuf::from("/sys")),
            ..Setting::default()
        },
        "/sys/kernel/btf/vmlinux",
        "counters cannot be read",
    )
}

fn seccomp_eperm() -> Result {
    refused(
        &Setting {
            seccomp: Some(libc::EPERM),
            ..Setting::default()
        },
        "a seccomp filter or security module may forbid it",
    )
}

fn seccomp_enosys() -> Result {
    refused(
        &Setting {
            seccomp: Some(libc::ENOSYS),
            ..Setting::default()
        },
        "no bpf(2)",
    )
}

/// The filter of a socket needs none, also without CAP_PERFMON, and then the verifier goes the long
/// way.
fn no_btf() -> Result {
    let mut setting = Setting {
        hide: Some(PathBuf::from("/sys/kernel/btf")),
        ..Setting::default()
    };
    match tracing_refused(&setting, "/sys/kernel/btf/vmlinux") {
        Result::Passed => {}
        other => return other,
    }
    (|| {
        setting.capabilities = Some(CapabilitySet::BPF);
        if backend::kernel()? < (5, 11) {
            // The longer way is about as long as its verifier goes, and locked memory is counted.
            setting.steps_to(&[SOCKET, NETLINK].concat(), &[])
        } else {
            setting.takes("netlink-ebpf", SOCKET, &[])
        }
    })()
    .into()
}

/// A copy of the kernel's BTF, changed, in its place.
fn with_btf(change: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>) -> anyhow::Result<Setting> {
    let mut btf = fs::read("/sys/kernel/btf/vmlinux").context("cannot read the kernel's BTF")?;
    change(&mut btf)?;
    let path = PathBuf::from("/tmp/btf");
    fs::write(&path, btf)?;
    Ok(Setting {
        btf: Some(path),
        ..Setting::default()
    })
}

/// Changes a name in the table of strings, so that nothing of that name is left.
fn rename(btf: &mut [u8], name: &str) -> anyhow::Result<()> {
    let wanted = format!("\0{name}\0");
    let at = btf
        .windows(wanted.len())
        .position(|window| window == wanted.as_bytes())
        .with_context(|| format!("no {name} in the kernel's BTF"))?;
    btf[at + 1] = b'X';
    Ok(())
}

fn btf_without_field() -> Result {
    match with_btf(|btf| rename(btf, "reg_state")) {
        Ok(setting) => tracing_refused(&setting, "reg_state"),
        Err(error) => Result::Failed(error),
    }
}

fn btf_without_function() -> Result {
    // There is none on 5.10 for arm64, whose BTF has few of the static functions.
    let name = b"\0rtnetlink_event\0";
    match fs::read("/sys/kernel/btf/vmlinux") {
        Ok(btf) if !btf.windows(name.len()).any(|window| window == name) => {
            return Result::LeftOut("this kernel's BTF does not have the function".to_owned());
        }
        _ => {}
    }
    (|| {
        let setting = with_btf(|btf| rename(btf, "rtnetlink_event"))?;
        setting.fails("fentry", "does not have the function rtnetlink_event")?;
        setting.steps_to(&["kprobe"], &["does not have the function rtnetlink_event"])
    })()
    .into()
}

/// The one thing that no reader of BTF can find out by itself: a field that is said to be where
/// another is. The proof on a live device finds it.
fn btf_with_wrong_offset() -> Result {
    const WHY: &str = "does not read this kernel right";
    (|| {
        let setting = with_btf(|btf| swap_ifindex(btf))?;
        setting.steps_to(SOCKET, &[WHY])?;
        setting.fails("kprobe", WHY)?;
        // Where there are no trampolines, fentry does not get as far as to be put to the proof.
        if Setting::has_fentry()? {
            setting.fails("fentry", WHY)?;
        }
        Ok(())
    })()
    .into()
}

/// Swaps the names of `net_device.ifindex` and of another integer beside it.
fn swap_ifindex(btf: &mut [u8]) -> anyhow::Result<()> {
    let strings = |btf: &[u8]| -> anyhow::Result<usize> {
        let number = |at: usize| -> anyhow::Result<usize> {
            let bytes = btf.get(at..at + 4).context("short")?;
            Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
        };
        Ok(number(4)? + number(16)?)
    };
    let start = strings(btf)?;
    let offset_of = |name: &str| -> anyhow::Result<u32> {
        let wanted = format!("\0{name}\0");
        let at = btf[start..]
            .windows(wanted.len())
            .position(|window| window == wanted.as_bytes())
            .with_context(|| format!("no {name} in the kernel's BTF"))?;
        Ok(u32::try_from(at + 1)?)
    };
    let (ifindex, group) = (offset_of("ifindex")?, offset_of("group")?);
    let mut swapped = 0;
    for at in (0..start.saturating_sub(4)).step_by(4) {
        let word = u32::from_le_bytes(btf[at..at + 4].try_into()?);
        let other = if word == ifindex {
            group
        } else if word == group {
            ifindex
        } else {
            continue;
        };
        btf[at..at + 4].copy_from_slice(&other.to_le_bytes());
        swapped += 1;
    }
    ensure!(swapped > 1, "nothing was swapped");
    Ok(())
}

fn btf_cut_short() -> Result {
    let cut = |btf: &mut Vec<u8>| {
        btf.truncate(btf.len() / 2);
        Ok(())
    };
    match with_btf(cut) {
        Ok(setting) => tracing_refused(&setting, "BTF"),
        Err(error) => Result::Failed(error),
    }
}

fn kernel_is_before(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) < (Some(major), Some(minor))
}

/// Before 5.11 the default limit of 64 KiB holds only small maps: they are made smaller, and it
/// works.
fn memlock() -> Result {
    let setting = Setting {
        memlock: Some(64 * 1024),
        ..Setting::default()
    };
    (|| {
        setting.steps_to(TRACING, &[])?;
        setting.takes("netlink-ebpf", SOCKET, &[])
    })()
    .into()
}

fn memlock_far_too_small() -> Result {
    if !kernel_is_before(5, 11) {
        return Result::LeftOut("this kernel does not count BPF maps as locked memory".to_owned());
    }
    refused(
        &Setting {
            memlock: Some(4096),
            ..Setting::default()
        },
        "the limit on locked memory is too small",
    )
}

/// What a socket may have for its filters and options.
fn little_socket_memory() -> Result {
    const FILE: &str = "/proc/sys/net/core/optmem_max";
    if !kernel_is_before(6, 8) {
        return Result::LeftOut(
            "this kernel has such a limit for each network namespace".to_owned(),
        );
    }
    (|| {
        let before = fs::read(FILE)?;
        fs::write(FILE, "8192")?;
        let why = "net.core.optmem_max";
        let setting = Setting::default();
        let result = setting.fails("netlink-ebpf", why);
        fs::write(FILE, before)?;
        result
    })()
    .into()
}

fn lock_down(mode: &str) -> anyhow::Result<bool> {
    let file = Path::new("/sys/kernel/security/lockdown");
    if !file.exists() {
        return Ok(false);
    }
    fs::write(file, mode).with_context(|| format!("cannot set lockdown={mode}"))?;
    Ok(true)
}

/// Integrity is what secure boot brings, and no obstacle.
fn lockdown_integrity() -> Result {
    match lock_down("integrity") {
        Ok(true) => Setting::default().steps_to(TRACING, &[]).into(),
        Ok(false) => Result::LeftOut("this kernel has no lockdown".to_owned()),
        Err(error) => Result::Failed(error),
    }
}

fn lockdown_confidentiality() -> Result {
    match lock_down("confidentiality") {
        Ok(true) => tracing_refused(&Setting::default(), "lockdown mode \"confidentiality\""),
        Ok(false) => Result::LeftOut("this kernel has no lockdown".to_owned()),
        Err(error) => Result::Failed(error),
    }
}
