//! Tells from outside whether a device is the one that it was: the inode number of its directory in sysfs.
//!
//! It survives renames and moves between namespaces and is not used again for another device (`kernfs` counts it up).
//! It is read later than the event that it is asked for, so it can only speak for now.

use std::{fs::File, io, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, statat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use crate::{InterfaceName, Netns};

/// The directory `class/net` of a sysfs that shows the links of one namespace.
#[derive(Debug)]
pub(crate) struct Generations {
    directory: Option<OwnedFd>,
}

impl Generations {
    /// A sysfs shows the namespace in which it was mounted, which need not be the one that is watched: so one is mounted
    /// for this purpose, on no path. Who may not do that makes do with `/sys` for the namespace that it lives in.
    pub(crate) fn new(netns: &Netns) -> Self {
        let directory = netns.run(mount_sysfs).or_else(|error| {
            if crate::netns::current_id()? == netns.id() {
                Ok(File::open("/sys/class/net")?.into())
            } else {
                Err(error)
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
    pub(crate) fn of(&self, name: &InterfaceName) -> Option<u64> {
        // The entry is a link to the device's own directory: following it is what tells devices apart.
        let status = statat(self.directory.as_ref()?, name.as_bytes(), AtFlags::empty());
        status.ok().map(|status| status.st_ino)
    }
}

fn mount_sysfs() -> io::Result<OwnedFd> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    Ok(openat(
        mount,
        "class/net",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
