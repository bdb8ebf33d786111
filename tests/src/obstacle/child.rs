//! Runs ifmon as a process that lacks something.

use std::{
    collections::BTreeSet,
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{Gid, Resource, Rlimit, Uid, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, configure_capability_in_ambient_set,
        set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_res_gid,
        set_thread_res_uid, unshare_unsafe,
    },
};

use serde_json::Value;

use super::process::Lack;
use crate::{
    backend::WHO,
    format,
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
    /// One of the things that most processes have.
    pub(super) lack: Option<Lack>,
}

impl Setting {
    /// `auto` takes one of these backends, says each of `why` on standard error, and gives right
    /// verdicts.
    pub(super) fn steps_to(&self, backends: &[&str], why: &[&str]) -> Result<()> {
        self.takes("auto", backends, why)
    }

    /// The same for any choice of a backend.
    pub(super) fn takes(&self, choice: &str, backends: &[&str], why: &[&str]) -> Result<()> {
        let namespace = Namespace::new()?;
        let links = Links::new(&namespace)?;
        let begin = format::now();
        let ifmon = self.start(&namespace, choice)?;
        let Some(watching) = ifmon.next()? else {
            bail!("ended at once: {}", ifmon.finish()?.stderr.trim());
        };
        let backend = watching["backend"].as_str().unwrap_or_default().to_owned();
        // In a user namespace of its own the process has a network namespace of its own too, out of
        // reach.
        let mut deletion = None;
        if !self.user_namespace {
            links.add("wg0", Kind::Veth { peer: "peer0" }, Some(70))?;
            ifmon.expect("wg0", "appeared")?;
            links.delete("wg0")?;
            let deleted = ifmon.expect("wg0", "deleted")?;
            format::check(&deleted, &backend, begin)?;
            deletion = Some(deleted);
        }
        let outcome = ifmon.stop()?;
        ensure!(
            outcome.status.success(),
            "ended with {}: {}",
            outcome.status,
            outcome.stderr.trim()
        );
        ensure!(
            backends.contains(&backend.as_str()),
            "took {backend}, not one of {backends:?}: {}",
            outcome.stderr.trim()
        );
        // Not beside it: a limit on locked memory is one for all processes of a user.
        if backend == "netlink-ebpf"
            && let Some(deleted) = &deletion
        {
            self.tells_what_it_said(deleted)?;
        }
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
        let outcome = self.start(&namespace, backend)?.finish()?;
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
    pub(super) fn has_fentry() -> Result<bool> {
        Ok(Self::default().check()?["backends"][0]["works"] == true)
    }

    /// What `--check` says of who made a change.
    pub(super) fn who(&self) -> Result<BTreeSet<String>> {
        let check = self.check()?;
        let parts = check["who"].as_array().context("no who in --check")?;
        let parts = parts.iter().filter_map(Value::as_str).map(str::to_owned);
        Ok(parts.collect())
    }

    fn check(&self) -> Result<Value> {
        let mut command = Command::new(program::path());
        command.args(["--check", "--json"]);
        command.stdout(Stdio::piped());
        let output = self
            .spawn(&mut self.apply_to(command))?
            .wait_with_output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Has the line those parts of who made the change that `--check` promises, and no other?
    fn tells_what_it_said(&self, line: &Value) -> Result<()> {
        let told = WHO.iter().filter(|part| !line["by"][**part].is_null());
        let told: BTreeSet<String> = told.map(|&part| part.to_owned()).collect();
        let said = self.who()?;
        ensure!(told == said, "--check said {said:?}, and there is {line}");
        Ok(())
    }

    /// Starts ifmon in a network namespace.
    pub(super) fn start(&self, namespace: &Namespace, backend: &str) -> Result<Ifmon> {
        let mut command = Command::new(program::path());
        command.args(["--json", "--backend", backend, "wg0"]);
        namespace.enter(&mut command)?;
        Ifmon::spawn_by(self.apply_to(command), |command| self.spawn(command))
    }

    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        match self.lack {
            Some(lack) => lack.spawn(command),
            None => command.spawn(),
        }
    }

    fn apply_to(&self, mut command: Command) -> Command {
        let setting = self.clone();
        // SAFETY: this runs in a child of a program with other threads, between fork and exec. It
        // makes system calls; the few allocations in it could only hang this test, and the
        // C library guards its allocator across fork.
        unsafe {
            command.pre_exec(move || setting.apply());
        }
        command
    }

    fn apply(&self) -> io::Result<()> {
        let Self {
            capabilities,
            user_namespace,
            hide,
            btf,
            seccomp,
            memlock,
            lack,
        } = self;
        if hide.is_some() || btf.is_some() || lack.is_some_and(Lack::needs_mounts) {
            // SAFETY: the child has one thread, and nothing that depends on the mount namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change(
                "/",
                MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
            )?;
        }
        if let Some(lack) = lack {
            lack.apply()?;
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
pub(super) fn plain(stderr: &str) -> Result<()> {
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
