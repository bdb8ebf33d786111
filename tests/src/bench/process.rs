//! What a process has used so far, by the kernel's own account.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::program::PATIENCE;

/// What all threads of a process have used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Times that it was switched to: voluntary and involuntary context switches.
    pub(super) switches: u64,
    /// Time on a processor, in nanoseconds.
    pub(super) cpu: u64,
    /// Resident memory, in KiB.
    pub(super) resident: u64,
    /// The most that was ever resident, in KiB.
    pub(super) peak: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(process.join("status"))?;
        let mut usage = Self {
            resident: field(&status, "VmRSS")?,
            peak: field(&status, "VmHWM")?,
            ..Self::default()
        };
        for task in fs::read_dir(process.join("task"))? {
            let task = task?.path();
            let status = fs::read_to_string(task.join("status"))?;
            usage.switches += field(&status, "voluntary_ctxt_switches")?;
            usage.switches += field(&status, "nonvoluntary_ctxt_switches")?;
            let schedule = fs::read_to_string(task.join("schedstat"))?;
            let cpu = schedule.split_whitespace().next();
            usage.cpu += cpu.context("no run time")?.parse::<u64>()?;
        }
        Ok(usage)
    }

    /// The same once the process has caught up with all that it was told of: it is asleep, and used nothing meanwhile.
    pub(super) fn settled(pid: u32) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Self::of(pid)?;
        loop {
            thread::sleep(Duration::from_millis(100));
            let usage = Self::of(pid)?;
            if usage.cpu == before.cpu && usage.switches == before.switches {
                return Ok(usage);
            }
            if Instant::now() > deadline {
                bail!("a process did not come to rest in {PATIENCE:?}");
            }
            before = usage;
        }
    }
}

/// A number of a `/proc/PID/status`.
fn field(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {name} in the status of a process"))
}
