//! Network namespaces: opening one, naming it, doing something inside it.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;

/// Where `ip netns` keeps its names (`NETNS_RUN_DIR` of iproute2).
const NAMES: &str = "/run/netns";

/// The inode number of a network namespace, as `readlink /proc/PID/ns/net` shows it.
///
/// The kernel gives the number of a namespace that has ended to the next one; ifmon notices the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(pub u32);

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl NetnsId {
    /// The name that `ip netns` gave to the namespace, where it has one.
    pub fn name(self) -> Option<String> {
        fs::read_dir(NAMES)
            .ok()?
            .filter_map(Result::ok)
            .find(|entry| id_of(&entry.path()).is_ok_and(|id| id == self))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
    }
}

/// An open network namespace. The namespace lives as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Netns`] when `/proc` is not there.
    pub fn current() -> Result<Self, Error> {
        Self::from_path("/proc/thread-self/ns/net")
    }

    /// A namespace by the name that `ip netns add` gave it, by the path of a file that stands for it, or by the id of a
    /// process in it: a word with a `/` is a path, a name under `/run/netns` goes before a number.
    ///
    /// # Errors
    /// [`Error::Netns`] when there is no such namespace, or when opening it is not permitted.
    pub fn find(what: &str) -> Result<Self, Error> {
        if what.contains('/') {
            return Self::from_path(what);
        }
        let named = Path::new(NAMES).join(what);
        if named.exists() || what.parse::<u32>().is_err() {
            return Self::from_path(named);
        }
        Self::from_path(format!("/proc/{what}/ns/net"))
    }

    /// Those that `ip netns` gave a name to.
    pub(crate) fn named() -> impl Iterator<Item = Self> {
        fs::read_dir(NAMES)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|entry| Self::from_path(entry.path()).ok())
    }

    /// The namespace that a file stands for: `/proc/PID/ns/net`, or a bind mount of such a file.
    ///
    /// # Errors
    /// [`Error::Netns`] when the file cannot be opened or is no network namespace.
    pub fn from_path(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let open = || -> io::Result<Self> {
            let file = File::open(&path)?;
            if !is_netns(&file) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "this is no network namespace",
                ));
            }
            let id = inode(&file.metadata()?)?;
            Ok(Self { file, id })
        };
        open().map_err(|source| Error::Netns { path, source })
    }

    /// Its inode number.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// One that nobody can go to.
    #[cfg(test)]
    pub(crate) fn unreachable() -> Self {
        Self {
            file: File::open("/dev/null").expect("it is everywhere"),
            id: NetnsId(0),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            id: self.id,
        })
    }

    /// The open file that stands for it.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does something inside the namespace: on this thread when it is there already, else on one that goes there.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        // Asked each time: threads change their namespace, and this may not be the thread that opened it.
        if current_id().is_ok_and(|own| own == self.id) {
            return act();
        }
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    act()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
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

/// Is this file a network namespace, and not something else that happens to have an inode number?
fn is_netns(file: &File) -> bool {
    /// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let on_nsfs = rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type as u64 == NSFS_MAGIC);
    // Every kind of namespace is on nsfs; the link in /proc says which kind it is.
    on_nsfs
        && std::os::fd::AsRawFd::as_raw_fd(file)
            .try_into()
            .ok()
            .and_then(|fd: u32| fs::read_link(format!("/proc/self/fd/{fd}")).ok())
            .is_none_or(|link| {
                let link = link.to_string_lossy();
                !link.contains(":[") || link.starts_with("net:[")
            })
}
