//! The hierarchy of cgroups, version 2, as it is mounted.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use crate::host::mountinfo::unescape;

/// Cgroups that a search looks at. A host with more is told less.
const CGROUPS: usize = 20_000;

/// A mount of the hierarchy, which may show a part of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    mount_point: PathBuf,
    /// The cgroup that is mounted there, named from that of this process's cgroup namespace; `/..`
    /// is above it.
    root: OsString,
}

impl Hierarchy {
    /// The mount that shows the whole hierarchy, else one that shows a part.
    pub(super) fn find() -> Option<Self> {
        /// The root's, which `cgroup_setup_root` of `kernel/cgroup/cgroup.c` makes first.
        const ROOT: u64 = 1;
        let mut mounts = fs::read("/proc/self/mountinfo")
            .map(|mounts| Self::mounted(&mounts))
            .unwrap_or_else(|_| Self::usual());
        mounts.retain(Self::is_visible);
        let whole = mounts.iter().position(|hierarchy| {
            fs::metadata(&hierarchy.mount_point).is_ok_and(|directory| directory.ino() == ROOT)
        });
        (!mounts.is_empty()).then(|| mounts.swap_remove(whole.unwrap_or_default()))
    }

    /// The mounts in the text of `/proc/PID/mountinfo`, see proc_pid_mountinfo(5).
    pub(super) fn mounted(mountinfo: &[u8]) -> Vec<Self> {
        let mount = |line: &[u8]| {
            let mut fields = line.split(|&byte| byte == b' ');
            let root = fields.nth(3)?;
            let mount_point = fields.next()?;
            let kind = fields.skip_while(|field| field != b"-").nth(1)?;
            (kind == b"cgroup2").then(|| Self {
                mount_point: unescape(mount_point).into(),
                root: unescape(root),
            })
        };
        mountinfo
            .split(|&byte| byte == b'\n')
            .filter_map(mount)
            .collect()
    }

    /// Where version 2 is mounted alone and beside version 1, for a process that sees no `/proc`.
    fn usual() -> Vec<Self> {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(|mount_point| Self {
                mount_point: mount_point.into(),
                root: "/".into(),
            })
            .into()
    }

    /// Can it be seen, or is something else mounted over it?
    fn is_visible(&self) -> bool {
        /// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
        const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
        rustix::fs::statfs(&self.mount_point)
            .is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
    }

    /// The path of a process's cgroup, if it is this cgroup: by now the process id can be somebody
    /// else's, and it may be that of another pid namespace. The inode number tells.
    pub(super) fn path_of_process(&self, pid: u32, cgroup: u64) -> Option<String> {
        let cgroups = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
        let path = cgroups
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(b"0::"))?;
        let below = self.below(OsStr::from_bytes(path))?;
        let directory = fs::metadata(self.mount_point.join(below)).ok()?;
        (directory.ino() == cgroup).then(|| self.name(below))
    }

    /// Every cgroup, with paths that begin like those of [`Self::path_of_process`].
    pub(super) fn tree(&self) -> Tree {
        Tree::read(&self.mount_point, self.name(Path::new("")))
    }

    /// The path below the mount, of a cgroup as `/proc/PID/cgroup` names it. None of one that is
    /// elsewhere, such as `/../..` where the mount shows a cgroup namespace of its own.
    pub(super) fn below<'a>(&self, path: &'a OsStr) -> Option<&'a Path> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        let is_below = below.components().all(|part| part.as_os_str() != "..");
        is_below.then_some(below)
    }

    /// The whole path again. What is above the cgroup namespace has no name, so that one begins at
    /// the mount.
    pub(super) fn name(&self, below: &Path) -> String {
        let root = if self.root.as_bytes().starts_with(b"/..") {
            Path::new("/")
        } else {
            Path::new(&self.root)
        };
        join(root, below)
    }
}

/// A path for people. That of the root itself has no slash at its end.
fn join(root: &Path, below: &Path) -> String {
    if below.as_os_str().is_empty() {
        return root.to_string_lossy().into_owned();
    }
    root.join(below).to_string_lossy().into_owned()
}

/// Every cgroup below a mount, the nearest to the root first.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// The path of the first.
    root: String,
    cgroups: Vec<Cgroup>,
}

#[derive(Debug)]
struct Cgroup {
    /// Its id: the inode number of its directory.
    id: u64,
    /// The place of its parent. That of the first is its own.
    parent: usize,
    name: Box<OsStr>,
}

impl Tree {
    /// Reads the directories. Those that have no others in them, which are most, are not opened:
    /// each has dozens of files.
    pub(super) fn read(directory: &Path, root: String) -> Self {
        /// `kernfs_refresh_inode` of `fs/kernfs/inode.c` counts two links and one for each child.
        const LINKS_OF_A_LEAF: u64 = 2;
        let mut tree = Self {
            root,
            cgroups: Vec::new(),
        };
        let Ok(metadata) = fs::metadata(directory) else {
            return tree;
        };
        tree.cgroups.push(Cgroup {
            id: metadata.ino(),
            parent: 0,
            name: OsStr::new("").into(),
        });
        let mut at = 0;
        while at < tree.cgroups.len() {
            let path = directory.join(tree.below(at));
            let is_leaf = fs::symlink_metadata(&path)
                .is_ok_and(|metadata| metadata.nlink() == LINKS_OF_A_LEAF);
            let entries = (!is_leaf).then(|| fs::read_dir(path)).into_iter();
            for entry in entries.flatten().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if tree.cgroups.len() == CGROUPS {
                    return tree;
                }
                tree.cgroups.push(Cgroup {
                    id: entry.ino(),
                    parent: at,
                    name: entry.file_name().into(),
                });
            }
            at += 1;
        }
        tree
    }

    /// The path of the cgroup with this id.
    pub(super) fn path(&self, id: u64) -> Option<String> {
        let at = self.cgroups.iter().position(|cgroup| cgroup.id == id)?;
        Some(join(Path::new(&self.root), &self.below(at)))
    }

    fn below(&self, mut at: usize) -> PathBuf {
        let mut names = Vec::new();
        while let Some(cgroup) = self.cgroups.get(at).filter(|_| at != 0) {
            names.push(&*cgroup.name);
            at = cgroup.parent;
        }
        names.into_iter().rev().collect()
    }
}
