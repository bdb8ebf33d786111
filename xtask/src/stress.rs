//! `cargo xtask stress`: storms, losses, races and long lives, on this kernel and on emulated ones.

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    standalone::Standalone,
    vm::{Arch, Kernel, Machine, SHORT_GRACE_PERIODS},
};

/// Several times what a machine needs for a backend.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Show that ifmon is never wrong: under storms, losses, blocked readers, races and sudden death
///
/// Needs root, for network namespaces. What looks random depends on the seed alone, which is
/// printed. With all parts a backend takes about a quarter of an hour on this kernel and more than
/// an hour on an emulated one.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// For the same run again
    #[arg(long)]
    seed: Option<u64>,
    /// Backends to try; can be repeated. By default those of netlink on this kernel, and all five
    /// on an emulated one
    #[arg(long = "backend")]
    backends: Vec<String>,
    /// Run on this emulated kernel instead (see `cargo xtask vm --help`)
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Processors of the emulated machine. Whoever hooks the kernel waits for each of them, which
    /// takes long where they take turns
    #[arg(long, default_value_t = 1, requires = "kernel")]
    cpus: u32,
    /// A twentieth of everything
    #[arg(long)]
    quick: bool,
    /// Parts to run: storm, overflow, stopped, blocked, race, open (BPF), ending (tracing), broken
    /// (netlink), clients, privileges, death, soak (a million changes; with tracing, which is mostly
    /// emulated, 200,000); all by default
    parts: Vec<String>,
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        seed,
        mut backends,
        kernel,
        cpus,
        quick,
        parts,
    } = options;
    if backends.is_empty() && kernel.is_some() {
        backends = [
            "fentry",
            "kprobe",
            "netlink-ebpf",
            "netlink",
            "netlink-unfiltered",
        ]
        .map(str::to_owned)
        .to_vec();
    }
    let limit = LIMIT * u32::try_from(backends.len())?;
    let mut args: Vec<OsString> = Vec::new();
    for backend in backends {
        args.extend(["--backend".into(), backend.into()]);
    }
    if let Some(seed) = seed {
        args.extend(["--seed".into(), seed.to_string().into()]);
    }
    if quick {
        args.push("--quick".into());
    }
    args.extend(parts.into_iter().map(OsString::from));
    let Some(kernel) = kernel else {
        return Ok(ExitCode::from(u8::from(!native(&args)?)));
    };
    let mut machine = Machine::new(&kernel, Arch::X86_64)?;
    machine.files.push(build("stress", "tests")?);
    machine.timeout = Some(limit);
    machine.cpus = cpus;
    machine.cmdline = SHORT_GRACE_PERIODS.to_owned();
    args.insert(0, "/stress".into());
    let code = machine.run(&args, &mut io::stdout(), &mut io::stderr())?;
    Ok(ExitCode::from(code))
}

fn native(args: &[OsString]) -> Result<bool> {
    let ifmon = build("ifmon", "ifmon-watch")?;
    let status = Command::new(build("stress", "tests")?)
        .args(args)
        .env("IFMON", ifmon)
        .status()
        .context("cannot run the stress program")?;
    Ok(status.success())
}

/// Builds a program that needs no library of the system that it runs on.
fn build(program: &str, package: &str) -> Result<PathBuf> {
    let standalone = Standalone::host()?;
    command::run(standalone.cargo("build").args([
        "--release",
        "--package",
        package,
        "--bin",
        program,
    ]))
    .with_context(|| format!("cannot build {program}"))?;
    Ok(standalone.program("release", program))
}
