//! The compiler and the linker that decide the bytes of the object.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{command, host::Missing, workspace};

/// The compiler whose bytes are shipped: another one gives another object, though as good a one.
pub(super) const RUSTC: &str = "1.95.0";
/// The last one that links with the LLVM inside rustc, so that none has to be installed.
pub(super) const BPF_LINKER: &str = "0.10.3";

pub(super) struct Toolchain {
    pub(super) sysroot: PathBuf,
    pub(super) bpf_linker: PathBuf,
    /// `llvm-objcopy` as it comes with rustc, which strips with it.
    pub(super) objcopy: PathBuf,
}

impl Toolchain {
    /// Finds or installs all parts; [`Missing`] says which cannot be had here.
    pub(super) fn find() -> Result<Self> {
        let version = command::output(Command::new("rustc").arg("-vV"))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("`rustc -vV` says no {name}"))
        };
        let release = field("release: ")?;
        if release != RUSTC {
            return Err(Missing(format!(
                "the BPF object is built by rustc {RUSTC} and this is {release}: \
                 run `rustup run {RUSTC} cargo xtask ebpf`"
            ))
            .into());
        }
        let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim_end());
        let objcopy = sysroot
            .join("lib/rustlib")
            .join(field("host: ")?)
            .join("bin/rust-objcopy");
        if !objcopy.exists() {
            return Err(Missing(format!(
                "{} is missing: it comes with rustup's toolchains",
                objcopy.display()
            ))
            .into());
        }
        rust_src(&sysroot).map_err(|error| {
            Missing(format!(
                "the sources of Rust's core library are missing and cannot be had \
                 (`rustup component add rust-src`): {error:#}"
            ))
        })?;
        let bpf_linker = bpf_linker().map_err(|error| {
            Missing(format!(
                "bpf-linker {BPF_LINKER} is missing and cannot be had: {error:#}"
            ))
        })?;
        Ok(Self {
            sysroot,
            bpf_linker,
            objcopy,
        })
    }
}

fn rust_src(sysroot: &Path) -> Result<()> {
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.exists() {
        return Ok(());
    }
    eprintln!("installing the compiler component rust-src");
    command::output(Command::new("rustup").args(["component", "add", "rust-src"])).map(drop)
}

fn bpf_linker() -> Result<PathBuf> {
    let tools = workspace::target_dir().join("tools");
    let bpf_linker = tools.join("bin/bpf-linker");
    let version = command::output(Command::new(&bpf_linker).arg("--version"));
    if version.is_ok_and(|version| version.trim_end() == format!("bpf-linker {BPF_LINKER}")) {
        return Ok(bpf_linker);
    }
    eprintln!(
        "installing bpf-linker {BPF_LINKER} into {}",
        tools.display()
    );
    fs::create_dir_all(&tools)?;
    command::output(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--locked", "--force", "--quiet"])
            .args(["--version", BPF_LINKER, "--root"])
            .arg(&tools)
            // A linker for four small objects is not worth the minute that its own optimisation takes.
            .envs([
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
                ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ]),
    )?;
    Ok(bpf_linker)
}
