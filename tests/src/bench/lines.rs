//! What a process prints, seen as it comes: how many lines, and when.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    process::ChildStdout,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// The reading end of a pipe.
#[derive(Debug)]
pub(super) struct Lines {
    pipe: File,
    buffer: Box<[u8]>,
}

impl Lines {
    pub(super) fn new(stdout: ChildStdout) -> Self {
        Self {
            pipe: OwnedFd::from(stdout).into(),
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
        }
    }

    /// Reads what comes within the time, and says how many lines ended in it; 0 when nothing came.
    pub(super) fn read(&mut self, within: Duration) -> Result<usize> {
        let Self { pipe, buffer } = self;
        let mut wait = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut wait, Some(&Timespec::try_from(within)?)) {
            Ok(0) | Err(Errno::INTR) => return Ok(0),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let length = pipe.read(buffer)?;
        if length == 0 {
            bail!("ended while it was measured");
        }
        Ok(buffer[..length]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count())
    }

    /// Waits until so many lines have come.
    pub(super) fn expect(&mut self, count: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut seen = 0;
        while seen < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("wrote {seen} lines of {count} in {within:?}");
            }
            seen += self.read(left)?;
        }
        Ok(())
    }

    /// Throws away what is there.
    pub(super) fn discard(&mut self) -> Result<()> {
        while self.read(Duration::ZERO)? > 0 {}
        Ok(())
    }

    /// Has everything that will come thrown away, so that its writer never waits.
    pub(super) fn discard_in_background(self) {
        thread::spawn(move || {
            let Self { mut pipe, .. } = self;
            std::io::copy(&mut pipe, &mut std::io::sink())
        });
    }
}
