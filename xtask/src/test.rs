//! `cargo xtask test`: everything that shows that the project works, on this kernel and on others.

mod build;
mod machines;
mod matrix;
mod native;
mod scenarios;
mod stress;
mod units;

use std::{panic::resume_unwind, process::ExitCode, thread};

use anyhow::Result;

use self::{build::Programs, matrix::Matrix};
use crate::{
    ebpf, fuzz,
    vm::{Arch, Kernel},
};

/// Run all tests: units, the scenarios on this kernel and on emulated ones, and a short stress run
///
/// What runs on this kernel needs root, for network namespaces. The last line is `N passed, N failed`, and
/// `, N skipped` where something was left out; the lines before say what and why.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only what has this in its name
    filter: Option<String>,
    /// Emulate these kernels (see `cargo xtask vm --help`); can be repeated
    #[arg(
        long = "kernel",
        default_values = ["bullseye", "bookworm", "trixie", "sid"],
        conflicts_with = "no_vm"
    )]
    kernels: Vec<Kernel>,
    /// Emulate these processors; can be repeated
    #[arg(long = "arch", value_enum, default_values_t = [Arch::X86_64, Arch::Aarch64], conflicts_with = "no_vm")]
    archs: Vec<Arch>,
    /// Emulate no kernels
    #[arg(long)]
    no_vm: bool,
}

/// What came of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Counts {
    fn add(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skipped,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// A part that failed as a whole.
    fn failed(what: &str) -> Self {
        println!("FAILED {what}");
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// A part that was left out as a whole.
    fn left_out(what: &str) -> Self {
        println!("left out: {what}");
        Self {
            skipped: 1,
            ..Self::default()
        }
    }
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        filter,
        kernels,
        archs,
        no_vm,
    } = options;
    let filter = filter.as_deref();
    let programs = Programs::build(Arch::host()?)?;

    let mut total = Counts::default();
    // Most of the time it keeps one processor busy, and the tests on this kernel wait more than they work.
    let object = filter.is_none().then(|| thread::spawn(shipped_object));
    total.add(units::run(&programs, filter)?);
    if filter.is_none() {
        total.add(parsers()?);
    }
    let mut matrix = Matrix::default();
    total.add(native::run(&programs, filter, &mut matrix)?);
    if filter.is_none() {
        total.add(stress::native(&programs)?);
    }
    if let Some(object) = object {
        total.add(object.join().unwrap_or_else(|panic| resume_unwind(panic))?);
    }
    if no_vm {
        total.add(Counts::left_out("emulated kernels, as asked by --no-vm"));
    } else {
        total.add(machines::run(&kernels, &archs, filter, &mut matrix));
    }
    println!("\n{matrix}");
    let Counts {
        passed,
        failed,
        skipped,
    } = total;
    let skipped = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    println!("{passed} passed, {failed} failed{skipped}");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Does any input break a parser? A minute is not much; `cargo xtask fuzz --seconds N` takes as long as one likes.
fn parsers() -> Result<Counts> {
    const SECONDS: u64 = 60;
    println!("fuzzing the parsers for {SECONDS} s");
    Ok(match fuzz::run_all(SECONDS)? {
        fuzz::Outcome::Clean => Counts {
            passed: 1,
            ..Counts::default()
        },
        fuzz::Outcome::Found(inputs) => Counts::failed(&inputs.join("; ")),
        fuzz::Outcome::LeftOut(why) => Counts::left_out(&format!("fuzzing: {why}")),
    })
}

/// Is the BPF object in the tree what its sources give?
fn shipped_object() -> Result<Counts> {
    println!("BPF object: building it again to compare");
    Ok(match ebpf::check()? {
        ebpf::Check::Same => Counts {
            passed: 1,
            ..Counts::default()
        },
        ebpf::Check::Different(how) => Counts::failed(&how),
        ebpf::Check::LeftOut(why) => Counts::left_out(&format!("comparing the BPF object: {why}")),
    })
}
