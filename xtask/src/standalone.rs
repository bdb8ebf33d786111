//! Builds programs that run on any system of an architecture: static, so that nothing has to be
//! there.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{command, host::Missing, vm::Arch, workspace};

const STATIC: &str = "-Ctarget-feature=+crt-static";

/// What cargo is told to build static programs for an architecture.
#[derive(Clone)]
pub(crate) struct Standalone {
    target: String,
    flags: OsString,
    target_dir: PathBuf,
}

impl Standalone {
    /// Makes sure that rustc can build for the architecture; [`Missing`] says that it cannot here.
    pub(crate) fn new(arch: Arch) -> Result<Self> {
        let target = arch.rust_target();
        if arch.is_host() {
            Ok(Self::with_flags(&target, &[STATIC]))
        } else {
            Self::foreign(&target)
        }
    }

    /// For a target that brings its own C library; [`Missing`] says that it cannot be had.
    pub(crate) fn foreign(target: &str) -> Result<Self> {
        standard_library(target)?;
        // With rustc's own linker and the target's own start files, no cross compiler is needed.
        let flags = [STATIC, "-Clinker=rust-lld", "-Clink-self-contained=yes"];
        Ok(Self::with_flags(target, &flags))
    }

    /// The same where the C library comes with a cross compiler.
    pub(crate) fn linked_by(linker: &str, target: &str) -> Result<Self> {
        standard_library(target)?;
        let linker = format!("-Clinker={linker}");
        Ok(Self::with_flags(target, &[STATIC, &linker]))
    }

    fn with_flags(target: &str, flags: &[&str]) -> Self {
        Self {
            target: target.to_owned(),
            flags: flags.join("\x1f").into(),
            target_dir: workspace::target_dir(),
        }
    }

    /// For this machine.
    pub(crate) fn host() -> Result<Self> {
        Self::new(Arch::host()?)
    }

    /// A cargo command (`build`, `test`) that builds in this way.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let Self {
            target,
            flags,
            target_dir,
        } = self;
        let mut command = Command::new("cargo");
        command
            .current_dir(workspace::root())
            .args([subcommand, "--quiet", "--target", target, "--target-dir"])
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags);
        command
    }

    /// Where a program is that was built in this profile, `debug` or `release`.
    pub(crate) fn program(&self, profile: &str, name: impl AsRef<Path>) -> PathBuf {
        self.target_dir.join(&self.target).join(profile).join(name)
    }
}

/// Makes sure that rustc can build for `target`.
fn standard_library(target: &str) -> Result<()> {
    let dir = command::output(Command::new("rustc").args([
        "--print",
        "target-libdir",
        "--target",
        target,
    ]))?;
    if PathBuf::from(dir.trim_end()).is_dir() {
        return Ok(());
    }
    eprintln!("installing Rust's standard library for {target}");
    command::output(Command::new("rustup").args(["target", "add", target])).map_err(|error| {
        Missing(format!(
            "Rust's standard library for {target} is missing and cannot be had (`rustup target add {target}`): {error:#}"
        ))
    })?;
    Ok(())
}
