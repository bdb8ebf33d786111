//! Hears of changes through netlink: a subscription to `RTNLGRP_LINK` in each namespace, with a filter in the kernel that
//! wakes nobody for links that are not watched, or without one where that is refused.
//!
//! What is done with the messages is in [`Subscription`]; here are the sockets.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::unix::AsyncFd;

use super::{
    Counters, Signal,
    links::Host,
    readable,
    subscription::{Kernel, Received, Subscription, Tally},
};
use crate::{
    BackendKind, Error, InterfaceName, Netns, NetnsId,
    netlink::{
        filter::{Interest, Precision, build},
        generation::Generations,
        message::messages,
        query::Query,
        socket::Socket,
    },
    tracker::{Device, Watch},
};

/// Room for a burst of messages about the watched interfaces. The kernel charges it as messages come, not before.
const RECEIVE_BUFFER: usize = 4 << 20;
/// One link message; without the tables of virtual functions, which notifications leave out, 2 KiB would do.
const MESSAGE: usize = 16 * 1024;
/// The waits before a subscription is opened again double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 12;

/// The netlink backend: a subscription for each namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    filtered: bool,
    receive_buffer: usize,
    subscriptions: Vec<Subscription<Connection>>,
    tally: Tally,
}

impl Netlink {
    /// Makes sure that the kernel takes a filter, where one is wanted; subscriptions come with the watches.
    pub(crate) fn new(filtered: bool, receive_buffer: Option<usize>) -> io::Result<Self> {
        if filtered {
            let netns = Netns::current().map_err(io::Error::other)?;
            let program = build(&Interest::default(), Precision::Exact).unwrap_or_default();
            Socket::for_links(&netns)?.attach_filter(&program)?;
        }
        Ok(Self {
            filtered,
            receive_buffer: receive_buffer.unwrap_or(RECEIVE_BUFFER),
            subscriptions: Vec::new(),
            tally: Tally::default(),
        })
    }

    pub(crate) fn kind(&self) -> BackendKind {
        if self.filtered {
            BackendKind::Netlink
        } else {
            BackendKind::NetlinkUnfiltered
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let Tally {
            seen,
            matched,
            overflowed,
        } = self.tally;
        Counters {
            // What the filter drops, nobody counts.
            seen: (!self.filtered).then_some(seen),
            matched: Some(matched),
            ignored: (!self.filtered).then_some(seen - matched),
            // The kernel says that messages were lost, never how many.
            lost: (!overflowed).then_some(0),
        }
    }

    pub(crate) fn watch(
        &mut self,
        netns: &Netns,
        names: &[InterfaceName],
        signals: &mut Vec<Signal>,
    ) -> Result<Vec<Option<Device>>, Error> {
        let known = self
            .subscriptions
            .iter()
            .position(|subscription| subscription.netns() == netns.id());
        let at = match known {
            Some(at) => at,
            None => {
                let connection = Connection::open(netns, self.receive_buffer)?;
                let subscription = Subscription::new(netns.id(), self.filtered, connection);
                self.subscriptions.push(subscription);
                self.subscriptions.len() - 1
            }
        };
        self.subscriptions[at].watch(names, &mut self.tally, signals)
    }

    pub(crate) fn unwatch(&mut self, watch: Watch) {
        for subscription in &mut self.subscriptions {
            if subscription.netns() == watch.netns {
                subscription.unwatch(watch.name);
            }
        }
        // The last watch of a namespace lets go of it.
        self.subscriptions
            .retain(|subscription| !subscription.is_idle());
    }

    pub(crate) async fn signals(&mut self, signals: &mut Vec<Signal>) -> Result<(), Error> {
        loop {
            for at in 0..self.subscriptions.len() {
                if let Err(error) = self.subscriptions[at].round(&mut self.tally, signals) {
                    log::warn!(
                        "the subscription to link messages failed ({error}); opening it again"
                    );
                    self.reopen(at, error).await?;
                }
            }
            if !signals.is_empty() {
                return Ok(());
            }
            if self.subscriptions.iter().any(Subscription::is_unverified) {
                // Names change faster than they can be looked up; let others run in between.
                tokio::task::yield_now().await;
                continue;
            }
            let subscriptions = &self.subscriptions;
            poll_fn(|context| {
                let mut ready = Poll::Pending;
                for subscription in subscriptions {
                    if subscription.kernel.poll_readable(context).is_ready() {
                        ready = Poll::Ready(());
                    }
                }
                ready
            })
            .await;
        }
    }

    /// Opens a subscription again after it failed, with growing waits, and has every name looked up.
    async fn reopen(&mut self, at: usize, mut error: io::Error) -> Result<(), Error> {
        self.tally.overflowed = true;
        let mut wait = FIRST_WAIT;
        for _ in 0..ATTEMPTS {
            let subscription = &mut self.subscriptions[at];
            match subscription.kernel.open_again(self.receive_buffer) {
                Ok(()) => {
                    subscription.reopened();
                    return Ok(());
                }
                Err(Error::Subscribe(again) | Error::Recheck(again)) => error = again,
                Err(other) => return Err(other),
            }
            tokio::time::sleep(wait).await;
            wait = LAST_WAIT.min(wait * 2);
        }
        Err(Error::Ended(error))
    }
}

/// A namespace's kernel side: a socket that hears, one that asks, and its sysfs.
#[derive(Debug)]
struct Connection {
    netns: Netns,
    socket: AsyncFd<Socket>,
    query: Query,
    generations: Generations,
    buffer: Box<[u8]>,
}

/// Opens the two sockets: the one that hears, and the one that asks.
fn open_sockets(netns: &Netns, receive_buffer: usize) -> Result<(AsyncFd<Socket>, Query), Error> {
    let socket = Socket::for_links(netns).map_err(Error::Subscribe)?;
    socket
        .set_receive_buffer(receive_buffer)
        .map_err(Error::Subscribe)?;
    let query = Query::new(netns).map_err(Error::Recheck)?;
    Ok((readable(socket).map_err(Error::Subscribe)?, query))
}

impl Connection {
    fn open(netns: &Netns, receive_buffer: usize) -> Result<Self, Error> {
        let (socket, mut query) = open_sockets(netns, receive_buffer)?;
        Ok(Self {
            netns: netns.try_clone().map_err(Error::Subscribe)?,
            socket,
            generations: Generations::new(netns, &mut query),
            query,
            buffer: vec![0; MESSAGE].into_boxed_slice(),
        })
    }

