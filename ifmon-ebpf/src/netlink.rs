//! The event of a link message, as the filter of a subscribed socket finds it.
//!
//! The message is what `rtnl_fill_ifinfo` makes of a device (`net/core/rtnetlink.c`), one to a
//! packet, in the host's byte order. Every read is bounded by the packet's length, and every walk
//! by a number of steps. What cannot be read says nothing.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
    programs::{SkBuffContext, sk_buff::SkBuff},
};
use ifmon_ebpf::{
    Link, Name, Place,
    filter::{DeviceEvent, Notice},
};

use crate::maps;

/// `struct nlmsghdr` and `struct ifinfomsg`
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    padding: u8,
    device_type: u16,
    ifindex: u32,
    device_flags: u32,
    change: u32,
}

/// `struct nlattr`
#[repr(C)]
struct Attribute {
    length: u16,
    kind: u16,
}

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// A bridge reports its ports with the same messages and `AF_BRIDGE`.
const AF_UNSPEC: u8 = 0;
const IFLA_IFNAME: u16 = 3;
const IFLA_WIRELESS: u16 = 11;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_NEW_IFINDEX: u16 = 49;
/// What is not flags of `nla_type`.
const NLA_TYPE_MASK: u16 = 0x3fff;

// At most so many steps to each; multiples of sixteen.

/// It is the first attribute, in all kernels so far.
const STEPS_TO_NAME: usize = 16;
/// It comes behind some forty others.
const STEPS_TO_LINKINFO: usize = 64;
/// It comes behind some fifty others, of the seventy kinds that there are.
const STEPS_TO_NETNSID: usize = 96;

/// `bpf_skb_load_bytes` reads no further. To the verifier every step is alike by this.
const LAST_BYTE: usize = 0xffff;

// `Name` has its bytes in memory's order.
const _: () = assert!(cfg!(target_endian = "little"));

/// What the message says.
#[inline(always)]
pub(crate) fn notice(packet: &SkBuffContext) -> Option<Notice> {
    let header: Header = packet.load(0).ok()?;
    let is_deletion = header.kind == RTM_DELLINK;
    if !is_deletion && header.kind != RTM_NEWLINK || header.family != AF_UNSPEC {
        return None;
    }
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_socket_cookie(packet.as_ptr()) };
    let link = Link {
        netns: maps::netns_of_socket(cookie)?,
        ifindex: header.ifindex,
    };
    // Before the ways part, so that the verifier walks to it once.
    let name = name(packet)?;
    let kind = if cfg!(feature = "patterns") {
        kind(packet)
    } else {
        // That concerns nobody.
        Name([0, 0])
    };
    // Where a device went that nobody knows is nobody's concern.
    let (mut nsid, mut to_ifindex) = (0, 0);
    let event = if !is_deletion {
        DeviceEvent::Exists
    } else if (maps::id_of(&link).is_some() || maps::has_patterns_in(link.netns))
        && destination(packet, &mut nsid, &mut to_ifindex)
    {
        DeviceEvent::Moved
    } else {
        DeviceEvent::Deleted
    };
    let here = Place {
        name,
        netns: link.netns,
        ifindex: link.ifindex,
    };
    Some(Notice {
        kind,
        nsid,
        to_ifindex,
        ..Notice::new(event, here)
    })
}

/// The name in the message.
#[inline(always)]
fn name(packet: &SkBuffContext) -> Option<Name> {
    let (at, size) = find::<STEPS_TO_NAME>(packet, IFLA_IFNAME)?;
    // What a wireless device says of itself has its name and nothing else of a link.
    let next = next_to(at, size) as u64;
    if kind_of(word(packet.skb.skb, next)) == IFLA_WIRELESS {
        return None;
    }
    text(packet, at, size)
}

