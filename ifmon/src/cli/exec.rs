//! Hooks: a command for each event, one at a time and in order.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{process::Command, sync::mpsc, task::JoinHandle, time::timeout};

/// Events that wait for the hook. When it is slower than this, events are no longer read, and what the kernel then drops
/// is made good by reading the state again.
const WAITING: usize = 256;

type Environment = Vec<(String, OsString)>;

/// The queue of hooks and the task that runs them.
#[derive(Debug)]
pub(crate) struct Hooks {
    queue: mpsc::Sender<Environment>,
    runner: JoinHandle<()>,
}

impl Hooks {
    pub(crate) fn new(command: OsString, limit: Duration) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Environment>(WAITING);
        let runner = tokio::spawn(async move {
            while let Some(environment) = waiting.recv().await {
                run(&command, environment, limit).await;
            }
        });
        Self { queue, runner }
    }

    /// Queues the hook for an event; waits while the queue is full.
    pub(crate) async fn run(&self, environment: Environment) {
        // The runner ends only when the queue does.
        let _ = self.queue.send(environment).await;
    }

    /// Waits until every queued hook has run.
    pub(crate) async fn finish(self) {
        let Self { queue, runner } = self;
        drop(queue);
        let _ = runner.await;
    }
}

async fn run(command: &OsString, environment: Environment, limit: Duration) {
    let event = environment
        .iter()
        .find(|(name, _)| name == "IFMON_EVENT")
        .map(|(_, value)| value.to_string_lossy().into_owned())
        .unwrap_or_default();
    // What happened reaches the command as data only, never as a part of its text.
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .envs(environment)
        // What a service manager wants to hear of ifmon, a command must not answer for it.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            log::warn!("the hook for {event} could not be started: {error}");
            return;
        }
    };
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => log::warn!("the hook for {event} failed: {}", describe(status)),
        Ok(Err(error)) => log::warn!("the hook for {event} was lost sight of: {error}"),
        Err(_) => {
            log::warn!(
                "the hook for {event} was ended: it ran longer than {} s",
                limit.as_secs_f64()
            );
            kill_group(&child);
            let _ = child.kill().await;
        }
    }
}

/// Ends the command with all that it started.
fn kill_group(child: &tokio::process::Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}
