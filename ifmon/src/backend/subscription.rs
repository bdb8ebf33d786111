//! Follows the links of one namespace through a subscription to link messages. Pure: the kernel is behind [`Kernel`], so
//! that the tests can put a model of one in its place.
//!
//! What the messages say is put in order by [`Links`]; the state is read again, one name at a time, where messages may
//! be missing: after an overflow, and after a name was taken by a device whose index the filter did not know yet.

use std::{collections::BTreeMap, io, time::SystemTime};

use super::{
    Signal,
    links::{Host, Links, Look, Meaning, Taken},
};
use crate::{
    Error, InterfaceName, NetnsId,
    netlink::{filter::Interest, message::LinkMessage},
    tracker::{Change, Device, Observed, Watch},
};

/// Messages that are read at a stretch before what they mean is handed on. The tests have all three limits with two names.
const BATCH: usize = if cfg!(test) { 4 } else { 512 };
/// Names that are looked up at a stretch before what was heard meanwhile is taken in: so few that its messages fit into
/// the queue, and that another change is not likely to come between.
const STRETCH: usize = if cfg!(test) { 1 } else { 128 };
/// How often a joining name is read again while it changes under our eyes.
const ROUNDS: u32 = 1000;

/// The kernel, as a subscription knows it.
pub(crate) trait Kernel: Host {
    /// What is first in the queue, without waiting.
    fn receive(&mut self) -> io::Result<Received>;
    /// From now on puts into the queue only what concerns these names and indexes; everything for `None`.
    fn filter(&mut self, interest: Option<&Interest>) -> io::Result<()>;
    /// Returns once every change that had begun before has ended, and was put into the queue, where that can be known.
    fn wait_for_changes(&mut self);
}

/// What was first in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// From the kernel; `None` when it says nothing about a link's name or existence.
    Message(Option<LinkMessage>),
    /// From anybody else, which says nothing.
    Stray,
    /// The queue was full, and nobody knows how many messages were lost. Those that come next were sent before that, and
    /// new ones are put into the queue again once it was empty.
    Overflow,
    /// It is empty.
    Nothing,
}

/// What all subscriptions together have read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Messages.
    pub(crate) seen: u64,
    /// Those that concerned a watch.
    pub(crate) matched: u64,
    /// Some were lost.
    pub(crate) overflowed: bool,
}

/// A subscription, with what it has taught so far.
#[derive(Debug)]
pub(crate) struct Subscription<K> {
    pub(crate) kernel: K,
    netns: NetnsId,
    filtered: bool,
    links: Links,
    /// Names to be looked up when the queue is empty; true where messages are known to be lost.
    unverified: BTreeMap<InterfaceName, bool>,
}

/// What was read of a name that may not be as it seems; `lost` where messages are known to be lost.
struct Looked {
    name: InterfaceName,
    lost: bool,
    look: Look,
}

impl<K: Kernel> Subscription<K> {
    /// A live subscription in a namespace, with no filter yet and nothing to watch.
    pub(crate) fn new(netns: NetnsId, filtered: bool, kernel: K) -> Self {
        Self {
            kernel,
            netns,
            filtered,
            links: Links::new(netns),
            unverified: BTreeMap::new(),
        }
    }

    pub(crate) fn netns(&self) -> NetnsId {
        self.netns
    }

    /// Is no name watched?
    pub(crate) fn is_idle(&self) -> bool {
        self.links.is_empty()
    }

    /// Is there something to do though nothing may be in the queue?
    pub(crate) fn is_unverified(&self) -> bool {
        !self.unverified.is_empty()
    }

