//! Network namespaces: opening one, naming it, doing something inside it.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{Error, host::mountinfo::unescape};

/// Where `ip netns` keeps its names (`NETNS_RUN_DIR` of iproute2).
pub(crate) const NAMES: &str = "/run/netns";

/// The inode number of a network namespace, as `readlink /proc/PID/ns/net` shows it.
///
/// The kernel gives the number of a namespace that has ended to the next one; ifmon notices the
/// end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct NetnsId(pub u32);

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl NetnsId {
    /// The number that none has: in what is said of a pattern as a whole that is watched in all of them.
    pub const ALL: Self = Self(0);

    /// The name that `ip netns` gave to the namespace, where it has one. What is not UTF-8 appears
    /// as U+FFFD; see also [`Netns::names`].
    pub fn name(self) -> Option<String> {
        let (name, _) = Netns::names().find(|&(_, id)| id == self)?;
        Some(name.to_string_lossy().into_owned())
    }
}

/// An open network namespace. The namespace lives as long as this or a clone of it does.
#[derive(Clone, Debug)]
pub struct Netns {
    /// `None` for the one in which this process is, where the kernel does not let it be opened.
    file: Option<Arc<File>>,
    id: NetnsId,
    /// [`Self::cookie`], where it was asked for: it says whether a thread is in it without `/proc`, too.
    cookie: Option<u64>,
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// Where there is no `/proc`, and no right to ask a socket, it is known by the number 0, and
    /// only the thread itself can go on in it; so it is where the kernel has no network namespaces.
    ///
    /// # Errors
    /// [`Error::Netns`] when `/proc` shows something else there.
    pub fn current() -> Result<Self, Error> {
        const OWN: &str = "/proc/thread-self/ns/net";
        let opened = if Path::new(OWN).exists() {
            Self::from_path(OWN)?
        } else {
            let of_a_socket = || Self::of_socket(UnixDatagram::unbound().ok()?).ok();
            of_a_socket().unwrap_or(Self {
                file: None,
                id: NetnsId(0),
                cookie: None,
            })
        };
        Ok(Self {
            cookie: own_cookie().ok(),
            ..opened
        })
    }

    /// The namespace of the calling thread; where its number cannot be read, and it is the one where
    /// this was made, this.
    pub(crate) fn current_or(home: &Self) -> Result<Self, Error> {
        let current = Self::current()?;
        let is_home = current.cookie.is_some() && current.cookie == home.cookie;
        Ok(if current.id == NetnsId(0) && is_home {
            home.clone()
        } else {
            current
        })
    }

    /// The same for the threads that are in it alone: it does not keep it alive.
    pub(crate) fn unopened(self) -> Self {
        Self { file: None, ..self }
    }

    /// The namespace of a socket: for one that was accepted by a unix socket, that of whoever
    /// connected. Takes CAP_NET_ADMIN in that namespace.
    ///
    /// # Errors
    /// Those of the kernel; before Linux 4.10 there is no such request.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        /// `SIOCGSKNS` of `include/uapi/linux/sockios.h`
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: the request takes no argument, and gives a new descriptor or an error.
        let file = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made, and is nobody else's.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
        let id = inode(&file.metadata()?)?;
        Ok(Self {
            file: Some(Arc::new(file)),
            id,
            cookie: None,
        })
    }

    /// A namespace by the name that `ip netns add` gave it, by the path of a file that stands for
    /// it, or by the id of a process in it: a word with a `/` is a path, a name under
    /// `/run/netns` goes before a number.
    ///
    /// # Errors
    /// [`Error::Netns`] when there is no such namespace, or when opening it is not permitted.
    pub fn find(what: impl AsRef<OsStr>) -> Result<Self, Error> {
        let what = what.as_ref();
        if what.as_bytes().contains(&b'/') {
            return Self::from_path(what);
        }
        let pid = what.to_str().and_then(|what| what.parse::<u32>().ok());
        match pid.filter(|_| !Path::new(NAMES).join(what).exists()) {
            Some(pid) => Self::from_path(format!("/proc/{pid}/ns/net")),
            None => Self::named(what),
        }
    }

    /// One of a simulated host.
    #[cfg(all(test, feature = "cli"))]
    pub(crate) const fn simulated(id: NetnsId) -> Self {
        Self {
            file: None,
            id,
            cookie: None,
        }
    }

    /// The names that `ip netns` gave, and the namespaces that have them.
    pub fn names() -> impl Iterator<Item = (OsString, NetnsId)> {
        fs::read_dir(NAMES)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|entry| Some((entry.file_name(), id_of(&entry.path()).ok()?)))
    }

    /// The one to which `ip netns` gave this name.
    pub(crate) fn named(name: impl AsRef<OsStr>) -> Result<Self, Error> {
        Self::from_path(Path::new(NAMES).join(name.as_ref()))
    }

    /// The namespace that a file stands for: `/proc/PID/ns/net`, or a bind mount of such a file.
    ///
    /// # Errors
    /// [`Error::Netns`] when the file cannot be opened or is no network namespace.
    pub fn from_path(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let open = || -> io::Result<Self> {
            let refused =
                || io::Error::new(io::ErrorKind::InvalidInput, "this is no network namespace");
            // Asked before it is opened, since opening a pipe waits and opening a device does
            // whatever it does; and opened so that nothing is waited for, should it be
            // replaced in between.
            if !is_nsfs(&rustix::fs::statfs(&path)?) {
                return Err(refused());
            }
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
            if !is_netns(&file) {
                return Err(refused());
            }
            let id = inode(&file.metadata()?)?;
            Ok(Self {
                file: Some(Arc::new(file)),
                id,
                cookie: None,
            })
        };
        open().map_err(|source| Error::Netns { path, source })
    }

    /// Its inode number; 0 where the kernel does not say.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// A number that no other namespace gets before the host starts anew, unlike [`Self::id`].
    ///
    /// # Errors
    /// Before Linux 5.14, and when the namespace cannot be entered.
    pub fn cookie(&self) -> io::Result<u64> {
        match self.cookie {
            Some(cookie) => Ok(cookie),
            None => self.run(own_cookie),
        }
    }

    /// Is the calling thread in it?
    fn is_current(&self) -> bool {
        match current_id() {
            Ok(own) => own == self.id,
            Err(_) => Self::current().is_ok_and(|own| {
                let has_cookie = own.cookie.is_some() && own.cookie == self.cookie;
                has_cookie || own.id != NetnsId(0) && own.id == self.id
            }),
        }
    }

    /// The open file that stands for it.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }

    /// Does something inside the namespace: on this thread when it is there already, else on one
    /// that goes there.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        // Asked each time: threads change their namespace, and this may not be the thread that
        // opened it.
        let Some(file) = self.file() else {
            return act();
        };
        if self.is_current() {
            return act();
        }
        on_a_thread(|| {
            move_into_link_name_space(file, Some(LinkNameSpaceType::Network))
                .map_err(needs_capability)?;
            act()
        })
    }
}

