//! Does this change concern a watch? Keeps the truth about every watched name, and lets through only what changes it.
//!
//! Nothing here is about BPF: the tests of the userspace side compile this file too, between a model of a kernel and maps
//! of their own.

use ifmon_ebpf::{
    DeviceState, LOOPBACK_IFINDEX, Link, NETREG_REGISTERED, NETREG_UNREGISTERING, NameKey,
    NameState, Place, flag,
};

use super::{
    maps::{self, NAMESPACES, SEEDS},
    netdev::{Device, Event},
    send::{is_traced, send},
};

/// A change, as the filter works it out.
#[derive(Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) generation: u64,
    pub(crate) from_count: u64,
    pub(crate) to_count: u64,
    pub(crate) flags: u32,
    pub(crate) reg_state: u32,
}

/// What `observe` saw, for the log.
pub(crate) struct Seen {
    pub(crate) netns: u32,
    pub(crate) ifindex: u32,
    pub(crate) flags: u32,
}

/// Takes one notification through the filter.
///
/// Every step is written, and so inlined, once: before 5.11 the size of the program counts against the limit on locked
/// memory, which is 64 KiB by default.
#[inline(always)]
pub(crate) fn observe(event: Event, info: u64) -> Option<Seen> {
    let device = Device::of(info)?;
    let netns = device.netns()?;
    let counters = maps::counters()?;
    counters.seen = counters.seen.wrapping_add(1);
    let traced = is_traced();
    let noted = maps::device(device.0);
    // Most changes on a host of containers end here: a device that nobody knows, in a namespace that nobody watches.
    if noted.is_none() && !traced && NAMESPACES.get_ptr(netns).is_none() {
        counters.ignored = counters.ignored.wrapping_add(1);
        return None;
    }

    let here = device.place(netns)?;
    let reg_state = device.reg_state()?;
    // The notification that a device goes is repeated, about every second, while somebody keeps a reference to it. Another
    // device can have its index by then.
    let is_alive = reg_state == NETREG_REGISTERED || reg_state == NETREG_UNREGISTERING;
    let mut change = Change {
        reg_state,
        ..Change::default()
    };
    let known = match (event, noted) {
        (Event::Register, noted) => arrived(device, noted),
        (_, Some(noted)) => Some(noted),
        (_, None) if is_alive => seeded(device, &here),
        (_, None) => None,
    };
    match event {
        // The device is new in its namespace, or has another name. Where it was is only to be had from our own notes:
        // by now the kernel knows neither the old name nor the old namespace.
        Event::Register | Event::ChangeName => {
            change.to = here;
            if let Some(known) = known {
                change.from = known.place;
                change.generation = known.generation;
                known.place = here;
            }
        }
        // The device goes for good.
        Event::Unregister if reg_state == NETREG_UNREGISTERING => {
            change.from = here;
            if let Some(known) = known {
                change.from = known.place;
                change.generation = known.generation;
                maps::forget(device.0);
            }
            if here.ifindex == LOOPBACK_IFINDEX && NAMESPACES.remove(here.netns).is_ok() {
                change.flags |= flag::NETNS_GONE;
            }
        }
        // First half of a move: nothing to say before it is known where the device went, which follows under the same
        // RTNL.
        Event::Unregister if reg_state == NETREG_REGISTERED => {
            if let Some(known) = known {
                known.moving = 1;
            }
        }
        Event::Unregister => {}
    }
    if change.from.netns != 0 {
        give_up(device, &mut change);
    }
    if change.to.netns != 0 {
        take(device, &mut change);
    }

    let matched = change.flags != 0;
    if matched {
        counters.matched = counters.matched.wrapping_add(1);
    } else {
        counters.ignored = counters.ignored.wrapping_add(1);
        if traced {
            change.flags = flag::TRACED;
        }
    }
    if change.flags != 0 && !send(&change) && matched {
        counters.dropped = counters.dropped.wrapping_add(1);
    }
    Some(Seen {
        netns: here.netns,
        ifindex: here.ifindex,
        flags: change.flags,
    })
}

/// The notes about a device that is new in its namespace: there are some when it comes from another one.
#[inline(always)]
fn arrived(
    device: Device,
    noted: Option<&'static mut DeviceState>,
) -> Option<&'static mut DeviceState> {
    let known = noted?;
    if known.moving != 0 {
        known.moving = 0;
        return Some(known);
    }
    // An address seen before whose unregistration was not: whatever that was, it is another device.
    maps::forget(device.0);
    None
}

