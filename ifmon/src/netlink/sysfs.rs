//! Tells from outside whether a device is the one that it was: the inode number of its directory in
//! sysfs.
//!
//! It survives renames and moves between namespaces and is not used again for another device
//! (`kernfs` counts it up). It is read later than the event that it is asked for, so it can only
//! speak for now.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fstat, openat, statat},
    io::{Errno, read},
};

use super::query::Query;
use crate::{Identity, InterfaceName, Netns, host::mount};

/// Links that are compared before it is believed that `/sys` shows the right ones.
const ENTRIES: usize = 64;

/// The directory `class/net` of a sysfs that shows the links of one namespace.
#[derive(Debug)]
pub(crate) struct Sysfs {
    directory: Option<OwnedFd>,
}

impl Sysfs {
    /// A sysfs shows the namespace in which it was mounted, which need not be the one that is
    /// watched: so one is mounted for this purpose, on no path. Who may not do that makes do
    /// with `/sys`, where that is seen to show the right one.
    pub(crate) fn new(netns: &Netns, query: &mut Query) -> Self {
        let directory = netns
            .run(|| mount::open("sysfs", "class/net", OFlags::PATH | OFlags::DIRECTORY))
            .or_else(|_| {
                if shows_same_links(query)? {
                    Ok(File::open("/sys/class/net")?.into())
                } else {
                    Err(io::Error::other("/sys may show another one"))
                }
            });
        if let Err(error) = &directory {
            log::debug!("no sysfs for namespace {}: {error}", netns.id());
        }
        Self {
            directory: directory.ok(),
        }
    }

    /// The inode number of the device that has this name now.
    pub(crate) fn inode_of(&self, name: &InterfaceName) -> io::Result<Option<u64>> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        // The entry is a link to the device's own directory: following it is what tells devices
        // apart.
        known(statat(directory, name.as_bytes(), AtFlags::empty()).map(|status| status.st_ino))
    }

    /// The index and the inode number of the device that has this name now.
    pub(crate) fn identity_of(&self, name: &InterfaceName) -> io::Result<Option<Identity>> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        // Whoever gets the name meanwhile: what was opened is one device's.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        known(
            openat(directory, name.as_bytes(), flags, Mode::empty()).and_then(|device| {
                let inode = fstat(&device)?.st_ino;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = openat(&device, c"ifindex", flags, Mode::empty())?;
                let mut ifindex = [0; 16];
                let length = read(file, &mut ifindex)?;
                let ifindex = str::from_utf8(&ifindex[..length]).ok();
                let ifindex = ifindex.and_then(|ifindex| ifindex.trim().parse().ok());
                Ok(Identity::of_ifindex(ifindex.ok_or(Errno::INVAL)?).with_inode(inode))
            }),
        )
    }
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

impl Sysfs {
    /// The name of the device that has this inode number now.
    pub(crate) fn find(&self, inode: u64) -> Option<InterfaceName> {
        let directory = openat(
            self.directory.as_ref()?,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let entries = Dir::new(directory.ok()?).ok()?;
        entries
            .filter_map(|entry| InterfaceName::new(entry.ok()?.file_name().to_bytes()).ok())
            .find(|name| matches!(self.inode_of(name), Ok(Some(found)) if found == inode))
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
        let sysfs = |path: &str| Sysfs {
            directory: Some(File::open(path).expect("it is there").into()),
        };
        let name = InterfaceName::new("wg0").expect("a valid name");
        let hidden = Sysfs { directory: None };
        assert!(matches!(hidden.inode_of(&name), Ok(None)));
        assert!(matches!(sysfs("/proc/self/fd").inode_of(&name), Ok(None)));
        // Not a directory.
        assert!(sysfs("/proc/self/stat").inode_of(&name).is_err());
    }
}
