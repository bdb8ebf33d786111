//! Does this change concern a watch? Keeps the truth about every watched name, and lets through
//! only what changes it.
//!
//! Nothing here is about BPF: what the filter needs of a kernel is [`Kernel`], so that tests can
//! run the very code that runs in the kernel. It is written for a verifier all the same: no
//! indexing, nothing that can panic, and every step inlined, once where that can be, because before
//! 5.11 the size of the program counts against the limit on locked memory, which is 64 KiB by
//! default.
//!
//! The events of one namespace come one after the other. Those of different namespaces need not, so
//! what crosses namespaces is changed by atomic additions alone, without using their results: 5.10
//! has no others.

use crate::{
    Counters, DeviceState, EVERYWHERE, KERNEL_EPOCH, LOOPBACK_IFINDEX, Leaving, Link, MASKS, Name,
    NameKey, NameMask, NameState, PatternSet, PatternState, Place, Record, flag,
};

/// How many ids are tried for a device.
const ATTEMPTS: u32 = 2;
/// At how many of the remembered devices it is looked in turn with each change, whomever it concerns, while
/// there are many: so it is come to all sooner than as many more can be remembered.
const LOOKS: u32 = 2;

/// What has happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceEvent {
    /// Tracing: it is new in its namespace, because it was made or because it moved there.
    Registered,
    /// Tracing: it has another name.
    Renamed,
    /// Tracing: it goes for good.
    Unregistered,
    /// Tracing: it goes to another namespace. Where to is told when it arrives there.
    Leaving,
    /// Tracing: an event that is told again. Another device can have its index by then.
    Repeated,
    /// Netlink: it is new, or has another name, or something else about it has changed.
    Exists,
    /// Netlink: it went for good.
    Deleted,
    /// Netlink: it went to another namespace.
    Moved,
}

/// An event, and what is told of it.
///
/// The fields that belong to some events only are here and not there, because here they have a
/// value in any case. In an enum they have none for the others; the compiler may pass that around
/// all the same and not use it in the end, which is refused to who has no CAP_PERFMON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    pub event: DeviceEvent,
    /// Where the device is, or was until now.
    pub here: Place,
    /// Of what kind it is, as in [`Record::kind`].
    pub kind: Name,
    /// Tracing: `net_device.reg_state`
    pub reg_state: u32,
    /// `Registered` and `Leaving`: where in memory it is.
    pub address: u64,
    /// `Moved`: id of the other namespace in the numbering of this one.
    pub nsid: i32,
    /// `Moved`: its index there, or 0 where that was not said.
    pub to_ifindex: u32,
}

impl Notice {
    /// Without what belongs to some events only.
    #[inline(always)]
    pub const fn new(event: DeviceEvent, here: Place) -> Self {
        Self {
            event,
            here,
            kind: Name([0, 0]),
            reg_state: 0,
            address: 0,
            nsid: 0,
            to_ifindex: 0,
        }
    }
}

/// What the filter needs: the maps, and a way to send.
///
/// Elements are changed in place, as a BPF program does it: userspace may read them meanwhile.
pub trait Kernel {
    /// In `NAMES`.
    fn name(&mut self, key: &NameKey) -> Option<&mut NameState>;

    /// In `DEVICES`.
    fn device(&mut self, id: u64) -> Option<&mut DeviceState>;
    /// Counts in `Control::devices`. False when there is one with this id, or no room.
    fn insert_device(&mut self, id: u64, state: &DeviceState) -> bool;
    /// Counts in `Control::devices`.
    fn remove_device(&mut self, id: u64);
    /// Are there so many devices that those that can be missed should go?
    fn is_crowded(&mut self) -> bool;
    /// The one in `REMEMBERED` that was looked at longest ago. It is taken out.
    fn next_remembered(&mut self) -> Option<u64>;
    /// Puts it there, behind all others. Where there is no room, the first goes, which may be gone; else
    /// it stays until it is unregistered. There can be no more of these than are not many yet.
    fn add_remembered(&mut self, id: u64);

    /// In `LINKS`.
    fn link(&mut self, link: &Link) -> Option<u64>;
    /// Replaces the one that is there.
    fn set_link(&mut self, link: &Link, id: u64);
    fn remove_link(&mut self, link: &Link);

