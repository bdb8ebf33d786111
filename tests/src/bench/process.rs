//! What a process has used so far, by the kernel's own account.

use std::{
    fs, io,
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use crate::program::PATIENCE;

/// A process that is ended with this.
pub(super) struct Process(pub(super) Child);

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<Error> {
        match self.0.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(anyhow!("it ended with {status}")),
            Err(error) => Some(error.into()),
        }
    }

    pub(super) fn end(&mut self) {
        let Self(child) = self;
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

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

    /// The same once the process has caught up with all that it was told of: it is asleep, and used
    /// nothing meanwhile.
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

/// Is there nothing left that any of its threads does?
pub(super) fn is_asleep(pid: u32) -> Result<bool> {
    for task in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if !status.contains("\nState:\tS") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// This thread goes before all others as long as this lives; those that it starts do not. Where
/// there is one processor, whoever is told of a change would else run before the request for it has
/// returned, and what it does after its line would count as well.
pub(super) struct First(());

impl First {
    pub(super) fn come() -> Result<Self> {
        schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)
            .context("cannot go before others")?;
        Ok(Self(()))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // What was allowed before is allowed again.
        let _ = schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // The kernel's `struct sched_param` is this one field; that of some C libraries has more.
    let parameters: libc::c_int = priority;
    // SAFETY: the parameters are alive during the call; 0 is this thread.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy,
            &raw const parameters,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
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
