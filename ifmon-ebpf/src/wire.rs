//! Map keys, map values and the record of the ring buffer.

/// `IFNAMSIZ`: an interface name is at most 15 bytes and a NUL.
const IFNAMSIZ: usize = 16;

/// An interface name, NUL-padded to `IFNAMSIZ` bytes and kept as two words, so that the BPF side compares it in two
/// instructions and never calls `memcmp`.
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
    pub const fn of(place: &Place) -> Self {
        Self {
            name: place.name,
            netns: place.netns,
            zero: 0,
        }
    }
}

/// Key of the map `SEEDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Link {
    pub netns: u32,
    pub ifindex: u32,
}

/// Value of the map `NAMES`: who holds a watched name, kept by the kernel side alone.
///
/// Userspace inserts it with nothing but an epoch and only reads it from then on, so that after a loss the truth is one
/// look-up away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameState {
    /// Counts the changes of this name. Raised *before* the other fields are written; see [`NameState::closed`].
    pub opened: u64,
    /// Generation of the device that held the name last.
    pub generation: u64,
    /// Its address: a key of `DEVICES`, never shown to anybody.
    pub last_device: u64,
    /// Its index; 0 when it does not hold the name any more (and before the first change, when nothing is known).
    pub ifindex: u32,
    /// Tells this watch of the name from those before it, which may have left seeds. Given by userspace.
    pub epoch: u32,
    /// The same count, raised *after* the other fields are written: a reader that sees both alike has a whole value.
    pub closed: u64,
}

/// Key: the address of a `net_device`. Value of the map `DEVICES`: a device that holds a watched name or held one. Kept by
/// the kernel side alone; an entry never outlives the registration of its device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Tells this registration from every other, earlier or later.
    pub generation: u64,
    /// How many watched names it was the last to hold.
    pub homes: u64,
    /// Where it was after the last event: the kernel no longer knows the old name when it reports a rename.
    pub place: Place,
    /// Not 0 between the two halves of a move to another namespace.
    pub moving: u64,
}

/// Value of the map `SEEDS`: userspace found a watched name held by the device with this index when the watch began.
///
/// Userspace cannot know the device's address, so the kernel side turns a seed into an entry of `DEVICES` at the
/// first event of the device. Userspace alone inserts seeds; the kernel side uses each at most once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    pub generation: u64,
    pub home: NameKey,
    /// [`NameState::epoch`] of the watch.
    pub epoch: u32,
    pub zero: u32,
}

/// Bits of [`Record::flags`].
pub mod flag {
    /// The acting task is a kernel thread: it acts for somebody else.
    pub const KTHREAD: u32 = 1;
    /// `from` was a watched name, held by this device, and is not any more.
    pub const LEFT_NAME: u32 = 2;
    /// `to` is a watched name, and this device holds it now.
    pub const TOOK_NAME: u32 = 4;
    /// The loopback device of a watched namespace was unregistered: the namespace is gone.
    pub const NETNS_GONE: u32 = 8;
    /// Sent because of [`Control`](super::Control), not because it concerns a watch.
    pub const TRACED: u32 = 16;
}

/// One change of one device: what the ring buffer carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub time: u64,
    /// Generation of the device; 0 for a device that never held a watched name.
    pub generation: u64,
    /// Where it was: nowhere for a new device, or where that is not known because nobody watched it.
    pub from: Place,
    /// Where it is now: nowhere for a device that was unregistered.
    pub to: Place,
    /// Count of the changes of the name `from`, this one included; see [`NameState::opened`]. 0 without `LEFT_NAME`.
    pub from_count: u64,
    /// The same for `to`; 0 without `TOOK_NAME`.
    pub to_count: u64,
    /// Id of the acting task's cgroup (its inode number in cgroup v2).
    pub cgroup: u64,
    pub comm: [u8; 16],
    /// The acting process (`tgid` of the kernel).
    pub pid: u32,
    pub uid: u32,
    pub flags: u32,
    /// `net_device.reg_state` as it was read.
    pub reg_state: u32,
}

impl Record {
    /// The record that these bytes are, as the ring buffer gives them; `None` when they are too few.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= size_of::<Self>()).then(|| {
            // SAFETY: there are enough bytes, any bits are a valid `Record`, and no alignment is assumed.
            unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
        })
    }
}

/// Value of the one-element per-CPU map `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Register, unregister and rename events that the program looked at.
    pub seen: u64,
    /// Those that concerned a watch.
    pub matched: u64,
    /// Those that did not.
    pub ignored: u64,
    /// Records that concerned a watch and found the ring buffer full.
    pub dropped: u64,
    /// Generations given out on this CPU.
    pub generations: u64,
}

/// Value of the one-element map `CONTROL`. Userspace writes it before the first watch; from then on the kernel side alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Send every change that this thread makes (0: nobody), although it concerns no watch: how the loader proves that the
    /// fields are read right.
    pub traced_thread: u32,
    /// Not 0: send every change of every device, so that a test can compare the filter with no filter.
    pub open: u32,
    /// With more entries than this in `DEVICES`, a device that is no longer the last one of any watched name is forgotten
    /// at once, and not only when it is unregistered.
    pub crowd: u32,
    /// Entries in `DEVICES`.
    pub devices: u32,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Control, Counters, DeviceState, Link, NameKey, NameState, Seed};

    // SAFETY: integers and arrays of them, `repr(C)` without padding; any bits are valid.
    unsafe impl aya::Pod for Control {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DeviceState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Link {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NameState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Seed {}
}
