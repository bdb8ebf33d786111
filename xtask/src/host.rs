//! The machine that xtask runs on: finds the programs it needs, and has the package manager install
//! those that miss.

use std::{
    env,
    fmt::{self, Display, Formatter},
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;

use crate::command;

/// Something that this machine lacks and that xtask cannot get: no fault of the project, so that a
/// caller may leave a step out and say why. Found in an [`anyhow::Error`] by `downcast_ref`.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(what) = self;
        f.write_str(what)
    }
}

impl std::error::Error for Missing {}

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const IP: Tool = Tool {
    program: "ip",
    package: "iproute2",
};

pub(crate) const UNSHARE: Tool = Tool {
    program: "unshare",
    package: "util-linux",
};

/// Makes sure that the programs are there.
pub(crate) fn need(tools: &[Tool]) -> Result<()> {
    let missing = |tool: &&Tool| !is_program(tool.program);
    let mut packages: Vec<_> = tools
        .iter()
        .filter(missing)
        .map(|tool| tool.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages)
}

/// Installs Debian's packages of these names.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if !is_root() || !is_program("apt-get") {
        return Err(Missing(format!(
            "missing packages: {names} (by their Debian names); install them, or run this as root where apt is"
        ))
        .into());
    }
    let _turn = turn();
    eprintln!("installing {names}");
    let install = || {
        command::output(
            apt_get()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    };
    // Package lists that are missing or too old make the first attempt fail.
    install()
        .or_else(|_| {
            update()?;
            install()
        })
        .map_err(|error| Missing(format!("cannot install {names}: {error:#}")))?;
    Ok(())
}

pub(crate) fn update_package_lists() -> Result<()> {
    let _turn = turn();
    update()
}

fn update() -> Result<()> {
    command::output(apt_get().arg("update")).map(drop)
}

/// Jobs run side by side, and the package manager does one thing at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get
        .arg("--quiet")
        // Others on this machine may be installing something as well.
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

pub(crate) fn is_program(name: &str) -> bool {
    let is_executable = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| is_executable(&dir.join(name))))
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
