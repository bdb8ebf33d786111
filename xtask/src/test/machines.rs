//! The scenarios on emulated kernels.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use anyhow::Result;
use clap::ValueEnum as _;

use super::{Counts, build::Programs, lock, matrix::Matrix, scenarios::Results, stress};
use crate::{
    host::Missing,
    vm::{Arch, Kernel, Machine, SHORT_GRACE_PERIODS},
};

/// Many times what a machine needs.
const LIMIT: Duration = Duration::from_secs(1200);
/// A test that fails may leave much behind.
const MEMORY: u32 = 768;

/// The backends that are tried on a kernel: all that it has, where all are asked for.
///
/// Otherwise all but `netlink-unfiltered` are tried on the oldest kernel, those of BPF on the newest,
/// and `netlink-ebpf`, whose verifier, helpers and messages differ most from one to the other, on
/// all; for ARM on the oldest and the newest, since nothing of it depends on the processor. In
/// between, and on the newest for ARM, one of `fentry` and `kprobe` stands for both: they run the
/// same program behind another entry. What needs no BPF is tried on this host, too.
fn backends(kernel: &Kernel, arch: Arch, all: bool) -> Vec<&'static str> {
    const WITH_FENTRY: [&str; 5] = [
        "fentry",
        "kprobe",
        "netlink-ebpf",
        "netlink",
        "netlink-unfiltered",
    ];
    let name = kernel.to_string();
    let backends: &[&str] = match (arch, name.as_str()) {
        _ if all => &WITH_FENTRY,
        (Arch::X86_64, "bullseye") => &["fentry", "kprobe", "netlink-ebpf", "netlink"],
        (Arch::X86_64, "bookworm") => &["fentry", "netlink-ebpf"],
        (Arch::X86_64, "trixie") => &["kprobe", "netlink-ebpf"],
        (Arch::Aarch64, "bullseye") => &["kprobe", "netlink-ebpf"],
        (Arch::Aarch64, "bookworm") => &["kprobe"],
        (Arch::Aarch64, "trixie") => &["fentry"],
        (Arch::Aarch64, "sid") => &["fentry", "netlink-ebpf"],
        (Arch::X86_64, "sid") => &["fentry", "kprobe", "netlink-ebpf"],
        _ => &WITH_FENTRY,
    };
    let has_fentry = has_fentry(kernel, arch);
    backends
        .iter()
        .filter(|&&backend| has_fentry || backend != "fentry")
        .copied()
        .collect()
}

/// Obstacles, and what the program makes of what a kernel says: the oldest kernel and the newest for one
/// processor stand for the others, and this host, unless all are asked for.
fn has_program(kernel: &Kernel, arch: Arch, all: bool) -> bool {
    all || (arch == Arch::X86_64 && matches!(kernel.to_string().as_str(), "bullseye" | "sid"))
}

/// The emulated machines, with the programs that they get.
pub(super) struct Machines {
    /// Getting a kernel is done by one at a time.
    kernels: Mutex<()>,
    /// So is building for an architecture, which those for another do not wait for.
    programs: BTreeMap<Arch, Mutex<Option<Programs>>>,
    /// Each backend, scenario and obstacle on each kernel.
    all: bool,
}

impl Machines {
    /// The host's programs are built already.
    pub(super) fn new(host: Arch, programs: &Programs, all: bool) -> Self {
        let programs = Arch::value_variants().iter().map(|&arch| {
            let built = (arch == host).then(|| programs.clone());
            (arch, Mutex::new(built))
        });
        Self {
            kernels: Mutex::new(()),
            programs: programs.collect(),
            all,
        }
    }

    /// Runs the scenarios in a machine, and without a filter the rest; what they say is shown at
    /// the end.
    pub(super) fn run(
        &self,
        kernel: &Kernel,
        arch: Arch,
        filter: Option<&str>,
        matrix: &Mutex<Matrix>,
    ) -> Counts {
        let place = format!("{kernel} {arch}");
        let mut machine = match self.prepare(kernel, arch) {
            Ok(machine) => machine,
            Err(error) => return left_out_or_failed(&place, error),
        };
        // They lock the kernel down, so they have a machine of their own. It is as users have it;
        // the others have no waits that nobody looks at.
        let met = (filter.is_none() && has_program(kernel, arch, self.all))
            .then(|| obstacles(&machine, &place));
        machine.cmdline = SHORT_GRACE_PERIODS.to_owned();
        let backends = backends(kernel, arch, self.all);
        let of_kernel = (!has_program(kernel, arch, self.all)).then_some("--of-kernel");
        let (results, error) = scenarios(&machine, &backends, of_kernel, filter);
        let endured = (filter.is_none() && stress::is_for(kernel, arch))
            .then(|| stress::emulated(&machine, &place));
        let (met, endured) = (met.unwrap_or_default(), endured.unwrap_or_default());

        // Held while it is printed, so that it stays together.
        let mut matrix = lock(matrix);
        let mut counts = matrix.add(&place, results);
        print!("{}{}", met.report, endured.report);
        counts.add(met.counts);
        counts.add(endured.counts);
        if let Some(error) = error {
            counts.add(Counts::failed(&format!("{place}: {error}")));
        }
        counts
    }

    /// Gets a machine ready, with programs that are built once for each architecture.
    fn prepare(&self, kernel: &Kernel, arch: Arch) -> Result<Machine> {
        let mut machine = {
            let _one_at_a_time = lock(&self.kernels);
            Machine::without_ifmon(kernel, arch)?
        };
        let mut built = lock(&self.programs[&arch]);
        let Programs {
            ifmon,
            scenarios,
            obstacles,
            stress,
            ..
        } = match &mut *built {
            Some(built) => built,
            missing => missing.insert(Programs::build(arch)?),
        };
        machine.program = Some(ifmon.clone());
        machine.files = vec![scenarios.clone(), obstacles.clone(), stress.clone()];
        machine.memory = MEMORY;
        machine.timeout = Some(LIMIT);
        Ok(machine)
    }
}

/// What they printed, and why there is not more of it.
fn scenarios(
    machine: &Machine,
    backends: &[&str],
    of_kernel: Option<&str>,
    filter: Option<&str>,
) -> (Results, Option<String>) {
    let backends = backends.join(",");
    let command: Vec<&str> = ["/scenarios", "--emulated", "--backends", &backends]
        .into_iter()
        .chain(of_kernel)
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

/// On 64-bit ARM, BPF trampolines came with Linux 6.4: programs for them load before, and cannot be
/// attached.
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
