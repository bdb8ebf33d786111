//! Tells a service manager how it goes, in the way of `sd_notify(3)`: ready, alive, stopping.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use ifmon::Handle;

/// The socket to the service manager, where there is one.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// To be made before privileges are given up: the socket may be open to root alone.
    pub(crate) fn new() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|address| {
            connect(address.as_bytes())
                .inspect_err(|error| {
                    log::warn!("cannot reach the socket in NOTIFY_SOCKET: {error}")
                })
                .ok()
        });
        Self { socket }
    }

    /// All watches are live. Where the service manager has no room for that, it is told once it has:
    /// without it, it would take the start for one that failed.
    pub(crate) fn ready(&self, status: &str) {
        let message = format!("READY=1\nSTATUS={status}");
        let Some(socket) = &self.socket else {
            return;
        };
        match socket.send(message.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let socket = socket.try_clone();
                tokio::spawn(async move {
                    let sent = match socket.and_then(tokio::net::UnixDatagram::from_std) {
                        Ok(socket) => socket.send(message.as_bytes()).await,
                        Err(error) => Err(error),
                    };
                    told(&message, sent);
                });
            }
            sent => told(&message, sent),
        }
    }

    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Says regularly that the watch is alive, if that was asked for; nothing wakes the program
    /// otherwise.
    ///
    /// Each time the monitor has to answer first. This goes on while a slow reader or a slow hook
    /// holds up the events, which is no reason to be killed.
    pub(crate) fn watch_over(&self, monitor: Handle) {
        let Some(interval) = watchdog_interval(
            env::var("WATCHDOG_USEC").ok().as_deref(),
            env::var("WATCHDOG_PID").ok().as_deref(),
        ) else {
            return;
        };
        let Some(socket) = self
            .socket
            .as_ref()
            .and_then(|socket| socket.try_clone().ok())
        else {
            return;
        };
        tokio::spawn(async move {
            let notifier = Self {
                socket: Some(socket),
            };
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                if monitor.counters().await.is_err() {
                    return;
                }
                notifier.send("WATCHDOG=1");
            }
        });
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            told(message, socket.send(message.as_bytes()));
        }
    }
}

fn told(message: &str, sent: io::Result<usize>) {
    if let Err(error) = sent {
        log::warn!("cannot tell the service manager {message:?}: {error}");
    }
}

fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A service manager that does not read must not stop the watch.
    socket.set_nonblocking(true)?;
    match address {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        [b'/', ..] => socket.connect(std::ffi::OsStr::from_bytes(address))?,
        _ => {
            return Err(io::Error::other(
                "it is neither a path nor an abstract name",
            ));
        }
    }
    Ok(socket)
}

/// Half of the time after which the service manager would act, as `sd_watchdog_enabled(3)` advises.
fn watchdog_interval(microseconds: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    let for_us = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let microseconds: u64 = microseconds?.parse().ok()?;
    (for_us && microseconds >= 2).then(|| Duration::from_micros(microseconds / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_needed_and_only_when_it_is_ours() {
        let own = std::process::id().to_string();
        let second = Some(Duration::from_millis(500));
        for (microseconds, pid, interval) in [
            (None, None, None),
            (Some("1000000"), None, second),
            (Some("1000000"), Some(own.as_str()), second),
            (Some("1000000"), Some("1"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
        ] {
            assert_eq!(
                watchdog_interval(microseconds, pid),
                interval,
                "{microseconds:?} {pid:?}"
            );
        }
    }
}