    /// In `NAMESPACES`.
    fn has_namespace(&mut self, netns: u32) -> bool;
    /// Removes a namespace from `NAMESPACES`; its epoch, if it was there.
    fn end_namespace(&mut self, netns: u32) -> Option<u32>;

    /// Is there any pattern, in whatever namespace? Asked for every event, so it has to be quick.
    fn has_patterns(&mut self) -> bool;
    /// Are all namespaces heard of, from their first device to their last?
    fn hears_everywhere(&self) -> bool;
    /// In `PATTERNS`; where the namespace has none of its own, those of [`EVERYWHERE`].
    fn patterns(&mut self, netns: u32) -> Option<&PatternSet>;
    /// In `PATTERN_STATES`.
    fn pattern_state(&mut self, netns: u32) -> Option<&mut PatternState>;
    /// False when there is no room, or when userspace has inserted one since it was looked for: it
    /// reads the table after that, so that it finds what this change came to.
    fn insert_pattern_state(&mut self, netns: u32, epoch: u32) -> bool;
    fn remove_pattern_state(&mut self, netns: u32);
    /// In `MATCHING`: what a device is called that concerns a pattern, [marked](Name::marked); zeros
    /// where there is none. An `Option` would have the pointer in it, and be calculated with.
    fn matching(&mut self, link: &Link) -> Name;
    /// Replaces the one that is there; false when there is no room.
    fn set_matching(&mut self, link: &Link, name: &Name, kind: &Name) -> bool;
    fn remove_matching(&mut self, link: &Link);
    /// In `LEAVING`.
    fn set_leaving(&mut self, address: u64, leaving: &Leaving);
    /// Removes it.
    fn take_leaving(&mut self, address: u64) -> Option<Leaving>;

    /// The same event, where the verifier is better not to know which it is. `zero` is 0, and it does
    /// not know that.
    fn conceal(&self, event: DeviceEvent, zero: u64) -> DeviceEvent {
        let _ = zero;
        event
    }

    /// Of this CPU.
    fn counters(&mut self) -> Option<&mut Counters>;
    fn cpu(&mut self) -> u32;

    /// Is every change wanted that the current task makes?
    fn is_traced(&mut self) -> bool;
    /// False when the ring buffer is full.
    fn send(&mut self, change: &DeviceChange) -> bool;
}

/// A change, as the filter works it out: a [`Record`] but for the time and who made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceChange {
    pub id: u64,
    pub from: Place,
    pub to: Place,
    pub from_count: u64,
    pub to_count: u64,
    pub from_epoch: u32,
    pub to_epoch: u32,
    pub flags: u32,
    pub reg_state: u32,
    pub nsid: i32,
    pub left_count: u64,
    pub took_count: u64,
    pub left_epoch: u32,
    pub took_epoch: u32,
    pub kind: Name,
    /// Always 0, which the verifier does not know.
    pub zero: u32,
}

impl DeviceChange {
    /// Sets a flag. The verifier is not to know that it is set: all that comes after would be another
    /// way for each set of them.
    #[inline(always)]
    fn set(&mut self, flag: u32) {
        self.flags |= flag ^ self.zero;
    }

    /// The record of it, with no time and nobody who made it.
    #[inline(always)]
    pub fn record<K>(&self, kind: K) -> Record<K> {
        let Self {
            id,
            from,
            to,
            from_count,
            to_count,
            from_epoch,
            to_epoch,
            flags,
            reg_state,
            nsid,
            left_count,
            took_count,
            left_epoch,
            took_epoch,
            kind: _,
            zero: _,
        } = *self;
        Record {
            time: 0,
            id,
            from,
            to,
            from_count,
            to_count,
            cgroup: 0,
            comm: [0; 16],
            pid: 0,
            uid: 0,
            from_epoch,
            to_epoch,
            flags,
            reg_state,
            nsid,
            zero: 0,
            left_count,
            took_count,
            left_epoch,
            took_epoch,
            kind,
        }
    }
}

