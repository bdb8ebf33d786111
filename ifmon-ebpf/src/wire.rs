//! Map keys, map values and the record of the ring buffer.

/// `IFNAMSIZ`: an interface name is at most 15 bytes and a NUL.
const IFNAMSIZ: usize = 16;

/// An interface name, NUL-padded to `IFNAMSIZ` bytes and kept as two words, so that the BPF side
/// compares it in two instructions and never calls `memcmp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name(pub [u64; 2]);

impl Name {
    /// The name of up to 15 bytes; `None` when it is longer (the kernel has no such name).
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; IFNAMSIZ];
        if name.len() >= IFNAMSIZ {
            return None;
        }
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self::from_bytes(bytes))
    }

    /// The sixteen bytes of `net_device.name`, everything after the first NUL being zero.
    pub const fn from_bytes(bytes: [u8; IFNAMSIZ]) -> Self {
        let whole = u128::from_ne_bytes(bytes);
        let (low, high) = (whole as u64, (whole >> 64) as u64);
        Self(if cfg!(target_endian = "little") {
            [low, high]
        } else {
            [high, low]
        })
    }

    /// The sixteen bytes again.
    pub fn to_bytes(self) -> [u8; IFNAMSIZ] {
        let Self([first, second]) = self;
        let mut bytes = [0; IFNAMSIZ];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&first.to_ne_bytes());
        tail.copy_from_slice(&second.to_ne_bytes());
        bytes
    }
}

/// Where a device is: a name and an index in a network namespace. `netns == 0` means nowhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub name: Name,
    /// The namespace's inode number (`net.ns.inum`).
    pub netns: u32,
    pub ifindex: u32,
}

/// Key of the map `NAMES`: a watch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameKey {
    pub name: Name,
    pub netns: u32,
    pub zero: u32,
}

impl NameKey {
    #[inline(always)]
    pub const fn of(place: &Place) -> Self {
        Self {
            name: place.name,
            netns: place.netns,
            zero: 0,
        }
    }
}

/// Key of the map `LINKS`: a device, as its namespace numbers it. The value is the device's id, a
/// `u64`.
///
/// The map has every device that holds a watched name or held one. Userspace inserts those that it
/// finds at the start of a watch, once [`DeviceState`] is there; the kernel side all others.
/// Between the two halves of a move, when tracing programs hear of it, a device is found by its
/// address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    pub netns: u32,
    pub ifindex: u32,
}

impl Link {
    #[inline(always)]
    pub const fn of(place: &Place) -> Self {
        Self {
            netns: place.netns,
            ifindex: place.ifindex,
        }
    }

    /// Of a `net_device` at this address, which is between two namespaces. No device is numbered
    /// so: an address of the kernel has its highest bit set, and an index is a positive `int`.
    #[inline(always)]
    pub const fn between(address: u64) -> Self {
        Self {
            netns: address as u32,
            ifindex: (address >> 32) as u32,
        }
    }
}

/// Key of the map `NAMESPACES`, in which two things are found, since before 5.11 each map takes a page
/// of the memory that may be locked: by inode number the epoch of a namespace, and by the cookie of a
/// socket (`SO_COOKIE`, which are counted up from 1) the inode number of the one that it hears of.
pub mod namespace_key {
    /// Of a namespace with this inode number.
    #[inline(always)]
    pub const fn of_netns(netns: u32) -> u64 {
        netns as u64
    }

    /// Of a socket with this cookie.
    #[inline(always)]
    pub const fn of_socket(cookie: u64) -> u64 {
        cookie | 1 << 63
    }
}

/// Value of the map `NAMES`: who holds a watched name.
///
/// Userspace inserts it, with the holder that it found, and only reads it from then on: the kernel
/// side alone writes it, so that after a loss the truth is one look-up away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameState {
    /// Counts the changes of this name. Raised *before* the other fields are written; see
    /// [`NameState::closed`].
    pub opened: u64,
    /// Id of the device that held the name last; 0 while there was none.
    pub id: u64,
    /// Its index; 0 when it does not hold the name any more.
    pub ifindex: u32,
    /// Tells this watch of the name from earlier ones. Given by userspace.
    pub epoch: u32,
    /// The same count, raised *after* the other fields are written: a reader that sees both alike
    /// has a whole value.
    pub closed: u64,
}

/// The bit of an id that says who gave it.
pub const USERSPACE_ID: u64 = 1 << 63;

/// Value of the map `DEVICES`, by id: where a device is. Never outlives the registration of its
/// device.
///
/// An id is given once a registration. Those that userspace gives have the bit [`USERSPACE_ID`],
/// those of the kernel side do not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Counts the writes of `place`; see [`NameState::opened`].
    pub opened: u64,
    /// Where it was after the last event: the kernel no longer knows the old name when it reports
    /// a rename.
    pub place: Place,
    /// The watched name that it took last; zeros where it took none. Outside of the two counts.
    pub taken: NameKey,
    /// See [`NameState::closed`].
    pub closed: u64,
}

