//! Makes and changes links in one namespace, as `ip link` does and without its start-up time.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use std::os::fd::AsRawFd as _;
use tokio::runtime::Runtime;

use crate::namespace::Namespace;

/// What kind of device to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// One end of a pair; the peer is in the same namespace.
    Veth {
        /// Name of the other end.
        peer: &'a str,
    },
    /// A bridge.
    Bridge,
    /// Not in every kernel.
    Dummy,
    /// Not in every kernel.
    Wireguard,
}

/// Name of the thread that sends the requests: who the kernel says made a change.
pub const WORKER: &str = "links";

/// A connection to change the links of a namespace. It keeps the namespace alive.
#[derive(Debug)]
pub struct Links {
    runtime: Runtime,
    handle: Handle,
}

impl Links {
    /// Opens a connection in the namespace.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(WORKER)
            .enable_io()
            .build()?;
        let (connection, handle, _) = namespace.run(|| {
            let _context = runtime.enter();
            rtnetlink::new_connection()
        })??;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// The index of a link; `None` when there is none of that name.
    pub fn index_of(&self, name: &str) -> Result<Option<u32>> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match self.runtime.block_on(found.try_next()) {
            Ok(message) => Ok(message.map(|message| message.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn index(&self, name: &str) -> Result<u32> {
        self.index_of(name)?
            .with_context(|| format!("no link {name}"))
    }

    /// Makes a link, with a given index if one is given. Returns its index.
    pub fn add(&self, name: &str, kind: Kind<'_>, index: Option<u32>) -> Result<u32> {
        let mut message = match kind {
            Kind::Veth { peer } => LinkVeth::new(name, peer).build(),
            Kind::Bridge => of_kind(name, InfoKind::Bridge),
            Kind::Dummy => of_kind(name, InfoKind::Dummy),
            Kind::Wireguard => of_kind(name, InfoKind::Wireguard),
        };
        message.header.index = index.unwrap_or(0);
        self.runtime
            .block_on(self.handle.link().add(message).execute())
            .with_context(|| format!("cannot add {name}"))?;
        self.index(name)
    }

    /// Makes a link and does not ask for its index: one request.
    pub fn add_quick(&self, name: &str, kind: Kind<'_>) -> Result<()> {
        let message = match kind {
            Kind::Veth { peer } => LinkVeth::new(name, peer).build(),
            Kind::Bridge => of_kind(name, InfoKind::Bridge),
            Kind::Dummy => of_kind(name, InfoKind::Dummy),
            Kind::Wireguard => of_kind(name, InfoKind::Wireguard),
        };
        self.runtime
            .block_on(self.handle.link().add(message).execute())
            .with_context(|| format!("cannot add {name}"))
    }

    /// Makes a link as the message says: one request.
    pub fn create(&self, message: LinkMessage) -> Result<()> {
        self.runtime
            .block_on(self.handle.link().add(message).execute())
            .map_err(Into::into)
    }

    /// Deletes a link by index: one request.
    pub fn delete_index(&self, index: u32) -> Result<()> {
        self.runtime
            .block_on(self.handle.link().del(index).execute())
            .map_err(Into::into)
    }

    /// Deletes all links that the message matches: one request.
    pub fn delete_matching(&self, message: LinkMessage) -> Result<()> {
        self.runtime
            .block_on(self.handle.link().del_with_message(message).execute())
            .map_err(Into::into)
    }

    /// Gives a link alternative names, or takes them away: one request.
    pub fn set_altnames(&self, index: u32, altnames: &[&str], wanted: bool) -> Result<()> {
        let link = self.handle.link();
        let result = if wanted {
            self.runtime
                .block_on(link.property_add(index).alt_ifname(altnames).execute())
        } else {
            self.runtime
                .block_on(link.property_del(index).alt_ifname(altnames).execute())
        };
        result.map_err(Into::into)
    }

    /// Deletes a link by name: one request.
    pub fn delete(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_name(name).build();
        self.runtime
            .block_on(self.handle.link().del_with_message(message).execute())
            .with_context(|| format!("cannot delete {name}"))
    }

    /// Renames a link.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let index = self.index(from)?;
        self.rename_index(index, to)
            .with_context(|| format!("cannot rename {from} to {to}"))
    }

    /// Renames a link by index: one request.
    pub fn rename_index(&self, index: u32, to: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index).name(to).build())
    }

    /// Moves a link to another namespace.
    pub fn move_to(&self, name: &str, namespace: &Namespace) -> Result<()> {
        let index = self.index(name)?;
        self.set(
            LinkUnspec::new_with_index(index)
                .setns_by_fd(namespace.file().as_raw_fd())
                .build(),
        )
        .with_context(|| format!("cannot move {name}"))
    }

    /// Sets the state, up or down.
    pub fn set_up(&self, name: &str, up: bool) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(name)?);
        self.set(if up { message.up() } else { message.down() }.build())
    }

    /// Sets the MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.set(
            LinkUnspec::new_with_index(self.index(name)?)
                .mtu(mtu)
                .build(),
        )
    }

    /// Enslaves a link to a bridge, or frees it.
    pub fn set_master(&self, name: &str, master: Option<&str>) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(name)?);
        let message = match master {
            Some(master) => message.controller(self.index(master)?),
            None => message.nocontroller(),
        };
        self.set(message.build())
    }

    /// Sets any attributes of a link.
    pub fn set(&self, message: LinkMessage) -> Result<()> {
        self.runtime
            .block_on(self.handle.link().set(message).execute())
            .map_err(Into::into)
    }

    /// Gives a link an alternative name.
    pub fn add_altname(&self, name: &str, altname: &str) -> Result<()> {
        let request = self.handle.link().property_add(self.index(name)?);
        self.runtime
            .block_on(request.alt_ifname(&[altname]).execute())
            .map_err(Into::into)
    }
}

fn of_kind(name: &str, kind: InfoKind) -> LinkMessage {
    let mut message = LinkUnspec::new_with_name(name).build();
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    message
}
