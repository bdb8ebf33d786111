//! Debian systems, made by mmdebstrap.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    host::{self, Missing, Tool},
    scratch::ScratchDir,
    vm::{Suite, apt},
    workspace,
};

const TOOLS: [Tool; 1] = [Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
}];

/// What a client of the agent in C is built with; has varlinkctl, too.
const FOR_CLIENTS: [&str; 4] = ["gcc", "libc6-dev", "libsystemd-dev", "systemd"];
/// The first release with sd-varlink.
const WITH_VARLINK: Suite = Suite::Trixie;

/// Makes a system with these packages in `root`; `scratch` is for what that takes.
pub(crate) fn bootstrap(
    suite: Suite,
    packages: &[&str],
    root: &Path,
    scratch: &Path,
) -> Result<()> {
    if !host::is_root() {
        let why = "making the root of a Debian system takes root, for its devices and owners";
        return Err(Missing(why.into()).into());
    }
    host::need(&TOOLS)?;
    eprintln!("making a system of Debian {suite}");
    let sources = scratch.join("sources.list");
    fs::write(&sources, apt::sources(suite.name())?)?;
    command::output(
        Command::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=minbase"])
            .arg(format!("--include={}", packages.join(",")))
            .arg(suite.name())
            .arg(root)
            .arg(&sources),
    )
    .map_err(|error| Missing(format!("cannot make a system of Debian {suite}: {error:#}")))?;
    Ok(())
}

/// The root of a system in which clients of the agent are built and run; made once.
pub(crate) fn for_clients() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("debian");
    fs::create_dir_all(&dir)?;
    // Two runs at a time would make it twice.
    let lock = File::create(dir.join("lock"))?;
    lock.lock().context("cannot lock the cache of systems")?;
    // By what is in it, so that another one is made when that changes.
    let root = dir.join(format!("{WITH_VARLINK}-{}", FOR_CLIENTS.join("-")));
    if !root.exists() {
        let scratch = ScratchDir::new(&dir)?;
        let made = scratch.path().join("root");
        bootstrap(WITH_VARLINK, &FOR_CLIENTS, &made, scratch.path())?;
        fs::rename(&made, &root)?;
    }
    Ok(root)
}