/// Takes one event through the filter.
///
/// Says which flags the record of it has, 0 if there is none; `None` when nothing could be counted.
#[inline(always)]
pub fn observe<K: Kernel>(kernel: &mut K, notice: &Notice) -> Option<u32> {
    let counters = kernel.counters()?;
    add(&mut counters.seen, 1);
    // The verifier goes on from a point again when it gets there knowing something else. So it is not
    // to know what it would have to remember on every way.
    let zero = load(&counters.zero);
    let event = kernel.conceal(notice.event, zero);

    // The same goes for what the record has that stays 0 on some ways and is a number on others. One that
    // it knows and one that it does not are two states to it, and from each it would go through all
    // that sends.
    let mut change = DeviceChange {
        flags: zero as u32,
        zero: zero as u32,
        from_count: zero,
        to_count: zero,
        reg_state: notice.reg_state,
        nsid: notice.nsid,
        kind: notice.kind,
        to: Place {
            name: Name([zero, zero]),
            // It is branched on: what it does not know, it would follow both ways.
            netns: 0,
            ifindex: notice.to_ifindex,
        },
        ..DeviceChange::default()
    };
    // First, while there is little else that the verifier, and the stack, have to keep.
    let mut from_patterns = 1;
    if kernel.has_patterns()
        && let Some(patterns) = kernel.patterns(notice.here.netns)
    {
        from_patterns =
            distance(&patterns.masks, &notice.here.name) | distance(&patterns.kinds, &notice.kind);
    }
    if track(kernel, event, notice, &mut change) {
        give_up(kernel, &mut change);
        take(kernel, &mut change);
    }
    if kernel.has_patterns() {
        compare(kernel, event, notice, from_patterns == 0, &mut change);
    }

    let is_matched = change.flags != 0;
    let counters = kernel.counters()?;
    if is_matched {
        add(&mut counters.matched, 1);
    } else {
        add(&mut counters.ignored, 1);
        if kernel.is_traced() {
            change.flags = flag::TRACED;
        }
    }
    if change.flags != 0 {
        send(kernel, event, is_matched, &mut change);
    }
    // Last, where the verifier has nothing else to keep any more.
    if kernel.is_crowded() {
        forget(kernel, notice.here.netns);
    }
    Some(change.flags)
}

#[inline(always)]
fn send<K: Kernel>(
    kernel: &mut K,
    event: DeviceEvent,
    is_matched: bool,
    change: &mut DeviceChange,
) {
    if let DeviceEvent::Moved = event {
        change.flags |= flag::MOVED;
    }
    // Without a branch for what is not counted, which would be a second copy of all that sends.
    if !kernel.send(change)
        && let Some(counters) = kernel.counters()
    {
        add(&mut counters.dropped, u64::from(is_matched));
    }
}

/// Works out from where to where the device went, and keeps `LINKS` and `DEVICES` true. False when
/// no name can have changed hands by this.
#[inline(always)]
fn track<K: Kernel>(
    kernel: &mut K,
    event: DeviceEvent,
    notice: &Notice,
    change: &mut DeviceChange,
) -> bool {
    let Notice {
        ref here, address, ..
    } = *notice;
    let link = Link::of(here);
    // 0 is no id.
    let mut id = match event {
        DeviceEvent::Registered => {
            // The device for which there is an entry is gone: a new one has its index.
            if let Some(stale) = kernel.link(&link) {
                kernel.remove_link(&link);
                kernel.remove_device(stale);
            }
            let between = Link::between(address);
            let id = kernel.link(&between).unwrap_or(0);
            if id != 0 {
                kernel.remove_link(&between);
            }
            id
        }
        DeviceEvent::Repeated => 0,
        DeviceEvent::Renamed
        | DeviceEvent::Unregistered
        | DeviceEvent::Leaving
        | DeviceEvent::Exists
        | DeviceEvent::Deleted
        | DeviceEvent::Moved => kernel.link(&link).unwrap_or(0),
    };
    // Where it was is only to be had from our own notes: by now the kernel knows neither the old
    // name nor the old namespace.
    if id != 0 {
        match kernel.device(id) {
            Some(device) => change.from = device.place,
            None => id = 0,
        }
    }
    change.id = id;
    let is_gone = match event {
        DeviceEvent::Registered | DeviceEvent::Renamed | DeviceEvent::Exists => false,
        DeviceEvent::Unregistered | DeviceEvent::Deleted | DeviceEvent::Moved => true,
        DeviceEvent::Leaving => {
            // Nothing to say before it is known where it went. The entry that is removed makes room
            // for the other.
            if id != 0 {
                kernel.remove_link(&link);
                kernel.set_link(&Link::between(address), id);
            }
            return false;
        }
        DeviceEvent::Repeated => return false,
    };
    if is_gone {
        if id != 0 {
            kernel.remove_link(&link);
            kernel.remove_device(id);
        } else {
            change.from = *here;
        }
        if let DeviceEvent::Unregistered = event
            && here.ifindex == LOOPBACK_IFINDEX
            && let Some(epoch) = kernel.end_namespace(here.netns)
        {
            change.set(flag::NETNS_GONE);
            change.from_epoch = epoch;
        }
        return true;
    }
    change.to = *here;
    if id == 0 {
        return true;
    }
    if change.from == *here {
        let name = kernel.name(&NameKey::of(here));
        if name.is_none_or(|name| name.ifindex != 0 && name.id == id) {
            // Something else about it has changed.
            return false;
        }
        // Where it was is userspace's word, and it was not there any more by then.
        change.from = Place::default();
        return true;
    }
    if let Some(device) = kernel.device(id) {
        set_place(device, here);
    }
    if let DeviceEvent::Registered = event {
        kernel.set_link(&link, id);
    }
    true
}

