//! Builds ifmon so that it runs on any system of an architecture: static, in the release profile.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::arch::Arch;
use crate::{command, host::Missing, workspace};

const NAME: &str = "ifmon";

/// Builds the program and says where it is.
pub(crate) fn build(arch: Arch) -> Result<PathBuf> {
    let target = arch.rust_target();
    let mut flags = vec![OsString::from("-Ctarget-feature=+crt-static")];
    if !arch.is_host() {
        standard_library(&target)?;
        // With rustc's own linker and the target's own start files, no cross compiler is needed.
        flags.push("-Clinker=rust-lld".into());
        flags.push("-Clink-self-contained=yes".into());
    }
    let target_dir = workspace::target_dir();
    command::run(
        Command::new("cargo")
            .current_dir(workspace::root())
            .args([
                "build",
                "--quiet",
                "--release",
                "--package",
                NAME,
                "--bin",
                NAME,
            ])
            .args(["--target", &target, "--target-dir"])
            .arg(&target_dir)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.join(&OsString::from("\x1f")),
            ),
    )
    .with_context(|| format!("cannot build {NAME} for {arch}"))?;
    Ok(target_dir.join(&target).join("release").join(NAME))
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
