//! The other end of a pair of devices, and the container that it is in.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    process,
    time::{Duration, Instant},
};

use crate::{
    Container, Event, InterfaceName, Netns, NetnsId, Origin,
    budget::Budget,
    netlink::{message::OtherEnd, query::Query},
};

/// Namespaces that are remembered, those included in which no container was found.
const REMEMBERED: usize = 512;

/// How long it is believed that there is no container: its first process may come in a moment.
const IN_VAIN: Duration = Duration::from_secs(1);

/// The first process of the host, or of the container that this process is in.
const INIT: u32 = 1;

/// Processes that a search looks at. A host with more is told less.
const PROCESSES: usize = 32_768;

/// The other end of a pair of devices (veth, netkit), at the moment at which it was looked up.
///
/// Whoever makes a container often makes the pair first, moves one end later, and starts a process
/// there later still: what was looked up in between says less, or that both ends are in the same
/// namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Peer {
    /// Its index in its namespace.
    pub ifindex: u32,
    /// The namespace that it is in. `None` where `ip netns` has no name for it and this process may
    /// not look at one there, which mostly takes CAP_SYS_PTRACE.
    pub netns: Option<NetnsId>,
    /// What `ip netns` calls that namespace.
    #[cfg_attr(
        feature = "serde",
        serde(
            skip_serializing_if = "Option::is_none",
            serialize_with = "serialize_name"
        )
    )]
    pub netns_name: Option<OsString>,
    /// The container of a process in that namespace, where it is another one than that of the
    /// event: of the process with the lowest id whose cgroup shows one. See [`Origin`] for how far
    /// that can be trusted. There is none in the namespace of process 1, which containers may share
    /// with the host.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub container: Option<Container>,
}

/// Text, with U+FFFD for what is not UTF-8.
#[cfg(feature = "serde")]
#[expect(clippy::ref_option, reason = "serde hands over the field as it is")]
fn serialize_name<S: serde::Serializer>(
    name: &Option<OsString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match name {
        Some(name) => serializer.collect_str(&name.display()),
        None => serializer.serialize_none(),
    }
}

/// Finds the other ends of devices.
///
/// ```
/// # fn show(event: &ifmon::Event, peers: &mut ifmon::Peers) {
/// if let Some(peer) = peers.of(event) {
///     match peer.container {
///         Some(container) => println!("{} leads to container {}", event.interface, container.id),
///         None => println!("{} leads to ifindex {}", event.interface, peer.ifindex),
///     }
/// }
/// # }
/// # let _ = show;
/// ```
///
/// It asks the kernel, and looks through `/proc` for a process in a namespace that it does not know
/// yet; both block, for up to ten milliseconds for each thousand processes. A quarter of the time
/// is spent on it at most: where interfaces come faster than that, some are told without.
#[derive(Debug, Default)]
pub struct Peers {
    namespaces: BTreeMap<NetnsId, AskedNetns>,
    memory: NetnsMemory,
    budget: Budget<4>,
}

/// A namespace whose devices can be asked about.
#[derive(Debug)]
struct AskedNetns {
    query: Query,
    name: Option<OsString>,
}

impl Peers {
    /// Knows no namespace yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gets ready for events of this namespace, and keeps it alive. Nothing that follows takes a
    /// privilege.
    ///
    /// # Errors
    /// When no socket can be opened there; in another namespace that takes CAP_SYS_ADMIN.
    pub fn enter(&mut self, netns: &Netns) -> io::Result<()> {
        let query = Query::new(netns)?;
        let name = Netns::names().find(|&(_, id)| id == netns.id());
        let name = name.map(|(name, _)| name);
        self.namespaces
            .insert(netns.id(), AskedNetns { query, name });
        Ok(())
    }

    /// The other end of the device that an event has come upon. `None` where there is none, where
    /// the device is gone or has another name by now, and in a namespace that was not entered.
    pub fn of(&mut self, event: &Event) -> Option<Peer> {
        let ifindex = event.kind.holder()?;
        // A watch of a name is not told the kind.
        let is_pair = event.link_kind.map(|kind| kind.is_pair());
        if !is_pair.unwrap_or(event.pattern.is_none()) {
            return None;
        }
        let begin = Instant::now();
        if !self.budget.allows(begin) {
            return None;
        }
        let peer = self.look_up(event.netns, ifindex, &event.interface);
        self.budget.spend(begin.elapsed());
        peer
    }