    /// Begins to watch names, and says who has each.
    pub(crate) fn watch(
        &mut self,
        names: &[InterfaceName],
        tally: &mut Tally,
        signals: &mut Vec<Signal>,
    ) -> Result<Vec<Option<Device>>, Error> {
        self.links.join_all(names);
        let mut unread = names.to_vec();
        for _ in 0..ROUNDS {
            // The kernel drops nothing while the state is read, so nothing can happen unheard before the new filter
            // knows the indexes.
            if self.filtered {
                self.kernel.filter(None).map_err(Error::Filter)?;
            }
            if self.is_after_loss() {
                // What is known of other names may be wrong, and who is found would be taken for another device.
                if let Err(error) = self.verify(tally, signals) {
                    self.suspect_all();
                    return Err(Error::Recheck(error));
                }
            } else {
                self.read_state(&unread, tally, signals)?;
            }
            // A name that was entered in an earlier round may have changed since.
            unread = names
                .iter()
                .copied()
                .filter(|&name| !self.is_read(name))
                .collect();
            if unread.is_empty() {
                break;
            }
        }
        self.links.joined();
        self.refilter().map_err(Error::Filter)?;
        for &name in names {
            if self.is_read(name) {
                self.unverified.remove(&name);
            } else {
                self.unverified.entry(name).or_default();
            }
        }
        Ok(names.iter().map(|&name| self.links.holder(name)).collect())
    }

    /// Is what was read of the name the last that is known of it?
    fn is_read(&self, name: InterfaceName) -> bool {
        self.links.is_settled(name) && self.unverified.get(&name) != Some(&true)
    }

    /// Reads the state of names that were not watched before, as far as no messages are lost meanwhile.
    fn read_state(
        &mut self,
        names: &[InterfaceName],
        tally: &mut Tally,
        signals: &mut Vec<Signal>,
    ) -> Result<(), Error> {
        for stretch in names.chunks(STRETCH) {
            let mut looks = Vec::with_capacity(stretch.len());
            for &name in stretch {
                let look = self.links.look(name, &mut self.kernel);
                looks.push((name, look.map_err(Error::Recheck)?));
            }
            // A change that had begun by then has ended and was told. What is heard of by now may be what the look-ups
            // saw: it goes first, and those names are looked up again.
            self.kernel.wait_for_changes();
            loop {
                let after_loss = self.is_after_loss();
                let empty = self.drain(after_loss, tally, signals);
                if empty.map_err(Error::Subscribe)? {
                    break;
                }
            }
            if self.is_after_loss() {
                break;
            }
            for (name, look) in looks {
                if self.links.is_settled(name) {
                    self.links.enter(name, &look);
                }
            }
        }
        Ok(())
    }

    /// Ends a watch.
    pub(crate) fn unwatch(&mut self, name: InterfaceName) {
        self.links.remove(name);
        self.unverified.remove(&name);
    }

    /// The subscription was opened again: whatever happened in between was lost, and it has no filter yet.
    pub(crate) fn reopened(&mut self) {
        self.links.stale = true;
        self.suspect_all();
    }

    /// Messages were lost: any name may be another device's by now.
    fn suspect_all(&mut self) {
        self.unverified = self.links.names().map(|name| (name, true)).collect();
    }

    /// Were messages lost, and not every name looked up since?
    fn is_after_loss(&self) -> bool {
        self.unverified.values().any(|&lost| lost)
    }

    /// Reads what there is, tells the filter of new indexes, and looks up what may not be as it seems.
    pub(crate) fn round(&mut self, tally: &mut Tally, signals: &mut Vec<Signal>) -> io::Result<()> {
        let empty = self.drain(self.is_after_loss(), tally, signals)?;
        // A device that took a name is to be known by its index at once: until then its next rename goes unheard. One that
        // is gone can wait.
        if self.links.has_grown || signals.is_empty() {
            self.refilter()?;
        }
        // What is known is told before more is asked.
        if empty && signals.is_empty() && self.is_unverified() {
            self.verify(tally, signals)?;
        }
        Ok(())
    }

