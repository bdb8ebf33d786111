//! A kernel without BPF: the program's own filter, compiled for this processor, between maps that are kept here and
//! devices that a test makes up.
//!
//! What the filter reaches for as `super::maps`, `super::netdev` and `super::send` is below, with the names and the
//! promises of the real ones. Each thread has a kernel of its own.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, VecDeque},
    hash::Hash,
    ptr::NonNull,
};

use ifmon_ebpf::{Counters, DeviceState, Link, NameKey, NameState, Place, Record, Seed, flag};

pub(super) use self::netdev::Event;

#[path = "../../../../../ifmon-ebpf/src/filter.rs"]
mod filter;

/// A network device as the program finds it in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetDevice {
    /// Where in memory it is.
    pub(super) address: u64,
    pub(super) place: Place,
    pub(super) reg_state: u32,
}

/// The program's maps, and what it is told.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) names: Map<NameKey, NameState>,
    pub(super) devices: Map<u64, DeviceState>,
    pub(super) seeds: Map<Link, Seed>,
    pub(super) namespaces: BTreeSet<u32>,
    counters: Map<(), Counters>,
    pub(super) ring: VecDeque<Record>,
    /// How many records the ring takes.
    room: usize,
    /// How many devices there is room for.
    pub(super) most_devices: usize,
    /// Whom the notification is about.
    current: Option<NetDevice>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Looks at the kernel's memory, or changes it.
pub(super) fn memory<T>(look: impl FnOnce(&mut Memory) -> T) -> T {
    MEMORY.with_borrow_mut(look)
}

/// The kernel notifies its listeners, under RTNL.
pub(super) fn notify(event: Event, device: NetDevice) {
    memory(|memory| memory.current = Some(device));
    if let Some(seen) = filter::observe(event, device.address) {
        let Place { netns, ifindex, .. } = device.place;
        assert_eq!((seen.netns, seen.ifindex), (netns, ifindex));
        assert!(seen.flags < flag::TRACED, "nobody asked for more");
    }
    memory(|memory| {
        memory.current = None;
        memory.names.sweep();
        memory.devices.sweep();
        memory.seeds.sweep();
    });
}

impl Memory {
    /// A program that was just loaded.
    pub(super) fn new(room: usize, most_devices: usize) -> Self {
        let mut memory = Self {
            room,
            most_devices,
            ..Self::default()
        };
        memory.counters.insert((), Counters::default());
        memory
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters.get(&()).copied().unwrap_or_default()
    }
}

/// A hash map with elements that can be changed in place, as a BPF program does it: for as long as a run of the program
/// may have one, its memory stays, even if it was removed meanwhile.
pub(super) struct Map<K, V> {
    entries: HashMap<K, NonNull<V>>,
    removed: Vec<NonNull<V>>,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            removed: Vec::new(),
        }
    }
}

impl<K: Copy + Eq + Hash, V: Copy + Default + 'static> Map<K, V> {
    /// The element, to be changed in place before the next [`Map::sweep`].
    fn get_mut(&self, key: &K) -> Option<&'static mut V> {
        let element = self.entries.get(key)?;
        // SAFETY: allocated by `insert` and freed by `sweep`, before which the caller lets go of it. One element is in one
        // pair of hands at a time: this kernel has one thread, and the program uses none that it got before another.
        Some(unsafe { &mut *element.as_ptr() })
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.get_mut(key).map(|element| &*element)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        let element = NonNull::from(Box::leak(Box::new(value)));
        self.removed.extend(self.entries.insert(key, element));
    }

    pub(super) fn remove(&mut self, key: &K) -> bool {
        let Some(element) = self.entries.remove(key) else {
            return false;
        };
        // SAFETY: as in `get_mut`. In a real kernel another entry may have the memory by now.
        unsafe { element.write(V::default()) };
        self.removed.push(element);
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, V)> {
        self.entries
            .keys()
            .filter_map(|key| Some((*key, *self.get(key)?)))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// No run of the program is left that could have a removed element.
    fn sweep(&mut self) {
        for element in self.removed.drain(..) {
            // SAFETY: allocated by `insert`, and in no map any more.
            drop(unsafe { Box::from_raw(element.as_ptr()) });
        }
    }
}

