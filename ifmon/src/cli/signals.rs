//! The signals that ask for an end.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Not where whoever started ifmon had it ignored, as `nohup(1)` does.
    hangup: Option<Signal>,
    /// An end was asked for by somebody who will not wait.
    at_once: bool,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        unblock()?;
        let hangup = (!is_ignored(libc::SIGHUP)).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
            at_once: false,
        })
    }

    /// An end is asked for.
    pub(crate) async fn end(&mut self) {
        let Self {
            interrupt,
            terminate,
            hangup,
            at_once: _,
        } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup => {}
        }
    }

    /// An end is asked for by somebody who will not wait.
    pub(crate) async fn end_at_once(&mut self) {
        if self.at_once {
            return;
        }
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.at_once = true;
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