    /// Opens both sockets anew. Its sysfs is kept: the right to mount another one may have been given up since.
    fn open_again(&mut self, receive_buffer: usize) -> Result<(), Error> {
        (self.socket, self.query) = open_sockets(&self.netns, receive_buffer)?;
        Ok(())
    }

    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        // An error of the socket shows at the next read.
        self.socket.poll_read_ready(context).map(|ready| {
            if let Ok(mut ready) = ready {
                // The queue is read until it is empty before the next wait.
                ready.clear_ready();
            }
        })
    }
}

impl Host for Connection {
    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        self.query.by_name(name)
    }

    fn by_index(&mut self, ifindex: u32) -> io::Result<Option<InterfaceName>> {
        self.query.by_index(ifindex)
    }

    fn inode(&mut self, name: &InterfaceName) -> Option<u64> {
        self.generations.of(name)
    }

    fn namespace(&mut self, nsid: i32) -> Option<NetnsId> {
        Netns::named().find_map(|netns| {
            let found = self.query.nsid_of(&netns).ok()??;
            (found == nsid).then(|| netns.id())
        })
    }
}

impl Kernel for Connection {
    fn receive(&mut self) -> io::Result<Received> {
        let length = match self.socket.get_ref().receive(&mut self.buffer) {
            Ok(Some(length)) => length,
            Ok(None) => return Ok(Received::Stray),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(Received::Nothing),
                    Some(libc::EINTR) => Ok(Received::Stray),
                    Some(libc::ENOBUFS) => Ok(Received::Overflow),
                    _ => Err(error),
                };
            }
        };
        Ok(match self.buffer.get(..length) {
            // A notification is a datagram of its own.
            Some(datagram) => {
                let message = messages(datagram).next();
                Received::Message(message.and_then(|message| message.link()))
            }
            // Cut off, which no notification should be: as good as lost.
            None => Received::Overflow,
        })
    }

    /// As exact as the kernel takes it.
    fn filter(&mut self, interest: Option<&Interest>) -> io::Result<()> {
        let socket = self.socket.get_ref();
        let Some(interest) = interest else {
            return socket.detach_filter();
        };
        let mut refused = io::Error::other("too many watches for one filter");
        for precision in Precision::ALL {
            let Some(program) = build(interest, precision) else {
                continue;
            };
            let attached = socket.attach_filter(&program).or_else(|_| {
                // The kernel grants a socket so much memory for its filters, and until it has the new one the old one
                // counts. With none in between, only more is heard.
                socket.detach_filter()?;
                socket.attach_filter(&program)
            });
            match attached {
                Ok(()) => {
                    if precision != Precision::Exact {
                        log::debug!(
                            "{} names and {} indexes: a {precision:?} filter of {} instructions",
                            interest.names.len(),
                            interest.indexes.len(),
                            program.len()
                        );
                    }
                    return Ok(());
                }
                Err(error) => refused = error,
            }
        }
        // An old filter would drop what it should not: rather none.
        log::warn!(
            "the kernel takes no filter any more ({refused}); ifmon is woken for every link"
        );
        socket.detach_filter()
    }

    fn wait_for_changes(&mut self) {
        self.query.wait_for_changes();
    }
}

#[cfg(test)]
mod tests;