/// Does the device lose a watched name by this change?
#[inline(always)]
fn give_up<K: Kernel>(kernel: &mut K, change: &mut DeviceChange) {
    // A device that nobody knows holds no watched name.
    if change.id == 0 {
        return;
    }
    let Some(name) = kernel.name(&NameKey::of(&change.from)) else {
        return;
    };
    if name.ifindex == 0 || name.id != change.id {
        return;
    }
    change.from_count = write(name, change.id, 0);
    if change.flags & flag::NETNS_GONE == 0 {
        change.from_epoch = name.epoch;
    }
    change.set(flag::LEFT_NAME);
    // It had it by userspace's word, perhaps.
    if let Some(device) = kernel.device(change.id) {
        device.taken = NameKey::of(&change.from);
    }
}

/// Does the device get a watched name by this change?
#[inline(always)]
fn take<K: Kernel>(kernel: &mut K, change: &mut DeviceChange) {
    if change.to.netns == 0 {
        return;
    }
    let key = NameKey::of(&change.to);
    if kernel.name(&key).is_none() {
        return;
    }
    // The watch has ended with its namespace, and another one has its number.
    if !kernel.has_namespace(key.netns) {
        return;
    }
    if change.id == 0 {
        let Some(id) = remember(kernel, &change.to) else {
            change.set(flag::REFUSED);
            return;
        };
        change.id = id;
    }
    if let Some(device) = kernel.device(change.id) {
        device.taken = key;
    }
    let Some(name) = kernel.name(&key) else {
        return;
    };
    change.to_count = write(name, change.id, change.to.ifindex);
    change.to_epoch = name.epoch;
    change.set(flag::TOOK_NAME);
}

