//! Turns link messages into changes of devices: what the netlink backend knows of one namespace. Pure.
//!
//! A message says what is, not what was. A rename does not carry the old name, and nothing tells a device from the next
//! one with its index, except the order of the messages: a device lives from the message that first shows it to the one
//! that deletes it. So the devices that hold a watched name, or held it last, are remembered by index.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    num::{NonZeroU32, NonZeroU64},
};

use crate::{
    InterfaceName, NetnsId,
    netlink::{
        filter::Interest,
        message::{LinkMessage, Moved},
    },
    packed,
    tracker::{Change, Device, Observed, Place, Watch},
};

/// So few names are looked up without an index of inodes. The tests have both cases with two names.
const FEW: usize = if cfg!(test) { 1 } else { 64 };

/// Where a link is looked up when the messages alone cannot tell.
pub(crate) trait Host {
    /// The index of the device that has this name now.
    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>>;
    /// The name of the device that has this index now.
    fn by_index(&mut self, ifindex: u32) -> io::Result<Option<InterfaceName>>;
    /// The inode number in sysfs of the device that has this name now.
    fn inode(&mut self, name: &InterfaceName) -> Option<u64>;
    /// The namespace that has this id in the numbering of the watched one, where that can be found out.
    fn namespace(&mut self, nsid: i32) -> Option<NetnsId>;
}

/// A device that holds a watched name, or was the last to do so.
#[derive(Clone, Copy, Debug)]
struct Known {
    generation: NonZeroU64,
    name: InterfaceName,
    /// Of its directory in sysfs, once it was read.
    inode: Option<NonZeroU64>,
    /// How many watched names it was the last to hold; it is forgotten with the last of them.
    homes: u32,
}

/// A watched name. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Index of the device that has the name.
    holder: Option<NonZeroU32>,
    /// Generation of the device that had it last.
    last: Option<NonZeroU64>,
    /// A message concerned the name since it was looked up last: the look-up may be older or newer than it. Or it was
    /// never looked up.
    touched: bool,
}

/// What a message means to the watches: a device left one, and took another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) left: Option<Change>,
    pub(crate) took: Option<Taken>,
}

/// A device took a watched name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) watch: Watch,
    pub(crate) device: Device,
    /// Another device had the name still, as far as the messages went: some are missing.
    pub(crate) gap: bool,
}

/// The watched names of a namespace and the devices that matter to them.
#[derive(Debug)]
pub(crate) struct Links {
    netns: NetnsId,
    names: BTreeMap<InterfaceName, Slot>,
    devices: BTreeMap<u32, Known>,
    /// Devices that were moved to another namespace and may come back, by generation.
    elsewhere: BTreeMap<NonZeroU64, Known>,
    /// Names that were looked up and not entered yet, with the index of who was found to have them: a message about that
    /// device concerns the name, though the device is not known yet.
    looked: BTreeMap<InterfaceName, u32>,
    /// The indexes of devices by inode, while many names are looked up. What it says of a device may be out of date, but
    /// none with an inode is missing.
    inodes: Option<HashMap<NonZeroU64, u32>>,
    /// The generation that was given out last.
    generation: u64,
    /// The names or indexes have changed since the last [`Links::interest`].
    pub(crate) stale: bool,
    /// There are new ones among them.
    pub(crate) has_grown: bool,
}