/// What names that match a pattern have in common: these bytes, where the mask has bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameMask {
    pub bytes: Name,
    pub mask: Name,
}

impl NameMask {
    /// Lets no name through, and no kind: all end with a NUL.
    pub const NOTHING: Self = Self {
        bytes: Name([0, u64::MAX]),
        mask: Name([0, u64::MAX]),
    };
}

/// Masks of a namespace; patterns beyond so many share the last one. The same for kinds.
pub const MASKS: usize = 8;

/// Key of the maps of patterns: what is watched in all namespaces. No namespace has this number.
pub const EVERYWHERE: u32 = 0;

/// Value of the map `PATTERNS`, by namespace: which devices concern its patterns. Userspace alone
/// writes it, and compares names with the patterns themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternSet {
    pub masks: [NameMask; MASKS],
    /// Of which kinds these devices are.
    pub kinds: [NameMask; MASKS],
    /// Not 0: every device concerns them. So it is while userspace finds out which ones match.
    pub open: u32,
    pub zero: u32,
}

/// The bit of an epoch that says that the kernel side gave it.
pub const KERNEL_EPOCH: u32 = 1 << 31;

/// Value of the map `PATTERN_STATES`, by namespace; it ends with the namespace. Userspace inserts it
/// for the namespaces that there are, and that of [`EVERYWHERE`]: then the kernel side inserts those of
/// namespaces to come. The kernel side alone writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatternState {
    /// Counts the changes that may concern a pattern of the namespace. Of all namespaces: how many
    /// epochs the kernel side gave.
    pub changes: u64,
    /// Not 0: there was no room for a device in `MATCHING`, so that what it is called next cannot
    /// be told from what any other device is. From then on every device concerns them.
    pub full: u32,
    /// Tells the namespace, or this watch of its patterns, from earlier ones with the same number.
    pub epoch: u32,
}

/// Value of the map `LEAVING`, by address: a device that concerns a pattern and is between two
/// namespaces. Tracing alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaving {
    pub from: Place,
    /// Which of the changes it is, and of which patterns.
    pub count: u64,
    pub epoch: u64,
}

/// Value of the map `MATCHING`, by namespace and index: a device that may match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Its name, [marked](Name::marked). Userspace enters those that it finds with none, which is that
    /// of no device.
    pub name: Name,
    /// As in [`Record::kind`].
    pub kind: Name,
}

impl Name {
    /// The highest bit of the last byte, which is a NUL in any name.
    const MARK: u64 = 1 << 63;

    /// The name of a device that there is, which has a mark by which it differs from zeros.
    #[inline(always)]
    pub const fn marked(self) -> Self {
        let Self([first, second]) = self;
        Self([first, second | Self::MARK])
    }

    /// The same without the mark.
    pub const fn unmarked(self) -> Self {
        let Self([first, second]) = self;
        Self([first, second & !Self::MARK])
    }
}

/// Bits of [`Record::flags`].
pub mod flag {
    /// The acting task is a kernel thread: it acts for somebody else. Means something with
    /// [`HAS_KTHREAD`] alone.
    pub const KTHREAD: u32 = 1;
    /// `from` was a watched name, held by this device, and is not any more.
    pub const LEFT_NAME: u32 = 1 << 1;
    /// `to` is a watched name, and this device holds it now.
    pub const TOOK_NAME: u32 = 1 << 2;
    /// The loopback device of a watched namespace was unregistered: the namespace is gone. Its epoch is
    /// `from_epoch`, that of its patterns `left_epoch`.
    pub const NETNS_GONE: u32 = 1 << 3;
    /// Sent because of [`Control`](super::Control), not because it concerns a watch.
    pub const TRACED: u32 = 1 << 4;
    /// `pid` is known.
    pub const HAS_PID: u32 = 1 << 5;
    /// `uid` is known.
    pub const HAS_UID: u32 = 1 << 6;
    /// `cgroup` is known.
    pub const HAS_CGROUP: u32 = 1 << 7;
    /// `comm` is known.
    pub const HAS_COMM: u32 = 1 << 8;
    /// `KTHREAD` is known.
    pub const HAS_KTHREAD: u32 = 1 << 9;
    /// A netlink message said that the device moved: `nsid` and `to.ifindex` say where, `to.netns`
    /// is 0.
    pub const MOVED: u32 = 1 << 10;
    /// The device that was at `from` may have matched a pattern, and is not there any more.
    pub const LEFT_PATTERN: u32 = 1 << 11;
    /// The device at `to` may match a pattern, or did until now.
    pub const TOOK_PATTERN: u32 = 1 << 12;
    /// With `TOOK_PATTERN` or `FOUND_NETNS`: it is new there.
    pub const NEW: u32 = 1 << 13;
    /// Patterns of all namespaces are watched, and this is the first change in `to.netns`, whose epoch
    /// is `took_epoch`; 0 when there is no room for one more. A namespace that is new has no device but
    /// this one, its loopback device.
    pub const FOUND_NETNS: u32 = 1 << 14;
    /// As [`Counters::refused`] says; sent to wake whoever reads that.
    pub const REFUSED: u32 = 1 << 15;
    /// With `TOOK_PATTERN`: the device may match, and there was no room for it in `MATCHING`.
    pub const UNKEPT: u32 = 1 << 16;
}

