//! Every map of the programs, in one place.
//!
//! The loader sets the sizes; those here are only defaults. A map that a program does not use can
//! be made with one entry; those of patterns are in an object of their own. Hash maps are preallocated: a tracing program may not allocate on 5.10.

use core::{
    hint::assert_unchecked,
    intrinsics::{AtomicOrdering::Relaxed, atomic_xadd},
    mem::transmute,
};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, HashMap, Queue, RingBuf},
};
use ifmon_ebpf::{
    Control, Counters, DeviceState, EVERYWHERE, Leaving, Link, Name, NameKey, NameState,
    PatternSet, PatternState, Place, Shared,
    filter::{DeviceChange, DeviceEvent, Kernel},
    namespace_key,
};

use crate::who;

const WATCHES: u32 = 1024;

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`: insert, and do not replace.
const BPF_NOEXIST: u64 = 1;

/// `BPF_EXIST` of the same: a queue that is full drops its first element for it.
const BPF_EXIST: u64 = 2;

// Keys, and what is inserted, are made of whole words of 64 bits. Of smaller parts a verifier
// before 6.8 makes a copy of a register, which it lets nobody change in part who has no
// CAP_PERFMON.

/// [`NameKey`]
type NameWords = [u64; 3];
/// [`Link`]
type LinkWords = u64;
/// [`Match`](ifmon_ebpf::Match)
type MatchWords = [u64; 4];

/// The watches: names in namespaces, and who holds each.
#[map]
static NAMES: HashMap<NameWords, NameState> = HashMap::with_max_entries(WATCHES, 0);

/// Devices that hold a watched name or held one, by id. Userspace and [`Kernel::is_crowded`] see to
/// it that there is room for one more; where there is none, [`Counters::refused`] says so. No verdict
/// may rest on one that is neither the last one with its watched name nor its last one's: it can be
/// forgotten.
#[map]
static DEVICES: HashMap<u64, DeviceState> = HashMap::with_max_entries(WATCHES, 0);

/// Their ids, by namespace and index.
#[map]
static LINKS: HashMap<LinkWords, u64> = HashMap::with_max_entries(WATCHES, 0);

/// Ids of devices that are, or were, in `DEVICES`, in the order in which it is looked whether they can be
/// missed.
#[map]
static REMEMBERED: Queue<u64> = Queue::with_max_entries(WATCHES, 0);

/// Namespaces with a watch that are still alive, by inode number, with an epoch from userspace; and of
/// which of them a socket hears, by its cookie, for netlink alone. See [`namespace_key`].
#[map]
static NAMESPACES: HashMap<u64, u32> = HashMap::with_max_entries(WATCHES, 0);

/// The patterns, by namespace.
#[cfg_attr(feature = "patterns", map)]
static PATTERNS: HashMap<u32, PatternSet> = HashMap::with_max_entries(1, 0);

/// How much has happened to what may match, by namespace.
#[cfg_attr(feature = "patterns", map)]
static PATTERN_STATES: HashMap<u32, PatternState> = HashMap::with_max_entries(1, 0);

/// Devices that may match a pattern, by namespace and index.
#[cfg_attr(feature = "patterns", map)]
static MATCHING: HashMap<LinkWords, MatchWords> = HashMap::with_max_entries(1, 0);

/// Devices that may match and are between two namespaces: one for each processor that moves one.
#[cfg_attr(feature = "patterns", map)]
static LEAVING: HashMap<u64, [u64; 5]> = HashMap::with_max_entries(64, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// A [`Control`], and a [`Counters`] for each CPU. Userspace maps them, so that it need not make a
/// call, during which the kernel runs no program of a kprobe on that CPU.
#[map]
static SHARED: Array<Shared> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// The namespace of which the socket with this cookie hears.
#[inline(always)]
pub(crate) fn netns_of_socket(cookie: u64) -> Option<u32> {
    let netns = NAMESPACES.get_ptr(namespace_key::of_socket(cookie))?;
    // SAFETY: the kernel keeps the element valid for this run of the program; a whole word.
    Some(unsafe { netns.read_volatile() })
}

/// Two parts, as they are in memory one after the other.
#[inline(always)]
const fn words_of(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// The id of the device there, in `LINKS`.
#[inline(always)]
pub(crate) fn id_of(link: &Link) -> Option<u64> {
    let id = LINKS.get_ptr(words_of(link.netns, link.ifindex))?;
    // SAFETY: the kernel keeps the element valid for this run of the program; a whole word.
    Some(unsafe { id.read_volatile() })
}

/// Is there any pattern?
#[inline(always)]
pub(crate) fn has_patterns() -> bool {
    cfg!(feature = "patterns")
        && control().is_some_and(|control| {
            // SAFETY: a live element. Volatile, because userspace may write it meanwhile.
            unsafe { (&raw const (*control).patterned).read_volatile() != 0 }
        })
}

/// Is there any pattern in this namespace?
#[inline(always)]
pub(crate) fn has_patterns_in(netns: u32) -> bool {
    has_patterns() && PATTERNS.get_ptr(netns).is_some()
}

/// The maps, as the filter knows them, of a program that asks so much about who makes a change, and
/// that is shown the changes of all namespaces or not.
pub(crate) struct Maps<const ASKS: u8, const IS_TRACING: bool>;

impl<const ASKS: u8, const IS_TRACING: bool> Kernel for Maps<ASKS, IS_TRACING> {
    #[inline(always)]
    fn name(&mut self, key: &NameKey) -> Option<&mut NameState> {
        let state =
            NAMES.get_ptr_mut([key.name.0[0], key.name.0[1], words_of(key.netns, key.zero)])?;
        // SAFETY: the kernel keeps the element valid for this run of the program. The events of the
        // namespace, which come one after the other, are its only writers.
        unsafe { state.as_mut() }
    }

    #[inline(always)]
    fn device(&mut self, id: u64) -> Option<&mut DeviceState> {
        let state = DEVICES.get_ptr_mut(id)?;
        // SAFETY: as in `name`.
        unsafe { state.as_mut() }
    }

    #[inline(always)]
    fn insert_device(&mut self, id: u64, state: &DeviceState) -> bool {
        let DeviceState {
            opened,
            place:
                Place {
                    name: Name([first, second]),
                    netns,
                    ifindex,
                },
            taken,
            closed,
        } = *state;
        let [third, fourth] = taken.name.0;
        let (place, taken) = (words_of(netns, ifindex), words_of(taken.netns, taken.zero));
        let words: [u64; 8] = [opened, first, second, place, third, fourth, taken, closed];
        // SAFETY: the same bytes.
        let state = unsafe { transmute::<[u64; 8], DeviceState>(words) };
        let is_inserted = DEVICES.insert(id, state, BPF_NOEXIST).is_ok();
        if is_inserted {
            count_devices(1);
        }
        is_inserted
    }

    #[inline(always)]
    fn remove_device(&mut self, id: u64) {
        if DEVICES.remove(id).is_ok() {
            count_devices(u32::MAX);
        }
    }

    #[inline(always)]
    fn next_remembered(&mut self) -> Option<u64> {
        REMEMBERED.pop().ok().flatten()
    }

    #[inline(always)]
    fn add_remembered(&mut self, id: u64) {
        let _ = REMEMBERED.push(id, BPF_EXIST);
    }

    #[inline(always)]
    fn is_crowded(&mut self) -> bool {
        control().is_some_and(|control| {
            // SAFETY: a live element. Volatile, because others may have added to it meanwhile.
            let devices = unsafe { (&raw const (*control).devices).read_volatile() };
            // SAFETY: a live element.
            devices > unsafe { (*control).crowd }
        })
    }

    #[inline(always)]
    fn link(&mut self, link: &Link) -> Option<u64> {
        id_of(link)
    }

    #[inline(always)]
    fn set_link(&mut self, link: &Link, id: u64) {
        let _ = LINKS.insert(words_of(link.netns, link.ifindex), id, 0);
    }

    #[inline(always)]
    fn remove_link(&mut self, link: &Link) {
        let _ = LINKS.remove(words_of(link.netns, link.ifindex));
    }

    #[inline(always)]
    fn has_namespace(&mut self, netns: u32) -> bool {
        NAMESPACES.get_ptr(namespace_key::of_netns(netns)).is_some()
    }

    #[inline(always)]
    fn end_namespace(&mut self, netns: u32) -> Option<u32> {
        let key = namespace_key::of_netns(netns);
        let epoch = NAMESPACES.get_ptr(key)?;
        // SAFETY: as in `id_of`.
        let epoch = unsafe { epoch.read_volatile() };
        NAMESPACES.remove(key).ok().map(|()| epoch)
    }

    #[inline(always)]
    fn has_patterns(&mut self) -> bool {
        has_patterns()
    }

    #[inline(always)]
    fn hears_everywhere(&self) -> bool {
        IS_TRACING
    }

    #[inline(always)]
    fn patterns(&mut self, netns: u32) -> Option<&PatternSet> {
        let patterns = match PATTERNS.get_ptr(netns) {
            None if IS_TRACING => PATTERNS.get_ptr(EVERYWHERE),
            own => own,
        }?;
        // SAFETY: the kernel keeps the element valid for this run of the program, and userspace,
        // which replaces it, waits for this run to end before it replaces another one.
        unsafe { patterns.as_ref() }
    }

    #[inline(always)]
    fn pattern_state(&mut self, netns: u32) -> Option<&mut PatternState> {
        let state = PATTERN_STATES.get_ptr_mut(netns)?;
        // SAFETY: as in `name`; what is of all namespaces is added to atomically.
        unsafe { state.as_mut() }
    }

    #[inline(always)]
    fn insert_pattern_state(&mut self, netns: u32, epoch: u32) -> bool {
        let words: [u64; 2] = [0, words_of(0, epoch)];
        // SAFETY: the same bytes.
        let state = unsafe { transmute::<[u64; 2], PatternState>(words) };
        PATTERN_STATES.insert(netns, state, BPF_NOEXIST).is_ok()
    }

    #[inline(always)]
    fn remove_pattern_state(&mut self, netns: u32) {
        let _ = PATTERN_STATES.remove(netns);
    }

    #[inline(always)]
    fn matching(&mut self, link: &Link) -> Name {
        match MATCHING.get_ptr(words_of(link.netns, link.ifindex)) {
            // SAFETY: the kernel keeps the element valid for this run of the program. Should
            // userspace replace it meanwhile, it is as if the program had come first or last.
            Some(found) => Name(unsafe { found.cast::<[u64; 2]>().read_volatile() }),
            None => Name([0, 0]),
        }
    }

    #[inline(always)]
    fn set_matching(&mut self, link: &Link, name: &Name, kind: &Name) -> bool {
        let (Name([first, second]), Name([third, fourth])) = (*name, *kind);
        let key = words_of(link.netns, link.ifindex);
        let value = [first, second, third, fourth];
        MATCHING.insert(key, value, 0).is_ok()
    }

    #[inline(always)]
    fn remove_matching(&mut self, link: &Link) {
        let _ = MATCHING.remove(words_of(link.netns, link.ifindex));
    }

    #[inline(always)]
    fn set_leaving(&mut self, address: u64, leaving: &Leaving) {
        let Leaving {
            from:
                Place {
                    name: Name([first, second]),
                    netns,
                    ifindex,
                },
            count,
            epoch,
        } = *leaving;
        let place = words_of(netns, ifindex);
        // Where there is no room, the count shows that one was lost.
        let _ = LEAVING.insert(address, [first, second, place, count, epoch], 0);
    }

    #[inline(always)]
    fn take_leaving(&mut self, address: u64) -> Option<Leaving> {
        let leaving = LEAVING.get_ptr(address)?;
        // SAFETY: the kernel keeps the element valid for this run of the program, and nobody else
        // has to do with this device meanwhile.
        let [first, second, place, count, epoch] = unsafe { leaving.read() };
        let _ = LEAVING.remove(address);
        Some(Leaving {
            from: Place {
                name: Name([first, second]),
                netns: place as u32,
                ifindex: (place >> 32) as u32,
            },
            count,
            epoch,
        })
    }

    #[inline(always)]
    fn conceal(&self, event: DeviceEvent, zero: u64) -> DeviceEvent {
        if IS_TRACING {
            // There are more of them, and each leads to less: not to know which would be the longer way.
            return event;
        }
        // SAFETY: it is the same number, and of no tracing program.
        unsafe {
            let event = transmute::<u8, DeviceEvent>(event as u8 | zero as u8);
            assert_unchecked(matches!(
                event,
                DeviceEvent::Exists | DeviceEvent::Deleted | DeviceEvent::Moved
            ));
            event
        }
    }

    #[inline(always)]
    fn counters(&mut self) -> Option<&mut Counters> {
        let counters = SHARED.get_ptr_mut(1 + self.cpu())?.cast::<Counters>();
        // SAFETY: this CPU's element. Who interrupts this run of the program adds to it atomically,
        // as this run does.
        unsafe { counters.as_mut() }
    }

    #[inline(always)]
    fn cpu(&mut self) -> u32 {
        // SAFETY: takes no argument.
        unsafe { bpf_get_smp_processor_id() }
    }

    #[inline(always)]
    fn is_traced(&mut self) -> bool {
        let Some(control) = control() else {
            return false;
        };
        // SAFETY: a live element; userspace writes the name only while `traced` is 0. The kernel
        // aligns elements to eight bytes, and the name is the first field.
        let (wanted, traced, open) = unsafe {
            let comm = (&raw const (*control).comm).cast::<[u64; 2]>().read();
            (comm, (*control).traced, (*control).open)
        };
        open != 0 || traced != 0 && who::comm::<ASKS>().is_some_and(|comm| comm == wanted)
    }

    #[inline(always)]
    fn send(&mut self, change: &DeviceChange) -> bool {
        let Some(mut entry) = EVENTS.reserve(0) else {
            return false;
        };
        #[cfg(feature = "patterns")]
        let kind = change.kind;
        #[cfg(not(feature = "patterns"))]
        let kind = ();
        // Before it is asked who made the change: from then on, nothing of it makes one way of the
        // verifier another than the next.
        entry.write(change.record(kind));
        // SAFETY: it was written.
        unsafe { who::add::<ASKS, _>(entry.as_mut_ptr()) };
        entry.submit(0);
        true
    }
}

#[inline(always)]
fn control() -> Option<*mut Control> {
    SHARED.get_ptr_mut(0).map(|control| control.cast())
}

#[inline(always)]
fn count_devices(summand: u32) {
    if let Some(control) = control() {
        // SAFETY: a live, aligned field, which the programs write in this way alone.
        unsafe { atomic_xadd::<u32, u32, { Relaxed }>(&raw mut (*control).devices, summand) };
    }
}
