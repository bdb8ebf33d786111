//! Tells from outside whether a device is the one that it was: the inode number of its directory in
//! sysfs.
//!
//! It survives renames and moves between namespaces and is not used again for another device
//! (`kernfs` counts it up). It is read later than the event that it is asked for, so it can only
//! speak for now.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fstat, openat, statat},
    io::{Errno, read},
};

use super::query::Query;
use crate::{Identity, InterfaceName, Netns, host::mount};

/// Links that are compared before it is believed that `/sys` shows the right ones.
const ENTRIES: usize = 64;

/// Where virtual devices are, those of the namespace that the sysfs shows: found here, a device
/// costs half of what the link in `class/net` does, which leads to the same directory.
const VIRTUAL: &[u8] = b"devices/virtual/net/";
/// Where all devices are.
const ALL: &[u8] = b"class/net/";

/// Names, and the inode number of each.
type Entries = Vec<(InterfaceName, u64)>;

/// A sysfs that shows the links of one namespace.
#[derive(Debug)]
pub(crate) struct Sysfs {
    root: Option<OwnedFd>,
}

impl Sysfs {
    /// A sysfs shows the namespace in which it was mounted, which need not be the one that is
    /// watched: so one is mounted for this purpose, on no path. Who may not do that makes do
    /// with `/sys`, where that is seen to show the right one.
    ///
    /// Where neither is to be had, no inode is known. That it takes what is missing at the moment is an
    /// error: it would be so for as long as the namespace is watched.
    pub(crate) fn new(netns: &Netns, query: &mut Query) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mounted = netns.run(|| mount::open("sysfs", ".", flags));
        let root = mounted.or_else(|error| {
            if is_for_want(&error) {
                Err(error)
            } else if shows_same_links(query)? {
                Ok(File::open("/sys")?.into())
            } else {
                Err(io::Error::other("/sys may show another one"))
            }
        });
        match root {
            Ok(root) => Ok(Self { root: Some(root) }),
            Err(error) if is_for_want(&error) => Err(error),
            Err(error) => {
                log::debug!("no sysfs for namespace {}: {error}", netns.id());
                Ok(Self { root: None })
            }
        }
    }

    /// The inode number of the device that has this name now.
    pub(crate) fn inode_of(&self, name: &InterfaceName) -> io::Result<Option<u64>> {
        self.look(name, |root, path| {
            // In `class/net` it is a link: following it is what tells devices apart.
            Ok(statat(root, path, AtFlags::empty())?.st_ino)
        })
    }

    /// The index and the inode number of the device that has this name now.
    pub(crate) fn identity_of(&self, name: &InterfaceName) -> io::Result<Option<Identity>> {
        self.look(name, |root, path| {
            // Whoever gets the name meanwhile: what was opened is one device's.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let device = openat(root, path, flags, Mode::empty())?;
            let inode = fstat(&device)?.st_ino;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = openat(&device, c"ifindex", flags, Mode::empty())?;
            let mut ifindex = [0; 16];
            let length = read(file, &mut ifindex)?;
            let ifindex = str::from_utf8(&ifindex[..length]).ok();
            let ifindex = ifindex.and_then(|ifindex| ifindex.trim().parse().ok());
            Ok(Identity::of_ifindex(ifindex.ok_or(Errno::INVAL)?).with_inode(inode))
        })
    }

    /// Looks a device up by its name, first where most are.
    fn look<T>(
        &self,
        name: &InterfaceName,
        look: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> io::Result<Option<T>> {
        let Some(root) = &self.root else {
            return Ok(None);
        };
        let look = |directory: &[u8]| look(root.as_fd(), &[directory, name.as_bytes()].concat());
        known(match look(VIRTUAL) {
            Err(Errno::NOENT) => look(ALL),
            found => found,
        })
    }

    /// The names and the inode numbers of all virtual devices, where that are no more than these.
    pub(crate) fn virtual_devices(&self, most: usize) -> io::Result<Option<Entries>> {
        self.list(VIRTUAL, most)
    }

    /// All devices, as far as they can be read.
    pub(crate) fn devices(&self) -> Entries {
        let list = |directory| self.list(directory, usize::MAX).ok().flatten();
        let mut devices = list(VIRTUAL).unwrap_or_default();
        devices.sort_unstable();
        let is_virtual = |name: &InterfaceName| {
            let found = devices.binary_search_by_key(name, |(name, _)| *name);
            found.is_ok()
        };
        let others = list(ALL).unwrap_or_default().into_iter();
        let others = others.map(|(name, _)| name);
        let others: Entries = others
            .filter(|name| !is_virtual(name))
            .filter_map(|name| Some((name, self.inode_of(&name).ok()??)))
            .collect();
        devices.extend(others);
        devices
    }

    /// What is in a directory, by its inode number; links by their own.
    fn list(&self, directory: &[u8], most: usize) -> io::Result<Option<Entries>> {
        let mut entries = Vec::new();
        let Some(root) = &self.root else {
            return Ok(Some(entries));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some(directory) = known(openat(root, directory, flags, Mode::empty()))? else {
            return Ok(Some(entries));
        };
        for entry in Dir::new(directory)? {
            let entry = entry?;
            // Neither `.` nor `..`.
            if let Ok(name) = InterfaceName::new(entry.file_name().to_bytes()) {
                entries.push((name, entry.ino()));
            }
            if entries.len() > most {
                return Ok(None);
            }
        }
        Ok(Some(entries))
    }
}

/// There is no descriptor, no memory or no thread for it at the moment.
fn is_for_want(error: &io::Error) -> bool {
    let error = Errno::from_io_error(error);
    error.is_some_and(|error| {
        matches!(
            error,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN
        )
    })
}

/// What was read, if there is such a device and it is for us to see.
fn known<T>(read: Result<T, Errno>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM) => Ok(None),
        // It is going.
        Err(Errno::NODEV | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Does `/sys` show the namespace that is asked?
///
/// Two namespaces can well have links of the same names and indexes, but not with the same hardware
/// addresses: those of virtual links are random, and those of real ones unique.
fn shows_same_links(query: &mut Query) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut proven = false;
    for entry in fs::read_dir("/sys/class/net")?.take(ENTRIES) {
        let entry = entry?;
        let Ok(name) = InterfaceName::new(entry.file_name().as_bytes()) else {
            continue;
        };
        let Ok(shown) = fs::read_to_string(entry.path().join("address")) else {
            // Files that are no links, such as `bonding_masters`, and links that have just gone.
            continue;
        };
        let Some(address) = query.address_of(&name)? else {
            return Ok(false);
        };
        let address: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
        if shown.trim() != address.join(":") {
            return Ok(false);
        }
        proven |= address.iter().any(|byte| byte != "00");
    }
    Ok(proven)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_what_is_not_there() {
        let name = InterfaceName::new("wg0").expect("a valid name");
        let inode_of = |root: Option<&str>| {
            let root = root.map(|root| File::open(root).expect("it is there").into());
            Sysfs { root }.inode_of(&name)
        };
        assert!(matches!(inode_of(None), Ok(None)));
        assert!(matches!(inode_of(Some("/proc/self")), Ok(None)));
        // Not a directory.
        assert!(inode_of(Some("/proc/self/stat")).is_err());
    }
}
