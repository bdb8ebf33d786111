//! A reader that does not read.

use std::{
    io::{self, BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    Settings,
    follow::{ALIAS, Followed, MARK, WATCHED},
};
use crate::{
    links::{Kind, Links},
    namespace::Namespace,
    program::{PATIENCE, path},
};

/// Resident memory of a process, in KiB.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .context("no VmRSS")
}

/// A process whose lines wait until somebody takes them.
struct Blocked {
    child: Child,
    /// Without any room: who reads the pipe holds a line until it is taken, and takes no other
    /// from there meanwhile.
    lines: Receiver<io::Result<String>>,
}

impl Blocked {
    fn start(namespace: &Namespace, settings: &Settings) -> Result<Self> {
        let mut command = Command::new(path());
        command
            .args(["--json", "--quiet", "--backend", settings.backend.as_str()])
            .args([WATCHED, MARK])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        namespace.enter(&mut command)?;
        let mut child = command.spawn().context("cannot start ifmon")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::sync_channel(0);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn next(&self) -> Result<Value> {
        let line = self.lines.recv_timeout(PATIENCE);
        Ok(serde_json::from_str(&line.context("no line")??)?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    fn ended(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(
                Instant::now() < deadline,
                "did not end when it was asked to"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory does not grow, the end is told right once somebody reads, and a signal ends it though
/// nobody does.
pub(super) fn blocked(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let changes = settings.scaled(40_000);
    let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
    let churn = |count: u32| -> Result<()> {
        for _ in 0..count / 2 {
            links.rename_index(ours, ALIAS)?;
            links.rename_index(ours, WATCHED)?;
        }
        Ok(())
    };

    let mut ifmon = Blocked::start(&namespace, settings)?;
    let mut followed = Followed::new();
    for _ in 0..2 {
        let line = ifmon.next()?;
        if line["interface"] == WATCHED {
            followed.line(&line)?;
        }
    }
    // More than the ring buffer and the pipe take, so that everything that ever fills is full.
    churn(4_000)?;
    let before = resident(ifmon.child.id())?;
    churn(changes)?;
    let after = resident(ifmon.child.id())?;
    ensure!(
        after < before + 1024,
        "{before} KiB became {after} KiB while nobody read"
    );
    links.delete(WATCHED)?;
    followed.until_mark_of(&links, || ifmon.next())?;
    followed.expect(&links)?;
    ifmon.signal(Signal::TERM)?;
    for _ in 0..2 {
        let line = ifmon.next()?;
        ensure!(line["event"] == "stopped", "not the end: {line}");
    }
    ifmon.ended()?;

    let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
    let mut ifmon = Blocked::start(&namespace, settings)?;
    // 64 KiB fit into the pipe, 8 KiB are read of it, and a line has a hundred bytes at least.
    for _ in 0..2 {
        ifmon.next()?;
    }
    for _ in 0..1000 {
        links.rename_index(ours, ALIAS)?;
        links.rename_index(ours, WATCHED)?;
    }
    let begin = Instant::now();
    ifmon.signal(Signal::TERM)?;
    ifmon.ended()?;
    Ok(format!(
        "{before} KiB before and {after} KiB after {changes} changes that nobody read, {} lines read then, \
         ended {} ms after SIGTERM while blocked",
        followed.told.len(),
        begin.elapsed().as_millis()
    ))
}
