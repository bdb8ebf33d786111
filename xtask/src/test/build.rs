//! The programs that the tests need: ifmon as it is shipped, and the scenarios.

use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};

use crate::{command, standalone::Standalone, vm::Arch};

/// Static programs for one architecture.
#[derive(Clone)]
pub(super) struct Programs {
    standalone: Standalone,
    pub(super) ifmon: PathBuf,
    pub(super) scenarios: PathBuf,
    pub(super) obstacles: PathBuf,
    pub(super) stress: PathBuf,
}

impl Programs {
    /// Builds ifmon in the release profile; for another processor without the optimisation of the
    /// whole, which takes longer than the scenarios there. The scenarios are built like the unit
    /// tests, so that what both need is compiled once, and so that a panic ends a scenario and
    /// not the program.
    pub(super) fn build(arch: Arch) -> Result<Self> {
        let standalone = Standalone::new(arch)?;
        let programs = Self {
            ifmon: standalone.program("release", "ifmon"),
            scenarios: standalone.program("debug", "scenarios"),
            obstacles: standalone.program("debug", "obstacles"),
            stress: standalone.program("debug", "stress"),
            standalone,
        };
        println!("building the programs under test for {arch}");
        // With all that the packages have, so that there is nothing that no test has seen.
        let ifmon = ["--release", "--package", "ifmon-watch", "--bin", "ifmon"];
        let tests = ["scenarios", "obstacles", "stress"];
        let mut shipped = programs.cargo("build");
        shipped.args(ifmon).args(["--features", "metrics"]);
        if !arch.is_host() {
            shipped.envs([
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ]);
        }
        let mut others = programs.cargo("build");
        others.args(["--package", "tests"]);
        others.args(tests.iter().flat_map(|name| ["--bin", *name]));
        let mut others = vec![others];
        if arch.is_host() {
            let mut units = programs.cargo("test");
            units.arg("--no-run");
            others.push(units);
        }
        // Beside each other, since linking what is shipped takes one processor for long.
        thread::scope(|scope| {
            let builds = [vec![shipped], others].map(|builds| {
                scope.spawn(|| {
                    builds
                        .into_iter()
                        .try_for_each(|mut build| command::run(&mut build))
                })
            });
            builds
                .into_iter()
                .try_for_each(|build| build.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
        .context("cannot build the tests")?;
        Ok(programs)
    }

    /// A cargo command that builds for the same target in the same way.
    pub(super) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = self.standalone.cargo(subcommand);
        command
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
