//! Changes links, one request and one answer at a time, or many requests in one go: quicker and
//! steadier than a library with a task in between.

use std::{fs::File, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rtnetlink::{
    LinkUnspec, LinkVeth,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::namespace::Namespace;

/// `RTNLGRP_LINK`, as the bit that bind(2) takes.
pub(crate) const LINK_GROUP: u32 = 1;
/// `struct nlmsghdr`, and the error that follows it in an answer.
const HEADER: usize = 16;
const ANSWER: usize = HEADER + 4;

/// A connection to change the links of a namespace.
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let mut socket = namespace.run(|| Socket::new(NETLINK_ROUTE))??;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The answer is read into few bytes: it need not repeat the request.
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel do something; it has by the time that this returns. The answer waits to be
    /// read.
    pub fn send(&mut self, message: RouteNetlinkMessage) -> Result<()> {
        let bytes = self.serialize(message, NLM_F_ACK);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Has the kernel do all of this, one right after the other. It goes on after an error, which
    /// is then what comes of it.
    pub fn request_all(
        &mut self,
        messages: impl ExactSizeIterator<Item = RouteNetlinkMessage>,
    ) -> Result<()> {
        let last = messages.len().saturating_sub(1);
        let mut bytes = Vec::new();
        for (number, message) in messages.enumerate() {
            // An error is answered in any case, before the last one is.
            let flag = if number == last { NLM_F_ACK } else { 0 };
            bytes.extend(self.serialize(message, flag));
        }
        self.socket.send(&bytes, 0)?;
        self.answer()
    }

    fn serialize(&mut self, message: RouteNetlinkMessage, flag: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | flag;
        if matches!(message, RouteNetlinkMessage::NewLink(_)) {
            header.flags |= NLM_F_CREATE | NLM_F_EXCL;
        }
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Reads the answer.
    pub fn answer(&mut self) -> Result<()> {
        let mut bytes = [0; 64];
        let length = self.socket.recv(&mut &mut bytes[..], 0)?;
        let code = bytes[..length]
            .get(HEADER..ANSWER)
            .and_then(|code| Some(i32::from_ne_bytes(code.try_into().ok()?)))
            .context("an answer that is too short")?;
        if code != 0 {
            bail!(std::io::Error::from_raw_os_error(-code));
        }
        Ok(())
    }

    pub fn request(&mut self, message: RouteNetlinkMessage) -> Result<()> {
        self.send(message)?;
        self.answer()
    }

    /// Tells all who listen what the kernel says of a wireless device when it scans or joins a
    /// network: the name that it had when that was written down (`wireless_send_event` of
    /// `net/wireless/wext-core.c`).
    pub fn say_wireless(&mut self, index: u32, name: &str) -> Result<()> {
        /// Of `include/uapi/linux/if_link.h`.
        const IFLA_WIRELESS: u16 = 11;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Other(DefaultNla::new(IFLA_WIRELESS, vec![12, 0, 0x15, 0x8b])),
        ];
        let payload = NetlinkPayload::from(RouteNetlinkMessage::NewLink(message));
        // It asks the kernel for nothing.
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let listeners = SocketAddr::new(0, LINK_GROUP);
        self.socket.send_to(&bytes, &listeners, 0)?;
        Ok(())
    }

    /// Makes a pair of links in a group; the first has this index.
    pub fn add_pair(&mut self, name: &str, peer: &str, index: u32, group: u32) -> Result<()> {
        self.request(add_pair(name, peer, index, group))
            .with_context(|| format!("cannot add {name}"))
    }

    pub fn add_bridge(&mut self, name: &str, index: u32) -> Result<()> {
        self.request(add_bridge(name, index))
            .with_context(|| format!("cannot add {name}"))
    }

    pub fn delete(&mut self, index: u32) -> Result<()> {
        self.request(delete(index)).context("cannot delete a link")
    }

    /// Deletes all links of a group at once, which takes hardly longer than to delete one.
    pub fn delete_group(&mut self, group: u32) -> Result<()> {
        self.request(delete_group(group))
            .context("cannot delete a group of links")
    }
}

pub fn add_pair(name: &str, peer: &str, index: u32, group: u32) -> RouteNetlinkMessage {
    let pair = LinkVeth::new(name, peer).index(index).link_group(group);
    RouteNetlinkMessage::NewLink(pair.build())
}

pub fn add_bridge(name: &str, index: u32) -> RouteNetlinkMessage {
    let mut message = LinkUnspec::new_with_name(name).index(index).build();
    let kind = LinkInfo::Kind(InfoKind::Bridge);
    message.attributes.push(LinkAttribute::LinkInfo(vec![kind]));
    RouteNetlinkMessage::NewLink(message)
}

/// A veth whose other end is in another namespace, so that one message is all that is heard of it in
/// its own.
pub fn add_veth_apart(name: &str, index: u32, peer_namespace: &File) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    let namespace = peer_namespace.as_raw_fd();
    peer.attributes.push(LinkAttribute::NetNsFd(namespace));
    let mut message = LinkUnspec::new_with_name(name).index(index).build();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

pub fn move_to(index: u32, namespace: &File) -> RouteNetlinkMessage {
    let namespace = namespace.as_raw_fd();
    RouteNetlinkMessage::SetLink(
        LinkUnspec::new_with_index(index)
            .setns_by_fd(namespace)
            .build(),
    )
}

pub fn delete(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build())
}

pub fn delete_group(group: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    RouteNetlinkMessage::DelLink(message)
}

pub fn rename(index: u32, to: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).name(to).build())
}

pub fn set_mtu(index: u32, mtu: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).mtu(mtu).build())
}

/// A flag whose change costs the kernel nothing else.
pub fn set_arp(index: u32, arp: bool) -> RouteNetlinkMessage {
    let mut message = LinkUnspec::new_with_index(index).build();
    message.header.change_mask = LinkFlags::Noarp;
    message.header.flags = if arp {
        LinkFlags::empty()
    } else {
        LinkFlags::Noarp
    };
    RouteNetlinkMessage::SetLink(message)
}