/// Where the namespaces of the host can be opened.
#[derive(Debug, Default)]
pub(crate) struct Places(HashMap<NetnsId, PathBuf>);

impl Places {
    /// Looks for all that processes are in, or that are mounted; says which there are.
    ///
    /// # Errors
    /// When that cannot be found out, which does not say that there are none.
    pub(crate) fn look(&mut self) -> io::Result<Vec<NetnsId>> {
        match self.look_in(Path::new("/proc")) {
            // There is no `/proc`.
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            found => found,
        }
    }

    fn look_in(&mut self, proc: &Path) -> io::Result<Vec<NetnsId>> {
        let Self(places) = self;
        places.clear();
        for process in fs::read_dir(proc)? {
            let process = process?;
            if !process
                .file_name()
                .as_bytes()
                .iter()
                .all(u8::is_ascii_digit)
            {
                continue;
            }
            let path = process.path().join("ns/net");
            let link = match fs::read_link(&path) {
                Ok(link) => link,
                // A kernel thread's, one that has gone, or one that is not shown to everybody: whoever may
                // see few finds those that he may enter.
                Err(error)
                    if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(netns) = link.to_str().and_then(linked) {
                places.entry(netns).or_insert(path);
            }
        }
        // These do not go with a process.
        let mounts = match fs::read(proc.join("self/mountinfo")) {
            // It is the `/proc` of a pid namespace that this process is not in.
            Err(error) if is_gone(&error) => Vec::new(),
            mounts => mounts?,
        };
        places.extend(mounts.split(|&byte| byte == b'\n').filter_map(mounted));
        Ok(places.keys().copied().collect())
    }

    /// What is offered, if that is this one: meanwhile another can have to be opened. Else it is
    /// looked for.
    pub(crate) fn handle(&mut self, offered: Option<&Netns>, netns: NetnsId) -> io::Result<Netns> {
        match offered {
            Some(handle) if handle.id() == netns => Ok(handle.clone()),
            _ => self.find(netns),
        }
    }

    fn find(&mut self, netns: NetnsId) -> io::Result<Netns> {
        if let Ok(found) = self.open(netns) {
            return Ok(found);
        }
        self.look()?;
        self.open(netns)
    }

    fn open(&self, netns: NetnsId) -> io::Result<Netns> {
        let Self(places) = self;
        let away = || io::Error::from(io::ErrorKind::NotFound);
        match Netns::from_path(places.get(&netns).ok_or_else(away)?) {
            Ok(found) if found.id() == netns => Ok(found),
            Err(Error::Netns { source, .. }) if !is_gone(&source) => Err(source),
            _ => Err(away()),
        }
    }
}

/// Is it gone, or is something else there?
fn is_gone(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ESRCH)
}

/// The namespace that a link of `/proc/PID/ns/net` names, as `net:[4026531840]`.
fn linked(link: &str) -> Option<NetnsId> {
    let number = link.strip_prefix("net:[")?.strip_suffix(']')?;
    number.parse().map(NetnsId).ok()
}