/// Of what kind the device is: the first that is said within [`IFLA_LINKINFO`], if it is that.
///
/// Without a branch, of which each would be another way for the verifier; and to who has no
/// CAP_PERFMON it goes both ways from each, whatever it knows: what is not there is zero, and where it
/// is there is no step further.
#[inline(always)]
fn kind(packet: &SkBuffContext) -> Name {
    let packet = packet.skb.skb;
    let mut at = size_of::<Header>() as u64;
    for _ in 0..STEPS_TO_LINKINFO / 16 {
        at = sixteen_steps_to_info(packet, at);
    }
    let is_info = is_zero(u64::from(kind_of(word(packet, at)) ^ IFLA_LINKINFO));
    at += size_of::<Attribute>() as u64;
    let attribute = word(packet, at);
    let is_kind = is_zero(u64::from(kind_of(attribute) ^ IFLA_INFO_KIND));
    let length = u64::from(attribute & 0xffff);
    let part = |begin: u64| {
        let begin = begin + size_of::<Attribute>() as u64;
        // Negative where it ends before.
        let rest = length.wrapping_sub(begin + 1) as i64 >> 63;
        u64::from(word(packet, at + begin)) & is_info & is_kind & !(rest as u64)
    };
    Name([part(0) | part(4) << 32, part(8) | part(12) << 32])
}

#[inline(always)]
fn sixteen_steps_to_info(packet: *mut __sk_buff, at: u64) -> u64 {
    let at = four_steps_to_info(packet, at);
    let at = four_steps_to_info(packet, at);
    let at = four_steps_to_info(packet, at);
    four_steps_to_info(packet, at)
}

#[inline(always)]
fn four_steps_to_info(packet: *mut __sk_buff, at: u64) -> u64 {
    let at = step_to_info(packet, at);
    let at = step_to_info(packet, at);
    let at = step_to_info(packet, at);
    step_to_info(packet, at)
}

/// Past the attribute here, unless it is [`IFLA_LINKINFO`].
#[inline(always)]
fn step_to_info(packet: *mut __sk_buff, at: u64) -> u64 {
    let attribute = word(packet, at);
    let is_info = is_zero(u64::from(kind_of(attribute) ^ IFLA_LINKINFO));
    let length = (u64::from(attribute & 0xffff) + 3) & !3;
    (at + (length & !is_info)) & LAST_BYTE as u64
}

/// All bits for 0, none for any other number below 2⁶³.
#[inline(always)]
const fn is_zero(number: u64) -> u64 {
    ((number.wrapping_sub(1)) as i64 >> 63) as u64
}

/// What is there, or zero. What an attribute is padded with is zero as well.
#[inline(always)]
fn word(packet: *mut __sk_buff, at: u64) -> u32 {
    let mut word = MaybeUninit::<u32>::uninit();
    // SAFETY: the helper writes as many bytes as it is told, also when it fails.
    unsafe {
        let (packet, to) = (packet.cast(), word.as_mut_ptr().cast());
        bpf_skb_load_bytes(packet, at as u32, to, size_of::<u32>() as u32);
        word.assume_init()
    }
}

/// Of an attribute that begins with this word.
#[inline(always)]
const fn kind_of(attribute: u32) -> u16 {
    (attribute >> 16) as u16 & NLA_TYPE_MASK
}

/// A name of this size, its NUL included. It is padded with zeros to a multiple of four, as all
/// attributes are, and read by as much at a time: reads of a size that the verifier has to work out
/// are not understood by all kernels.
#[inline(always)]
fn text(packet: &SkBuffContext, at: usize, size: usize) -> Option<Name> {
    let word = |begin| -> Option<u64> {
        if begin < size {
            packet.load::<u32>(at + begin).ok().map(u64::from)
        } else {
            Some(0)
        }
    };
    let (first, second) = (word(0)? | word(4)? << 32, word(8)? | word(12)? << 32);
    // It has room for 15 bytes and a NUL.
    (size <= size_of::<Name>() && second >> 56 == 0).then_some(Name([first, second]))
}

