//! The programs that the tests need: ifmon as it is shipped, and the scenarios.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{command, vm::Arch, workspace};

/// Static programs for one architecture.
pub(super) struct Programs {
    target: String,
    is_host: bool,
    pub(super) ifmon: PathBuf,
    pub(super) scenarios: PathBuf,
    pub(super) obstacles: PathBuf,
    pub(super) stress: PathBuf,
}

impl Programs {
    /// Builds ifmon in the release profile. The scenarios are built like the unit tests, so that what both need is
    /// compiled once, and so that a panic ends a scenario and not the program.
    pub(super) fn build(arch: Arch) -> Result<Self> {
        let is_host = arch.name() == env::consts::ARCH;
        let library = if is_host { "gnu" } else { "musl" };
        let target = format!("{arch}-unknown-linux-{library}");
        let dir = workspace::target_dir().join(&target);
        let programs = Self {
            target,
            is_host,
            ifmon: dir.join("release/ifmon"),
            scenarios: dir.join("debug/scenarios"),
            obstacles: dir.join("debug/obstacles"),
            stress: dir.join("debug/stress"),
        };
        println!("building the programs under test for {arch}");
        let builds: [&[&str]; 2] = [
            // With all that the packages have, so that there is nothing that no test has seen.
            &[
                "build",
                "--release",
                "--package",
                "ifmon",
                "--bin",
                "ifmon",
                "--features",
                "metrics",
            ],
            &[
                "build",
                "--package",
                "tests",
                "--bin",
                "scenarios",
                "--bin",
                "obstacles",
                "--bin",
                "stress",
            ],
        ];
        for args in builds {
            command::run(&mut programs.cargo(args)).context("cannot build the tests")?;
        }
        Ok(programs)
    }

    /// A cargo command that builds for the same target in the same way.
    pub(super) fn cargo(&self, args: &[&str]) -> Command {
        let mut flags = vec![OsString::from("-Ctarget-feature=+crt-static")];
        if !self.is_host {
            // With rustc's own linker and the target's own start files, no cross compiler is needed.
            flags.push("-Clinker=rust-lld".into());
            flags.push("-Clink-self-contained=yes".into());
        }
        let mut command = Command::new("cargo");
        command
            .current_dir(workspace::root())
            .args(args)
            .args(["--quiet", "--target", &self.target, "--target-dir"])
            .arg(workspace::target_dir())
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.join(&OsString::from("\x1f")),
            )
            // They are copied into machines with little memory.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("IFMON", &self.ifmon);
        command
    }

    /// The scenarios as a command on this machine.
    pub(super) fn scenarios(&self, args: &[impl AsRef<Path>]) -> Command {
        let mut command = Command::new(&self.scenarios);
        command
            .args(args.iter().map(AsRef::as_ref))
            .env("IFMON", &self.ifmon);
        command
    }
}
