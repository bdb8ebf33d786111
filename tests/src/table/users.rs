//! Who runs it: without privileges, and where BPF is not to be had.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    process::{Command, Output, Stdio},
};

use anyhow::{Result, ensure};
use ifmon::BackendKind;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Gid, Uid},
    thread::{
        LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};

use super::{ONCE, Scenario, only, veth};
use crate::{
    backend::{self, BACKENDS, EBPF, UNPRIVILEGED},
    program,
    stage::{Stage, left_out},
    want::{deleted, moved, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("an ordinary user", ordinary_user),
    only(
        UNPRIVILEGED,
        veth("an ordinary user, a foreign /sys", foreign_sysfs),
    ),
    only(ONCE, veth("an ordinary user, auto", auto_as_ordinary_user)),
    only(
        NETLINK_EBPF,
        veth("who made a change, as far as the kernel says", who_is_told),
    ),
    only(ONCE, veth("auto takes the best that works", auto)),
    only(
        ONCE,
        veth("a BPF backend that does not work", refused_by_name),
    ),
];

const NETLINK_EBPF: &[BackendKind] = &[BackendKind::NetlinkEbpf];

/// `nobody`, who has no capability.
const NOBODY: u32 = 65534;

/// The program as an ordinary user can start it, wherever it is: by a descriptor, which needs no
/// way through folders.
pub(super) fn program() -> Result<(File, Command)> {
    let name = program::path();
    let path = if name.components().count() > 1 {
        name
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(&name))
            .find(|path| path.is_file())
            .unwrap_or(name)
    };
    let file = File::open(path)?;
    let command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, command))
}

/// Makes the command run as an ordinary user; what is to be done as root has to be done before.
pub(super) fn as_nobody(command: &mut Command) {
    // SAFETY: system calls alone, in a process that has one thread.
    unsafe {
        command.pre_exec(|| {
            set_thread_groups(&[])?;
            let group = Gid::from_raw(NOBODY);
            set_thread_res_gid(group, group, group)?;
            let user = Uid::from_raw(NOBODY);
            set_thread_res_uid(user, user, user)?;
            Ok(())
        });
    }
}

fn ordinary_user(stage: &mut Stage) -> Result<()> {
    let (_file, mut command) = program()?;
    command.args(["--json", "--backend", stage.backend.as_str()]);
    stage.home.enter(&mut command)?;
    as_nobody(&mut command);
    stage.home.add("wg0", 100)?;
    if stage.backend.is_ebpf() {
        command.arg("wg0");
        stage.launch(command)?;
        return refused(stage);
    }
    stage.launch_home(command, &[("wg0", Some(100))])?;
    changes(stage)
}

/// One of each change that needs no help of sysfs.
fn changes(stage: &mut Stage) -> Result<()> {
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", returned(100))?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", recreated(100, 100))?;
    stage.nothing_more(&[])
}

/// One line that names the backend, and exit code 1.
fn refused(stage: &mut Stage) -> Result<()> {
    let outcome = stage.ends_silently(1)?;
    let backend = stage.backend.as_str();
    ensure!(
        outcome.stderr.lines().count() == 1
            && outcome.stderr.starts_with("ifmon: ")
            && outcome.stderr.contains(backend),
        "on standard error: {}",
        outcome.stderr
    );
    Ok(())
}

/// The same name there, on a device that stays while ours is replaced: nothing must be concluded
/// from that.
fn foreign_sysfs(stage: &mut Stage) -> Result<()> {
    let (foreign, away) = (stage.room()?, stage.room()?);
    foreign.add("wg0", 100)?;
    stage.home.add("wg0", 100)?;
    let (_file, mut command) = program()?;
    command.args(["--json", "--backend", stage.backend.as_str()]);
    let namespace = File::open(foreign.path())?;
    // SAFETY: system calls alone, in a process that has one thread.
    unsafe {
        command.pre_exec(move || {
            unshare_unsafe(UnshareFlags::NEWNS)?;
            // An initramfs has no mounts that could be shared with others.
            let _ = mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            );
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).map_err(io::Error::from)
        });
    }
    stage.home.enter(&mut command)?;
    as_nobody(&mut command);
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

fn auto_as_ordinary_user(stage: &mut Stage) -> Result<()> {
    let (_file, mut command) = program()?;
    command.args(["--json", "--backend", "auto"]);
    stage.home.enter(&mut command)?;
    as_nobody(&mut command);
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.warns("; using netlink");
    changes(stage)
}

/// What the kernel lets a socket filter ask, as it was found out on each of them by hand.
fn who_is_told(stage: &mut Stage) -> Result<()> {
    let told = backend::who(stage.backend)?;
    let expected = backend::who_by_kernel(backend::kernel()?, true);
    ensure!(
        *told == expected,
        "{told:?} is told of who made a change, not {expected:?}"
    );
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    changes(stage)
}

/// What comes of asking for this backend by name. Exit code 3 says that it works: then the link is
/// what is missing.
fn ask_for(stage: &Stage, backend: BackendKind) -> Result<Output> {
    let mut command = Command::new(program::path());
    command.args([
        "--must-exist",
        "--backend",
        backend.as_str(),
        "no-such-link",
    ]);
    stage.home.enter(&mut command)?;
    Ok(command.stdin(Stdio::null()).output()?)
}

fn works(stage: &Stage, backend: BackendKind) -> Result<bool> {
    Ok(ask_for(stage, backend)?.status.code() == Some(3))
}

fn auto(stage: &mut Stage) -> Result<()> {
    for backend in BACKENDS {
        if works(stage, backend)? {
            stage.backend = backend;
            break;
        }
    }
    let mut command = Command::new(program::path());
    command.args(["--json", "--backend", "auto"]);
    stage.home.enter(&mut command)?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    if stage.backend != BackendKind::Fentry {
        stage.warns(&format!("; using {}", stage.backend));
    }
    changes(stage)
}

/// What was asked for by name is not replaced by something else.
fn refused_by_name(stage: &mut Stage) -> Result<()> {
    let mut refused = 0;
    for &backend in EBPF {
        if works(stage, backend)? {
            continue;
        }
        refused += 1;
        let Output {
            status,
            stdout,
            stderr,
        } = ask_for(stage, backend)?;
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(
            status.code() == Some(1)
                && stdout.is_empty()
                && stderr.lines().count() == 1
                && stderr.starts_with(&format!(
                    "ifmon: the {backend} backend does not work here: "
                )),
            "{status}, on standard error: {stderr}"
        );
    }
    if refused == 0 {
        return left_out("BPF works here");
    }
    Ok(())
}
