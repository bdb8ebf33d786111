//! `cargo xtask api`: the library's public interface as a list, so that a change of it shows in a
//! review.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{command, host::Missing, workspace};

/// Where the list is, seen from the workspace.
const LIST: &str = "ifmon/api.txt";
const TOOL: &str = "cargo-public-api";
/// It reads what rustdoc writes in a format that changes: the two have to belong together.
const VERSION: &str = "0.52.0";
const TOOLCHAIN: &str = "nightly";

/// Write the list of what is public in the library, ifmon/api.txt, again
///
/// Takes a nightly toolchain and cargo-public-api, which it installs into target/tools. `cargo
/// xtask variants` compares the list with the code.
#[derive(clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(Options {}: Options) -> Result<ExitCode> {
    fs::write(path(), list()?).with_context(|| format!("cannot write {LIST}"))?;
    println!("wrote {LIST}");
    Ok(ExitCode::SUCCESS)
}

/// Is the list that of the code?
pub(crate) fn check() -> Result<()> {
    let now = list()?;
    let then = fs::read_to_string(path()).with_context(|| format!("cannot read {LIST}"))?;
    let differs = |one: &str, other: &str| -> Vec<String> {
        let other: Vec<&str> = other.lines().collect();
        let lines = one.lines().filter(|line| !other.contains(line));
        lines.map(str::to_owned).collect()
    };
    let (added, removed) = (differs(&now, &then), differs(&then, &now));
    ensure!(
        now == then,
        "the public interface has changed; `cargo xtask api` writes it down. New: {}. Gone: {}",
        added.join(", "),
        removed.join(", ")
    );
    Ok(())
}

fn path() -> PathBuf {
    workspace::root().join(LIST)
}

/// What is public, but for what every type has.
fn list() -> Result<String> {
    let mut list = Command::new(tool()?);
    list.current_dir(workspace::root())
        .args(["public-api", "--package=ifmon-watch", "-sss"])
        .args(["--no-default-features", "--features=agent,ebpf,serde"])
        .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
        .env("CARGO_TARGET_DIR", workspace::target_dir().join("api"));
    // Set by the cargo that runs this, for programs of its own toolchain.
    for key in ["CARGO", "RUSTC", "RUSTDOC"] {
        list.env_remove(key);
    }
    command::output(&mut list).map_err(|error| {
        Missing(format!(
            "{TOOL} {VERSION} cannot read what {TOOLCHAIN} Rust says: {error:#}"
        ))
        .into()
    })
}

fn tool() -> Result<PathBuf> {
    let missing = |what: &str, error| Missing(format!("{what} cannot be had: {error:#}"));
    let rustup = |args: &[&str]| command::output(Command::new("rustup").args(args));
    if rustup(&["run", TOOLCHAIN, "rustdoc", "--version"]).is_err() {
        rustup(&["toolchain", "install", TOOLCHAIN, "--profile=minimal"])
            .map_err(|error| missing("nightly Rust", error))?;
    }
    let root = workspace::target_dir().join("tools");
    let tool = root.join("bin").join(TOOL);
    let is_right = |tool: &Path| {
        command::output(Command::new(tool).args(["public-api", "--version"]))
            .is_ok_and(|version| version.trim().ends_with(VERSION))
    };
    if !is_right(&tool) {
        eprintln!("installing {TOOL} {VERSION}");
        command::output(
            Command::new("cargo")
                .args(["install", "--locked", "--debug", "--force", "--quiet"])
                .args([TOOL, "--version", VERSION, "--root"])
                .arg(&root),
        )
        .map_err(|error| missing(TOOL, error))?;
    }
    Ok(tool)
}
