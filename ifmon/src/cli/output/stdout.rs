//! Standard output: whole lines, at once, and never a hang that a signal could not end.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::fstat,
    termios::isatty,
};
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// What a pipe takes in one piece (`include/uapi/linux/limits.h`).
const PIPE_BUF: usize = 4096;
/// More than most lines take.
const LINE: usize = 512;

/// Standard output. It is written to directly where that cannot block, else when there is room.
#[derive(Debug)]
pub(crate) struct Stdout {
    file: OwnedFd,
    /// For pipes, sockets and terminals; a regular file cannot be waited for, and need not be.
    waits: Option<AsyncFd<PollableFd>>,
    /// What is to be written, and how much of it has been.
    pending: Vec<u8>,
    written: usize,
}

#[derive(Debug)]
struct PollableFd(OwnedFd);

impl AsRawFd for PollableFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for PollableFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Would a read or a write not wait right now?
pub(crate) fn is_ready(file: impl AsFd, flags: PollFlags) -> io::Result<bool> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut [PollFd::new(&file, flags)], Some(&now))? > 0)
}

/// A terminal that has room for a byte lets a write of more wait. Opened again, it does not, and still
/// does for those who share it.
fn opened_again(stdout: &io::Stdout) -> Option<OwnedFd> {
    /// Of the side that a terminal emulator has, which cannot be opened again: that makes a new pair.
    const PTMX: u64 = libc::makedev(5, 2);
    if fstat(stdout).ok()?.st_rdev == PTMX {
        return None;
    }
    let again = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", stdout.as_raw_fd()));
    again.ok().map(OwnedFd::from)
}

/// For what cannot be waited for: `None`.
fn waits_for(file: &OwnedFd) -> io::Result<Option<AsyncFd<PollableFd>>> {
    let watched = PollableFd(file.try_clone()?);
    // SAFETY: `PollableFd` owns its descriptor and always hands out the same one.
    let waits =
        unsafe { AsyncFd::register_with_interest(watched, Interest::WRITABLE | Interest::ERROR) };
    Ok(waits.ok())
}

impl Stdout {
    /// To be called before privileges are given up: the terminal may be somebody else's.
    pub(crate) fn open() -> io::Result<Self> {
        let stdout = io::stdout();
        let terminal = isatty(&stdout).then(|| opened_again(&stdout)).flatten();
        if let Some(terminal) = terminal
            && let Some(waits) = waits_for(&terminal)?
        {
            return Ok(Self::of(terminal, Some(waits)));
        }
        let file = stdout.as_fd().try_clone_to_owned()?;
        let waits = waits_for(&file)?;
        Ok(Self::of(file, waits))
    }

    const fn of(file: OwnedFd, waits: Option<AsyncFd<PollableFd>>) -> Self {
        Self {
            file,
            waits,
            pending: Vec::new(),
            written: 0,
        }
    }

    /// Takes a line, which [`Self::write`] writes.
    pub(crate) fn push(&mut self, line: &[u8]) {
        self.pending.extend_from_slice(line);
    }

    /// Is everything written?
    pub(crate) const fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Is there room for a line more in what is written in one piece? Then lines of events that came
    /// together are written together, and wake their reader once.
    pub(crate) const fn has_room(&self) -> bool {
        self.pending.len() <= PIPE_BUF - LINE
    }

    /// Writes what was pushed, by [`Self::write`].
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while !self.is_flushed() {
            self.write().await?;
        }
        Ok(())
    }

    /// Writes a part of what was pushed. Waits while the reader is slow; when the future is dropped,
    /// the next one goes on where it was, so that no line is torn.
    pub(crate) async fn write(&mut self) -> io::Result<()> {
        let ready = self.writable().await?;
        let rest = self.pending.get(self.written..).unwrap_or_default();
        match rustix::io::write(&self.file, piece(rest)) {
            Ok(written) => self.written += written,
            Err(rustix::io::Errno::INTR) => {}
            // A terminal may have some room, and not enough.
            Err(rustix::io::Errno::AGAIN) => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            Err(error) => return Err(error.into()),
        }
        if self.written >= self.pending.len() {
            self.pending.clear();
            // What the last lines of thousands of watches took needs no room for ever.
            self.pending.shrink_to(PIPE_BUF);
            self.written = 0;
        }
        Ok(())
    }

    /// Returns once a write of up to [`PIPE_BUF`] bytes would not block, which `poll(2)` promises
    /// for a pipe.
    async fn writable(&self) -> io::Result<Option<AsyncFdReadyGuard<'_, PollableFd>>> {
        let Some(waits) = &self.waits else {
            return Ok(None);
        };
        loop {
            let mut ready = waits.writable().await?;
            if is_ready(&self.file, PollFlags::OUT)? {
                ready.retain_ready();
                return Ok(Some(ready));
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

/// What to write first: no more than surely fits, or the write would wait; and no part of a line where
/// a whole one fits, or what others write to the same pipe could come in the middle of it.
fn piece(rest: &[u8]) -> &[u8] {
    let Some(most) = rest.get(..PIPE_BUF) else {
        return rest;
    };
    match most.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => &most[..=end],
        None => most,
    }
}

#[cfg(test)]
mod tests {
    use super::{PIPE_BUF, piece};

    #[test]
    fn a_piece_is_of_whole_lines_where_one_fits() {
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let fits = [line(1000), line(2000)].concat();
        assert_eq!(piece(&fits), fits);
        let exact = [line(96), line(PIPE_BUF - 96)].concat();
        assert_eq!(piece(&[exact.clone(), line(1)].concat()), exact);
        let more = [line(4000), line(97), line(10)].concat();
        assert_eq!(piece(&more), line(4000));
        let long = line(PIPE_BUF + 1);
        assert_eq!(piece(&long), vec![b'x'; PIPE_BUF]);
    }
}
