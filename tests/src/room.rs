//! A namespace with links that are known by their index, each change being one request.
//!
//! Nothing is ever looked up: a name need not be UTF-8, and a scenario states the indexes that it
//! expects.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::{
    links::{Links, WORKER},
    namespace::Namespace,
    requests::Requests,
};

/// `IFLA_IFNAME` and `IFLA_IFALIAS` of `include/uapi/linux/if_link.h`, for values that are not
/// UTF-8.
const IFLA_IFNAME: u16 = 3;
const IFLA_IFALIAS: u16 = 20;

/// What the links of a scenario are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// One end of a pair, the other end being in the same namespace. Every kernel has it.
    Veth,
    /// What ifmon is made for.
    Wireguard,
    /// Made by a process, not by netlink. Persistent, so that no open file is needed.
    Tun,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Veth, Self::Wireguard, Self::Tun];
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Veth => "veth",
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
        })
    }
}

/// A network namespace to make links in. It ends when this is dropped, unless something else holds
/// it.
#[derive(Debug)]
pub struct Room {
    // Declared first, so that the socket is closed before the namespace is let go of.
    links: Links,
    namespace: Namespace,
    device: Device,
    peers: AtomicU32,
}

impl Room {
    /// A new namespace whose links are of this kind.
    pub fn new(device: Device) -> Result<Self> {
        Self::of(Namespace::new()?, device)
    }

    /// A namespace that is there already.
    pub fn of(namespace: Namespace, device: Device) -> Result<Self> {
        Ok(Self {
            links: Links::new(&namespace)?,
            namespace,
            device,
            peers: AtomicU32::new(0),
        })
    }

    /// Its inode number.
    pub fn id(&self) -> Result<u32> {
        self.namespace.id()
    }

    /// A path by which another process can open it.
    pub fn path(&self) -> String {
        self.namespace.path()
    }

