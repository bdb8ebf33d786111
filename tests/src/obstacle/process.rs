//! Processes that have little: namespaces of their own, one thread, no /proc, hardly a /sys.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command},
    thread,
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    thread::{
        CapabilitySet, LinkNameSpaceType, UnshareFlags, gettid, move_into_link_name_space,
        unshare_unsafe,
    },
};

use super::{
    NETLINK, Result, SOCKET, TRACING,
    child::{Setting, plain},
};
use crate::{
    links::{Kind, Links},
    namespace::Namespace,
    program::Ifmon,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";
/// A cgroup with room for one thread.
const CGROUP: &str = "/sys/fs/cgroup/one-thread";
/// How far the boot clock is put forward, in seconds: eleven days.
const AHEAD: u32 = 1_000_000;

/// What a process has for itself, or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It is the first process of a pid namespace, and `/proc` shows that one.
    PidNamespace,
    /// Its boot clock is ahead of the kernel's.
    TimeNamespace,
    /// It cannot make a second thread.
    Thread,
    /// There is no `/proc`.
    Proc,
    /// Nothing is in `/sys` but the kernel's BTF.
    Sys,
}

impl Lack {
    /// Does it hide something from the process?
    pub(super) const fn needs_mounts(self) -> bool {
        match self {
            Self::PidNamespace | Self::Proc | Self::Sys => true,
            Self::TimeNamespace | Self::Thread => false,
        }
    }

    /// What the process does to itself before it becomes ifmon.
    pub(super) fn apply(self) -> io::Result<()> {
        match self {
            Self::PidNamespace => mount("proc", "/proc", "proc", MountFlags::empty(), None)?,
            Self::TimeNamespace => {}
            Self::Thread => fs::write(Path::new(CGROUP).join("cgroup.procs"), "0")?,
            Self::Proc => unmount("/proc", UnmountFlags::DETACH)?,
            Self::Sys => {
                let btf = fs::read(BTF)?;
                mount("tmpfs", "/sys", "tmpfs", MountFlags::empty(), None)?;
                fs::create_dir_all("/sys/kernel/btf")?;
                fs::write(BTF, btf)?;
            }
        }
        Ok(())
    }

    /// Starts the process. Two kinds of namespaces are entered by being born into them.
    pub(super) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        let flags = match self {
            Self::PidNamespace => UnshareFlags::NEWPID,
            Self::TimeNamespace => UnshareFlags::NEWTIME,
            Self::Thread | Self::Proc | Self::Sys => return command.spawn(),
        };
        on_a_thread(|| {
            // SAFETY: this thread starts one process, and ends.
            unsafe { unshare_unsafe(flags) }?;
            if self == Self::TimeNamespace {
                // The link `thread-self` leads to a folder that does not have this file.
                let offsets = format!("/proc/{}/timens_offsets", gettid().as_raw_nonzero());
                fs::write(offsets, format!("boottime {AHEAD} 0\n"))?;
            }
            command.spawn()
        })
    }
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(act);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn without(lack: Lack) -> Setting {
    Setting {
        lack: Some(lack),
        ..Setting::default()
    }
}

/// Those that work without any obstacle.
fn works_here() -> anyhow::Result<Vec<&'static str>> {
    let all = TRACING.iter().chain(SOCKET).chain(NETLINK).copied();
    let fentry = Setting::has_fentry()?;
    Ok(all.filter(|&name| name != "fentry" || fentry).collect())
}

/// Each backend works, chosen by name.
fn all_work(setting: &Setting) -> anyhow::Result<()> {
    works_here()?
        .into_iter()
        .try_for_each(|backend| setting.takes(backend, &[backend], &[]))
}

/// Of who makes a change, the process is told as this pid namespace knows it, and not at all where
/// it is a stranger there.
pub(super) fn pid_namespace() -> Result {
    let setting = without(Lack::PidNamespace);
    (|| {
        works_here()?
            .into_iter()
            .try_for_each(|backend| tells_own_pids(&setting, backend).context(backend))
    })()
    .into()
}

fn tells_own_pids(setting: &Setting, backend: &str) -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    links.add("wg0", Kind::Veth { peer: "peer0" }, Some(70))?;
    let ifmon = setting.start(&namespace, backend)?;
    let Some(_watching) = ifmon.next()? else {
        bail!("ended at once: {}", ifmon.finish()?.stderr.trim());
    };
    links.rename("wg0", "old0")?;
    let by_stranger = ifmon.expect("wg0", "renamed")?;
    let pid = rename_from_within(&ifmon, &namespace)?;
    let by_own = ifmon.expect("wg0", "returned")?;
    let knows_pid =
        TRACING.contains(&backend) || SOCKET.contains(&backend) && setting.who()?.contains("pid");
    ensure!(
        by_stranger["by"]["pid"].is_null(),
        "the pid is one of another pid namespace: {by_stranger}"
    );
    ensure!(
        by_own["by"]["pid"].as_u64() == knows_pid.then_some(pid),
        "the pid is not {pid}: {by_own}"
    );
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.status.success(),
        "{}: {}",
        outcome.status,
        outcome.stderr.trim()
    );
    plain(&outcome.stderr)
}

