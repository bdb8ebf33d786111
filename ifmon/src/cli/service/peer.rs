//! Who is at the other end of a connection: what the kernel says of it, nothing that it says
//! itself.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::Context as _;
use ifmon::{Netns, NetnsId};
use tokio::net::UnixStream;

use super::{
    call::Fault,
    event_reply::Trust,
    hub::Refusal,
    limits::Owner,
    policy::{Circle, Policy},
};

/// The agent's own place.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) netns: Netns,
    /// What tells its namespace from all others; since Linux 5.14.
    cookie: Option<u64>,
    /// The group that owns the socket of the agent.
    group: Option<u32>,
    policy: Policy,
}

impl Home {
    pub(super) fn new(group: Option<u32>, policy: Policy) -> anyhow::Result<Self> {
        let netns = Netns::current().context("the network namespace of ifmon is unknown")?;
        let cookie = netns.cookie().ok();
        Ok(Self {
            netns,
            cookie,
            group,
            policy,
        })
    }
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct ClientPeer {
    uid: u32,
    pub(super) trust: Trust,
    is_root: bool,
    is_home: bool,
    /// It may ask for any namespace.
    pub(super) sees_all: bool,
    circle: Circle,
}

impl ClientPeer {
    /// A container can have users and groups with the same numbers as the host, so these count only
    /// in the agent's own network namespace.
    pub(super) fn of(stream: &UnixStream, home: &Home) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let uid = credentials.uid();
        let is_home = match (home.cookie, netns_cookie(stream)) {
            (Some(own), Ok(cookie)) => own == cookie,
            _ => Netns::of_socket(stream).is_ok_and(|netns| netns.id() == home.netns.id()),
        };
        let is_root = is_home && uid == 0;
        let in_group = || {
            let Some(group) = home.group.filter(|_| is_home) else {
                return false;
            };
            credentials.gid() == group || peer_groups(stream).is_ok_and(|all| all.contains(&group))
        };
        let circle = if is_root {
            Circle::Root
        } else if in_group() {
            Circle::Group
        } else {
            Circle::All
        };
        Ok(Self {
            uid,
            trust: if is_home && circle <= home.policy.who {
                Trust::Full
            } else {
                Trust::Plain
            },
            is_root,
            is_home,
            sees_all: circle <= home.policy.netns,
            circle,
        })
    }

    /// Whose room it takes.
    pub(super) const fn owner(&self) -> Owner {
        if self.is_root {
            Owner::Root
        } else {
            Owner::User(self.uid)
        }
    }

    /// May it watch and list anything?
    pub(super) fn may_watch(&self, home: &Home) -> Result<(), Fault> {
        let allowed = home.policy.watch;
        if self.circle <= allowed {
            return Ok(());
        }
        let why = format!("this agent is for {allowed} (--policy)");
        Err(Fault::NotPermitted(why))
    }

    /// May it ask for this namespace? What the agent opens by its path is for root to say.
    pub(super) fn may_name(&self, netns: &str, home: &Home) -> Result<(), Fault> {
        let allowed = if netns.contains('/') {
            Circle::Root
        } else {
            home.policy.netns
        };
        if self.circle <= allowed {
            return Ok(());
        }
        Err(Fault::NotPermitted(format!(
            "another network namespace is for {allowed}; make the socket in the namespace that is \
             to be watched"
        )))
    }

    /// The namespace in which the client made its socket.
    ///
    /// The kernel gives the socket of an accepted connection the namespace of the socket that
    /// connected (`unix_stream_connect` in `net/unix/af_unix.c`). It cannot be claimed or guessed,
    /// and needs neither a process id nor `/proc`.
    pub(super) fn netns(&self, stream: &UnixStream, home: &Home) -> Result<Netns, Fault> {
        if self.is_home {
            return Ok(home.netns.clone());
        }
        Netns::of_socket(stream).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Fault::NotPermitted(format!(
                "the agent cannot serve another network namespace than its own ({error}); it \
                 needs CAP_NET_ADMIN and CAP_SYS_ADMIN for that"
            )),
            _ => {
                Refusal::Failed(format!("the namespace of the socket is not known: {error}")).into()
            }
        })
    }

    /// Of which namespaces it may know all that is watched; `None` for all.
    pub(super) fn scope(&self, stream: &UnixStream, home: &Home) -> Result<Option<NetnsId>, Fault> {
        if self.sees_all {
            return Ok(None);
        }
        self.netns(stream, home).map(|netns| Some(netns.id()))
    }
}

/// What tells the namespace of a socket from all others, also of the past (`SO_NETNS_COOKIE`).
fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = [0_u64];
    let count = option(socket, libc::SO_NETNS_COOKIE, &mut cookie)?;
    match (count, cookie) {
        (1, [cookie]) => Ok(cookie),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The supplementary groups of the client when it connected (`SO_PEERGROUPS`).
fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    /// Whoever is in more of them is taken to be in none.
    const ENOUGH: usize = 1024;
    let mut groups = vec![0_u32; ENOUGH];
    let count = option(socket, libc::SO_PEERGROUPS, &mut groups)?;
    groups.truncate(count);
    Ok(groups)
}

/// A type of which any bytes are a value.
trait Plain: Copy {}
impl Plain for u32 {}
impl Plain for u64 {}

/// Reads an option of a socket; says how many values there are.
fn option<T: Plain>(socket: impl AsFd, name: libc::c_int, values: &mut [T]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of_val(values)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes no more bytes than `length` says, into memory that is that long,
    // and any bytes are values of the type.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(length as usize / size_of::<T>())
}
