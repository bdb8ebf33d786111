//! Turns link messages into changes of devices: what is known of one namespace.
//!
//! A message says what is, not what was. A rename does not carry the old name, and nothing tells a
//! device from the next one with its index, except the order of the messages: a device lives from
//! the message that first shows it to the one that deletes it. So the devices that hold a watched
//! name, or held it last, are remembered by index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU64,
};

use crate::{
    InterfaceName, NetnsId,
    netlink::{
        filter::Interest,
        message::{LinkMessage, Moved},
    },
    packed,
    tracker::{Change, Destination, Device, Observed, Watch},
};

/// A device that holds a watched name, or was the last to do so.
#[derive(Clone, Copy, Debug)]
struct NamedDevice {
    id: NonZeroU64,
    name: InterfaceName,
    /// Of its directory in sysfs, once it was read.
    inode: Option<NonZeroU64>,
    /// How many watched names it was the last to hold; it is forgotten with the last of them.
    last_of: u32,
}

/// A watched name. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug, Default)]
struct WatchedName {
    /// Id of the device that had the name last.
    last: Option<NonZeroU64>,
    /// The index that it had when it had the name.
    ifindex: u32,
    /// It has the name now.
    held: bool,
    /// A message concerned the name since it was looked up last: the look-up may be older or newer
    /// than it. Or it was never looked up.
    dirty: bool,
}

/// What a message means to the watches: a device left one, and took another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) left: Option<Change>,
    /// With `left`: it went to the namespace that has this id in the numbering of this one.
    pub(crate) nsid: Option<i32>,
    pub(crate) took: Option<Taken>,
}

/// A device took a watched name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) watch: Watch,
    pub(crate) device: Device,
    /// Another device had the name still, as far as the messages went: some are missing.
    pub(crate) missed: bool,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Transition(Transition),
    /// A device that is not known has a watched name. It may be one that went elsewhere and came
    /// back, which its inode says: [`DeviceTable::newcomer`] wants it.
    Newcomer {
        ifindex: u32,
        name: InterfaceName,
    },
}

/// The state of a name as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lookup {
    /// Index of the device that has the name.
    pub(crate) found: Option<u32>,
    /// Its inode in sysfs.
    pub(crate) inode: Option<NonZeroU64>,
    /// While nobody has it: the name and the inode of what has the index of the device that did.
    pub(crate) away: Option<(InterfaceName, Option<NonZeroU64>)>,
}

/// The watched names of a namespace and the devices that matter to them.
#[derive(Debug)]
pub(crate) struct DeviceTable {
    netns: NetnsId,
    names: BTreeMap<InterfaceName, WatchedName>,
    devices: BTreeMap<u32, NamedDevice>,
    /// Devices that were moved to another namespace and may come back, by id.
    elsewhere: BTreeMap<NonZeroU64, NamedDevice>,
    /// Where the devices are that came back with another index than they had with their last name.
    relocated: BTreeMap<NonZeroU64, u32>,
    /// Names that were looked up and not entered yet, with the index of who was found to have
    /// them, or was looked for since it had them: a message about that device concerns the name,
    /// though the device is not known yet, or is known under another one.
    looked_up: BTreeMap<InterfaceName, u32>,
    /// The same by index.
    looked_up_at: BTreeSet<(u32, InterfaceName)>,
    /// The indexes of devices by inode, during a look-up after a loss. What it says of a device
    /// may be out of date, but none with an inode is missing.
    inodes: Option<HashMap<NonZeroU64, u32>>,
    /// The id that was given out last.
    id: u64,
    /// The names, or what else the filter has to let through, are not those of the last
    /// [`DeviceTable::interest`].
    pub(crate) stale: bool,
    /// Nor are the indexes: there are new ones among them.
    pub(crate) has_grown: bool,
    /// What the filter lets through for nothing: indexes that no known device has any more, and how
    /// many names that are not watched any more.
    spare: BTreeSet<u32>,
    spare_names: usize,
}

