//! The signals that ask for an end.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Not where whoever started ifmon had it ignored, as `nohup(1)` does.
    hangup: Option<Signal>,
    /// How often the first two have come.
    asked: u32,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        unblock()?;
        let hangup = (!is_ignored(libc::SIGHUP)).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
            asked: 0,
        })
    }

    /// An end is asked for.
    pub(crate) async fn end(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => self.asked += 1,
            _ = self.terminate.recv() => self.asked += 1,
            _ = hangup => {}
        }
    }

    /// An end is asked for a second time, by somebody who will not wait. A run that ends by itself was
    /// not asked to yet, and a hangup asks for no haste: a service manager can send it along.
    pub(crate) async fn end_at_once(&mut self) {
        while self.asked < 2 {
            tokio::select! {
                _ = self.interrupt.recv() => self.asked += 1,
                _ = self.terminate.recv() => self.asked += 1,
            }
        }
    }
}

/// Whoever started ifmon may have blocked what it waits for, and that stays so across exec(2): then no
/// signal would end it, and no command seem to end.
fn unblock() -> io::Result<()> {
    // SAFETY: all zeroes is a value of this plain C structure, which `sigemptyset` makes an empty set. The
    // others are given sets that outlive the call, and the old mask is not asked for.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Is a signal ignored?
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeroes is a value of this plain C structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed; what is there is written to a structure that outlives the call.
    let read = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    read == 0 && action.sa_sigaction == libc::SIG_IGN
}