impl Links {
    pub(crate) fn new(netns: NetnsId) -> Self {
        Self {
            netns,
            names: BTreeMap::new(),
            devices: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            looked: BTreeMap::new(),
            inodes: None,
            generation: 0,
            stale: false,
            has_grown: false,
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = InterfaceName> {
        self.names.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// How many devices are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.devices.len() + self.elsewhere.len()
    }

    /// What the filter in the kernel must let through.
    pub(crate) fn interest(&mut self) -> Interest {
        self.stale = false;
        self.has_grown = false;
        Interest {
            names: self.names.keys().copied().collect(),
            indexes: self.devices.keys().copied().collect(),
        }
    }

    fn place(&self, ifindex: u32, name: InterfaceName) -> Place {
        Place {
            netns: Some(self.netns),
            ifindex: Some(ifindex),
            name: Some(name),
        }
    }

    fn watch(&self, name: InterfaceName) -> Watch {
        Watch {
            netns: self.netns,
            name,
        }
    }

    fn new_generation(&mut self) -> NonZeroU64 {
        self.generation += 1;
        NonZeroU64::new(self.generation).unwrap_or(NonZeroU64::MAX)
    }

    /// Takes a message, in the order in which they were sent.
    pub(crate) fn message(&mut self, message: &LinkMessage, host: &mut impl Host) -> Meaning {
        self.touch_looked(message.ifindex());
        match *message {
            LinkMessage::New { ifindex, name } => self.exists(ifindex, name, host),
            LinkMessage::Deleted {
                ifindex,
                name,
                moved,
            } => self.gone(ifindex, name, moved, host),
        }
    }

    /// Whether a message can be believed that may not be the next one after those before it, since some were lost.
    ///
    /// That a known index has another name can mean that it is another device's. Then these are the watched names that
    /// are in doubt, and what became of them is left to a look-up.
    pub(crate) fn doubt(&mut self, message: &LinkMessage) -> Option<Vec<InterfaceName>> {
        let ifindex = message.ifindex();
        let known = self.devices.get(&ifindex)?.name;
        if known == message.name() {
            return None;
        }
        self.touch_looked(ifindex);
        let mut names = vec![known, message.name()];
        names.retain(|&name| self.touch(name));
        Some(names)
    }

    /// A message concerns the name; false when that is not watched.
    fn touch(&mut self, name: InterfaceName) -> bool {
        let slot = self.names.get_mut(&name);
        slot.map(|slot| slot.touched = true).is_some()
    }

    /// A message is about the device that was found to have a name: it concerns that name.
    fn touch_looked(&mut self, ifindex: u32) {
        for (name, looked) in &self.looked {
            if *looked == ifindex
                && let Some(slot) = self.names.get_mut(name)
            {
                slot.touched = true;
            }
        }
    }

    fn exists(&mut self, ifindex: u32, name: InterfaceName, host: &mut impl Host) -> Meaning {
        let mut left = None;
        let generation = match self.devices.get_mut(&ifindex) {
            // A change of something else than the name; unless a look-up has seen the new name before this message came.
            Some(known)
                if known.name == name
                    && self.names.get_mut(&name).is_none_or(|slot| {
                        // Or it was called otherwise for a moment, and a look-up has seen that.
                        slot.touched = true;
                        slot.holder() == Some(ifindex)
                    }) =>
            {
                return Meaning::default();
            }
            Some(known) => {
                let old = std::mem::replace(&mut known.name, name);
                let generation = known.generation;
                if self.vacate(old, ifindex) {
                    left = Some(Change::Left {
                        watch: self.watch(old),
                        generation: generation.get(),
                        to: Some(self.place(ifindex, name)),
                    });
                }
                generation
            }
            None if self.names.contains_key(&name) => self.adopt(ifindex, name, host),
            None => return Meaning::default(),
        };
        let took = self.occupy(name, ifindex).map(|gap| Taken {
            watch: self.watch(name),
            device: Device {
                ifindex,
                generation: generation.get(),
            },
            gap,
        });
        Meaning { left, took }
    }

    fn gone(
        &mut self,
        ifindex: u32,
        name: InterfaceName,
        moved: Option<Moved>,
        host: &mut impl Host,
    ) -> Meaning {
        self.touch(name);
        let Some(known) = self.devices.remove(&ifindex) else {
            return Meaning::default();
        };
        self.stale = true;
        let held = self.vacate(known.name, ifindex);
        if moved.is_some() {
            self.elsewhere.insert(known.generation, known);
        }
        let to = match moved {
            Some(moved) => Some(Place {
                netns: host.namespace(moved.nsid),
                ifindex: moved.ifindex,
                name: None,
            }),
            // It was renamed before it was deleted, when the filter did not know its index yet.
            None if known.name != name => Some(self.place(ifindex, name)),
            None => None,
        };
        Meaning {
            left: held.then(|| Change::Left {
                watch: self.watch(known.name),
                generation: known.generation.get(),
                to,
            }),
            took: None,
        }
    }

    /// A device that was not known has a watched name: is it one that went elsewhere and came back?
    ///
    /// Only here the inode decides within a stream of messages. Should the device be gone again by the time that it is
    /// read, "another device" is the answer that does no harm. For the same reason the inode is not kept here: whoever
    /// has the name by now may be somebody else, and would be taken for this device ever after. A look-up learns it.
    fn adopt(&mut self, ifindex: u32, name: InterfaceName, host: &mut impl Host) -> NonZeroU64 {
        let inode = if self.elsewhere.is_empty() {
            None
        } else {
            inode_of(&name, host)
        };
        let known = inode
            .and_then(|inode| {
                let (&generation, _) = self
                    .elsewhere
                    .iter()
                    .find(|(_, known)| known.inode == Some(inode))?;
                // Was it the inode of the device that the message is about?
                let still = matches!(host.by_name(&name), Ok(Some(found)) if found == ifindex);
                still.then(|| self.elsewhere.remove(&generation)).flatten()
            })
            .unwrap_or_else(|| Known {
                generation: self.new_generation(),
                name,
                inode: None,
                homes: 0,
            });
        self.devices.insert(ifindex, Known { name, ..known });
        self.stale = true;
        self.has_grown = true;
        known.generation
    }

    /// The device no longer has the name: did it hold a watch?
    fn vacate(&mut self, name: InterfaceName, ifindex: u32) -> bool {
        let Some(slot) = self.names.get_mut(&name) else {
            return false;
        };
        slot.touched = true;
        slot.holder
            .take_if(|holder| holder.get() == ifindex)
            .is_some()
    }

    /// The device has the name now. `None` when that is not watched; true when another device has it still, as far as
    /// the messages went.
    fn occupy(&mut self, name: InterfaceName, ifindex: u32) -> Option<bool> {
        let generation = self.devices.get(&ifindex)?.generation;
        let slot = self.names.get_mut(&name)?;
        slot.touched = true;
        let before = slot.holder();
        slot.holder = NonZeroU32::new(ifindex);
        let last = slot.last.replace(generation);
        if last != Some(generation) {
            if let Some(known) = self.devices.get_mut(&ifindex) {
                known.homes += 1;
            }
            self.leave_home(last);
        }
        Some(before.is_some_and(|before| before != ifindex))
    }

    /// A name is another device's now: forget this one if that was its last.
    fn leave_home(&mut self, generation: Option<NonZeroU64>) {
        let Some(generation) = generation else {
            return;
        };
        let stays = |known: &mut Known| {
            if known.generation != generation {
                return true;
            }
            known.homes = known.homes.saturating_sub(1);
            known.homes > 0
        };
        let before = self.devices.len();
        self.devices.retain(|_, known| stays(known));
        self.stale |= self.devices.len() != before;
        self.elsewhere.retain(|_, known| stays(known));
    }

    /// Adds names; their state is still to be read.
    pub(crate) fn join_all(&mut self, names: &[InterfaceName]) {
        let is_new = |name: &&InterfaceName| !self.names.contains_key(name);
        let new = names.iter().filter(is_new);
        let unread = Slot {
            touched: true,
            ..Slot::default()
        };
        let slots = new.map(|&name| (name, unread)).collect();
        packed::extend(&mut self.names, slots);
        self.stale = true;
        if names.len() > FEW {
            let inode = |(&ifindex, known): (&u32, &Known)| Some((known.inode?, ifindex));
            self.inodes = Some(self.devices.iter().filter_map(inode).collect());
        }
    }

    /// The state of the names that were added last was read: gives back what that took.
    pub(crate) fn joined(&mut self) {
        if self.inodes.take().is_some() {
            packed::repack(&mut self.devices);
        }
    }

    /// Ends a watch.
    pub(crate) fn remove(&mut self, name: InterfaceName) {
        if let Some(slot) = self.names.remove(&name) {
            self.leave_home(slot.last);
            self.stale = true;
        }
    }

    /// Who holds the name, as far as is known.
    pub(crate) fn holder(&self, name: InterfaceName) -> Option<Device> {
        let ifindex = self.names.get(&name)?.holder()?;
        Some(Device {
            ifindex,
            generation: self.devices.get(&ifindex)?.generation.get(),
        })
    }

    /// Reads the state of a name from the host, changing nothing yet: whether messages that are still queued tell the
    /// same is only known once they were read; see [`Links::is_settled`].
    pub(crate) fn look(&mut self, name: InterfaceName, host: &mut impl Host) -> io::Result<Look> {
        let Some(slot) = self.names.get_mut(&name) else {
            return Ok(Look::default());
        };
        slot.touched = false;
        let holder = slot.holder();
        let mut found = host.by_name(&name)?;
        let mut away = None;
        if let (Some(ifindex), None) = (holder, found) {
            match host.by_index(ifindex)? {
                // It came back in between.
                Some(now) if now == name => found = Some(ifindex),
                Some(now) => away = Some((now, inode_of(&now, host))),
                None => {}
            }
        }
        match found {
            Some(ifindex) => self.looked.insert(name, ifindex),
            None => self.looked.remove(&name),
        };
        let inode = found.and_then(|_| inode_of(&name, host));
        Ok(Look { found, inode, away })
    }

    /// Has no message concerned the name since it was looked up?
    pub(crate) fn is_settled(&self, name: InterfaceName) -> bool {
        self.names.get(&name).is_none_or(|slot| !slot.touched)
    }

    /// The other watched name that the found device still has as far as is known, where no inode says whether it is the
    /// same device. What became of that name has to be entered first: else a device that was only renamed counts as new.
    pub(crate) fn hangs_on(&self, name: InterfaceName, look: &Look) -> Option<InterfaceName> {
        let ifindex = look.found?;
        let known = self.devices.get(&ifindex)?;
        let slot = self.names.get(&known.name)?;
        let is_open = known.name != name
            && slot.holder() == Some(ifindex)
            && (known.inode.is_none() || look.inode.is_none());
        is_open.then_some(known.name)
    }

    /// Enters what was read; the flag says whether it is not what was known. Also learns the inode of the holder, by
    /// which it will be known again.
    pub(crate) fn enter(&mut self, name: InterfaceName, look: &Look) -> (Observed, bool) {
        self.looked.remove(&name);
        let Some(holder) = self.names.get(&name).map(Slot::holder) else {
            return (Observed::default(), false);
        };
        if self.agrees(name, look) {
            if let Some(known) = holder.and_then(|ifindex| self.devices.get_mut(&ifindex)) {
                known.name = name;
                known.inode = known.inode.or(look.inode);
                if let (Some(inodes), Some(inode)) = (&mut self.inodes, known.inode) {
                    inodes.extend(holder.map(|ifindex| (inode, ifindex)));
                }
            }
            let observed = Observed {
                holder: self.holder(name),
                away: None,
            };
            return (observed, false);
        }
        let away = match (holder, look.found) {
            (Some(ifindex), None) => self.went(ifindex, look.away),
            _ => None,
        };
        if let Some(slot) = self.names.get_mut(&name) {
            slot.holder = None;
        }
        if let Some(ifindex) = look.found {
            self.found(name, ifindex, look.inode);
        }
        if let Some(slot) = self.names.get_mut(&name) {
            // This was no message.
            slot.touched = false;
        }
        let observed = Observed {
            holder: self.holder(name),
            away,
        };
        (observed, true)
    }

    /// Is what was read what the messages said?
    pub(crate) fn agrees(&self, name: InterfaceName, look: &Look) -> bool {
        let holder = self.names.get(&name).and_then(Slot::holder);
        look.found == holder
            && holder.is_none_or(|ifindex| {
                self.devices
                    .get(&ifindex)
                    .is_some_and(|known| known.may_be(look.inode))
            })
    }

    /// The device that held a name was found under another one, or not at all.
    fn went(
        &mut self,
        ifindex: u32,
        away: Option<(InterfaceName, Option<NonZeroU64>)>,
    ) -> Option<(u64, Place)> {
        let known = self.devices.get_mut(&ifindex)?;
        if let Some((name, inode)) = away
            && known.may_be(inode)
        {
            known.name = name;
            let generation = known.generation.get();
            return Some((generation, self.place(ifindex, name)));
        }
        self.devices.remove(&ifindex);
        self.stale = true;
        None
    }

    /// After a loss: forgets the devices that hold no watched name and are not what they were.
    pub(crate) fn forget_strangers(&mut self, host: &mut impl Host) -> io::Result<()> {
        let mut gone = Vec::new();
        for (&ifindex, known) in &self.devices {
            let holds = self
                .names
                .get(&known.name)
                .is_some_and(|slot| slot.holder() == Some(ifindex));
            if holds {
                continue;
            }
            let same = match host.by_index(ifindex)? {
                Some(name) => known.inode.is_some() && inode_of(&name, host) == known.inode,
                None => false,
            };
            if !same {
                gone.push(ifindex);
            }
        }
        for ifindex in gone {
            self.devices.remove(&ifindex);
            self.stale = true;
        }
        Ok(())
    }

    /// Takes out the known device that has this inode.
    fn take_by_inode(&mut self, inode: NonZeroU64) -> Option<Known> {
        let same = |known: &Known| known.inode == Some(inode);
        let ifindex = match &self.inodes {
            Some(inodes) => *inodes.get(&inode)?,
            None => *self.devices.iter().find(|(_, known)| same(known))?.0,
        };
        let known = self.devices.get(&ifindex).filter(|known| same(known))?;
        let known = *known;
        self.devices.remove(&ifindex);
        Some(known)
    }

    /// Enters who was found to hold a name: a known device where the inode says so, else a new one.
    fn found(&mut self, name: InterfaceName, ifindex: u32, inode: Option<NonZeroU64>) {
        let same = |known: &Known| inode.is_some() && known.inode == inode;
        let here = self.devices.remove(&ifindex);
        let known = if let Some(known) =
            here.filter(|known| same(known) || known.name == name && known.may_be(inode))
        {
            known
        } else if let Some(known) = inode.and_then(|inode| self.take_by_inode(inode)) {
            known
        } else if let Some((&generation, &known)) =
            self.elsewhere.iter().find(|(_, known)| same(known))
        {
            self.elsewhere.remove(&generation);
            known
        } else {
            Known {
                generation: self.new_generation(),
                name,
                inode,
                homes: 0,
            }
        };
        let inode = inode.or(known.inode);
        if let (Some(inodes), Some(inode)) = (&mut self.inodes, inode) {
            inodes.insert(inode, ifindex);
        }
        self.devices.insert(
            ifindex,
            Known {
                name,
                inode,
                ..known
            },
        );
        self.stale = true;
        self.has_grown = true;
        self.occupy(name, ifindex);
    }
}

/// The inode number in sysfs of the device that has this name now.
fn inode_of(name: &InterfaceName, host: &mut impl Host) -> Option<NonZeroU64> {
    host.inode(name).and_then(NonZeroU64::new)
}

impl Slot {
    fn holder(&self) -> Option<u32> {
        self.holder.map(NonZeroU32::get)
    }
}

impl Known {
    /// Nothing speaks against it that the device with this inode is this one.
    fn may_be(&self, inode: Option<NonZeroU64>) -> bool {
        self.inode.is_none() || inode.is_none() || self.inode == inode
    }
}

/// The state of a name as the host showed it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    /// Index of the device that has the name.
    found: Option<u32>,
    /// Its inode in sysfs.
    inode: Option<NonZeroU64>,
    /// While nobody has it: the name and the inode of what has the index of the device that did.
    away: Option<(InterfaceName, Option<NonZeroU64>)>,
}

impl Look {
    /// Somebody has the name.
    pub(crate) fn is_present(&self) -> bool {
        self.found.is_some()
    }
}

#[cfg(test)]
mod tests;
