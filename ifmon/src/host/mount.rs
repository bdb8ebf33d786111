//! Files of the kernel's own file systems, from a mount that is on no path: what is mounted where
//! others see it may be hidden, or may show another namespace.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Opens a file of a fresh mount of `file_system`. Takes CAP_SYS_ADMIN, and Linux 5.2.
pub(crate) fn open(file_system: &str, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    Ok(openat(mount, path, flags | OFlags::CLOEXEC, Mode::empty())?)
}