/// Renames the link back, as a process of ifmon's pid namespace. Returns its id there.
fn rename_from_within(ifmon: &Ifmon, namespace: &Namespace) -> anyhow::Result<u64> {
    let pids = File::open(format!("/proc/{}/ns/pid", ifmon.pid()))?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$; exec ip link set old0 name wg0"]);
    namespace.enter(&mut command)?;
    let output = on_a_thread(|| {
        move_into_link_name_space(pids.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
        command.output()
    })?;
    ensure!(output.status.success(), "cannot rename: {output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The kernel's boot clock is not that of the process: every backend tells the time as it is.
pub(super) fn time_namespace() -> Result {
    if !Path::new("/proc/self/ns/time").exists() {
        return Result::LeftOut("this kernel has no time namespaces".to_owned());
    }
    all_work(&without(Lack::TimeNamespace)).into()
}

pub(super) fn one_thread() -> Result {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "pids") {
        return Result::LeftOut("there is no cgroup controller for pids here".to_owned());
    }
    (|| {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids")?;
        fs::create_dir_all(CGROUP)?;
        fs::write(Path::new(CGROUP).join("pids.max"), "1")?;
        let setting = without(Lack::Thread);
        setting.steps_to(TRACING, &["could not prove"])?;
        all_work(&setting)
    })()
    .into()
}

/// Who makes a change is not told by a pid: of which pid namespace it is cannot be known.
pub(super) fn no_proc() -> Result {
    let setting = without(Lack::Proc);
    (|| {
        setting.steps_to(TRACING, &[])?;
        all_work(&setting)?;
        ensure!(
            !setting.who()?.contains("pid"),
            "--check promises pids, and of which pid namespace cannot be known"
        );
        Ok(())
    })()
    .into()
}

/// A namespace without a number is one of which the programs would hear nothing; and one that is known
/// by a socket alone is not entered by whoever is in it.
pub(super) fn no_proc_and_no_rights() -> Result {
    const WHY: &str = "the number of the network namespace is not known";
    let bpf = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let with = |capabilities| Setting {
        capabilities: Some(capabilities),
        ..without(Lack::Proc)
    };
    (|| {
        let numberless = with(bpf);
        numberless.steps_to(NETLINK, &[WHY])?;
        numberless.fails("netlink-ebpf", WHY)?;
        let all = with(bpf | CapabilitySet::NET_ADMIN);
        SOCKET
            .iter()
            .chain(NETLINK)
            .try_for_each(|backend| all.takes(backend, &[backend], &[]))
    })()
    .into()
}

/// How many processors there are is not shown, so the counters of each cannot be read, and a loss
/// would go unnoticed.
pub(super) fn bare_sys() -> Result {
    const WHY: &str = "/sys/devices/system/cpu/possible";
    let setting = without(Lack::Sys);
    (|| {
        setting.steps_to(
            NETLINK,
            &["netlink-ebpf do not work here: the program's counters"],
        )?;
        if Setting::has_fentry()? {
            setting.fails("fentry", WHY)?;
        }
        setting.fails("kprobe", WHY)?;
        setting.fails("netlink-ebpf", WHY)?;
        setting.takes("netlink", NETLINK, &[])
    })()
    .into()
}

/// The kernel puts a limited number of programs on a function, and kprobes are no part of it.
pub(super) fn crowded_function() -> Result {
    /// `BPF_MAX_TRAMP_PROGS` of `include/linux/bpf.h` is 38, and was 40 before 5.12.
    const MANY: usize = 41;
    const WHY: &str =
        "as many other BPF programs sit on the function rtnetlink_event as the kernel takes";
    match Setting::has_fentry() {
        Ok(true) => {}
        Ok(false) => return Result::LeftOut("this kernel has no BPF trampolines here".to_owned()),
        Err(error) => return Result::Failed(error),
    }
    (|| {
        let namespace = Namespace::new()?;
        let mut others = Vec::new();
        loop {
            let other = Ifmon::start(&namespace, &["--backend", "fentry", "wg0"])?;
            if other.next()?.is_some() {
                others.push(other);
                ensure!(others.len() < MANY, "{MANY} programs on one function");
                continue;
            }
            let stderr = other.finish()?.stderr;
            ensure!(stderr.contains(WHY), "{stderr}");
            break;
        }
        let setting = Setting::default();
        setting.fails("fentry", WHY)?;
        setting.steps_to(&["kprobe"], &[WHY])
    })()
    .into()
}
