//! Network namespaces of the tests' own. They have no name and end with the last thing that holds
//! them.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
        unix::process::CommandExt as _,
    },
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new, empty one.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> io::Result<File> {
            // SAFETY: this thread ends right after, and shares nothing that depends on its
            // namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = made
            .join()
            .expect("the thread does not panic")
            .context("cannot make a network namespace")?;
        Ok(Self { file })
    }

    /// The one that the caller is in.
    pub fn current() -> Result<Self> {
        Ok(Self {
            file: File::open("/proc/thread-self/ns/net")?,
        })
    }

    /// Its inode number.
    pub fn id(&self) -> Result<u32> {
        Ok(u32::try_from(self.file.metadata()?.ino())?)
    }

    /// The open file that stands for it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path by which another process can open it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Does something in it, on a thread of its own.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| -> Result<T> {
                    move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    Ok(act())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes a command run in it.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let file = self.file.try_clone()?;
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        Ok(())
    }
}