/// Notes about this device, made from a seed at its first event.
#[inline(always)]
fn seeded(device: Device, here: &Place) -> Option<&'static mut DeviceState> {
    let link = Link {
        netns: here.netns,
        ifindex: here.ifindex,
    };
    // SAFETY: copied at once; userspace may remove a seed but never rewrites one.
    let seed = *unsafe { SEEDS.get(&link) }?;
    let _ = SEEDS.remove(link);
    let name = maps::name(&seed.home)?;
    // A name that has changed since it was watched has no use for what userspace saw before that, and none for what it saw
    // for an earlier watch.
    if name.opened != 0 || name.epoch != seed.epoch {
        return None;
    }
    let state = DeviceState {
        generation: seed.generation,
        homes: 0,
        place: Place {
            name: seed.home.name,
            ..*here
        },
        moving: 0,
    };
    maps::note(device.0, &state);
    maps::device(device.0)
}

/// Begins to take notes about a device, and gives it a generation.
#[inline(always)]
fn remember(device: Device, here: &Place) -> u64 {
    let Some(counters) = maps::counters() else {
        return 0;
    };
    counters.generations = counters.generations.wrapping_add(1);
    let cpu = maps::cpu();
    // Unique without an atomic operation: each CPU counts for itself.
    let generation = counters.generations << 16 | u64::from(cpu & 0xffff);
    let state = DeviceState {
        generation,
        homes: 0,
        place: *here,
        moving: 0,
    };
    maps::note(device.0, &state);
    generation
}

/// Does the device lose a watched name by this change?
#[inline(always)]
fn give_up(device: Device, change: &mut Change) {
    let Some(name) = maps::name(&NameKey::of(&change.from)) else {
        return;
    };
    // Before the first change it is userspace that knows who holds the name, and a seed has said that it is this device.
    if name.opened != 0 && (name.ifindex == 0 || name.generation != change.generation) {
        return;
    }
    if name.opened == 0
        && let Some(known) = maps::device(device.0)
    {
        known.homes = known.homes.wrapping_add(1);
    }
    change.from_count = write(name, device, change.generation, 0);
    change.flags |= flag::LEFT_NAME;
}

/// Does the device get a watched name by this change?
#[inline(always)]
fn take(device: Device, change: &mut Change) {
    let Some(name) = maps::name(&NameKey::of(&change.to)) else {
        return;
    };
    if maps::device(device.0).is_none() {
        change.generation = remember(device, &change.to);
    }
    settle(name, device, change.generation);
    change.to_count = write(name, device, change.generation, change.to.ifindex);
    change.flags |= flag::TOOK_NAME;
}

/// The device is the last one that held the name: it counts as one of its homes, and as none of the one before any more.
#[inline(always)]
fn settle(name: &NameState, device: Device, generation: u64) {
    if name.generation == generation {
        return;
    }
    // Another device can be at its address by now.
    let before = name.last_device;
    if let Some(known) = maps::device(before)
        && known.generation == name.generation
    {
        known.homes = known.homes.wrapping_sub(1);
        // Otherwise it stays for as long as it is registered: userspace may not have heard that another one had the name.
        if known.homes == 0 && maps::is_crowded() {
            maps::forget(before);
        }
    }
    if let Some(known) = maps::device(device.0) {
        known.homes = known.homes.wrapping_add(1);
    }
}

/// Writes the truth about a name so that a reader can tell a whole value from a half-written one.
#[inline(always)]
fn write(name: &mut NameState, device: Device, generation: u64, ifindex: u32) -> u64 {
    let count = name.opened.wrapping_add(1);
    let name: *mut NameState = name;
    // SAFETY: a live map element. Volatile, so that the compiler keeps the order of the two counts around the rest.
    unsafe {
        (&raw mut (*name).opened).write_volatile(count);
        (&raw mut (*name).generation).write_volatile(generation);
        (&raw mut (*name).ifindex).write_volatile(ifindex);
        (&raw mut (*name).last_device).write_volatile(device.0);
        (&raw mut (*name).closed).write_volatile(count);
    }
    count
}
