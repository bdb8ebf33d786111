//! Standard output: a line at a time, at once, and never a hang that a signal could not end.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Standard output. It is written to directly where that cannot block, else when there is room.
#[derive(Debug)]
pub(crate) struct Stdout {
    file: OwnedFd,
    /// For pipes, sockets and terminals; a regular file cannot be waited for, and need not be.
    waits: Option<AsyncFd<Watched>>,
}

#[derive(Debug)]
struct Watched(OwnedFd);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stdout {
    pub(crate) fn open() -> io::Result<Self> {
        let stdout = io::stdout();
        let watched = Watched(stdout.as_fd().try_clone_to_owned()?);
        // SAFETY: `Watched` owns its descriptor and always hands out the same one.
        let waits = unsafe {
            AsyncFd::register_with_interest(watched, Interest::WRITABLE | Interest::ERROR)
        };
        Ok(Self {
            file: stdout.as_fd().try_clone_to_owned()?,
            waits: waits.ok(),
        })
    }

    /// Writes a line whole. Waits while the reader is slow; nothing of the line is lost when the wait is given up before
    /// it began to be written.
    pub(crate) async fn write(&self, mut line: &[u8]) -> io::Result<()> {
        while !line.is_empty() {
            self.writable().await?;
            match rustix::io::write(&self.file, line) {
                Ok(written) => line = line.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Returns once a write of up to `PIPE_BUF` (4,096) bytes would not block, which `poll(2)` promises for a pipe.
    async fn writable(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(waits) = &self.waits else {
            return Ok(());
        };
        loop {
            let mut ready = waits.writable().await?;
            let mut file = [PollFd::new(&self.file, PollFlags::OUT)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if poll(&mut file, Some(&now))? > 0 {
                ready.retain_ready();
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Returns when whoever reads has gone.
    pub(crate) async fn closed(&self) {
        let Some(waits) = &self.waits else {
            return std::future::pending().await;
        };
        loop {
            match waits.ready(Interest::ERROR).await {
                Ok(ready) if ready.ready().is_error() || ready.ready().is_write_closed() => return,
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }
}