/// So much may be in a filter for nothing, or as much as is for something. Whoever deletes or moves
/// a device waits for the kernel's grace periods, and a filter that is freed just then adds one.
pub(crate) const SPARE: usize = if cfg!(test) { 2 } else { 8 };

impl DeviceTable {
    pub(crate) fn new(netns: NetnsId) -> Self {
        Self {
            netns,
            names: BTreeMap::new(),
            devices: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            relocated: BTreeMap::new(),
            looked_up: BTreeMap::new(),
            looked_up_at: BTreeSet::new(),
            inodes: None,
            id: 0,
            stale: false,
            has_grown: false,
            spare: BTreeSet::new(),
            spare_names: 0,
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = InterfaceName> {
        self.names.keys().copied()
    }

    pub(crate) fn is_watched(&self, name: InterfaceName) -> bool {
        self.names.contains_key(&name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// How many devices are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.devices.len() + self.elsewhere.len()
    }

    /// Is the filter of the last [`DeviceTable::interest`] to be exchanged?
    pub(crate) fn wants_filter(&self) -> bool {
        let needed = self.names.len() + self.devices.len();
        let spare = self.spare.len() + self.spare_names;
        self.stale || self.has_grown || spare > needed.max(SPARE)
    }

    /// What the filter in the kernel must let through.
    pub(crate) fn interest(&mut self) -> Interest {
        self.stale = false;
        self.has_grown = false;
        self.spare.clear();
        self.spare_names = 0;
        Interest {
            names: self.names.keys().copied().collect(),
            indexes: self.devices.keys().copied().collect(),
            masks: Vec::new(),
            kinds: BTreeSet::new(),
        }
    }

    fn place(&self, ifindex: u32, name: InterfaceName) -> Destination {
        Destination {
            netns: Some(self.netns),
            ifindex: Some(ifindex),
            name: Some(name),
        }
    }

    pub(crate) fn watch(&self, name: InterfaceName) -> Watch {
        Watch {
            netns: self.netns,
            name,
        }
    }

    fn new_id(&mut self) -> NonZeroU64 {
        self.id += 1;
        NonZeroU64::new(self.id).unwrap_or(NonZeroU64::MAX)
    }

    /// Takes a message, in the order in which they were sent.
    pub(crate) fn message(&mut self, message: &LinkMessage) -> Heard {
        self.touch_looked_up(message.ifindex());
        match *message {
            LinkMessage::New { ifindex, name, .. } => self.exists(ifindex, name),
            LinkMessage::Deleted {
                ifindex,
                name,
                moved,
                ..
            } => Heard::Transition(self.gone(ifindex, name, moved)),
        }
    }

    /// Whether a message can be believed that may not be the next one after those before it, since
    /// some were lost.
    ///
    /// That a known index has another name can mean that it is another device's. Then these are the
    /// watched names that are suspect, and what became of them is left to a look-up.
    pub(crate) fn doubt(&mut self, message: &LinkMessage) -> Option<[Option<InterfaceName>; 2]> {
        let ifindex = message.ifindex();
        let known = self.devices.get(&ifindex)?.name;
        if known == message.name() {
            return None;
        }
        self.touch_looked_up(ifindex);
        Some([known, message.name()].map(|name| self.touch(name).then_some(name)))
    }

    /// A message concerns the name; false when that is not watched.
    fn touch(&mut self, name: InterfaceName) -> bool {
        let watched = self.names.get_mut(&name);
        watched.map(|watched| watched.dirty = true).is_some()
    }

    /// A message is about the device by which a name was looked up: it concerns that name.
    fn touch_looked_up(&mut self, ifindex: u32) {
        for &(_, name) in self
            .looked_up_at
            .range((ifindex, InterfaceName::LEAST)..)
            .take_while(|(index, _)| *index == ifindex)
        {
            if let Some(watched) = self.names.get_mut(&name) {
                watched.dirty = true;
            }
        }
    }

    fn exists(&mut self, ifindex: u32, name: InterfaceName) -> Heard {
        let mut left = None;
        match self.devices.get_mut(&ifindex) {
            // A change of something else than the name; unless a look-up has seen the new name
            // before this message came.
            Some(known)
                if known.name == name
                    && self.names.get_mut(&name).is_none_or(|watched| {
                        // Or it was called otherwise for a moment, and a look-up has seen that.
                        watched.dirty = true;
                        watched.holder() == Some(ifindex)
                    }) =>
            {
                return Heard::Transition(Transition::default());
            }
            Some(known) => {
                let old = std::mem::replace(&mut known.name, name);
                let id = known.id;
                if self.vacate(old, ifindex) {
                    left = Some(Change::Left {
                        watch: self.watch(old),
                        id: id.get(),
                        to: Some(self.place(ifindex, name)),
                    });
                }
            }
            None if !self.names.contains_key(&name) => {
                return Heard::Transition(Transition::default());
            }
            None if !self.elsewhere.is_empty() => {
                // Whatever a look-up has seen by now, it may be older than this.
                self.touch(name);
                return Heard::Newcomer { ifindex, name };
            }
            None => return Heard::Transition(self.newcomer(ifindex, name, None)),
        };
        Heard::Transition(Transition {
            left,
            nsid: None,
            took: self.take(name, ifindex),
        })
    }

    /// The device with this index has the name now: what that means to the watch of the name.
    fn take(&mut self, name: InterfaceName, ifindex: u32) -> Option<Taken> {
        let id = self.devices.get(&ifindex)?.id.get();
        let missed = self.occupy(name, ifindex)?;
        Some(Taken {
            watch: self.watch(name),
            device: Device { ifindex, id },
            missed,
        })
    }

    fn gone(&mut self, ifindex: u32, name: InterfaceName, moved: Option<Moved>) -> Transition {
        self.touch(name);
        let Some(known) = self.forget_device(ifindex) else {
            return Transition::default();
        };
        let held = self.vacate(known.name, ifindex);
        if moved.is_some() {
            self.elsewhere.insert(known.id, known);
        }
        let to = match moved {
            Some(moved) => Some(Destination {
                netns: None,
                ifindex: moved.ifindex,
                name: None,
            }),
            // It was renamed before it was deleted, when the filter did not know its index yet.
            None if known.name != name => Some(self.place(ifindex, name)),
            None => None,
        };
        Transition {
            left: held.then(|| Change::Left {
                watch: self.watch(known.name),
                id: known.id.get(),
                to,
            }),
            nsid: moved.filter(|_| held).map(|moved| moved.nsid),
            took: None,
        }
    }

    /// A device that was not known has a watched name: is it one that went elsewhere and came back?
    /// `inode` is that of the device with this name, if that has this index.
    ///
    /// Only here the inode decides within a stream of messages. Should the device be gone again by
    /// the time that it is read, "another device" is the answer that does no harm. For the same
    /// reason the inode is not kept here: whoever has the name by now may be somebody else, and
    /// would be taken for this device ever after. A look-up learns it.
    pub(crate) fn newcomer(
        &mut self,
        ifindex: u32,
        name: InterfaceName,
        inode: Option<u64>,
    ) -> Transition {
        let inode = inode.and_then(NonZeroU64::new);
        let known = inode
            .and_then(|inode| self.take_from_elsewhere(inode))
            .unwrap_or_else(|| self.new_device(name, None));
        self.insert(ifindex, NamedDevice { name, ..known });
        Transition {
            left: None,
            nsid: None,
            took: self.take(name, ifindex),
        }
    }

    fn new_device(&mut self, name: InterfaceName, inode: Option<NonZeroU64>) -> NamedDevice {
        NamedDevice {
            id: self.new_id(),
            name,
            inode,
            last_of: 0,
        }
    }

    fn take_from_elsewhere(&mut self, inode: NonZeroU64) -> Option<NamedDevice> {
        let (&id, _) = self
            .elsewhere
            .iter()
            .find(|(_, known)| known.inode == Some(inode))?;
        self.elsewhere.remove(&id)
    }

    /// Enters a device, which may have had another index.
    fn insert(&mut self, ifindex: u32, known: NamedDevice) {
        if known.last_of > 0 {
            self.relocated.insert(known.id, ifindex);
        }
        self.devices.insert(ifindex, known);
        // A device that comes back has its old index, as a rule.
        self.has_grown |= !self.spare.remove(&ifindex);
    }

    fn forget_device(&mut self, ifindex: u32) -> Option<NamedDevice> {
        let known = self.devices.remove(&ifindex)?;
        self.relocated.remove(&known.id);
        // Where it is to be exchanged anyhow, or there is none, nothing is kept of it.
        if !self.wants_filter() {
            self.spare.insert(ifindex);
        }
        Some(known)
    }

    /// The device no longer has the name: did it hold a watch?
    fn vacate(&mut self, name: InterfaceName, ifindex: u32) -> bool {
        let Some(watched) = self.names.get_mut(&name) else {
            return false;
        };
        watched.dirty = true;
        let held = watched.holder() == Some(ifindex);
        watched.held &= !held;
        held
    }

    /// The device has the name now. `None` when that is not watched; true when another device has
    /// it still, as far as the messages went.
    fn occupy(&mut self, name: InterfaceName, ifindex: u32) -> Option<bool> {
        let id = self.devices.get(&ifindex)?.id;
        let watched = self.names.get_mut(&name)?;
        let before = *watched;
        *watched = WatchedName {
            last: Some(id),
            ifindex,
            held: true,
            dirty: true,
        };
        if before.last != Some(id) {
            if let Some(known) = self.devices.get_mut(&ifindex) {
                known.last_of += 1;
            }
            self.release(before);
        }
        Some(before.holder().is_some_and(|before| before != ifindex))
    }

    /// A name is another device's now, or nobody's: its last holder is forgotten if that was its
    /// last name.
    fn release(&mut self, watched: WatchedName) {
        let Some(id) = watched.last else {
            return;
        };
        let ifindex = self.relocated.get(&id).copied();
        let ifindex = ifindex.unwrap_or(watched.ifindex);
        if let Some(known) = self.devices.get_mut(&ifindex)
            && known.id == id
        {
            known.last_of = known.last_of.saturating_sub(1);
            if known.last_of == 0 {
                self.forget_device(ifindex);
            }
        } else if let Some(known) = self.elsewhere.get_mut(&id) {
            known.last_of = known.last_of.saturating_sub(1);
            if known.last_of == 0 {
                self.elsewhere.remove(&id);
            }
        }
    }

    /// Adds names; their state is still to be read.
    pub(crate) fn add(&mut self, names: impl Iterator<Item = InterfaceName>) {
        let unread = WatchedName {
            dirty: true,
            ..WatchedName::default()
        };
        let new: Vec<_> = names
            .filter(|name| !self.names.contains_key(name))
            .map(|name| (name, unread))
            .collect();
        packed::extend(&mut self.names, new);
        self.stale = true;
    }

    /// Gives back what many entries that were made one by one have taken.
    pub(crate) fn pack(&mut self) {
        packed::repack(&mut self.devices);
    }

    /// Ends a watch.
    pub(crate) fn remove(&mut self, name: InterfaceName) {
        self.forget_lookup(name);
        if let Some(watched) = self.names.remove(&name) {
            self.release(watched);
            self.spare_names += 1;
        }
    }

    /// Who holds the name, as far as is known.
    pub(crate) fn holder(&self, name: InterfaceName) -> Option<Device> {
        let ifindex = self.names.get(&name)?.holder()?;
        Some(Device {
            ifindex,
            id: self.devices.get(&ifindex)?.id.get(),
        })
    }

    /// The inode of who holds the name, as far as is known.
    pub(crate) fn inode(&self, name: InterfaceName) -> Option<u64> {
        let ifindex = self.names.get(&name)?.holder()?;
        self.devices.get(&ifindex)?.inode.map(NonZeroU64::get)
    }

    /// A name is about to be looked up; says whose index had it.
    ///
    /// What is read changes nothing yet: whether messages that are still queued tell the same is
    /// only known once they were read; see [`DeviceTable::is_clean`].
    pub(crate) fn begin_lookup(&mut self, name: InterfaceName) -> Option<u32> {
        self.forget_lookup(name);
        let watched = self.names.get_mut(&name)?;
        watched.dirty = false;
        watched.holder()
    }

    /// What is read of the name is about this device.
    pub(crate) fn looks_at(&mut self, name: InterfaceName, ifindex: u32) {
        self.forget_lookup(name);
        self.looked_up.insert(name, ifindex);
        self.looked_up_at.insert((ifindex, name));
    }

    /// What was read of the name is out of date.
    pub(crate) fn forget_lookup(&mut self, name: InterfaceName) {
        if let Some(ifindex) = self.looked_up.remove(&name) {
            self.looked_up_at.remove(&(ifindex, name));
        }
    }

    /// Has no message concerned the name since it was looked up?
    pub(crate) fn is_clean(&self, name: InterfaceName) -> bool {
        self.names.get(&name).is_none_or(|watched| !watched.dirty)
    }

    /// The other watched name that the found device still has as far as is known, where no inode
    /// says whether it is the same device. What became of that name has to be entered first: else a
    /// device that was only renamed counts as new.
    pub(crate) fn depends_on(&self, name: InterfaceName, lookup: &Lookup) -> Option<InterfaceName> {
        let ifindex = lookup.found?;
        let known = self.devices.get(&ifindex)?;
        let watched = self.names.get(&known.name)?;
        let is_open = known.name != name
            && watched.holder() == Some(ifindex)
            && (known.inode.is_none() || lookup.inode.is_none());
        is_open.then_some(known.name)
    }

    /// Enters what was read; the flag says whether it is not what was known. Also learns the inode
    /// of the holder, by which it will be known again.
    pub(crate) fn enter(&mut self, name: InterfaceName, lookup: &Lookup) -> (Observed, bool) {
        self.forget_lookup(name);
        let Some(holder) = self.names.get(&name).map(WatchedName::holder) else {
            return (Observed::default(), false);
        };
        if self.confirms(name, lookup) {
            if let Some(known) = holder.and_then(|ifindex| self.devices.get_mut(&ifindex)) {
                known.name = name;
                known.inode = known.inode.or(lookup.inode);
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
        let away = match (holder, lookup.found) {
            (Some(ifindex), None) => self.went(ifindex, lookup.away),
            _ => None,
        };
        if let Some(watched) = self.names.get_mut(&name) {
            watched.held = false;
        }
        if let Some(ifindex) = lookup.found {
            self.enter_holder(name, ifindex, lookup.inode);
        }
        if let Some(watched) = self.names.get_mut(&name) {
            // This was no message.
            watched.dirty = false;
        }
        let observed = Observed {
            holder: self.holder(name),
            away,
        };
        (observed, true)
    }

    /// Is what was read what the messages said?
    pub(crate) fn confirms(&self, name: InterfaceName, lookup: &Lookup) -> bool {
        let holder = self.names.get(&name).and_then(WatchedName::holder);
        lookup.found == holder
            && holder.is_none_or(|ifindex| {
                self.devices
                    .get(&ifindex)
                    .is_some_and(|known| known.may_be(lookup.inode))
            })
    }

    /// The device that held a name was found under another one, or not at all.
    fn went(
        &mut self,
        ifindex: u32,
        away: Option<(InterfaceName, Option<NonZeroU64>)>,
    ) -> Option<(u64, Destination)> {
        let known = self.devices.get_mut(&ifindex)?;
        if let Some((name, inode)) = away
            && known.may_be(inode)
        {
            known.name = name;
            let id = known.id.get();
            // It was gone before its inode was read, perhaps, and another one has its index. As far as
            // is known it is this one; it is not taken for it when it takes the name again.
            let is_guess = known.inode != inode;
            let place = self.place(ifindex, name);
            if is_guess {
                self.forget_device(ifindex);
            }
            return Some((id, place));
        }
        self.forget_device(ifindex);
        None
    }

    /// The devices that hold no watched name, which may not be what they were after a loss: their
    /// names and inodes are to be read, and given to [`DeviceTable::keep_only`].
    pub(crate) fn without_watch(&self) -> Vec<u32> {
        let holds = |ifindex: u32, known: &NamedDevice| {
            let watched = self.names.get(&known.name);
            watched.is_some_and(|watched| watched.holder() == Some(ifindex))
        };
        self.devices
            .iter()
            .filter(|(ifindex, known)| !holds(**ifindex, known))
            .map(|(&ifindex, _)| ifindex)
            .collect()
    }

    /// Forgets the device with this index unless it has this inode.
    pub(crate) fn keep_only(&mut self, ifindex: u32, inode: Option<u64>) {
        let inode = inode.and_then(NonZeroU64::new);
        let is_same = self
            .devices
            .get(&ifindex)
            .is_some_and(|known| known.inode.is_some() && known.inode == inode);
        if !is_same {
            self.forget_device(ifindex);
        }
    }

    /// From here on devices are known again by their inodes alone, for many names at a time.
    pub(crate) fn index_inodes(&mut self) {
        let inode = |(&ifindex, known): (&u32, &NamedDevice)| Some((known.inode?, ifindex));
        self.inodes = Some(self.devices.iter().filter_map(inode).collect());
    }

    pub(crate) fn drop_inodes(&mut self) {
        self.inodes = None;
    }

    /// Takes out the known device that has this inode.
    fn take_by_inode(&mut self, inode: NonZeroU64) -> Option<NamedDevice> {
        let same = |known: &NamedDevice| known.inode == Some(inode);
        let ifindex = match &self.inodes {
            Some(inodes) => *inodes.get(&inode)?,
            None => *self.devices.iter().find(|(_, known)| same(known))?.0,
        };
        self.devices.get(&ifindex).filter(|known| same(known))?;
        self.forget_device(ifindex)
    }

    /// Enters who was found to hold a name: a known device where the inode says so, else a new one.
    fn enter_holder(&mut self, name: InterfaceName, ifindex: u32, inode: Option<NonZeroU64>) {
        let same = |known: &NamedDevice| inode.is_some() && known.inode == inode;
        let here = self.forget_device(ifindex);
        let known = here
            .filter(|known| same(known) || known.name == name && known.may_be(inode))
            .or_else(|| self.take_by_inode(inode?))
            .or_else(|| self.take_from_elsewhere(inode?))
            .unwrap_or_else(|| self.new_device(name, inode));
        let inode = inode.or(known.inode);
        if let (Some(inodes), Some(inode)) = (&mut self.inodes, inode) {
            inodes.insert(inode, ifindex);
        }
        self.insert(
            ifindex,
            NamedDevice {
                name,
                inode,
                ..known
            },
        );
        self.occupy(name, ifindex);
    }
}

impl WatchedName {
    /// Index of the device that has the name.
    fn holder(&self) -> Option<u32> {
        self.held.then_some(self.ifindex)
    }
}

impl NamedDevice {
    /// Nothing speaks against it that the device with this inode is this one.
    fn may_be(&self, inode: Option<NonZeroU64>) -> bool {
        self.inode.is_none() || inode.is_none() || self.inode == inode
    }
}

impl Lookup {
    /// Somebody has the name.
    pub(crate) fn is_present(&self) -> bool {
        self.found.is_some()
    }
}

#[cfg(test)]
mod tests;
