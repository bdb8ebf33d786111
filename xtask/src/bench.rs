//! `cargo xtask bench`: what ifmon costs, beside what people use today, measured on this host and
//! on an emulated kernel.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    host::{self, Missing, Tool},
    standalone::Standalone,
    vm::{Arch, Kernel, Machine},
    workspace,
};

/// Many times what a full run takes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Ten thousand links need more than the default.
const MEMORY: u32 = 2048;

/// Measure what ifmon costs, beside its peers
///
/// The netlink backends are measured on this host, the BPF backends on an emulated kernel,
/// netlink-ebpf on both; each beside `ip monitor`, a subscription to every message (in Rust, and on
/// this host in Go) and a program that polls, in the same run and on the same work. Prints tables;
/// a full run also writes ifmon/assets/cost.json and ifmon/assets/cost.svg. Ratios count: absolute
/// times are this machine's. Needs root.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A small run of less than a minute or so, to see that everything works
    #[arg(long)]
    quick: bool,
    /// The kernel for the BPF backends, as in `cargo xtask vm`
    #[arg(long, default_value = "bookworm")]
    kernel: Kernel,
    /// One row only: unrelated, bystanders, watches, latency, namespaces, burst, clients,
    /// churn, start or size
    #[arg(long, value_name = "ROW")]
    only: Option<String>,
    /// Measure this ifmon as well, in turns with the one of this tree; linked statically, so that
    /// it runs on the emulated kernel
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        quick,
        kernel,
        only,
        before,
    } = options;
    host::need(&[host::IP])?;
    if !host::is_root() {
        return Err(Missing("only root can make network namespaces to measure in".into()).into());
    }
    let is_whole = !quick && only.is_none() && before.is_none();
    let mut measure = vec!["measure".to_owned()];
    measure.extend(quick.then(|| "--quick".to_owned()));
    measure.extend(only.into_iter().flat_map(|row| ["--only".to_owned(), row]));

    let bench = build()?;
    let results = workspace::target_dir().join("bench");
    fs::create_dir_all(&results)?;
    let go = go_peer(&results);
    let native = natively(
        &bench,
        &measure,
        &results,
        go.as_deref().ok(),
        before.as_deref(),
    )?;
    let emulated = emulated(&kernel, &measure, &results, before.as_deref())?;
    let mut report = Command::new(&bench);
    report.arg("report").args([native, emulated]);
    if is_whole {
        report
            .arg("--assets")
            .arg(workspace::root().join("ifmon/assets"));
    }
    command::run(&mut report)?;
    if let Err(why) = go {
        eprintln!("Left out: the Go library vishvananda/netlink. {why:#}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds ifmon as users do, and what measures it.
fn build() -> Result<PathBuf> {
    command::run(
        Command::new("cargo")
            .current_dir(workspace::root())
            .args(["build", "--quiet", "--release", "--package", "ifmon-watch"])
            .args(["--package", "tests", "--bin", "ifmon", "--bin", "bench"]),
    )?;
    Ok(workspace::target_dir().join("release/bench"))
}

/// Builds the peer that is written in Go, with what Debian has of Go's libraries.
fn go_peer(results: &Path) -> Result<PathBuf> {
    const LIBRARIES: &str = "/usr/share/gocode";
    const LIBRARY: &str = "golang-github-vishvananda-netlink-dev";
    host::need(&[Tool {
        program: "go",
        package: "golang-go",
    }])?;
    if !Path::new(LIBRARIES)
        .join("src/github.com/vishvananda/netlink")
        .is_dir()
    {
        host::install(&[LIBRARY])?;
    }
    let path = results.join("go-peer");
    command::run(
        Command::new("go")
            .current_dir(workspace::root())
            .args(["build", "-o"])
            .arg(&path)
            .arg("tests/peers/subscribe.go")
            .env("GO111MODULE", "off")
            .env("GOPATH", LIBRARIES)
            .env("GOFLAGS", ""),
    )
    .context("the peer in Go cannot be built")?;
    Ok(path)
}

fn natively(
    bench: &Path,
    measure: &[String],
    results: &Path,
    go: Option<&Path>,
    before: Option<&Path>,
) -> Result<PathBuf> {
    eprintln!("on this host:");
    let path = results.join("native.json");
    command::run(
        Command::new(bench)
            .args(measure)
            .env("IFMON", bench.with_file_name("ifmon"))
            .envs(go.map(|go| ("GO_PEER", go)))
            .envs(before.map(|before| ("IFMON_BEFORE", before)))
            .stdin(Stdio::null())
            .stdout(File::create(&path)?),
    )?;
    Ok(path)
}

fn emulated(
    kernel: &Kernel,
    measure: &[String],
    results: &Path,
    before: Option<&Path>,
) -> Result<PathBuf> {
    // Of another architecture there would be nothing to compare with.
    let mut machine = Machine::new(kernel, Arch::host()?)?;
    machine.files.push(build_static()?);
    machine.memory = MEMORY;
    machine.counts_instructions = true;
    machine.timeout = Some(PATIENCE);
    eprintln!("on the kernel of {kernel}, emulated:");
    let path = results.join("emulated.json");
    let mut command = Vec::new();
    if let Some(before) = before {
        let name = before.file_name().context("--before names no program")?;
        command.push("env".to_owned());
        command.push(format!("IFMON_BEFORE=/{}", name.to_string_lossy()));
        machine.files.push(before.to_owned());
    }
    command.push("/bench".to_owned());
    command.extend_from_slice(measure);
    command.push("--emulated".to_owned());
    let status = machine.run(&command, &mut File::create(&path)?, &mut io::stderr())?;
    ensure!(status == 0, "bench ended with {status}");
    Ok(path)
}

/// Builds what measures for a machine that has no libraries.
fn build_static() -> Result<PathBuf> {
    let standalone = Standalone::host()?;
    command::run(standalone.cargo("build").args([
        "--release",
        "--package",
        "tests",
        "--bin",
        "bench",
    ]))
    .context("cannot build what measures, without libraries")?;
    Ok(standalone.program("release", "bench"))
}