    fn look_up(&mut self, netns: NetnsId, ifindex: u32, name: &InterfaceName) -> Option<Peer> {
        let Self {
            namespaces, memory, ..
        } = self;
        let AskedNetns { query, name: here } = namespaces.get_mut(&netns)?;
        let OtherEnd { ifindex, nsid } = query
            .other_end(ifindex, name)
            .inspect_err(|error| log::debug!("cannot look for the peer of {name}: {error}"))
            .ok()??;
        let place = match nsid {
            None => NetnsFacts {
                netns: Some(netns),
                netns_name: here.clone(),
                ..NetnsFacts::default()
            },
            Some(nsid) if nsid < 0 => NetnsFacts::default(),
            Some(nsid) => memory.place((netns, nsid), Instant::now(), &mut Seen { query, nsid }),
        };
        Some(Peer {
            ifindex,
            netns: place.netns,
            netns_name: place.netns_name,
            container: place.container,
        })
    }
}

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NetnsFacts {
    netns: Option<NetnsId>,
    netns_name: Option<OsString>,
    /// A process in it.
    process: Option<u32>,
    container: Option<Container>,
}

/// Says what a namespace is.
trait FindNetns {
    /// As far as this name and this process are its own.
    fn by(&mut self, name: Option<&OsStr>, process: Option<u32>) -> NetnsFacts;

    /// Searches for a name and a process.
    fn search(&mut self) -> NetnsFacts;
}

/// What is known of namespaces, by their ids in the numbering of another one. Does no I/O itself:
/// it is handed what does.
#[derive(Debug, Default)]
struct NetnsMemory {
    /// With the time of the search. The one that was asked for last is at the end.
    places: VecDeque<((NetnsId, i32), Instant, NetnsFacts)>,
}

impl NetnsMemory {
    fn place(
        &mut self,
        key: (NetnsId, i32),
        now: Instant,
        look: &mut impl FindNetns,
    ) -> NetnsFacts {
        let known = self.places.iter().rposition(|(known, ..)| *known == key);
        let known = known.and_then(|at| self.places.remove(at));
        let known = known.filter(|(_, searched, place)| {
            let is_young = now.saturating_duration_since(*searched) < IN_VAIN;
            // The kernel gives an id again when its namespace has ended.
            (place.container.is_some() || is_young)
                && look.by(place.netns_name.as_deref(), place.process) == *place
        });
        let entry = known.unwrap_or_else(|| (key, now, look.search()));
        let (.., place) = &entry;
        let place = place.clone();
        if self.places.len() == REMEMBERED {
            self.places.pop_front();
        }
        self.places.push_back(entry);
        place
    }
}

/// A namespace as it is seen from another one.
struct Seen<'a> {
    query: &'a mut Query,
    nsid: i32,
}

impl Seen<'_> {
    fn has_name(&mut self, name: &OsStr) -> Option<NetnsId> {
        let netns = Netns::named(name).ok()?;
        let nsid = self.query.nsid_of(&netns).ok()?;
        (nsid == Some(self.nsid)).then(|| netns.id())
    }

    fn has_process(&mut self, pid: u32) -> bool {
        let nsid = self.query.nsid_of_process(pid).ok().flatten();
        nsid == Some(self.nsid)
    }

    /// The first process whose cgroup shows a container, else the first.
    fn process(&mut self) -> Option<u32> {
        let mut first = None;
        for pid in processes().take(PROCESSES) {
            if !self.has_process(pid) {
                continue;
            }
            if container_of(pid).is_some() {
                return Some(pid);
            }
            first = first.or(Some(pid));
        }
        first
    }
}

impl FindNetns for Seen<'_> {
    fn by(&mut self, name: Option<&OsStr>, process: Option<u32>) -> NetnsFacts {
        let named = name.and_then(|name| self.has_name(name));
        let process = process.filter(|&pid| self.has_process(pid));
        NetnsFacts {
            netns: named.or_else(|| process.and_then(netns_of)),
            netns_name: named.and(name).map(OsStr::to_owned),
            process,
            container: process
                .filter(|_| !self.has_process(INIT))
                .and_then(container_of),
        }
    }

    fn search(&mut self) -> NetnsFacts {
        let mut names = Netns::names().map(|(name, _)| name);
        let name = names.find(|name| self.has_name(name).is_some());
        let own = Some(process::id()).filter(|&pid| self.has_process(pid));
        let process = own.or_else(|| self.process());
        self.by(name.as_deref(), process)
    }
}

/// The processes that `/proc` shows, as it has them: by their ids.
fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The namespace of a process, where it may be looked at.
fn netns_of(pid: u32) -> Option<NetnsId> {
    let netns = Netns::from_path(format!("/proc/{pid}/ns/net")).ok()?;
    Some(netns.id())
}

/// The container of a process.
fn container_of(pid: u32) -> Option<Container> {
    container_in(&fs::read(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The container that the text of `/proc/PID/cgroup` shows, in whichever hierarchy.
fn container_in(cgroups: &[u8]) -> Option<Container> {
    cgroups.split(|&byte| byte == b'\n').find_map(|line| {
        let path = line.splitn(3, |&byte| byte == b':').nth(2)?;
        let path = OsStr::from_bytes(path).to_string_lossy();
        Origin::from_cgroup_path(&path).container
    })
}
