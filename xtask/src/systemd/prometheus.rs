//! Debian's Prometheus, for the machine: its program alone, since a system with all that its package
//! wants would be unpacked at each boot.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    scratch::ScratchDir,
    vm::{
        Arch, Suite,
        apt::{self, Apt},
    },
};

/// Fetches it, or takes it from the cache in `dir`.
pub(super) fn program(dir: &Path, suite: Suite) -> Result<PathBuf> {
    // Two runs at a time would fetch it twice.
    let lock = File::create(dir.join("prometheus.lock"))?;
    lock.lock().context("cannot lock the cache of programs")?;
    let folder = dir.join(format!("{suite}-programs"));
    let program = folder.join("prometheus");
    if !program.exists() {
        eprintln!("downloading prometheus of Debian {suite}");
        let scratch = ScratchDir::new(dir)?;
        let packages = scratch.path().join("packages");
        let apt = Apt::new(
            &scratch.path().join("apt"),
            suite.name(),
            Arch::host()?.debian(),
        )?;
        apt.download(&["prometheus"], |_| false, &packages)?;
        let root = scratch.path().join("root");
        apt::unpack(&packages, &root)?;
        fs::create_dir_all(&folder)?;
        fs::rename(root.join("usr/bin/prometheus"), &program)
            .context("the package has no usr/bin/prometheus")?;
    }
    Ok(program)
}
