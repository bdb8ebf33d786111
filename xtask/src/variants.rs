//! `cargo xtask variants`: ifmon with some of its features left out, and on other processors.

use std::{
    env, fs,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    api, command,
    host::{self, Missing, Tool},
    standalone::Standalone,
    workspace,
};

/// Build ifmon with some of its features left out, and test it on 32-bit processors
///
/// Every set of features has to build without a warning, and without BPF there has to be no aya.
/// What is public has to be what ifmon/api.txt lists, and what is published has to build with the
/// Rust that its packages say they need. On i686 and armv7
/// there is no BPF program: the library's unit tests run there as they are, those of armv7 under
/// qemu-user.
#[derive(clap::Args)]
pub(crate) struct Options {}

/// What cargo is told of features.
const FEATURES: [&[&str]; 7] = [
    &[],
    &["--no-default-features"],
    &["--no-default-features", "--features=ebpf"],
    &["--no-default-features", "--features=serde"],
    &["--no-default-features", "--features=agent"],
    &["--no-default-features", "--features=cli"],
    &["--all-features"],
];

/// A processor without a BPF program.
struct Processor {
    target: &'static str,
    /// What links programs for it, where rustc's own linker does not.
    linker: Option<Tool>,
    /// What runs its programs, where this machine does not.
    emulator: Option<Tool>,
}

const PROCESSORS: [Processor; 2] = [
    Processor {
        target: "i686-unknown-linux-musl",
        linker: None,
        emulator: None,
    },
    // That with musl is not to be had with every release of Rust.
    Processor {
        target: "armv7-unknown-linux-gnueabihf",
        linker: Some(Tool {
            program: "arm-linux-gnueabihf-gcc",
            package: "gcc-arm-linux-gnueabihf",
        }),
        emulator: Some(Tool {
            program: "qemu-arm",
            package: "qemu-user",
        }),
    },
];

/// What came of a part.
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// Why it could not be done here, as a sentence.
    LeftOut(String),
}

pub(crate) fn run(Options {}: Options) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for (part, outcome) in run_all()? {
        match outcome {
            Outcome::Passed => println!("passed: {part}"),
            Outcome::Failed(why) => {
                eprintln!("error: {part}: {why}");
                code = ExitCode::FAILURE;
            }
            Outcome::LeftOut(why) => println!("left out: {part}: {why}"),
        }
    }
    Ok(code)
}

/// All parts, each with its name.
pub(crate) fn run_all() -> Result<Vec<(String, Outcome)>> {
    let mut parts = vec![("no aya without BPF".to_owned(), outcome(no_aya())?)];
    for features in FEATURES {
        let part = match features {
            [] => "default features".to_owned(),
            _ => features.join(" "),
        };
        parts.push((part, outcome(lint(features))?));
    }
    for processor in PROCESSORS {
        let part = format!("unit tests on {}", processor.target);
        parts.push((part, outcome(test(&processor))?));
    }
    parts.push(("public interface".to_owned(), outcome(api::check())?));
    parts.push(("the oldest Rust".to_owned(), outcome(oldest_rust())?));
    Ok(parts)
}

fn outcome(result: Result<()>) -> Result<Outcome> {
    Ok(match result {
        Ok(()) => Outcome::Passed,
        Err(error) => match error.downcast() {
            Ok(Missing(why)) => Outcome::LeftOut(why),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        },
    })
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace::root());
    cargo
}

fn no_aya() -> Result<()> {
    let arguments = ["--no-default-features", "--edges=normal", "--prefix=none"];
    let tree = command::output(
        cargo()
            .args(["tree", "--package=ifmon-watch"])
            .args(arguments),
    )?;
    ensure!(tree.starts_with("ifmon-watch "), "cargo shows another tree");
    let aya: Vec<&str> = tree
        .lines()
        .filter(|line| line.starts_with("aya"))
        .collect();
    ensure!(aya.is_empty(), "it is there: {}", aya.join(", "));
    Ok(())
}

fn lint(arguments: &[&str]) -> Result<()> {
    let mut cargo = cargo();
    cargo.args([
        "clippy",
        "--quiet",
        "--package=ifmon-watch",
        "--all-targets",
    ]);
    command::run(cargo.args(arguments).args(["--", "--deny=warnings"]))
}

/// Builds what is published with the Rust that it says it needs, and what is in the lock file.
fn oldest_rust() -> Result<()> {
    let manifest = fs::read_to_string(workspace::root().join("Cargo.toml"))?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
        .context("the workspace has no rust-version")?;
    let toolchain = ["toolchain", "install", version, "--profile=minimal"];
    command::output(Command::new("rustup").args(toolchain))
        .map_err(|error| Missing(format!("Rust {version} cannot be had: {error:#}")))?;
    for features in [&["--all-features"][..], &["--no-default-features"]] {
        let mut rustup = Command::new("rustup");
        rustup
            .current_dir(workspace::root())
            .args(["run", version, "cargo", "check", "--quiet", "--locked"])
            .args(["--package=ifmon-watch", "--target-dir"])
            // What one compiler has built is of no use to another one.
            .arg(workspace::target_dir().join("oldest"));
        command::run(rustup.args(features))?;
    }
    Ok(())
}

fn test(processor: &Processor) -> Result<()> {
    let Processor {
        target,
        linker,
        emulator,
    } = processor;
    let standalone = match linker {
        Some(linker) => {
            host::need(std::slice::from_ref(linker))?;
            Standalone::linked_by(linker.program, target)?
        }
        None => Standalone::foreign(target)?,
    };
    let mut tests = standalone.cargo("test");
    tests.args(["--package=ifmon-watch", "--no-default-features", "--lib"]);
    match emulator {
        Some(emulator) => {
            host::need(std::slice::from_ref(emulator))?;
            let target = target.to_uppercase().replace('-', "_");
            tests.env(format!("CARGO_TARGET_{target}_RUNNER"), emulator.program);
        }
        None if env::consts::ARCH == "x86_64" => {}
        None => return Err(Missing("only x86_64 runs its programs".to_owned()).into()),
    }
    command::output(tests.stderr(Stdio::inherit()))?;
    // The program too, as `cargo install` builds it there.
    lint(&["--target", target])
}
