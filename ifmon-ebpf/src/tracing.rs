//! The event of a call of `rtnetlink_event`, read from the kernel's own structures.

use ifmon_ebpf::{
    NETREG_REGISTERED, NETREG_UNREGISTERING, Name, Place,
    filter::{DeviceEvent, Notice},
};

use crate::{
    constants::{
        DEV_IFINDEX, DEV_NAME, DEV_NET, DEV_REG_STATE, EVENT_CHANGE_NAME, EVENT_REGISTER,
        EVENT_UNREGISTER, INFO_DEV, NET_INUM, REG_STATE_MASK, REG_STATE_SHIFT,
    },
    read::{read, read_name},
};
#[cfg(feature = "patterns")]
use crate::{
    constants::{DEV_LINK_OPS, LINK_OPS_KIND},
    read::read_text,
};

/// Which of the events of `enum netdev_cmd` it is, about which device: `info` is a
/// `struct netdev_notifier_info *`. Some forty kinds pass here, and all but three change nothing
/// that anybody asked for.
#[inline(always)]
pub(crate) fn notice(code: u64, info: u64) -> Option<Notice> {
    let is = |event: u32| code == u64::from(event);
    let (is_register, is_unregister) = (is(EVENT_REGISTER.load()), is(EVENT_UNREGISTER.load()));
    if !is_register && !is_unregister && !is(EVENT_CHANGE_NAME.load()) {
        return None;
    }
    let device: u64 = read(info, INFO_DEV.load())?;
    let here = Place {
        name: read_name(device, DEV_NAME.load())?,
        netns: read(read(device, DEV_NET.load())?, NET_INUM.load())?,
        ifindex: read(device, DEV_IFINDEX.load())?,
    };
    let word: u32 = read(device, DEV_REG_STATE.load())?;
    let reg_state = word >> (REG_STATE_SHIFT.load() & 31) & REG_STATE_MASK.load();
    let event = if is_register {
        DeviceEvent::Registered
    } else if !is_unregister {
        DeviceEvent::Renamed
    } else if reg_state == NETREG_UNREGISTERING {
        DeviceEvent::Unregistered
    } else if reg_state == NETREG_REGISTERED {
        DeviceEvent::Leaving
    } else {
        // About every second, while somebody keeps a reference to it.
        DeviceEvent::Repeated
    };
    Some(Notice {
        reg_state,
        kind: kind(device),
        address: device,
        ..Notice::new(event, here)
    })
}

/// Of what kind the device is.
#[cfg(feature = "patterns")]
#[inline(always)]
fn kind(device: u64) -> Name {
    read_text(device, [DEV_LINK_OPS.load(), LINK_OPS_KIND.load()])
}

/// Without patterns that concerns nobody.
#[cfg(not(feature = "patterns"))]
#[inline(always)]
const fn kind(_: u64) -> Name {
    Name([0, 0])
}
