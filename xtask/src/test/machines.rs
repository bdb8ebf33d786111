//! The scenarios on emulated kernels.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Counts, build::Programs, matrix::Matrix, scenarios::Results, stress};
use crate::{
    host::Missing,
    vm::{Arch, Kernel, Machine, SHORT_GRACE_PERIODS},
};

/// Each takes a processor of its own.
const AT_ONCE: usize = 2;
/// Many times what a machine needs.
const LIMIT: Duration = Duration::from_secs(1200);
/// A test that fails may leave much behind.
const MEMORY: u32 = 768;

const ALL: &str = "fentry,kprobe,netlink,netlink-unfiltered";
const WITHOUT_FENTRY: &str = "kprobe,netlink,netlink-unfiltered";

/// Runs them in machines beside each other; what they say is shown one machine after the other.
pub(super) fn run(
    kernels: &[Kernel],
    archs: &[Arch],
    filter: Option<&str>,
    matrix: &mut Matrix,
) -> Counts {
    let mut jobs: Vec<(Arch, &Kernel)> = archs
        .iter()
        .flat_map(|&arch| kernels.iter().map(move |kernel| (arch, kernel)))
        .collect();
    // The longest first, so that in the end no processor waits for the other.
    jobs.sort_by_key(|&(arch, kernel)| !stress::is_for(kernel, arch));
    let waiting = Mutex::new(jobs.into_iter());
    // Getting a kernel and building are done by one at a time.
    let preparing = Mutex::new(BTreeMap::new());
    let shared = Mutex::new((Counts::default(), matrix));
    thread::scope(|scope| {
        let work = || {
            loop {
                let Some((arch, kernel)) = lock(&waiting).next() else {
                    return;
                };
                let place = format!("{kernel} {arch}");
                let begin = Instant::now();
                let machine = prepare(&mut lock(&preparing), kernel, arch);
                let (results, error, met, endured) = match machine {
                    Ok(mut machine) => {
                        // They lock the kernel down, so they have a machine of their own. It is as users have it; the
                        // others have no waits that nobody looks at.
                        let met = filter.is_none().then(|| obstacles(&machine, &place));
                        machine.cmdline = SHORT_GRACE_PERIODS.to_owned();
                        let (results, error) = scenarios(&machine, kernel, arch, filter);
                        let endured = (filter.is_none() && stress::is_for(kernel, arch))
                            .then(|| stress::emulated(&machine, &place));
                        let endured = endured.unwrap_or_default();
                        (results, error, met.unwrap_or_default(), endured)
                    }
                    Err(error) => {
                        let counts = left_out_or_failed(&place, error);
                        lock(&shared).0.add(counts);
                        continue;
                    }
                };
                let mut shared = lock(&shared);
                let (total, matrix) = &mut *shared;
                let mut counts = matrix.add(&place, results);
                print!("{}{}", met.report, endured.report);
                counts.add(met.counts);
                counts.add(endured.counts);
                println!("  in {} s", begin.elapsed().as_secs());
                if let Some(error) = error {
                    counts.add(Counts::failed(&format!("{place}: {error}")));
                }
                total.add(counts);
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let (counts, _) = *lock(&shared);
    counts
}

/// Gets a machine ready, with programs that are built once for each architecture.
fn prepare(built: &mut BTreeMap<Arch, Programs>, kernel: &Kernel, arch: Arch) -> Result<Machine> {
    println!("getting {kernel} for {arch} ready");
    let mut machine = Machine::without_ifmon(kernel, arch)?;
    let Programs {
        ifmon,
        scenarios,
        obstacles,
        stress,
        ..
    } = match built.entry(arch) {
        Entry::Occupied(built) => built.into_mut(),
        Entry::Vacant(missing) => missing.insert(Programs::build(arch)?),
    };
    machine.program = Some(ifmon.clone());
    machine.files = vec![scenarios.clone(), obstacles.clone(), stress.clone()];
    machine.memory = MEMORY;
    machine.timeout = Some(LIMIT);
    Ok(machine)
}

/// What they printed, and why there is not more of it.
fn scenarios(
    machine: &Machine,
    kernel: &Kernel,
    arch: Arch,
    filter: Option<&str>,
) -> (Results, Option<String>) {
    let backends = if has_fentry(kernel, arch) {
        ALL
    } else {
        WITHOUT_FENTRY
    };
    let command: Vec<&str> = ["/scenarios", "--backends", backends]
        .into_iter()
        .chain(filter)
        .collect();
    let mut results = Results::default();
    let mut stderr = Vec::new();
    let run = machine.run(&command, &mut results, &mut stderr);
    let error = match run {
        Ok(0) => None,
        Ok(_) if results.counts().failed > 0 => None,
        Ok(code) => Some(format!(
            "the scenarios ended with {code}: {}",
            String::from_utf8_lossy(&stderr).trim()
        )),
        Err(error) => Some(format!("{error:#}")),
    };
    (results, error)
}

/// How the obstacles were met.
#[derive(Default)]
struct Met {
    counts: Counts,
    report: String,
}

/// Runs into every obstacle that BPF can meet.
fn obstacles(machine: &Machine, place: &str) -> Met {
    let output = match machine.output(&["/obstacles"]) {
        Ok(output) => output,
        Err(error) => {
            return Met {
                counts: Counts::failed(&format!("{place}: obstacles: {error:#}")),
                report: String::new(),
            };
        }
    };
    let mut met = Met::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.starts_with("ok ") {
            met.counts.passed += 1;
            continue;
        } else if line.starts_with("FAILED ") {
            met.counts.failed += 1;
        } else if line.starts_with("left out ") {
            met.counts.skipped += 1;
        } else {
            continue;
        }
        met.report.push_str(&format!("  obstacle {line}\n"));
    }
    let Counts { passed, failed, .. } = met.counts;
    met.report.push_str(&format!(
        "  obstacles of {place}: {passed} passed, {failed} failed\n"
    ));
    if passed == 0 || (output.code != 0 && failed == 0) {
        // They did not get as far as to say how it went.
        met.counts.add(Counts::failed(&format!(
            "{place}: obstacles ended with {}: {}",
            output.code,
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    met
}

/// On 64-bit ARM, BPF trampolines came with Linux 6.4: programs for them load before, and cannot be attached.
fn has_fentry(kernel: &Kernel, arch: Arch) -> bool {
    let is_old = matches!(kernel.to_string().as_str(), "bullseye" | "bookworm");
    arch == Arch::X86_64 || !is_old
}

/// What this host cannot have is left out; anything else is a failure.
fn left_out_or_failed(place: &str, error: anyhow::Error) -> Counts {
    match error.downcast::<Missing>() {
        Ok(Missing(why)) => Counts::left_out(&format!("{place}: {why}")),
        Err(error) => Counts::failed(&format!("{place}: {error:#}")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