impl<K, V> Drop for Map<K, V> {
    fn drop(&mut self) {
        for element in self
            .entries
            .drain()
            .map(|(_, element)| element)
            .chain(self.removed.drain(..))
        {
            // SAFETY: as in `sweep`.
            drop(unsafe { Box::from_raw(element.as_ptr()) });
        }
    }
}

/// As `ifmon-ebpf/src/maps.rs`.
mod maps {
    use super::*;

    pub(crate) struct Namespaces;
    pub(crate) struct Seeds;

    pub(crate) static NAMESPACES: Namespaces = Namespaces;
    pub(crate) static SEEDS: Seeds = Seeds;

    fn found(found: bool) -> Result<(), ()> {
        if found { Ok(()) } else { Err(()) }
    }

    impl Namespaces {
        pub(crate) fn get_ptr(&self, netns: u32) -> Option<u32> {
            memory(|memory| memory.namespaces.get(&netns).copied())
        }

        pub(crate) fn remove(&self, netns: u32) -> Result<(), ()> {
            found(memory(|memory| memory.namespaces.remove(&netns)))
        }
    }

    impl Seeds {
        /// # Safety
        /// As in aya-ebpf: nobody may write the element while it is read.
        pub(crate) unsafe fn get(&self, link: &Link) -> Option<&'static Seed> {
            memory(|memory| memory.seeds.get_mut(link)).map(|seed| &*seed)
        }

        pub(crate) fn remove(&self, link: Link) -> Result<(), ()> {
            found(memory(|memory| memory.seeds.remove(&link)))
        }
    }

    pub(crate) fn counters() -> Option<&'static mut Counters> {
        memory(|memory| memory.counters.get_mut(&()))
    }

    pub(crate) fn note(address: u64, state: &DeviceState) {
        memory(|memory| {
            assert!(memory.devices.len() < memory.most_devices, "no room");
            memory.devices.insert(address, *state);
        });
    }

    pub(crate) fn forget(address: u64) {
        memory(|memory| memory.devices.remove(&address));
    }

    pub(crate) fn is_crowded() -> bool {
        memory(|memory| memory.devices.len() > memory.most_devices / 2 - 1)
    }

    pub(crate) fn cpu() -> u32 {
        3
    }

    pub(crate) fn name(key: &NameKey) -> Option<&'static mut NameState> {
        memory(|memory| memory.names.get_mut(key))
    }

    pub(crate) fn device(address: u64) -> Option<&'static mut DeviceState> {
        memory(|memory| memory.devices.get_mut(&address))
    }
}

/// As `ifmon-ebpf/src/netdev.rs`.
mod netdev {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Event {
        Register,
        Unregister,
        ChangeName,
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Device(pub(super) u64);

    impl Device {
        pub(crate) fn of(info: u64) -> Option<Self> {
            Some(Self(info))
        }

        pub(crate) fn netns(self) -> Option<u32> {
            self.read().map(|device| device.place.netns)
        }

        pub(crate) fn place(self, netns: u32) -> Option<Place> {
            self.read().map(|device| Place {
                netns,
                ..device.place
            })
        }

        pub(crate) fn reg_state(self) -> Option<u32> {
            self.read().map(|device| device.reg_state)
        }

        fn read(self) -> Option<NetDevice> {
            memory(|memory| memory.current).filter(|device| device.address == self.0)
        }
    }
}

/// As `ifmon-ebpf/src/send.rs`.
mod send {
    use super::{filter::Change, *};

    pub(crate) fn is_traced() -> bool {
        false
    }

    pub(crate) fn send(change: &Change) -> bool {
        memory(|memory| {
            if memory.ring.len() >= memory.room {
                return false;
            }
            memory.ring.push_back(Record {
                generation: change.generation,
                from: change.from,
                to: change.to,
                from_count: change.from_count,
                to_count: change.to_count,
                flags: change.flags,
                reg_state: change.reg_state,
                ..Record::default()
            });
            true
        })
    }
}
