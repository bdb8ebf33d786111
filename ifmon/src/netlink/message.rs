//! Reads link messages where they lie, without an allocation, and believes nothing about them.
//!
//! A parser of our own, because `netlink-packet-route` decodes a message whole or not at all: one
//! interface alias that is not UTF-8 would hide a deletion. Layouts:
//! `include/uapi/linux/netlink.h`, `rtnetlink.h`, `if_link.h`.

use crate::{InterfaceName, LinkKind};

/// Link message types, attribute types and flags, from `include/uapi/linux/`.
pub(crate) mod uapi {
    pub(crate) const NLMSG_ERROR: u16 = 2;
    pub(crate) const NLMSG_DONE: u16 = 3;
    pub(crate) const RTM_NEWLINK: u16 = 16;
    pub(crate) const RTM_DELLINK: u16 = 17;
    pub(crate) const RTM_GETLINK: u16 = 18;
    pub(crate) const RTM_NEWNSID: u16 = 88;
    pub(crate) const RTM_GETNSID: u16 = 90;
    pub(crate) const NETNSA_NSID: u16 = 1;
    pub(crate) const NETNSA_PID: u16 = 2;
    pub(crate) const NETNSA_FD: u16 = 3;
    pub(crate) const NLM_F_REQUEST: u16 = 1;
    pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
    pub(crate) const NLM_F_DUMP: u16 = 0x300;
    pub(crate) const AF_UNSPEC: u8 = 0;
    pub(crate) const IFLA_ADDRESS: u16 = 1;
    pub(crate) const IFLA_IFNAME: u16 = 3;
    pub(crate) const IFLA_LINK: u16 = 5;
    pub(crate) const IFLA_WIRELESS: u16 = 11;
    pub(crate) const IFLA_LINKINFO: u16 = 18;
    pub(crate) const IFLA_EXT_MASK: u16 = 29;
    pub(crate) const IFLA_LINK_NETNSID: u16 = 37;
    pub(crate) const IFLA_NEW_NETNSID: u16 = 45;
    pub(crate) const IFLA_NEW_IFINDEX: u16 = 49;
    pub(crate) const IFLA_INFO_KIND: u16 = 1;
    pub(crate) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    /// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`: not part of the type.
    pub(crate) const NLA_FLAGS: u16 = 0xc000;
}
use uapi::*;

/// `struct nlmsghdr`
pub(crate) const HEADER: usize = 16;
/// `struct ifinfomsg`
pub(crate) const IFINFO: usize = 16;

/// What a link message says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkMessage {
    /// `RTM_NEWLINK`: the device exists, with this index, this name and this kind, if it has one.
    New {
        ifindex: u32,
        name: InterfaceName,
        kind: Option<LinkKind>,
    },
    /// `RTM_DELLINK`: it was unregistered, or moved to another namespace.
    Deleted {
        ifindex: u32,
        name: InterfaceName,
        kind: Option<LinkKind>,
        moved: Option<Moved>,
    },
}

impl LinkMessage {
    /// The index of the device.
    pub(crate) fn ifindex(&self) -> u32 {
        let (Self::New { ifindex, .. } | Self::Deleted { ifindex, .. }) = *self;
        ifindex
    }

    /// The name of the device.
    pub(crate) fn name(&self) -> InterfaceName {
        let (Self::New { name, .. } | Self::Deleted { name, .. }) = *self;
        name
    }

    /// The kind of the device, if it has one.
    pub(crate) fn kind(&self) -> Option<LinkKind> {
        let (Self::New { kind, .. } | Self::Deleted { kind, .. }) = *self;
        kind
    }
}

/// The kernel says where a device went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// The namespace's id *in the numbering of the namespace that the device left* (`ip netns
    /// list-id`).
    pub(crate) nsid: i32,
    /// Its index there (since 5.1).
    pub(crate) ifindex: Option<u32>,
}

/// The other end of a device that is one end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherEnd {
    /// Its index in its namespace.
    pub(crate) ifindex: u32,
    /// Its namespace's id in the numbering of the one asked: `None` where it is that one, negative
    /// where it has none.
    pub(crate) nsid: Option<i32>,
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram. Stops at the first whose length cannot be right.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let message = datagram.get(..length)?;
        let body = message.get(HEADER..)?;
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            body,
        })
    })
}

