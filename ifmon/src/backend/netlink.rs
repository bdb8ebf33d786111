//! Hears of changes through netlink: a subscription to `RTNLGRP_LINK` in each namespace, with a filter in the kernel that
//! wakes nobody for links that are not watched, or without one where that is refused.
//!
//! What the messages say is put in order by [`Links`]; the state is read again, one name at a time, where messages may
//! be missing: after an overflow, and after a name was taken by a device whose index the filter did not know yet.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::io::unix::AsyncFd;

use super::{
    Counters, Signal,
    links::{Host, Links, Look, Meaning, Taken},
    readable,
};
use crate::{
    BackendKind, Error, InterfaceName, Netns, NetnsId,
    netlink::{
        filter::{Precision, build},
        generation::Generations,
        message::messages,
        query::Query,
        socket::Socket,
    },
    tracker::{Change, Device, Observed, Watch},
};

/// Room for a burst of messages about the watched interfaces. The kernel charges it as messages come, not before.
const RECEIVE_BUFFER: usize = 4 << 20;
/// One link message; without the tables of virtual functions, which notifications leave out, 2 KiB would do.
const MESSAGE: usize = 16 * 1024;
/// Messages that are read at a stretch before what they mean is handed on.
const BATCH: usize = 512;
/// Names that are looked up at a stretch before what was heard meanwhile is taken in: so few that its messages fit into
/// the queue, and that another change is not likely to come between.
const STRETCH: usize = 128;
/// How often a joining name is read again while it changes under our eyes.
const ROUNDS: u32 = 1000;
/// The waits before a subscription is opened again double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 12;

/// The netlink backend: a subscription for each namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    filtered: bool,
    receive_buffer: usize,
    subscriptions: Vec<Subscription>,
    seen: u64,
    matched: u64,
    overflowed: bool,
}

#[derive(Debug)]
struct Subscription {
    netns: Netns,
    socket: AsyncFd<Socket>,
    host: Kernel,
    links: Links,
    /// Names to be looked up when the queue is empty; true where messages are known to be lost.
    unverified: BTreeMap<InterfaceName, bool>,
    buffer: Box<[u8]>,
}

/// The kernel, asked.
#[derive(Debug)]
struct Kernel {
    query: Query,
    generations: Generations,
}

