//! Changes links, one request and one answer at a time: quicker and steadier than a library with a task in between, so
//! that what is timed is the kernel.

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rtnetlink::{
    LinkUnspec, LinkVeth,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::namespace::Namespace;

/// `struct nlmsghdr`, and the error that follows it in an answer.
const HEADER: usize = 16;
const ANSWER: usize = HEADER + 4;

/// A connection to change the links of a namespace.
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    pub(super) fn new(namespace: &Namespace) -> Result<Self> {
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

    /// Has the kernel do something; it has by the time that this returns. The answer waits to be read.
    pub(super) fn send(&mut self, message: RouteNetlinkMessage) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        if matches!(message, RouteNetlinkMessage::NewLink(_)) {
            header.flags |= NLM_F_CREATE | NLM_F_EXCL;
        }
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Reads the answer.
    pub(super) fn answer(&mut self) -> Result<()> {
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

    pub(super) fn request(&mut self, message: RouteNetlinkMessage) -> Result<()> {
        self.send(message)?;
        self.answer()
    }

    /// Makes a pair of links in a group; the first has this index.
    pub(super) fn add_pair(
        &mut self,
        name: &str,
        peer: &str,
        index: u32,
        group: u32,
    ) -> Result<()> {
        self.request(add_pair(name, peer, index, group))
            .with_context(|| format!("cannot add {name}"))
    }

    pub(super) fn add_bridge(&mut self, name: &str, index: u32) -> Result<()> {
        self.request(add_bridge(name, index))
            .with_context(|| format!("cannot add {name}"))
    }

    pub(super) fn delete(&mut self, index: u32) -> Result<()> {
        self.request(delete(index)).context("cannot delete a link")
    }

    /// Deletes all links of a group at once, which takes hardly longer than to delete one.
    pub(super) fn delete_group(&mut self, group: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        self.request(RouteNetlinkMessage::DelLink(message))
            .context("cannot delete a group of links")
    }
}

pub(super) fn add_pair(name: &str, peer: &str, index: u32, group: u32) -> RouteNetlinkMessage {
    let pair = LinkVeth::new(name, peer).index(index).link_group(group);
    RouteNetlinkMessage::NewLink(pair.build())
}

pub(super) fn add_bridge(name: &str, index: u32) -> RouteNetlinkMessage {
    let mut message = LinkUnspec::new_with_name(name).index(index).build();
    let kind = LinkInfo::Kind(InfoKind::Bridge);
    message.attributes.push(LinkAttribute::LinkInfo(vec![kind]));
    RouteNetlinkMessage::NewLink(message)
}

pub(super) fn delete(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build())
}

pub(super) fn rename(index: u32, to: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).name(to).build())
}

pub(super) fn set_mtu(index: u32, mtu: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).mtu(mtu).build())
}

/// A flag whose change costs the kernel nothing else.
pub(super) fn set_arp(index: u32, arp: bool) -> RouteNetlinkMessage {
    let mut message = LinkUnspec::new_with_index(index).build();
    message.header.change_mask = LinkFlags::Noarp;
    message.header.flags = if arp {
        LinkFlags::empty()
    } else {
        LinkFlags::Noarp
    };
    RouteNetlinkMessage::SetLink(message)
}
