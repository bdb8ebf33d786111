//! Debian's Prometheus, for the machine: its program alone, since a system with all that its package
//! wants would be unpacked at each boot.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    scratch::ScratchDir,
    vm::{self, Arch, Suite, apt},
};

/// Unpacks it into `scratch`, from the package that is fetched or in the cache in `dir`.
pub(super) fn program(dir: &Path, scratch: &ScratchDir, suite: Suite) -> Result<PathBuf> {
    // Two runs at a time would fetch it twice.
    let lock = File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the cache of packages")?;
    let packages = vm::packages(dir, scratch, suite, Arch::host()?, &["prometheus"], |_| {
        false
    })?;
    let root = scratch.path().join("prometheus");
    apt::unpack(&packages, &root)?;
    Ok(root.join("usr/bin/prometheus"))
}
