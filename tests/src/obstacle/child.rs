//! Runs ifmon as a process that lacks something.

use std::{io, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{Gid, Resource, Rlimit, Uid, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, configure_capability_in_ambient_set,
        set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_res_gid,
        set_thread_res_uid, unshare_unsafe,
    },
};

use crate::{
    links::{Kind, Links},
    namespace::Namespace,
    program::{self, Ifmon},
};

/// What the process has and has not.
#[derive(Clone, Debug, Default)]
pub(super) struct Setting {
    /// Only these capabilities, as an ordinary user.
    pub(super) capabilities: Option<CapabilitySet>,
    /// Root of a user namespace of its own.
    pub(super) user_namespace: bool,
    /// An empty directory in place of this one.
    pub(super) hide: Option<PathBuf>,
    /// This file in place of the kernel's BTF.
    pub(super) btf: Option<PathBuf>,
    /// bpf(2) fails with this.
    pub(super) seccomp: Option<i32>,
    /// This limit on locked memory, in bytes, and no CAP_SYS_RESOURCE.
    pub(super) memlock: Option<u64>,
}

impl Setting {
    /// `auto` takes one of these backends, says each of `why` on standard error, and gives right verdicts.
    pub(super) fn steps_to(&self, backends: &[&str], why: &[&str]) -> Result<()> {
        let namespace = Namespace::new()?;
        let links = Links::new(&namespace)?;
        let ifmon = Ifmon::spawn(self.command(&namespace, "auto", true)?)?;
        let Some(watching) = ifmon.next()? else {
            bail!("ended at once: {}", ifmon.finish()?.stderr.trim());
        };
        let backend = watching["backend"].as_str().unwrap_or_default().to_owned();
        // In a user namespace of its own the process has a network namespace of its own too, out of reach.
        if !self.user_namespace {
            links.add("wg0", Kind::Veth { peer: "peer0" }, Some(70))?;
            ifmon.expect("wg0", "appeared")?;
            links.delete("wg0")?;
            ifmon.expect("wg0", "deleted")?;
        }
        let outcome = ifmon.stop()?;
        ensure!(
            backends.contains(&backend.as_str()),
            "took {backend}, not one of {backends:?}: {}",
            outcome.stderr.trim()
        );
        for why in why {
            let times = outcome.stderr.matches(why).count();
            ensure!(
                times == 1,
                "said {why:?} {times} times: {}",
                outcome.stderr.trim()
            );
        }
        plain(&outcome.stderr)
    }

    /// This backend, asked for by name, is an error of one line that says why.
    pub(super) fn fails(&self, backend: &str, why: &str) -> Result<()> {
        let namespace = Namespace::new()?;
        let outcome = Ifmon::spawn(self.command(&namespace, backend, true)?)?.finish()?;
        let stderr = outcome.stderr.trim();
        ensure!(
            outcome.status.code() == Some(1),
            "{backend}: {} instead of exit code 1: {stderr}",
            outcome.status
        );
        ensure!(
            stderr.lines().count() == 1 && stderr.contains(why),
            "{backend}: not one line with {why:?}: {stderr}"
        );
        ensure!(
            outcome.lines.is_empty(),
            "{backend}: wrote {:?}",
            outcome.lines
        );
        plain(stderr)
    }

    /// Does fentry work here, without any obstacle?
    pub(super) fn has_fentry(&self) -> Result<bool> {
        let output = Command::new(program::path())
            .args(["--check", "--json"])
            .output()?;
        let check: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(check["backends"][0]["works"] == true)
    }

    fn command(&self, namespace: &Namespace, backend: &str, json: bool) -> Result<Command> {
        let mut command = Command::new(program::path());
        if json {
            command.arg("--json");
        }
        command.args(["--backend", backend, "wg0"]);
        namespace.enter(&mut command)?;
        let setting = self.clone();
        // SAFETY: this runs in a child of a program with other threads, between fork and exec. It makes system calls;
        // the few allocations in it could only hang this test, and the C library guards its allocator across fork.
        unsafe {
            command.pre_exec(move || setting.apply());
        }
        Ok(command)
    }

    fn apply(&self) -> io::Result<()> {
        let Self {
            capabilities,
            user_namespace,
            hide,
            btf,
            seccomp,
            memlock,
        } = self;
        if hide.is_some() || btf.is_some() {
            // SAFETY: the child has one thread, and nothing that depends on the mount namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change(
                "/",
                MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
            )?;
        }
        if let Some(path) = hide {
            mount("tmpfs", path, "tmpfs", MountFlags::empty(), None)?;
        }
        if let Some(path) = btf {
            mount_bind(path, "/sys/kernel/btf/vmlinux")?;
        }
        if let Some(bytes) = *memlock {
            let limit = Rlimit {
                current: Some(bytes),
                maximum: Some(bytes),
            };
            setrlimit(Resource::Memlock, limit)?;
            become_user(CapabilitySet::all() - CapabilitySet::SYS_RESOURCE)?;
        }
        if let Some(capabilities) = *capabilities {
            become_user(capabilities)?;
        }
        if *user_namespace {
            // SAFETY: as above.
            unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
            std::fs::write("/proc/self/uid_map", "0 0 1")?;
        }
        if let Some(errno) = *seccomp {
            refuse_bpf(errno)?;
        }
        Ok(())
    }
}

/// Only what a person can use: no log of the verifier, no backtrace.
fn plain(stderr: &str) -> Result<()> {
    for line in stderr.lines() {
        ensure!(line.starts_with("ifmon: "), "not ifmon's own words: {line}");
    }
    for sign in [
        "R1=",
        "R0=",
        "processed ",
        "panicked",
        "backtrace",
        "Os {",
        "Error(",
    ] {
        ensure!(
            !stderr.contains(sign),
            "{sign:?} is no plain word: {stderr}"
        );
    }
    Ok(())
}

/// An ordinary user with these capabilities and no way to get others.
fn become_user(wanted: CapabilitySet) -> io::Result<()> {
    const NOBODY: u32 = 65534;
    let held = rustix::thread::capabilities(None)?.permitted;
    let wanted = wanted & held;
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: wanted,
            permitted: wanted,
            inheritable: wanted,
        },
    )?;
    for capability in wanted.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// A seccomp filter of the kind that container runtimes install.
fn refuse_bpf(errno: i32) -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
    let instruction = |code: u32, k: u32, jf: u8| sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    // The number of the system call is the first word of `struct seccomp_data`.
    let mut program = [
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_bpf as u32, 1),
        instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    set_no_new_privs(true)?;
    let filter = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` points to as many instructions as it says; the kernel copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