/// Does it concern a pattern? Keeps `MATCHING` true, and `PATTERN_STATES` where the patterns are those
/// of all namespaces.
#[inline(always)]
fn compare<K: Kernel>(
    kernel: &mut K,
    event: DeviceEvent,
    notice: &Notice,
    matches: bool,
    change: &mut DeviceChange,
) {
    let Notice {
        ref here, address, ..
    } = *notice;
    let link = Link::of(here);
    let is_new = matches!(event, DeviceEvent::Registered);
    if is_new && let Some(Leaving { from, count, epoch }) = kernel.take_leaving(address) {
        if change.flags & flag::LEFT_NAME == 0 {
            change.from = from;
        }
        change.left_count = count;
        change.left_epoch = epoch as u32;
        change.flags |= flag::LEFT_PATTERN;
    }
    let is_here = match event {
        DeviceEvent::Registered | DeviceEvent::Renamed | DeviceEvent::Exists => true,
        DeviceEvent::Unregistered
        | DeviceEvent::Deleted
        | DeviceEvent::Leaving
        | DeviceEvent::Moved => false,
        DeviceEvent::Repeated => return,
    };
    let Some(patterns) = kernel.patterns(here.netns) else {
        return;
    };
    let is_open = patterns.open;
    let is_loopback = here.ifindex == LOOPBACK_IFINDEX;
    let epoch = match kernel.pattern_state(here.netns) {
        Some(state) => state.epoch,
        None => {
            // The watch has ended with its namespace, and another one has its number; or the namespace
            // is one of all.
            if !is_here || !kernel.hears_everywhere() {
                return;
            }
            let Some(epoch) = find(kernel, here.netns) else {
                return;
            };
            if epoch == 0 {
                // It is told once.
                if is_new && is_loopback {
                    change.flags |= flag::FOUND_NETNS | flag::NEW;
                }
                return;
            }
            change.took_epoch = epoch;
            change.flags |= flag::FOUND_NETNS;
            epoch
        }
    };
    let (before, name) = (kernel.matching(&link), here.name.marked());
    let is_known = before.0[1] != 0;
    if is_here && !is_new && before == name {
        // Something else about it has changed.
        return;
    }
    let is_kept = !(is_here && matches) || kernel.set_matching(&link, &name, &notice.kind);
    if is_known && !(is_here && matches) {
        kernel.remove_matching(&link);
    }
    let Some(state) = kernel.pattern_state(here.netns) else {
        return;
    };
    if !is_kept {
        state.full = 1;
    }
    if matches || is_known || is_open != 0 || state.full != 0 {
        let count = state.changes.wrapping_add(1);
        state.changes = count;
        if let DeviceEvent::Leaving = event {
            let leaving = Leaving {
                from: *here,
                count,
                epoch: u64::from(epoch),
            };
            // It is told when it is known where to.
            kernel.set_leaving(address, &leaving);
            return;
        }
        if is_here {
            change.took_count = count;
            change.took_epoch = epoch;
            change.flags |= flag::TOOK_PATTERN | (flag::UNKEPT * u32::from(!is_kept));
        } else {
            change.left_count = count;
            change.left_epoch = epoch;
            change.flags |= flag::LEFT_PATTERN;
        }
    }
    if is_new && change.flags & (flag::TOOK_PATTERN | flag::FOUND_NETNS) != 0 {
        change.flags |= flag::NEW;
    }
    if let DeviceEvent::Unregistered = event
        && is_loopback
        && kernel.hears_everywhere()
    {
        // It is the last device of a namespace that goes.
        kernel.remove_pattern_state(here.netns);
        change.left_epoch = epoch;
        change.flags |= flag::NETNS_GONE;
    }
}

/// Begins to count in a namespace of which nothing was known, where the patterns are those of all
/// namespaces; says its epoch, 0 when there is no room for it.
#[inline(always)]
fn find<K: Kernel>(kernel: &mut K, netns: u32) -> Option<u32> {
    let all = kernel.pattern_state(EVERYWHERE)?;
    // Two namespaces that begin at once may have the same epoch. One that has the number of another
    // begins when that one has ended.
    add(&mut all.changes, 1);
    let epoch = KERNEL_EPOCH | load(&all.changes) as u32;
    Some(if kernel.insert_pattern_state(netns, epoch) {
        epoch
    } else {
        0
    })
}

/// How much of a name differs from what all names have in common that match one of these patterns:
/// 0 where nothing does.
///
/// Without a branch, since the verifier would go on in two ways from each. A comparison with zero
/// is one, in whatever way it is written, so what differs is multiplied: that is zero where one of
/// the factors is, and of factors below 2³² none overflows.
#[inline(always)]
fn distance(masks: &[NameMask; MASKS], name: &Name) -> u64 {
    let Name([first, second]) = *name;
    let mut product = 1;
    for NameMask {
        bytes: Name(bytes),
        mask: Name(mask),
    } in masks
    {
        let differs = (first ^ bytes[0]) & mask[0] | (second ^ bytes[1]) & mask[1];
        product = fold(fold(differs).wrapping_mul(product));
    }
    product
}

/// A number below 2³² that is 0 where this one is.
#[inline(always)]
const fn fold(number: u64) -> u64 {
    number >> 32 | number & 0xffff_ffff
}