/// One change of one device: what the ring buffer carries. A program that knows names alone does
/// without the kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<K = Name> {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub time: u64,
    /// Id of the device; 0 for one that never held a watched name.
    pub id: u64,
    /// Where it was: nowhere for a new device, or where that is not known because nobody watched
    /// it.
    pub from: Place,
    /// Where it is now: nowhere for a device that was unregistered; see also [`flag::MOVED`].
    pub to: Place,
    /// Count of the changes of the name `from`, this one included; see [`NameState::opened`]. 0
    /// without `LEFT_NAME`.
    pub from_count: u64,
    /// The same for `to`; 0 without `TOOK_NAME`.
    pub to_count: u64,
    /// Id of the acting task's cgroup (its inode number in cgroup v2).
    pub cgroup: u64,
    pub comm: [u8; 16],
    /// The acting process (`tgid` of the kernel), in the pid namespace that the loader asked for.
    pub pid: u32,
    pub uid: u32,
    /// Epoch of the watch `from`; with `NETNS_GONE` that of the namespace.
    pub from_epoch: u32,
    /// Epoch of the watch `to`.
    pub to_epoch: u32,
    pub flags: u32,
    /// `net_device.reg_state` as it was read; 0 where the change came from a netlink message.
    pub reg_state: u32,
    /// With `MOVED`: id of the other namespace in the numbering of this one, else 0.
    pub nsid: i32,
    pub zero: u32,
    /// Count of the changes that may concern a pattern of `from`, this one included; see
    /// [`PatternState::changes`]. 0 without `LEFT_PATTERN`.
    pub left_count: u64,
    /// The same for `to`; 0 without `TOOK_PATTERN`.
    pub took_count: u64,
    /// [`PatternState::epoch`] of `from`.
    pub left_epoch: u32,
    /// The same of `to`.
    pub took_epoch: u32,
    /// With `TOOK_PATTERN`: of what kind the device is, NUL-padded; zeros where it has none. One whose
    /// last byte is not a NUL is longer.
    pub kind: K,
}

const _: () = assert!(size_of::<Record<()>>() + size_of::<Name>() == size_of::<Record>());

impl Record {
    /// The record that these bytes are, as the ring buffer gives them; `None` when they are too
    /// few.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let length = bytes.len().min(size_of::<Self>());
        (length >= size_of::<Record<()>>()).then(|| {
            let mut record = Self::default();
            // SAFETY: there are as many bytes on both sides, and any bits are a valid `Record`.
            unsafe {
                let to = (&raw mut record).cast::<u8>();
                to.copy_from_nonoverlapping(bytes.as_ptr(), length);
            }
            record
        })
    }
}

/// An element of the array `SHARED`, which userspace has mapped. The first is a [`Control`], each
/// further one the [`Counters`] of a CPU: as long as a line of the cache, so that no two CPUs write
/// to the same.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Shared([u64; 8]);

const _: () = assert!(size_of::<Counters>() <= size_of::<Shared>());
const _: () = assert!(size_of::<Control>() <= size_of::<Shared>());

/// What happened on a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events of devices that the program looked at.
    pub seen: u64,
    /// Those that concerned a watch. Counted *before* the record is sent, so that whoever has read
    /// the ring buffer empty and then reads this cannot miss a record that found it full.
    pub matched: u64,
    /// Those that did not.
    pub ignored: u64,
    /// Records that concerned a watch and found the ring buffer full. Counted after the attempt.
    pub dropped: u64,
    /// Devices that took a watched name and that are not remembered, since there was no room: what the
    /// maps say of that name is wrong. Counted *before* the record is sent.
    pub refused: u64,
    /// Ids given out on this CPU.
    pub ids: u64,
    /// Always 0, which the verifier does not know (`filter.rs`).
    pub zero: u64,
}

/// What the programs are told, and `devices`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The name of a thread, NUL-padded; see `traced`.
    pub comm: [u8; 16],
    /// Not 0: send every change that threads of the name `comm` make, although it concerns no
    /// watch. This is how the loader proves that the fields are read right.
    pub traced: u32,
    /// Not 0: send every change of every device, so that a test can compare the filter with no
    /// filter.
    pub open: u32,
    /// With more entries than this in `DEVICES`, those that can be missed are forgotten, and not only
    /// when they are unregistered.
    pub crowd: u32,
    /// Entries in `DEVICES`. Whoever enters one or takes it out adds to this atomically.
    pub devices: u32,
    /// In how many namespaces there are patterns. While there is none, nobody looks for one.
    pub patterned: u32,
}

#[cfg(feature = "user")]
mod pod {
    use super::{DeviceState, Link, Match, NameKey, NameState, PatternSet, PatternState};

    // SAFETY: integers and arrays of them, `repr(C)` without padding; any bits are valid.
    unsafe impl aya::Pod for DeviceState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Link {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Match {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PatternSet {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PatternState {}
}
