//! `cargo xtask test`: everything that shows that the project works, on this kernel and on others.

mod build;
mod machines;
mod matrix;
mod native;
mod progress;
mod scenarios;
mod stress;
mod units;

use std::{
    panic::resume_unwind,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use anyhow::Result;

use self::{build::Programs, machines::Machines, matrix::Matrix, progress::Progress};
use crate::{
    ebpf, fuzz,
    vm::{Arch, Kernel},
};

/// Run all tests: units, the scenarios on this kernel and on emulated ones, and a short stress run
///
/// What runs on this kernel needs root, for network namespaces. The last line is `N passed, N
/// failed`, and `, N skipped` where something was left out; the lines before say what and why.
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
    /// On each emulated kernel try each backend that it has, each scenario and each obstacle; without it, some kernels stand for others
    #[arg(long, conflicts_with = "no_vm")]
    all: bool,
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

/// What keeps one processor busy at a time.
#[derive(Clone, Copy)]
enum Job<'a> {
    /// Everything on this kernel.
    Here,
    /// An emulated kernel.
    There(Arch, &'a Kernel),
    /// The comparison of the BPF object.
    Object,
}

impl Job<'_> {
    fn name(self) -> String {
        match self {
            Self::Here => "this host".to_owned(),
            Self::There(arch, kernel) => format!("{kernel} {arch}"),
            Self::Object => "the BPF object, built again to compare".to_owned(),
        }
    }
}

/// So many jobs beside each other: one more than a small machine has processors, since an emulated kernel waits for a third
/// of its time, for grace periods mostly.
const AT_ONCE: usize = 3;

/// Does all of them, beginning in this order.
fn work_off<'a>(
    jobs: Vec<Job<'a>>,
    is_whole: bool,
    work: impl Fn(Job<'a>) -> Result<Counts> + Sync,
) -> Result<Counts> {
    let names = jobs.iter().map(|job| job.name()).collect();
    let progress = Mutex::new(Progress::new(names, is_whole));
    let waiting = Mutex::new(jobs.into_iter());
    let worker = || {
        let mut total = Counts::default();
        loop {
            let Some(job) = lock(&waiting).next() else {
                return anyhow::Ok(total);
            };
            let (name, begin) = (job.name(), Instant::now());
            println!("{}", lock(&progress).begins(&name));
            total.add(work(job)?);
            println!("{}", lock(&progress).ended(&name, begin.elapsed()));
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let mut total = Counts::default();
        for worker in workers {
            total.add(worker.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(total)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything on this kernel.
fn here(programs: &Programs, filter: Option<&str>, matrix: &Mutex<Matrix>) -> Result<Counts> {
    let mut total = units::run(programs, filter)?;
    if filter.is_none() {
        total.add(parsers()?);
    }
    total.add(native::run(programs, filter, matrix)?);
    if filter.is_none() {
        total.add(stress::native(programs)?);
    }
    Ok(total)
}

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        filter,
        kernels,
        archs,
        all,
        no_vm,
    } = options;
    let filter = filter.as_deref();
    let host = Arch::host()?;
    let programs = Programs::build(host)?;
    let matrix = Mutex::new(Matrix::default());
    let machines = Machines::new(host, &programs, all);

    // The longest first, so that in the end no processor waits long for the other.
    let mut jobs = vec![Job::Here];
    let mut total = Counts::default();
    if no_vm {
        total.add(Counts::left_out("emulated kernels, as asked by --no-vm"));
    } else {
        let mut there: Vec<(Arch, &Kernel)> = archs
            .iter()
            .flat_map(|&arch| kernels.iter().map(move |kernel| (arch, kernel)))
            .collect();
        // On the newest kernel most backends are tried.
        let is_long = |kernel: &Kernel| kernel.to_string() == "sid";
        there.sort_by_key(|&(arch, kernel)| (!stress::is_for(kernel, arch), !is_long(kernel)));
        jobs.extend(
            there
                .into_iter()
                .map(|(arch, kernel)| Job::There(arch, kernel)),
        );
    }
    if filter.is_none() {
        jobs.push(Job::Object);
    }
    total.add(work_off(jobs, filter.is_none(), |job| match job {
        Job::Here => here(&programs, filter, &matrix),
        Job::There(arch, kernel) => Ok(machines.run(kernel, arch, filter, &matrix)),
        Job::Object => shipped_object(),
    })?);
    let matrix = lock(&matrix);
    println!("\n{matrix}\n\n{}", matrix.slowest);
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

/// Does any input break a parser? Half a minute is not much; `cargo xtask fuzz --seconds N` takes as
/// long as one likes.
fn parsers() -> Result<Counts> {
    const SECONDS: u64 = 30;
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
    Ok(match ebpf::check()? {
        ebpf::Check::Same => Counts {
            passed: 1,
            ..Counts::default()
        },
        ebpf::Check::Different(how) => Counts::failed(&how),
        ebpf::Check::LeftOut(why) => Counts::left_out(&format!("comparing the BPF object: {why}")),
    })
}
