//! A network namespace for a test, and `ip` in it.

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace of the test's own.
pub(crate) struct Namespace(File);

impl Namespace {
    /// Puts the calling thread into a new one. `None`, with the reason on standard error, where
    /// that is not allowed.
    pub(crate) fn enter_new() -> Option<Self> {
        // SAFETY: the thread shares nothing that depends on its network namespace.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            eprintln!("left out: no network namespace can be made here ({error})");
            return None;
        }
        if let Err(error) = Command::new("ip").arg("-V").output() {
            eprintln!("left out: no `ip` here ({error})");
            return None;
        }
        Some(Self(
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted"),
        ))
    }

    /// Puts the calling thread back into this one.
    pub(crate) fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("the namespace is alive");
    }

    /// Runs commands of `ip -batch`, beside.
    pub(crate) fn ip(&self, batch: impl Into<String>) -> JoinHandle<()> {
        let namespace = Self(self.0.try_clone().expect("a file can be opened twice"));
        let batch = batch.into();
        thread::spawn(move || {
            namespace.enter();
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("ip runs");
            let mut stdin = ip.stdin.take().expect("piped");
            stdin.write_all(batch.as_bytes()).expect("ip reads");
            drop(stdin);
            assert!(ip.wait().expect("ip ends").success());
        })
    }
}