/// Begins to take notes about a device, and gives it an id; `None` when there is no room.
#[inline(always)]
fn remember<K: Kernel>(kernel: &mut K, here: &Place) -> Option<u64> {
    let cpu = kernel.cpu();
    let state = DeviceState {
        opened: 0,
        place: *here,
        taken: NameKey::default(),
        closed: 0,
    };
    // Each CPU counts for itself, so ids are unique without the result of an atomic operation;
    // unless one run of the program interrupts another between these two lines, and then one of
    // them goes on to the next id.
    for _ in 0..ATTEMPTS {
        let counters = kernel.counters()?;
        add(&mut counters.ids, 1);
        let id = load(&counters.ids) << 16 | u64::from(cpu & 0xffff);
        if kernel.insert_device(id, &state) {
            // After the device: who finds the id finds that too.
            kernel.set_link(&Link::of(here), id);
            kernel.add_remembered(id);
            return Some(id);
        }
    }
    add(&mut kernel.counters()?.refused, 1);
    None
}

/// Forgets devices that can be missed, if there are many, some at a time and all in turn.
///
/// Otherwise a device stays for as long as it is registered, because userspace may not have heard that
/// another one had its name, or it comes back. Many stay that nobody needs when names that they had are
/// watched no more, of which nothing is said here.
#[inline(always)]
fn forget<K: Kernel>(kernel: &mut K, netns: u32) {
    for _ in 0..LOOKS {
        let Some(id) = kernel.next_remembered() else {
            return;
        };
        let Some(device) = kernel.device(id) else {
            continue;
        };
        let (taken, place) = (device.taken, device.place);
        // What is told of devices elsewhere can be told meanwhile, where it is by messages.
        let is_steady = kernel.hears_everywhere() || place.netns == netns;
        if !is_steady
            || !kernel.is_crowded()
            || is_last(kernel, &taken, id)
            // By userspace's word, perhaps.
            || is_last(kernel, &NameKey::of(&place), id)
        {
            kernel.add_remembered(id);
            continue;
        }
        // Between the two halves of a move the entry may be another device's.
        let link = Link::of(&place);
        if kernel.link(&link) == Some(id) {
            kernel.remove_link(&link);
        }
        kernel.remove_device(id);
    }
}

/// Does the device have this watched name, or was it the last one that had it?
#[inline(always)]
fn is_last<K: Kernel>(kernel: &mut K, key: &NameKey, id: u64) -> bool {
    kernel.name(key).is_some_and(|name| name.id == id)
}

/// Adds, wrapping around, so that nobody gets between; of the result nobody learns. That is
/// `BPF_XADD`, for which Rust's atomic types have no name, since theirs all have a result.
#[inline(always)]
fn add(number: &mut u64, summand: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: a live, aligned field, which every program adds to in this way.
    unsafe {
        use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
        atomic_xadd::<u64, u64, { Relaxed }>(number, summand);
    }
    // Elsewhere there is one thread, that of a test.
    #[cfg(not(target_arch = "bpf"))]
    {
        *number = number.wrapping_add(summand);
    }
}

/// What others have added to meanwhile.
#[inline(always)]
fn load(number: &u64) -> u64 {
    // SAFETY: a live, aligned field.
    unsafe { (&raw const *number).read_volatile() }
}

/// Writes where a device is so that a reader can tell a whole value from a half-written one.
#[inline(always)]
fn set_place(device: &mut DeviceState, place: &Place) {
    let count = device.opened.wrapping_add(1);
    let device: *mut DeviceState = device;
    // SAFETY: a live map element. Volatile, so that the compiler keeps the order of the two counts
    // around the rest.
    unsafe {
        (&raw mut (*device).opened).write_volatile(count);
        (&raw mut (*device).place).write_volatile(*place);
        (&raw mut (*device).closed).write_volatile(count);
    }
}

/// Writes who holds a name, or held it until now, in the same way; says how often that was. It is read
/// again, so that the verifier does not know it where it is the first time.
#[inline(always)]
fn write(name: &mut NameState, id: u64, ifindex: u32) -> u64 {
    let count = name.opened.wrapping_add(1);
    let name: *mut NameState = name;
    // SAFETY: as in `set_place`.
    unsafe {
        (&raw mut (*name).opened).write_volatile(count);
        (&raw mut (*name).id).write_volatile(id);
        (&raw mut (*name).ifindex).write_volatile(ifindex);
        (&raw mut (*name).closed).write_volatile(count);
        (&raw const (*name).opened).read_volatile()
    }
}

#[cfg(test)]
mod tests;
