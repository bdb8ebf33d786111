//! Builds one object so that the same sources give the same bytes on every machine.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::toolchain::Toolchain;
use crate::{command, workspace};

/// An object that is shipped. A kprobe finds its arguments in the processor's `pt_regs`, so there
/// is one for each architecture; one that logs, since a log that is switched off still costs a map
/// and a third of the program; and one that knows no patterns, whose maps fit into 64 KiB.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    pub(super) arch: &'static str,
    suffix: &'static str,
    features: &'static str,
}

pub(super) const VARIANTS: [Variant; 6] = [
    Variant::usual("x86_64"),
    Variant::log("x86_64"),
    Variant::names("x86_64"),
    Variant::usual("aarch64"),
    Variant::log("aarch64"),
    Variant::names("aarch64"),
];

const PACKAGE: &str = "ifmon-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// Said here as a whole, so that neither the workspace's release profile nor a user's cargo
/// configuration has a say.
pub(super) const PROFILE: [&str; 9] = [
    "profile.release.opt-level=3",
    "profile.release.lto='fat'",
    "profile.release.codegen-units=1",
    "profile.release.panic='abort'",
    "profile.release.debug=2",
    "profile.release.strip=false",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
    "profile.release.incremental=false",
];

/// BTF is made from debug information, of which the rest is stripped in the end. Without the other,
/// each sixteen zeros are a call of `memset`, whose arithmetic with pointers is refused to who has
/// no CAP_PERFMON.
pub(super) const LINK_ARGS: [&str; 2] = ["--btf", "--disable-expand-memcpy-in-order"];

impl Variant {
    const fn usual(arch: &'static str) -> Self {
        Self {
            arch,
            suffix: "",
            features: "patterns",
        }
    }

    const fn log(arch: &'static str) -> Self {
        Self {
            arch,
            suffix: "-log",
            features: "patterns,log",
        }
    }

    const fn names(arch: &'static str) -> Self {
        Self {
            arch,
            suffix: "-names",
            features: "program",
        }
    }

    /// Where the object is in the tree.
    pub(super) fn object(self) -> String {
        let Self { arch, suffix, .. } = self;
        format!("ifmon-ebpf/object/ifmon-{arch}{suffix}.o")
    }
}

/// The object, built in `target_dir`, where others may have been built: cargo sees what they can
/// share.
pub(super) fn object(
    toolchain: &Toolchain,
    variant: Variant,
    target_dir: &Path,
) -> Result<Vec<u8>> {
    let Variant { arch, features, .. } = variant;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(workspace::root())
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", PACKAGE, "--bin", PACKAGE])
        .args(["--features", features, "--target", TARGET])
        .args(["-Z", "build-std=core"])
        .args(PROFILE.iter().flat_map(|setting| ["--config", setting]))
        .arg("--target-dir")
        .arg(target_dir)
        // Makes `-Z` available in a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        // Asked by the build scripts of aya's crates. As a flag of the compiler it would have the core library built
        // anew for each.
        .env("AYA_BPF_TARGET_ARCH", arch)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain)?);
    // Cargo hands the first ones down to a program that it runs; the last one outweighs the profile.
    for key in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_INCREMENTAL",
    ] {
        cargo.env_remove(key);
    }
    command::run(&mut cargo).with_context(|| format!("cannot build the BPF object for {arch}"))?;

    let linked = target_dir.join(TARGET).join("release").join(PACKAGE);
    let stripped = linked.with_extension("stripped");
    strip(toolchain, &linked, &stripped).context("cannot strip the BPF object")?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Leaves out the debug information, and of BTF the lines of the sources, which are half of an
/// object, and their relocations, which nothing reads. The functions stay: by them the verifier
/// knows which it can look at once for all calls, and without them it takes four times as long.
fn strip(toolchain: &Toolchain, linked: &Path, stripped: &Path) -> Result<()> {
    const SECTION: &str = ".BTF.ext";
    let objcopy = |args: &[String]| {
        command::run(
            Command::new(&toolchain.objcopy)
                .args(args)
                .args([linked, stripped])
                // It needs the LLVM of its compiler, and does not find it by itself.
                .env("LD_LIBRARY_PATH", toolchain.sysroot.join("lib")),
        )
    };
    let path = stripped.with_extension("btf-ext");
    let section = format!("{SECTION}={}", path.display());
    objcopy(&["--dump-section".to_owned(), section.clone()])?;
    let functions = without_lines(&fs::read(&path)?).context("BTF of another form")?;
    fs::write(&path, functions)?;
    objcopy(&[
        "--strip-debug".to_owned(),
        format!("--remove-section=.rel{SECTION}"),
        "--update-section".to_owned(),
        section,
    ])
}

/// A section `.BTF.ext` without its lines, of the form that bpf-linker writes: after a header of
/// eight 32-bit numbers, the last six of which say where in the rest its three parts are and how
/// long, come the functions, then the lines, then what there is to relocate, which is nothing.
fn without_lines(section: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 32;
    let number = |at: usize| -> Option<usize> {
        let bytes = section.get(4 * at..4 * at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let (functions, lines) = (number(3)?, number(5)?);
    let is_known = number(1)? == HEADER && number(2)? == 0 && number(4)? == functions;
    let relocations = number(7)?;
    if !is_known || section.len() != HEADER + functions + lines + relocations || relocations != 0 {
        return None;
    }
    let mut rest = section[..HEADER + functions].to_vec();
    rest[20..24].fill(0);
    // After the lines come no relocations.
    rest[24..28].copy_from_slice(&u32::try_from(functions).ok()?.to_le_bytes());
    Some(rest)
}

/// The compiler's flags, in cargo's encoding.
fn rustflags(toolchain: &Toolchain) -> Result<OsString> {
    let Toolchain {
        sysroot,
        bpf_linker,
        objcopy: _,
    } = toolchain;
    let mut flags = vec![concat("-Clinker=", bpf_linker)];
    flags.extend(LINK_ARGS.map(|arg| format!("-Clink-arg={arg}").into()));

    // Paths get into the object through BTF's line information and through `file!()`.
    let remap = |from: &Path, to: &str| {
        let mut flag = concat("--remap-path-prefix=", from);
        flag.push("=");
        flag.push(to);
        flag
    };
    flags.push(remap(workspace::root(), "/ifmon"));
    for registry in registries()? {
        flags.push(remap(&registry, "/cargo"));
    }
    flags.push(remap(&sysroot.join("lib/rustlib/src/rust"), "/rust"));
    Ok(flags.join(&OsString::from("\x1f")))
}

fn concat(flag: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(flag);
    flag.push(path);
    flag
}

/// The directories that hold the unpacked dependencies: one for each registry, named after its
/// address.
fn registries() -> Result<Vec<PathBuf>> {
    // A registry that has not been used yet has no directory yet.
    command::run(
        Command::new("cargo")
            .current_dir(workspace::root())
            .args(["fetch", "--locked", "--quiet"]),
    )?;
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    let sources = home.join("registry/src");
    let mut registries = fs::read_dir(&sources)
        .with_context(|| format!("cannot read {}", sources.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    registries.sort();
    Ok(registries)
}
