//! Every map of the programs, in one place.
//!
//! Whoever calls `rtnetlink_event` holds RTNL, so the kernel side is one writer and needs no lock. Hash maps are
//! preallocated: a tracing program may not allocate on 5.10.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use ifmon_ebpf::{Control, Counters, DeviceState, Link, NameKey, NameState, Record, Seed};

/// The loader sets the sizes; these are only defaults.
const WATCHES: u32 = 1024;

/// The watches: names in namespaces, and who holds each.
#[map]
pub(crate) static NAMES: HashMap<NameKey, NameState> = HashMap::with_max_entries(WATCHES, 0);

/// Devices that hold a watched name or held one, by address. Userspace and [`is_crowded`] see to it that there is always
/// room for one more.
#[map]
static DEVICES: HashMap<u64, DeviceState> = HashMap::with_max_entries(WATCHES, 0);

/// Devices that held a watched name when the watch began.
#[map]
pub(crate) static SEEDS: HashMap<Link, Seed> = HashMap::with_max_entries(WATCHES, 0);

/// Namespaces with a watch that are still alive, by inode number.
#[map]
pub(crate) static NAMESPACES: HashMap<u32, u32> = HashMap::with_max_entries(WATCHES, 0);

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// This CPU's counters. BPF programs do not migrate, so plain additions are enough.
#[inline(always)]
pub(crate) fn counters() -> Option<&'static mut Counters> {
    let counters = COUNTERS.get_ptr_mut(0)?;
    // SAFETY: element 0 of a one-element array; this CPU's copy, and nothing else of ours runs on it meanwhile.
    unsafe { counters.as_mut() }
}

/// Whose counters they are.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: takes no argument.
    unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn control() -> Option<&'static mut Control> {
    let control = CONTROL.get_ptr_mut(0)?;
    // SAFETY: element 0 of a one-element array; RTNL makes us its only writer once there are watches, and whoever reads it
    // before gets whole words.
    unsafe { control.as_mut() }
}

/// The state of a watched name, to be changed in place.
#[inline(always)]
pub(crate) fn name(key: &NameKey) -> Option<&'static mut NameState> {
    let state = NAMES.get_ptr_mut(key)?;
    // SAFETY: the kernel keeps the element valid for this run of the program; RTNL makes us its only writer.
    unsafe { state.as_mut() }
}

/// A device that is or was the holder of a watched name, to be changed in place.
#[inline(always)]
pub(crate) fn device(address: u64) -> Option<&'static mut DeviceState> {
    let state = DEVICES.get_ptr_mut(address)?;
    // SAFETY: as in `name`.
    unsafe { state.as_mut() }
}

/// Begins to take notes about a device about which there are none.
#[inline(always)]
pub(crate) fn note(address: u64, state: &DeviceState) {
    if DEVICES.insert(address, state, 0).is_ok()
        && let Some(control) = control()
    {
        control.devices = control.devices.wrapping_add(1);
    }
}

/// Forgets a device.
#[inline(always)]
pub(crate) fn forget(address: u64) {
    if DEVICES.remove(address).is_ok()
        && let Some(control) = control()
    {
        control.devices = control.devices.wrapping_sub(1);
    }
}

/// Are there so many that those that can be missed should go?
#[inline(always)]
pub(crate) fn is_crowded() -> bool {
    control().is_some_and(|control| control.devices > control.crowd)
}

/// Space for a record, or `None` when the ring buffer is full.
#[inline(always)]
pub(crate) fn reserve() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<Record>> {
    EVENTS.reserve::<Record>(0)
}
