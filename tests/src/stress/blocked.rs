//! A reader that does not read.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    Settings,
    follow::{ALIAS, Followed, WATCHED},
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

fn start(namespace: &Namespace, settings: &Settings) -> Result<Child> {
    let mut command = Command::new(path());
    command
        .args(["--json", "--quiet", "--backend", &settings.backend, WATCHED])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    namespace.enter(&mut command)?;
    command.spawn().context("cannot start ifmon")
}

/// Memory does not grow, the end is told right once somebody reads, and a signal ends it though nobody does.
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

    let mut ifmon = start(&namespace, settings)?;
    let mut lines = BufReader::new(ifmon.stdout.take().context("no standard output")?).lines();
    let mut followed = Followed::new();
    let mut next = |followed: &mut Followed| -> Result<Value> {
        let line: Value = serde_json::from_str(&lines.next().context("ended early")??)?;
        if line["event"] != "stopped" {
            followed.line(&line)?;
        }
        Ok(line)
    };
    next(&mut followed)?;
    // More than the pipe takes, so that everything that ever fills is full.
    churn(changes / 10)?;
    let before = resident(ifmon.id())?;
    churn(changes)?;
    let after = resident(ifmon.id())?;
    ensure!(
        after < before + 1024,
        "{before} KiB became {after} KiB while nobody read"
    );
    links.delete(WATCHED)?;
    loop {
        next(&mut followed)?;
        if followed
            .events
            .last()
            .is_some_and(|event| event == "deleted")
        {
            break;
        }
    }
    followed.expect(&links)?;
    signal(&ifmon, Signal::TERM)?;
    while next(&mut followed)?["event"] != "stopped" {}
    ended(&mut ifmon)?;

    let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
    let mut ifmon = start(&namespace, settings)?;
    let mut stdout = BufReader::new(ifmon.stdout.take().context("no standard output")?);
    stdout.read_line(&mut String::new())?;
    // 64 KiB fit into the pipe, and a line has a hundred bytes at least.
    for _ in 0..1000 {
        links.rename_index(ours, ALIAS)?;
        links.rename_index(ours, WATCHED)?;
    }
    let begin = Instant::now();
    signal(&ifmon, Signal::TERM)?;
    ended(&mut ifmon)?;
    Ok(format!(
        "{before} KiB before and {after} KiB after {changes} changes that nobody read, {} lines read then, \
         ended {} ms after SIGTERM while blocked",
        followed.events.len(),
        begin.elapsed().as_millis()
    ))
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
    Ok(kill_process(pid, signal)?)
}

fn ended(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("did not end when it was asked to");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