impl Host for Kernel {
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

impl Netlink {
    /// Makes sure that the kernel takes a filter, where one is wanted; subscriptions come with the watches.
    pub(crate) fn new(filtered: bool, receive_buffer: Option<usize>) -> io::Result<Self> {
        if filtered {
            let netns = Netns::current().map_err(io::Error::other)?;
            let program = build(&Default::default(), Precision::Exact).unwrap_or_default();
            Socket::for_links(&netns)?.attach_filter(&program)?;
        }
        Ok(Self {
            filtered,
            receive_buffer: receive_buffer.unwrap_or(RECEIVE_BUFFER),
            subscriptions: Vec::new(),
            seen: 0,
            matched: 0,
            overflowed: false,
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
        Counters {
            // What the filter drops, nobody counts.
            seen: (!self.filtered).then_some(self.seen),
            matched: Some(self.matched),
            ignored: (!self.filtered).then_some(self.seen - self.matched),
            // The kernel says that messages were lost, never how many.
            lost: (!self.overflowed).then_some(0),
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
            .position(|subscription| subscription.netns.id() == netns.id());
        let at = match known {
            Some(at) => at,
            None => {
                let subscription = Subscription::open(netns, self.receive_buffer)?;
                self.subscriptions.push(subscription);
                self.subscriptions.len() - 1
            }
        };
        let Self {
            filtered,
            subscriptions,
            seen,
            matched,
            overflowed,
            ..
        } = self;
        let subscription = &mut subscriptions[at];
        subscription.links.join_all(names);
        let mut unsettled = names.to_vec();
        for _ in 0..ROUNDS {
            // The kernel drops nothing while the state is read, so nothing can happen unheard before the new filter
            // knows the indexes.
            if *filtered {
                subscription
                    .socket
                    .get_ref()
                    .detach_filter()
                    .map_err(Error::Filter)?;
            }
            let mut tally = Tally::default();
            for stretch in unsettled.chunks(STRETCH) {
                let looks = subscription.look(stretch).map_err(Error::Recheck)?;
                // A change that had begun by then has ended and was told. What is heard of by now may be what the look-ups
                // saw: it goes first, and those names are looked up again.
                subscription.host.query.wait_for_changes();
                while !subscription
                    .drain(signals, &mut tally, subscription.is_after_loss())
                    .map_err(Error::Subscribe)?
                {}
                if tally.overflowed {
                    break;
                }
                for (name, look) in looks {
                    if subscription.links.is_settled(name) {
                        subscription.links.enter(name, &look);
                    }
                }
            }
            *seen += tally.seen;
            *matched += tally.matched;
            *overflowed |= tally.overflowed;
            if tally.overflowed {
                unsettled = names.to_vec();
                continue;
            }
            // A name that was entered in an earlier round may have changed since.
            let changed = |name: &InterfaceName| !subscription.links.is_settled(*name);
            unsettled = names.iter().copied().filter(changed).collect();
            if unsettled.is_empty() {
                break;
            }
        }
        subscription.links.joined();
        subscription.refilter(*filtered).map_err(Error::Filter)?;
        for name in names {
            subscription.unverified.remove(name);
        }
        for name in unsettled {
            subscription.unverified.insert(name, false);
        }
        Ok(names
            .iter()
            .map(|&name| subscription.links.holder(name))
            .collect())
    }

    pub(crate) fn unwatch(&mut self, watch: Watch) {
        for subscription in &mut self.subscriptions {
            if subscription.netns.id() == watch.netns {
                subscription.links.remove(watch.name);
                subscription.unverified.remove(&watch.name);
            }
        }
        // The last watch of a namespace lets go of it.
        self.subscriptions
            .retain(|subscription| !subscription.links.is_empty());
    }

    pub(crate) async fn signals(&mut self, signals: &mut Vec<Signal>) -> Result<(), Error> {
        loop {
            for at in 0..self.subscriptions.len() {
                if let Err(error) = self.read(at, signals) {
                    log::warn!(
                        "the subscription to link messages failed ({error}); opening it again"
                    );
                    self.reopen(at, error).await?;
                }
            }
            if !signals.is_empty() {
                return Ok(());
            }
            if self
                .subscriptions
                .iter()
                .any(|subscription| !subscription.unverified.is_empty())
            {
                // Names change faster than they can be looked up; let others run in between.
                tokio::task::yield_now().await;
                continue;
            }
            let subscriptions = &self.subscriptions;
            poll_fn(|context| {
                let mut ready = Poll::Pending;
                for subscription in subscriptions {
                    if subscription.poll_readable(context).is_ready() {
                        ready = Poll::Ready(());
                    }
                }
                ready
            })
            .await;
        }
    }

    fn read(&mut self, at: usize, signals: &mut Vec<Signal>) -> io::Result<()> {
        let Self {
            filtered,
            subscriptions,
            seen,
            matched,
            overflowed,
            ..
        } = self;
        let subscription = &mut subscriptions[at];
        let mut tally = Tally::default();
        let result = subscription.round(signals, &mut tally, *filtered);
        *seen += tally.seen;
        *matched += tally.matched;
        *overflowed |= tally.overflowed;
        result
    }

    /// Opens a subscription again after it failed, with growing waits, and has every name looked up.
    async fn reopen(&mut self, at: usize, mut error: io::Error) -> Result<(), Error> {
        self.overflowed = true;
        let mut wait = FIRST_WAIT;
        for _ in 0..ATTEMPTS {
            let subscription = &mut self.subscriptions[at];
            match open_sockets(&subscription.netns, self.receive_buffer) {
                Ok((socket, query)) => {
                    subscription.socket = socket;
                    // Its sysfs is kept: the right to mount another one may have been given up since.
                    subscription.host.query = query;
                    subscription.links.stale = true;
                    subscription.suspect_all(true);
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

#[derive(Default)]
struct Tally {
    seen: u64,
    matched: u64,
    overflowed: bool,
}

/// Opens a subscription's two sockets: the one that hears, and the one that asks.
fn open_sockets(netns: &Netns, receive_buffer: usize) -> Result<(AsyncFd<Socket>, Query), Error> {
    let socket = Socket::for_links(netns).map_err(Error::Subscribe)?;
    socket
        .set_receive_buffer(receive_buffer)
        .map_err(Error::Subscribe)?;
    let query = Query::new(netns).map_err(Error::Recheck)?;
    Ok((readable(socket).map_err(Error::Subscribe)?, query))
}

impl Subscription {
    fn open(netns: &Netns, receive_buffer: usize) -> Result<Self, Error> {
        let (socket, mut query) = open_sockets(netns, receive_buffer)?;
        Ok(Self {
            netns: netns.try_clone().map_err(Error::Subscribe)?,
            socket,
            host: Kernel {
                generations: Generations::new(netns, &mut query),
                query,
            },
            links: Links::new(netns.id()),
            unverified: BTreeMap::new(),
            buffer: vec![0; MESSAGE].into_boxed_slice(),
        })
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

    fn suspect_all(&mut self, lost: bool) {
        for name in self.links.names() {
            *self.unverified.entry(name).or_default() |= lost;
        }
    }

    /// Were messages lost, and not every name looked up since?
    fn is_after_loss(&self) -> bool {
        self.unverified.values().any(|&lost| lost)
    }

    /// Reads what there is, tells the filter of new indexes, and looks up what may not be as it seems.
    fn round(
        &mut self,
        signals: &mut Vec<Signal>,
        tally: &mut Tally,
        filtered: bool,
    ) -> io::Result<()> {
        let empty = self.drain(signals, tally, self.is_after_loss())?;
        // A device that took a name is to be known by its index at once: until then its next rename goes unheard. One that
        // is gone can wait.
        if self.links.has_grown || signals.is_empty() {
            self.refilter(filtered)?;
        }
        // What is known is told before more is asked.
        if !empty || !signals.is_empty() || self.unverified.is_empty() {
            return Ok(());
        }
        // First the filter, then the look: what happens in between is heard.
        let lost = self.is_after_loss();
        let mut looks = Vec::with_capacity(self.unverified.len());
        for (name, lost) in std::mem::take(&mut self.unverified) {
            looks.push((name, lost, self.links.look(name, &mut self.host)?));
        }
        // What is queued by now may be what the look-ups saw: it goes first, and those names are looked up again.
        let mut empty = self.drain(signals, tally, lost)?;
        let ahead = |(name, lost, look): &(InterfaceName, bool, Look)| {
            !lost && self.links.is_settled(*name) && !self.links.agrees(*name, look)
        };
        if empty && looks.iter().any(ahead) {
            // Without a loss, what was read may only be ahead of what is told: newer kernels answer before the change is
            // over, and tell at its end. Wait for that.
            self.host.query.wait_for_changes();
            let after_loss = lost || self.is_after_loss();
            empty = self.drain(signals, tally, after_loss)?;
        }
        for (name, lost, look) in looks {
            if !empty || !self.links.is_settled(name) || self.unverified.contains_key(&name) {
                *self.unverified.entry(name).or_default() |= lost;
                continue;
            }
            let (observed, changed) = self.links.enter(name, &look);
            if changed {
                // The filter does not know who was found yet: what that device did since then may have been dropped.
                self.unverified.entry(name).or_default();
            }
            if changed || lost {
                signals.push(Signal::Resync {
                    watch: Watch {
                        netns: self.netns.id(),
                        name,
                    },
                    observed,
                    lost: None,
                });
            }
        }
        if lost {
            self.links.forget_strangers(&mut self.host)?;
        }
        self.refilter(filtered)
    }

    /// Looks names up.
    fn look(&mut self, names: &[InterfaceName]) -> io::Result<Vec<(InterfaceName, Look)>> {
        let Self { links, host, .. } = self;
        names
            .iter()
            .map(|&name| Ok((name, links.look(name, host)?)))
            .collect()
    }

    /// Reads messages until there are none, or enough to hand on; true when there are none. `after_loss` says that those
    /// before them may be missing.
    fn drain(
        &mut self,
        signals: &mut Vec<Signal>,
        tally: &mut Tally,
        after_loss: bool,
    ) -> io::Result<bool> {
        let Self {
            netns: _,
            socket,
            host,
            links,
            unverified,
            buffer,
        } = self;
        let mut overflow = false;
        let mut empty = false;
        for _ in 0..BATCH {
            let length = match socket.get_ref().receive(buffer) {
                Ok(Some(length)) => length,
                Ok(None) => continue,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        empty = true;
                        break;
                    }
                    Some(libc::EINTR) => continue,
                    // Comes before the messages that are still queued; new ones are kept again once those are read.
                    Some(libc::ENOBUFS) => {
                        overflow = true;
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            tally.seen += 1;
            let Some(datagram) = buffer.get(..length) else {
                // Cut off, which no notification should be: as good as lost.
                overflow = true;
                continue;
            };
            // A notification is a datagram of its own.
            let Some(message) = messages(datagram).next().and_then(|message| message.link()) else {
                continue;
            };
            if (overflow || after_loss)
                && let Some(names) = links.doubt(&message)
            {
                unverified.extend(names.into_iter().map(|name| (name, true)));
                continue;
            }
            let Meaning { left, took } = links.message(&message, host);
            tally.matched += u64::from(left.is_some() || took.is_some());
            let time = SystemTime::now();
            signals.extend(left.map(|change| Signal::Change {
                change,
                time,
                by: None,
            }));
            if let Some(Taken { watch, device, gap }) = took {
                // The filter does not know this index yet: what the device did next may have been dropped.
                unverified.entry(watch.name).or_default();
                signals.push(if gap {
                    Signal::Resync {
                        watch,
                        observed: Observed {
                            holder: Some(device),
                            away: None,
                        },
                        lost: None,
                    }
                } else {
                    Signal::Change {
                        change: Change::Took { watch, device },
                        time,
                        by: None,
                    }
                });
            }
        }
        if overflow {
            tally.overflowed = true;
            self.suspect_all(true);
        }
        Ok(empty)
    }

    /// Gives the kernel a filter for what is watched now, as exact as it takes.
    fn refilter(&mut self, filtered: bool) -> io::Result<()> {
        if !filtered || !self.links.stale {
            return Ok(());
        }
        let interest = self.links.interest();
        let mut refused = io::Error::other("too many watches for one filter");
        for precision in Precision::ALL {
            let Some(program) = build(&interest, precision) else {
                continue;
            };
            let socket = self.socket.get_ref();
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
        self.socket.get_ref().detach_filter()
    }
}

#[cfg(test)]
mod tests;