    /// Looks up the names that may not be as they seem.
    fn verify(&mut self, tally: &mut Tally, signals: &mut Vec<Signal>) -> io::Result<()> {
        // First the filter, then the look: what happens in between is heard.
        let after_loss = self.is_after_loss();
        let mut looks = Vec::with_capacity(self.unverified.len());
        for (name, lost) in std::mem::take(&mut self.unverified) {
            let look = self.links.look(name, &mut self.kernel)?;
            looks.push(Looked { name, lost, look });
        }
        let is_news = |looked: &Looked| !self.links.agrees(looked.name, &looked.look);
        if after_loss || looks.iter().any(is_news) {
            // What was read may be ahead of what was told: newer kernels answer before a change is over, and tell of it at
            // its end.
            self.kernel.wait_for_changes();
        }
        // What is queued by now may be what the look-ups saw: it goes first, and those names are looked up again.
        let empty = self.drain(after_loss, tally, signals)?;
        let mut certain = self.take_certain(looks, empty);
        // Who left a name goes first, so that it is known under its new one to whatever watches that.
        certain.sort_by_key(|looked| looked.look.is_present());
        for Looked { name, lost, look } in certain {
            let (observed, changed) = self.links.enter(name, &look);
            if changed {
                // The filter does not know who was found yet: what that device did since then may have been dropped.
                self.unverified.entry(name).or_default();
            }
            if changed || lost {
                let netns = self.netns;
                signals.push(Signal::Resync {
                    watch: Watch { netns, name },
                    observed,
                    lost: None,
                });
            }
        }
        if after_loss {
            self.links.forget_strangers(&mut self.kernel)?;
        }
        self.refilter()
    }

    /// The looks that still hold now that the queue was read, `empty` or not; the other names are left to be looked up
    /// again.
    fn take_certain(&mut self, looks: Vec<Looked>, empty: bool) -> Vec<Looked> {
        let (mut certain, mut again): (Vec<Looked>, Vec<Looked>) =
            looks.into_iter().partition(|Looked { name, .. }| {
                empty && self.links.is_settled(*name) && !self.unverified.contains_key(name)
            });
        // And those that hang on one of these, and so on.
        while !again.is_empty() {
            for Looked { name, lost, .. } in again {
                *self.unverified.entry(name).or_default() |= lost;
            }
            (again, certain) = certain.into_iter().partition(|Looked { name, look, .. }| {
                let other = self.links.hangs_on(*name, look);
                other.is_some_and(|other| self.unverified.contains_key(&other))
            });
        }
        certain
    }

    /// Reads messages until there are none, which is true, or enough to hand on. `after_loss` says that those before them
    /// may be missing.
    fn drain(
        &mut self,
        after_loss: bool,
        tally: &mut Tally,
        signals: &mut Vec<Signal>,
    ) -> io::Result<bool> {
        let (mut empty, mut overflowed) = (false, false);
        for _ in 0..BATCH {
            let message = match self.kernel.receive()? {
                Received::Message(message) => message,
                Received::Stray => continue,
                Received::Overflow => {
                    overflowed = true;
                    continue;
                }
                Received::Nothing => {
                    empty = true;
                    break;
                }
            };
            tally.seen += 1;
            let Some(message) = message else {
                continue;
            };
            if (overflowed || after_loss)
                && let Some(names) = self.links.doubt(&message)
            {
                self.unverified
                    .extend(names.into_iter().map(|name| (name, true)));
                continue;
            }
            let meaning = self.links.message(&message, &mut self.kernel);
            tally.matched += u64::from(meaning != Meaning::default());
            self.signal(meaning, signals);
        }
        if overflowed {
            tally.overflowed = true;
            self.suspect_all();
        }
        Ok(empty)
    }

    /// Hands on what a message means.
    fn signal(&mut self, Meaning { left, took }: Meaning, signals: &mut Vec<Signal>) {
        let time = SystemTime::now();
        let change = |change| Signal::Change {
            change,
            time,
            by: None,
        };
        signals.extend(left.map(change));
        if let Some(Taken { watch, device, gap }) = took {
            // The filter does not know this index yet: what the device did next may have been dropped.
            self.unverified.entry(watch.name).or_default();
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
                change(Change::Took { watch, device })
            });
        }
    }

    /// Gives the kernel a filter for what is watched now.
    fn refilter(&mut self) -> io::Result<()> {
        if !self.filtered || !self.links.stale {
            return Ok(());
        }
        let interest = self.links.interest();
        self.kernel.filter(Some(&interest))
    }
}

#[cfg(test)]
mod tests;