/// Did the deleted device move, and where to?
#[inline(always)]
fn destination(packet: &SkBuffContext, nsid: &mut i32, ifindex: &mut u32) -> bool {
    let Some((at, size)) = find::<STEPS_TO_NETNSID>(packet, IFLA_NEW_NETNSID) else {
        return false;
    };
    *nsid = packet.load(at).unwrap_or_default();
    // Its index there comes right behind, since 5.1.
    let walk = step(packet.skb.skb, (at + size) as u64, IFLA_NEW_IFINDEX);
    if let Some((at, _)) = found(walk) {
        *ifindex = packet.load(at).unwrap_or_default();
    }
    true
}

/// Place and size of the first attribute of a kind.
///
/// The steps are calls of global functions, which the verifier goes through once, for whatever
/// arguments. Written out or in a loop, it would go through each step with all that can have been
/// found before it; and a loop it refuses to who has no CAP_PERFMON, before 6.17, since there it
/// also goes where a processor may go by a wrong guess (`sanitize_speculative_path` in
/// `kernel/bpf/verifier.c`), past the last step, where the loop has no end.
#[inline(always)]
fn find<const STEPS: usize>(packet: &SkBuffContext, kind: u16) -> Option<(usize, usize)> {
    let mut walk = size_of::<Header>() as Walk;
    for _ in 0..STEPS / 16 {
        walk = ifmon_sixteen_steps(packet.skb.skb, walk, u32::from(kind));
    }
    found(walk)
}

/// Where a walk is that goes on: the place of the next attribute. One that is over stays what it
/// is: [`FOUND`] and the attribute's size and place, or [`NOT_FOUND`].
type Walk = u64;

const FOUND: Walk = 1 << 32;
const NOT_FOUND: Walk = 1 << 33;

#[inline(always)]
fn found(walk: Walk) -> Option<(usize, usize)> {
    let (at, size) = (walk & 0xffff, walk >> 16 & 0xffff);
    (walk & FOUND != 0).then_some((at as usize, size as usize))
}

#[inline(always)]
const fn is_over(walk: Walk) -> bool {
    walk & (FOUND | NOT_FOUND) != 0
}

// A global function keeps its name, and has arguments of whole registers: the context, as the
// kernel's own types have it, and numbers. Its loop of four is written out.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ifmon_sixteen_steps(packet: *mut __sk_buff, mut walk: Walk, kind: u32) -> Walk {
    for _ in 0..4 {
        walk = ifmon_four_steps(packet, walk, kind);
        if is_over(walk) {
            break;
        }
    }
    walk
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ifmon_four_steps(packet: *mut __sk_buff, mut walk: Walk, kind: u32) -> Walk {
    for _ in 0..4 {
        walk = ifmon_one_step(packet, walk, kind);
        if is_over(walk) {
            break;
        }
    }
    walk
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ifmon_one_step(packet: *mut __sk_buff, walk: Walk, kind: u32) -> Walk {
    if is_over(walk) {
        return walk;
    }
    step(packet, walk, kind as u16)
}

/// Past the attribute here, unless it is of the kind.
#[inline(always)]
fn step(packet: *mut __sk_buff, walk: Walk, kind: u16) -> Walk {
    let at = walk as usize & LAST_BYTE;
    let Ok(attribute) = SkBuff { skb: packet }.load::<Attribute>(at) else {
        return NOT_FOUND;
    };
    let Some(size) = usize::from(attribute.length).checked_sub(size_of::<Attribute>()) else {
        return NOT_FOUND;
    };
    let at = at + size_of::<Attribute>();
    if attribute.kind & NLA_TYPE_MASK == kind {
        return FOUND | (size as u64) << 16 | (at & LAST_BYTE) as u64;
    }
    next_to(at, size) as u64
}

/// Where the next attribute is. Without a branch: `next_multiple_of` has one, which makes two ways
/// through every step.
#[inline(always)]
const fn next_to(at: usize, size: usize) -> usize {
    (at + ((size + 3) & !3)) & LAST_BYTE
}
