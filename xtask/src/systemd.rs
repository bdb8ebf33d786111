//! `cargo xtask systemd`: the Debian package and its unit under a real systemd, in an emulated
//! machine.

mod documents;
mod package;
mod prometheus;
mod root;

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    dist,
    scratch::ScratchDir,
    vm::{self, Arch, Kernel, Machine, Suite},
    workspace,
};

/// Many times what a part takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// In MiB; a system is unpacked into memory.
const MEMORY: u32 = 1280;
/// Its program is twice in memory at the boot, and it is a large one.
const MEMORY_OF_PROMETHEUS: u32 = 1024;
/// What all parts begin with.
const LIBRARY: &str = include_str!("systemd/lib.sh");

/// Install the Debian package in an emulated machine with a real systemd, and try its unit there
///
/// Makes a Debian root once (delete target/systemd to have a newer one), and the package with
/// `cargo xtask dist`. Each part is a boot of its own.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to try, all of it when nothing is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// System and kernel of the machine: bullseye, bookworm, trixie or sid
    #[arg(long, default_value_t = Suite::Trixie)]
    suite: Suite,
    /// Try this package, and do not make one
    #[arg(long, value_name = "FILE")]
    package: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Readiness, watchdog, stop, restart, wrong usage, options
    Unit,
    /// Instances whose names have to be escaped
    Names,
    /// What is told of changes while ifmon was not running, an upgrade for one
    Upgrade,
    /// A tunnel of wg-quick that is deleted from outside and restarted by ifmon
    WgQuick,
    /// Installing, upgrading, removing and purging the package
    Package,
    /// The metrics, in Debian's Prometheus
    Prometheus,
    /// What the documents have people type
    Documents,
}

impl Part {
    fn script(self) -> Result<String> {
        let script = match self {
            Self::Unit => include_str!("systemd/parts/unit.sh"),
            Self::Names => include_str!("systemd/parts/names.sh"),
            Self::Upgrade => include_str!("systemd/parts/upgrade.sh"),
            Self::WgQuick => include_str!("systemd/parts/wg-quick.sh"),
            Self::Package => include_str!("systemd/parts/package.sh"),
            Self::Prometheus => include_str!("systemd/parts/prometheus.sh"),
            Self::Documents => return documents::script(),
        };
        Ok(script.to_owned())
    }
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        parts,
        suite,
        package,
    } = options;
    let package = package.map_or_else(dist::package, Ok)?;
    let dir = workspace::target_dir().join("systemd");
    let scratch = ScratchDir::new(&dir)?;
    let files = scratch.path();
    fs::copy(&package, files.join("ifmon.deb"))
        .with_context(|| format!("cannot read {}", package.display()))?;
    package::newer(&package, &files.join("unpacked"), &files.join("newer.deb"))?;

    let mut machine = Machine::without_ifmon(&Kernel::Suite(suite), Arch::host()?)?;
    machine.system = Some(root::prepare(&dir, suite)?);
    machine.cmdline = format!("systemd.wants=command.service {}", vm::SHORT_GRACE_PERIODS);
    // Hours in which nothing happens are over at once, and nothing depends on how busy this host
    // is.
    machine.counts_instructions = true;
    machine.timeout = Some(TIMEOUT);
    let parts = if parts.is_empty() {
        Part::value_variants()
    } else {
        &parts
    };
    let mut total = Counts::default();
    for part in parts {
        let name = part.to_possible_value().context("every part has a name")?;
        println!("{}:", name.get_name());
        machine.files = vec![files.join("ifmon.deb"), files.join("newer.deb")];
        machine.memory = MEMORY;
        if *part == Part::Prometheus {
            machine
                .files
                .push(prometheus::program(&dir, &scratch, suite)?);
            machine.memory += MEMORY_OF_PROMETHEUS;
        }
        let counts = run_part(&mut machine, *part, files)?;
        total.passed += counts.passed;
        total.failed += counts.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

fn run_part(machine: &mut Machine, part: Part, files: &Path) -> Result<Counts> {
    let script = files.join("part.sh");
    fs::write(&script, [LIBRARY, &part.script()?, "finish\n"].concat())?;
    machine.files.push(script);
    let begin = Instant::now();
    let mut said = Vec::new();
    machine.run(
        &["bash", "/run/machine/part.sh"],
        &mut Both(&mut said),
        &mut io::stderr(),
    )?;
    let said = String::from_utf8_lossy(&said);
    println!("  ({} s)", begin.elapsed().as_secs());
    counts(&said).context("the part did not come to its end")
}

/// Reads what the library's `check` and `finish` print.
fn counts(said: &str) -> Result<Counts> {
    let count = |verdict: &str| {
        said.lines()
            .filter(|line| line.starts_with(verdict))
            .count()
    };
    let counts = Counts {
        passed: count("  passed: "),
        failed: count("  FAILED: "),
    };
    ensure!(
        said.lines().last() == Some("  done"),
        "its last line is missing"
    );
    ensure!(counts != Counts::default(), "it checked nothing");
    Ok(counts)
}

/// Shows what is written while it comes, and keeps it.
struct Both<'a>(&'a mut Vec<u8>);

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self(kept) = self;
        kept.extend_from_slice(bytes);
        io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_and_an_end_that_is_missing_is_an_error() {
        let said =
            "  passed: one\n  FAILED: two\n    | passed: no verdict\n  passed: three\n  done\n";
        let expected = Counts {
            passed: 2,
            failed: 1,
        };
        assert_eq!(counts(said).expect("it is whole"), expected);
        assert!(counts("  passed: one\n").is_err());
        assert!(counts("  done\n").is_err());
    }
}
