//! The short stress run: a twentieth of what `cargo xtask stress` does.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::{Counts, build::Programs, native::has_socket_filter};
use crate::{
    host,
    vm::{Arch, Kernel, Machine},
};

/// A machine of its own takes a minute or two, so there is one.
const EMULATED: (&str, Arch) = ("bookworm", Arch::X86_64);
/// Without those that would take as long as the rest: being blocked, a long life, and many starts.
/// Both backends run the same program, so each part is done with one of them.
const PARTS: [(&str, &[&str]); 2] = [
    ("fentry", &["storm", "open", "privileges", "death"]),
    ("kprobe", &["overflow", "stopped", "ending"]),
];

/// On the kernel that runs this, with the backends that it has without tracing.
pub(super) fn native(programs: &Programs) -> Result<Counts> {
    if !host::is_root() {
        return Ok(Counts::left_out(
            "the short stress run on this kernel: network namespaces need root",
        ));
    }
    println!("short stress run on this kernel");
    let backends: &[&str] = if has_socket_filter(programs)? {
        &["netlink-ebpf", "netlink", "netlink-unfiltered"]
    } else {
        &["netlink", "netlink-unfiltered"]
    };
    let output = Command::new(&programs.stress)
        .arg("--quick")
        .args(backends.iter().flat_map(|backend| ["--backend", backend]))
        .env("IFMON", &programs.ifmon)
        .stdin(Stdio::null())
        .output()
        .context("cannot run the stress program")?;
    let Endured { counts, report } = Endured::of(
        "this kernel",
        output.status.success(),
        &output.stdout,
        &output.stderr,
    );
    print!("{report}");
    Ok(counts)
}

pub(super) fn is_for(kernel: &Kernel, arch: Arch) -> bool {
    (kernel.to_string().as_str(), arch) == EMULATED
}

/// With the backends in the kernel, on an emulated one.
pub(super) fn emulated(machine: &Machine, place: &str) -> Endured {
    let mut endured = Endured::default();
    for (backend, parts) in PARTS {
        let command = ["/stress", "--quick", "--backend", backend];
        let command: Vec<&str> = command.iter().chain(parts).copied().collect();
        let Endured { counts, report } = match machine.output(&command) {
            Ok(output) => Endured::of(place, output.code == 0, &output.stdout, &output.stderr),
            Err(error) => Endured {
                counts: Counts::failed(&format!("{place}: stress: {error:#}")),
                report: String::new(),
            },
        };
        endured.counts.add(counts);
        endured.report.push_str(&report);
    }
    endured
}

/// How it went.
#[derive(Default)]
pub(super) struct Endured {
    pub(super) counts: Counts,
    pub(super) report: String,
}

impl Endured {
    fn of(place: &str, success: bool, stdout: &[u8], stderr: &[u8]) -> Self {
        let mut endured = Self::default();
        let mut last = "";
        let stdout = String::from_utf8_lossy(stdout);
        for line in stdout.lines() {
            if line.starts_with("ok ") {
                endured.counts.passed += 1;
            } else if line.starts_with("FAILED ") {
                endured.counts.failed += 1;
                endured.report.push_str(&format!("  stress {line}\n"));
            }
            last = line;
        }
        let Counts { passed, failed, .. } = endured.counts;
        endured
            .report
            .push_str(&format!("  stress on {place}: {last}\n"));
        if passed == 0 || success != (failed == 0) {
            // It did not get as far as to say how it went.
            endured.counts.add(Counts::failed(&format!(
                "{place}: stress: {}",
                String::from_utf8_lossy(stderr).trim()
            )));
        }
        endured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted() {
        let stdout = b"kernel 6.1.0, seed 7\nok      fentry storm (1.0 s): figures\nFAILED  fentry race (1.0 s): why\n\
            1 passed, 1 failed; --seed 7 for the same again\n";
        let Endured { counts, report } = Endured::of("here", false, stdout, b"");
        let expected = Counts {
            passed: 1,
            failed: 1,
            skipped: 0,
        };
        assert_eq!(counts, expected);
        assert!(report.contains("fentry race") && report.contains("--seed 7"));
    }

    #[test]
    fn an_early_end_is_a_failure() {
        let stdout = b"kernel 6.1.0, seed 7\nok      fentry storm (1.0 s): figures\n";
        assert_eq!(Endured::of("here", false, stdout, b"").counts.failed, 1);
        assert_eq!(Endured::of("here", false, b"", b"error").counts.failed, 1);
    }
}