/// What the first message of a datagram is an answer to, which may have been cut off.
pub(crate) fn sequence_of(datagram: &[u8]) -> Option<u32> {
    u32_at(datagram, 8)
}

impl<'a> Message<'a> {
    /// The message as a statement about a device; `None` for everything else.
    ///
    /// A bridge reports its ports with the same message types and `AF_BRIDGE`: "deleted" then means
    /// that a living device is no longer a port. What a wireless device says of itself
    /// (`wireless_send_event` in `net/wireless/wext-core.c`) has a name and nothing else of a link.
    pub(crate) fn link(&self) -> Option<LinkMessage> {
        if !matches!(self.kind, RTM_NEWLINK | RTM_DELLINK) || *self.body.first()? != AF_UNSPEC {
            return None;
        }
        let ifindex = u32_at(self.body, 4)?;
        if ifindex == 0 || ifindex > i32::MAX as u32 {
            return None;
        }
        let mut name = None;
        let mut link_kind = None;
        let mut nsid = None;
        let mut new_ifindex = None;
        for Attribute {
            kind,
            value,
            padded,
        } in attributes(self.body.get(IFINFO..)?)
        {
            match kind {
                // The first one counts, as it does for the filter in the kernel.
                IFLA_IFNAME if name.is_none() => name = Some(name_of(padded)?),
                IFLA_LINKINFO if link_kind.is_none() => link_kind = Some(kind_of(value)),
                IFLA_WIRELESS => return None,
                IFLA_NEW_NETNSID => nsid = Some(i32::from_ne_bytes(value.try_into().ok()?)),
                IFLA_NEW_IFINDEX => new_ifindex = Some(u32::from_ne_bytes(value.try_into().ok()?)),
                _ => {}
            }
        }
        let (name, kind) = (name?, link_kind.flatten());
        Some(if self.kind == RTM_NEWLINK {
            LinkMessage::New {
                ifindex,
                name,
                kind,
            }
        } else {
            LinkMessage::Deleted {
                ifindex,
                name,
                kind,
                moved: nsid.map(|nsid| Moved {
                    nsid,
                    ifindex: new_ifindex.filter(|&ifindex| ifindex != 0),
                }),
            }
        })
    }

    /// The hardware address in a link message; empty where there is none.
    pub(crate) fn address(&self) -> &'a [u8] {
        attributes(self.body.get(IFINFO..).unwrap_or_default())
            .find(|attribute| attribute.kind == IFLA_ADDRESS)
            .map_or(&[], |attribute| attribute.value)
    }

    /// The other end of a pair. `IFLA_LINK` alone does not make one: that of a VLAN or a tunnel is
    /// the device below it.
    pub(crate) fn other_end(&self) -> Option<OtherEnd> {
        let link = self.link()?;
        let is_pair = link.kind().is_some_and(|kind| kind.is_pair());
        let mut ifindex = None;
        let mut nsid = None;
        for Attribute { kind, value, .. } in attributes(self.body.get(IFINFO..)?) {
            match kind {
                IFLA_LINK => ifindex = Some(u32_at(value, 0)?),
                IFLA_LINK_NETNSID => nsid = Some(i32::from_ne_bytes(value.try_into().ok()?)),
                _ => {}
            }
        }
        // Before Linux 5.11 (`rtnl_fill_ifinfo` of `net/core/rtnetlink.c`) it is left out where it
        // is the same number, in another namespace.
        let ifindex = ifindex.or_else(|| nsid.map(|_| link.ifindex()));
        let ifindex = ifindex.filter(|&ifindex| is_pair && ifindex != 0)?;
        Some(OtherEnd { ifindex, nsid })
    }

    /// The id in an `RTM_NEWNSID`; `None` where the namespace has none (`NETNSA_NSID_NOT_ASSIGNED`,
    /// -1).
    pub(crate) fn nsid(&self) -> Option<i32> {
        // `struct rtgenmsg`, padded.
        let attributes = attributes(self.body.get(4..)?);
        (self.kind == RTM_NEWNSID)
            .then_some(attributes)?
            .find(|attribute| attribute.kind == NETNSA_NSID)
            .and_then(|attribute| Some(i32::from_ne_bytes(attribute.value.try_into().ok()?)))
            .filter(|&nsid| nsid >= 0)
    }

    /// What the last message of a table says of how that went: a negative error code where it
    /// failed.
    pub(crate) fn result(&self) -> i32 {
        u32_at(self.body, 0).map_or(0, |code| code as i32)
    }

    /// The error code of an `NLMSG_ERROR`, positive; 0 is an acknowledgement.
    pub(crate) fn error(&self) -> Option<i32> {
        (self.kind == NLMSG_ERROR)
            .then(|| u32_at(self.body, 0))
            .flatten()
            .map(|code| (code as i32).wrapping_neg())
    }
}

struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// The value with the padding after it.
    padded: &'a [u8],
}

/// The attributes of a message; nested ones are not entered. Stops at the first whose length cannot
/// be right.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = Attribute {
            kind: u16_at(bytes, 2)? & !NLA_FLAGS,
            value: bytes.get(4..length)?,
            padded: bytes.get(4..align(length)).unwrap_or_default(),
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of an `IFLA_IFNAME`. The kernel ends a name with a NUL and pads it with more of them,
/// which the filter in the kernel relies on, so a message with anything else there is not from the
/// kernel.
fn name_of(padded: &[u8]) -> Option<InterfaceName> {
    InterfaceName::from_kernel(before_nul(padded)?)
}

/// What comes before the NULs, which must be all that comes after it.
fn before_nul(padded: &[u8]) -> Option<&[u8]> {
    let end = padded.iter().position(|&byte| byte == 0)?;
    let (text, rest) = padded.split_at(end);
    rest.iter().all(|&byte| byte == 0).then_some(text)
}

/// The kind in an `IFLA_LINKINFO`. One that is a port of a bridge has another kind in there, which is
/// that of the bridge.
fn kind_of(info: &[u8]) -> Option<LinkKind> {
    let padded = attributes(info)
        .find(|attribute| attribute.kind == IFLA_INFO_KIND)?
        .padded;
    LinkKind::from_kernel(before_nul(padded)?)
}

/// Builds an `RTM_GETLINK` for one device, by index, or by name where the index is 0.
pub(crate) fn get_link(sequence: u32, ifindex: u32, name: Option<&InterfaceName>) -> Vec<u8> {
    let mut message = request(RTM_GETLINK, sequence, IFINFO);
    message[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    // The statistics are half of the answer, and gathering them may wait for the hardware.
    attribute(
        &mut message,
        IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    );
    if let Some(name) = name {
        let bytes = name.padded();
        attribute(
            &mut message,
            IFLA_IFNAME,
            &bytes[..name.as_bytes().len() + 1],
        );
    }
    finish(message)
}

/// Builds an `RTM_GETLINK` for all devices.
pub(crate) fn get_links(sequence: u32) -> Vec<u8> {
    let mut message = get_link(sequence, 0, None);
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message
}

/// Builds an `RTM_GETNSID` for the namespace of an open file (`NETNSA_FD`) or of a process
/// (`NETNSA_PID`).
pub(crate) fn get_nsid(sequence: u32, kind: u16, whose: u32) -> Vec<u8> {
    // `struct rtgenmsg`, padded.
    let mut message = request(RTM_GETNSID, sequence, 4);
    attribute(&mut message, kind, &whose.to_ne_bytes());
    finish(message)
}

/// The header of a request and the zeroed structure after it.
fn request(kind: u16, sequence: u32, structure: usize) -> Vec<u8> {
    let mut message = vec![0; HEADER + structure];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
    message
}

fn finish(mut message: Vec<u8>) -> Vec<u8> {
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Appends an attribute with its padding.
pub(crate) fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = value.len() as u16 + 4;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(align(message.len()), 0);
}

/// `NLMSG_ALIGN` and `NLA_ALIGN`: both are 4.
const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests;