    /// Makes a command run in it.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        self.namespace.enter(command)
    }

    /// Makes a link with this index.
    pub fn add(&self, name: impl AsRef<[u8]>, index: u32) -> Result<()> {
        let name = name.as_ref();
        let made = match self.device {
            Device::Veth => self.links.create(self.veth(name, index)),
            Device::Wireguard => self.links.create(named(
                name,
                index,
                vec![LinkInfo::Kind(InfoKind::Wireguard)],
            )),
            Device::Tun => self.namespace.run(|| tun(name, index))?.map_err(Into::into),
        };
        made.with_context(|| format!("cannot add {}", name.escape_ascii()))
    }

    fn veth(&self, name: &[u8], index: u32) -> LinkMessage {
        let number = self.peers.fetch_add(1, Ordering::Relaxed);
        let peer = LinkUnspec::new_with_name(&format!("peer{number}")).build();
        let peer = InfoData::Veth(InfoVeth::Peer(peer));
        named(
            name,
            index,
            vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)],
        )
    }

    /// Makes one end of a pair here, and the other end, `far0` with the same index, in another
    /// namespace.
    pub fn add_pair(&self, name: &str, index: u32, other: &Self) -> Result<()> {
        let mut peer = LinkUnspec::new_with_name("far0")
            .setns_by_fd(other.namespace.file().as_raw_fd())
            .build();
        peer.header.index = index;
        let peer = InfoData::Veth(InfoVeth::Peer(peer));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
        self.links
            .create(named(name.as_bytes(), index, info))
            .with_context(|| format!("cannot add {name} with a peer elsewhere"))
    }

    /// The index of a link that was made without one.
    pub fn index_of(&self, name: &str) -> Result<u32> {
        let index = self.links.index_of(name)?;
        index.with_context(|| format!("there is no {name}"))
    }

    /// Makes a bridge.
    pub fn add_bridge(&self, name: &str, index: u32) -> Result<()> {
        self.links
            .create(named(
                name.as_bytes(),
                index,
                vec![LinkInfo::Kind(InfoKind::Bridge)],
            ))
            .with_context(|| format!("cannot add the bridge {name}"))
    }

    /// Deletes a link.
    pub fn delete(&self, index: u32) -> Result<()> {
        self.links
            .delete_index(index)
            .with_context(|| format!("cannot delete link {index}"))
    }

    /// Deletes all links of a group, which the kernel does in one go.
    pub fn delete_group(&self, group: u32) -> Result<()> {
        self.links
            .delete_matching(LinkUnspec::new_with_index(0).link_group(group).build())
            .with_context(|| format!("cannot delete the links of group {group}"))
    }

    /// Makes a pair of links whose names and indexes do not matter, in a group.
    pub fn add_unrelated(&self, number: u32, group: u32) -> Result<()> {
        let peer = LinkUnspec::new_with_name(&format!("q{number}"))
            .link_group(group)
            .build();
        let peer = InfoData::Veth(InfoVeth::Peer(peer));
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
        let mut message = named(format!("p{number}").as_bytes(), 0, info);
        message.attributes.push(LinkAttribute::Group(group));
        self.links
            .create(message)
            .with_context(|| format!("cannot add the unrelated pair {number}"))
    }

    /// Renames a link.
    pub fn rename(&self, index: u32, to: impl AsRef<[u8]>) -> Result<()> {
        let to = to.as_ref();
        self.set(index, |link| {
            link.append_extra_attribute(text(IFLA_IFNAME, to))
        })
        .with_context(|| format!("cannot rename link {index} to {}", to.escape_ascii()))
    }

    /// Makes all of these changes one right after the other, each as soon as the kernel has done
    /// the one before.
    pub fn in_one_go(
        &self,
        changes: impl ExactSizeIterator<Item = RouteNetlinkMessage> + Send,
    ) -> Result<()> {
        let mut requests = Requests::new(&self.namespace)?;
        // As whoever makes the other changes.
        thread::scope(|scope| {
            thread::Builder::new()
                .name(WORKER.to_owned())
                .spawn_scoped(scope, || requests.request_all(changes))?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Tells all who listen what the kernel says of a wireless device.
    pub fn say_wireless(&self, index: u32, name: &str) -> Result<()> {
        Requests::new(&self.namespace)?.say_wireless(index, name)
    }

    /// Moves a link to another namespace.
    pub fn move_to(&self, index: u32, room: &Self) -> Result<()> {
        let fd = room.namespace.file().as_raw_fd();
        self.set(index, |link| link.setns_by_fd(fd))
            .with_context(|| format!("cannot move link {index}"))
    }

    /// Moves a link to another namespace, where it gets a name of this pattern if its own is taken.
    pub fn move_to_as(&self, index: u32, room: &Self, pattern: &str) -> Result<()> {
        let fd = room.namespace.file().as_raw_fd();
        self.set(index, |link| link.setns_by_fd(fd).name(pattern))
            .with_context(|| format!("cannot move link {index} as {pattern}"))
    }

    /// Sets any attributes of a link.
    pub fn set(
        &self,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        self.links
            .set(change(LinkUnspec::new_with_index(index)).build())
    }

    /// Sets the alias of a link, which can be any bytes.
    pub fn set_alias(&self, index: u32, alias: impl AsRef<[u8]>) -> Result<()> {
        let attribute =
            LinkAttribute::Other(DefaultNla::new(IFLA_IFALIAS, alias.as_ref().to_vec()));
        self.set(index, |link| link.append_extra_attribute(attribute))
            .with_context(|| format!("cannot set the alias of link {index}"))
    }

    /// Gives a link an alternative name.
    pub fn add_altname(&self, index: u32, altname: &str) -> Result<()> {
        self.links
            .set_altnames(index, &[altname], true)
            .with_context(|| format!("cannot give link {index} the name {altname} as well"))
    }

    /// So many that a message about the link has 40 KiB.
    pub fn add_altnames(&self, index: u32) -> Result<()> {
        let altnames: Vec<_> = (0..300).map(|n| format!("{index}-{n:0>116}")).collect();
        let altnames: Vec<_> = altnames.iter().map(String::as_str).collect();
        self.links
            .set_altnames(index, &altnames, true)
            .with_context(|| format!("cannot give link {index} hundreds of names"))
    }

    /// Takes an alternative name from a link.
    pub fn remove_altname(&self, index: u32, altname: &str) -> Result<()> {
        self.links
            .set_altnames(index, &[altname], false)
            .with_context(|| format!("cannot take the name {altname} from link {index}"))
    }
}

/// Gives a namespace a name, as `ip netns add` does, as long as this lives.
#[derive(Debug)]
pub struct NamedNetns(PathBuf);

impl NamedNetns {
    /// The name must not be in use.
    pub fn new(room: &Room, name: &str) -> Result<Self> {
        let folder = PathBuf::from("/run/netns");
        fs::create_dir_all(&folder)?;
        Self::at(room, folder.join(name))
    }

    /// The same at any place, as container runtimes do it.
    pub fn at(room: &Room, path: PathBuf) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let named = Self(path);
        rustix::mount::mount_bind(room.path(), &named.0)
            .with_context(|| format!("cannot mount {}", named.0.display()))?;
        Ok(named)
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        let Self(path) = self;
        let _ = rustix::mount::unmount(&*path, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_file(path);
    }
}

/// The error number with which the kernel refused a change.
pub fn errno(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref()? {
        rtnetlink::Error::NetlinkError(error) => Some(-error.raw_code()),
        _ => None,
    }
}

fn named(name: &[u8], index: u32, info: Vec<LinkInfo>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![text(IFLA_IFNAME, name), LinkAttribute::LinkInfo(info)];
    message
}

fn text(kind: u16, value: &[u8]) -> LinkAttribute {
    let mut value = value.to_vec();
    value.push(0);
    LinkAttribute::Other(DefaultNla::new(kind, value))
}

/// Makes a tun device that stays when its file is closed.
fn tun(name: &[u8], index: u32) -> io::Result<()> {
    // As whoever makes the other changes.
    rustix::thread::set_name(&std::ffi::CString::new(WORKER)?)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, &from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let index = libc::c_uint::from(index);
    let check = |result: libc::c_int| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: the three requests take a pointer to an unsigned number, a pointer to an `ifreq`, and
    // a number.
    unsafe {
        check(libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETIFINDEX,
            &raw const index,
        ))?;
        check(libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETIFF,
            &raw mut request,
        ))?;
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1))
    }
}
