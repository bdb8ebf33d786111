//! The system that the machine runs: Debian, with nothing of ours.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command, debian,
    host::{self, Tool},
    scratch::ScratchDir,
    vm::Suite,
};

const PACKAGES: [&str; 8] = [
    "dbus",
    "iproute2",
    "jq",
    "kmod",
    "procps",
    "systemd",
    "systemd-sysv",
    "wireguard-tools",
];
const TOOLS: [Tool; 1] = [Tool {
    program: "tar",
    package: "tar",
}];
/// What nobody reads there, and would be unpacked at each boot.
const LEFT_OUT: [&str; 4] = [
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./var/cache/apt/*",
];

/// Makes the tarball, or takes it from the cache in `dir`.
pub(super) fn prepare(dir: &Path, suite: Suite) -> Result<PathBuf> {
    // Two runs at a time would make it twice.
    let lock = File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the cache of systems")?;
    let system = dir.join(format!("{suite}.tar"));
    let recipe_file = dir.join(format!("{suite}.recipe"));
    // Stands for how a system is made, so that one made in another way is not used.
    let recipe = include_str!("root.rs");
    if system.exists() && fs::read_to_string(&recipe_file).is_ok_and(|made| made == recipe) {
        return Ok(system);
    }
    host::need(&TOOLS)?;
    let scratch = ScratchDir::new(dir)?;
    let root = scratch.path().join("root");
    debian::bootstrap(suite, &PACKAGES, &root, scratch.path())?;
    // An identity that is there: without one, systemd takes each boot for the first one, which
    // enables units.
    fs::write(
        root.join("etc/machine-id"),
        "1f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f\n",
    )?;
    fs::write(root.join("etc/hostname"), "machine\n")?;

    let made = scratch.path().join("tar");
    command::output(
        Command::new("tar")
            .args(["--create", "--format=gnu", "--numeric-owner"])
            .args(LEFT_OUT.map(|path| format!("--exclude={path}")))
            .arg("--file")
            .arg(&made)
            .arg("--directory")
            .arg(&root)
            .arg("."),
    )?;
    fs::rename(&made, &system)?;
    fs::write(&recipe_file, recipe)?;
    Ok(system)
}