/// The namespace that is mounted by a line of `/proc/PID/mountinfo`, and where (`proc(5)`).
fn mounted(line: &[u8]) -> Option<(NetnsId, PathBuf)> {
    let mut fields = line.split(|&byte| byte == b' ').skip(3);
    let netns = linked(std::str::from_utf8(fields.next()?).ok()?)?;
    Some((netns, unescape(fields.next()?).into()))
}

/// A refusal says what was missing: the number alone sends people to look at the file's mode.
fn needs_capability(errno: rustix::io::Errno) -> io::Error {
    if errno == rustix::io::Errno::PERM {
        let why = "entering another network namespace takes CAP_SYS_ADMIN; \
                   run it as root or give it the capability";
        return io::Error::new(io::ErrorKind::PermissionDenied, why);
    }
    errno.into()
}

/// Does something on a thread of its own, which ends with it.
///
/// # Errors
/// Those of the act itself, and of making a thread: there can be a limit (`pids.max`).
pub(crate) fn on_a_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, act)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// [`Netns::cookie`] of the calling thread's namespace.
fn own_cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the option is a number of 64 bits, for which there is room.
    let read = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// The id of the calling thread's namespace.
pub(crate) fn current_id() -> io::Result<NetnsId> {
    id_of(Path::new("/proc/thread-self/ns/net"))
}

fn id_of(path: &Path) -> io::Result<NetnsId> {
    inode(&fs::metadata(path)?)
}

fn inode(metadata: &fs::Metadata) -> io::Result<NetnsId> {
    use std::os::unix::fs::MetadataExt as _;
    // The kernel's own type for it is `unsigned int` (`struct ns_common`).
    u32::try_from(metadata.ino())
        .map(NetnsId)
        .map_err(io::Error::other)
}

/// Is it the file system of namespaces?
fn is_nsfs(fs: &rustix::fs::StatFs) -> bool {
    /// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    fs.f_type as u64 == NSFS_MAGIC
}

/// Is this file a network namespace, and not something else that happens to have an inode number?
fn is_netns(file: &File) -> bool {
    let on_nsfs = rustix::fs::fstatfs(file).is_ok_and(|fs| is_nsfs(&fs));
    // Every kind of namespace is on nsfs; the link in /proc says which kind it is.
    on_nsfs
        && fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .ok()
            .is_none_or(|link| {
                let link = link.to_string_lossy();
                !link.contains(":[") || link.starts_with("net:[")
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_namespace_is_found_where_it_is() {
        let place = |netns, path: &str| Some((NetnsId(netns), PathBuf::from(path)));
        for (line, found) in [
            (
                "36 35 0:4 net:[4026532280] /run/netns/web rw shared:9 - nsfs nsfs rw",
                place(4_026_532_280, "/run/netns/web"),
            ),
            (
                r"36 35 0:4 net:[4026532280] /run/a\040b\134c rw - nsfs nsfs rw",
                place(4_026_532_280, r"/run/a b\c"),
            ),
            ("36 35 0:4 mnt:[4026532280] /run/a rw - nsfs nsfs rw", None),
            (
                "36 35 98:0 /mnt1 /mnt2 rw,noatime - ext3 /dev/root rw",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(mounted(line.as_bytes()), found, "{line}");
        }
    }

    #[test]
    fn the_own_namespace_is_among_all() {
        let own = current_id().expect("it has a number");
        let mut places = Places::default();
        let all = places.look().expect("they can be looked for");
        assert!(all.contains(&own));
        assert_eq!(places.find(own).expect("it can be opened").id(), own);
        assert!(places.find(NetnsId(1)).is_err());
    }

    #[test]
    fn what_cannot_be_looked_for_is_not_away() {
        let folder = std::env::temp_dir().join(format!("ifmon-proc-{}", std::process::id()));
        fs::create_dir_all(folder.join("1")).expect("a folder can be made");
        std::os::unix::fs::symlink("ns", folder.join("1/ns")).expect("a link can be made");
        let mut places = Places::default();
        let looked = places.look_in(&folder);
        fs::remove_dir_all(&folder).expect("it can be removed");
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(looked.map_err(errno), Err(Some(libc::ELOOP)));
        let (own, other) = (PathBuf::from("/proc/self/ns/net"), NetnsId(1));
        let place = own.join("x");
        for (place, why) in [(own, None), (place, Some(libc::ENOTDIR))] {
            let places = Places(HashMap::from([(other, place)]));
            let opened = places.open(other).map(|netns| netns.id());
            assert_eq!(opened.map_err(errno), Err(why));
        }
    }

    #[test]
    fn what_is_offered_is_taken_for_itself_alone() {
        let other = Netns {
            file: None,
            id: NetnsId(1),
            cookie: None,
        };
        let own = current_id().expect("it has a number");
        let mut places = Places::default();
        let mut opened = |netns| {
            let handle = places.handle(Some(&other), netns);
            handle.map(|handle| handle.id()).ok()
        };
        assert_eq!(opened(own), Some(own));
        assert_eq!(opened(NetnsId(1)), Some(NetnsId(1)));
        assert_eq!(opened(NetnsId(2)), None);
    }
}
