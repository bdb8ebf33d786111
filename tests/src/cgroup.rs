//! Cgroups of version 2, as container runtimes make them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::stage::left_out;

/// Where they are mounted, alone and beside version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A cgroup. When it is dropped it is deleted, with all above it; this process is then in none.
#[derive(Debug)]
pub struct Cgroup {
    root: &'static Path,
    directory: PathBuf,
}

impl Cgroup {
    /// Makes it. Where there are none of version 2, the scenario is left out.
    pub fn new(path: &str) -> Result<Self> {
        let root = ROOTS
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists());
        let Some(root) = root else {
            return left_out(format!("no cgroups of version 2 at {}", ROOTS.join(" or ")));
        };
        let directory = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).context("cannot make a cgroup")?;
        Ok(Self { root, directory })
    }

    /// Where it is seen.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// This process enters it.
    pub fn enter(&self) -> Result<()> {
        self.take(std::process::id())
    }

    /// A process is put into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        put(pid, &self.directory).context("cannot put a process into a cgroup")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let Self { root, directory } = self;
        let _ = put(std::process::id(), root);
        // Up to the first that others use.
        for directory in directory.ancestors() {
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

fn put(pid: u32, cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string())
}
