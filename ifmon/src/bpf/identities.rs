//! Which ids of the kernel side stand for the same device, where the kernel side cannot know.
//!
//! A program that sees link messages loses sight of a device that moves to another namespace, and
//! gives it another id when it comes back. From outside, the inode of its directory in sysfs says
//! whether it is the same one. The id that a device had first is the one that is told.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::packed;

/// What is known of the devices that hold a watched name or held one.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// Inodes of devices, by their first ids. There may be thousands, which trees keep smallest.
    inodes: BTreeMap<u64, u64>,
    /// The first id of a device, by its inode.
    by_inode: BTreeMap<u64, u64>,
    /// The first id of a device, by the one that the kernel side gave it, of all others that were
    /// told of: those with another first id, and those whose inode is not known.
    first: HashMap<u64, First>,
    /// How many of these there were.
    given: u64,
    /// Devices that have no watched name as far as is known, by their first id. Where they are may
    /// have changed unseen, and they may come back.
    away: HashSet<u64>,
}

/// Which device a kernel side's id stands for.
#[derive(Clone, Copy, Debug)]
struct First {
    told: u64,
    /// How many were learnt before it, and it.
    given: u64,
}

impl Identities {
    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let Self {
            first,
            given: _,
            by_inode,
            inodes,
            away,
        } = self;
        first.len() + by_inode.len() + inodes.len() + away.len()
    }

    /// The id by which this one is told.
    pub(crate) fn of(&self, id: u64) -> u64 {
        self.first.get(&id).map_or(id, |first| first.told)
    }

    /// The device that is told by this id lost its watched name, and may live.
    pub(crate) fn left(&mut self, told: u64) {
        if self.inodes.contains_key(&told) {
            self.away.insert(told);
        }
    }

    /// It has a watched name.
    pub(crate) fn took(&mut self, told: u64) {
        self.away.remove(&told);
    }

    /// It is gone for good.
    pub(crate) fn deleted(&mut self, told: u64) {
        self.away.remove(&told);
        if let Some(inode) = self.inodes.remove(&told) {
            self.by_inode.remove(&inode);
        }
    }

    /// Can a device with an id that is new have been here before?
    pub(crate) fn expects_somebody(&self) -> bool {
        !self.away.is_empty()
    }

    /// Was any device's inode read? Then a device with an id that is new can have been here before.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_inode.is_empty()
    }

    /// Is anything known of a device with this id?
    pub(crate) fn knows(&self, id: u64) -> bool {
        let id = self.of(id);
        self.inodes.contains_key(&id)
    }

    /// The device with this id is told of: by which id. That stays, whatever is learnt of it.
    pub(crate) fn tell(&mut self, id: u64) -> u64 {
        self.tell_as(id, id)
    }

    /// The same where the inode of the device is known.
    pub(crate) fn identify(&mut self, id: u64, inode: u64) -> u64 {
        let before = self.by_inode.get(&inode).copied();
        let told = self.tell_as(id, before.unwrap_or(id));
        self.learn(told, inode);
        told
    }

    /// The device with this id is found where one was told by another id, whose inode is not known:
    /// the id by which it is told.
    pub(crate) fn resume(&mut self, id: u64, told: u64, inode: Option<u64>) -> u64 {
        let other = inode.and_then(|inode| self.by_inode.get(&inode).copied());
        let told = self.tell_as(id, other.unwrap_or(told));
        if let Some(inode) = inode {
            self.learn(told, inode);
        }
        told
    }

    /// The id by which this one is told, if it was before; else this one from now on.
    fn tell_as(&mut self, id: u64, told: u64) -> u64 {
        if let Some(first) = self.first.get(&id) {
            first.told
        } else if self.inodes.contains_key(&id) {
            id
        } else {
            self.given += 1;
            let given = self.given;
            self.first.insert(id, First { told, given });
            told
        }
    }

    /// The device that was told by this id turned out to have this inode.
    pub(crate) fn learn(&mut self, told: u64, inode: u64) {
        self.by_inode.insert(inode, told);
        self.inodes.insert(told, inode);
        // That says as well that it is its own first id.
        if self.of(told) == told {
            self.first.remove(&told);
        }
    }

    /// Most of what is known was learnt at once.
    pub(crate) fn repack(&mut self) {
        packed::repack(&mut self.inodes);
        packed::repack(&mut self.by_inode);
    }

    /// Forgets all but the devices that were told last, where there are many more than these; and of
    /// the ids of a device that comes back again and again, all but the last ones.
    pub(crate) fn prune(&mut self, watches: usize, told: impl FnOnce() -> HashSet<u64>) {
        let most = 2 * watches + if cfg!(test) { 4 } else { 64 };
        if self.by_inode.len() <= most && self.first.len() <= most {
            return;
        }
        let told = told();
        self.by_inode.retain(|_, id| told.contains(id));
        self.inodes.retain(|id, _| told.contains(id));
        self.away.retain(|id| told.contains(id));
        let mut last: HashMap<u64, u64> = HashMap::with_capacity(told.len());
        for &First { told, given } in self.first.values() {
            let last = last.entry(told).or_default();
            *last = given.max(*last);
        }
        // Of earlier ones records can still come.
        let recent = self.given.saturating_sub(most as u64 / 2);
        self.first.retain(|_, first| {
            let is_last = last.get(&first.told) == Some(&first.given);
            told.contains(&first.told) && (is_last || first.given > recent)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_comes_back_again_and_again_is_not_remembered_so_often() {
        let (inode, first) = (7, 1);
        let mut identities = Identities::default();
        for id in first..10_000 {
            assert_eq!(identities.identify(id, inode), first);
            identities.prune(1, || HashSet::from([first]));
            identities.left(first);
            // Of the last few, records can be on their way.
            assert_eq!(identities.of(id.saturating_sub(2).max(first)), first);
        }
        assert!(identities.len() < 20, "{} entries", identities.len());
    }
}
