//! A namespace that ends while nobody listens.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{
    Settings,
    follow::{ALIAS, Followed, MARK, WATCHED},
};
use crate::{
    links::Links,
    namespace::Namespace,
    program::{self, Ifmon, PATIENCE},
    room::{Device, Room},
};

/// What a ring buffer of a page takes many times over.
const CHANGES: u32 = 200;

/// The record of the end is lost. All the same the interface is told to be deleted, once, and the
/// other watch goes on.
pub(super) fn ending(settings: &Settings) -> Result<String> {
    let rounds = settings.scaled(40);
    let mut lost = 0;
    for _ in 0..rounds {
        lost += round(settings)?;
    }
    Ok(format!(
        "{rounds} namespaces ended in the midst of a loss of {lost} events all in all, each told once"
    ))
}

fn round(settings: &Settings) -> Result<u64> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let home = Room::of(namespace, Device::Veth)?;
    let doomed = Room::new(Device::Veth)?;
    let ending = doomed.id()?;
    doomed.add_pair(WATCHED, 100, &home)?;
    home.add(WATCHED, 101)?;
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--quiet", "--backend", settings.backend.as_str()])
        .args(["--receive-buffer", "4096"])
        .args(
            [(&home, WATCHED), (&home, MARK), (&doomed, WATCHED)]
                .map(|(room, name)| format!("{}/{name}", room.path())),
        );
    let ifmon = Ifmon::spawn(command)?;
    // Another one, which has nothing left to watch then.
    let alone = format!("{}/{WATCHED}", doomed.path());
    let args = [
        "--quiet",
        "--backend",
        settings.backend.as_str(),
        "--receive-buffer",
        "4096",
        &alone,
    ];
    let alone = Ifmon::start(&Namespace::current()?, &args)?;
    let mut followed_alone = Followed::new();
    followed_alone.line(&alone.expect(WATCHED, "watching")?)?;
    let mut followed = Followed::new();
    let mut ended = Vec::new();
    for _ in 0..3 {
        let line = ifmon.next()?.context("ended before it began")?;
        if line["netns"] == ending {
            ended.push(line);
        } else if line["interface"] == WATCHED {
            followed.line(&line)?;
        }
    }

    ifmon.signal(Signal::STOP)?;
    alone.signal(Signal::STOP)?;
    for _ in 0..CHANGES / 2 {
        home.rename(101, ALIAS)?;
        home.rename(101, WATCHED)?;
    }
    for _ in 0..CHANGES / 2 {
        doomed.rename(100, ALIAS)?;
        doomed.rename(100, WATCHED)?;
    }
    drop(doomed);
    // The other end of the pair goes with it.
    let deadline = Instant::now() + PATIENCE;
    while links.index_of("far0")?.is_some() {
        ensure!(
            Instant::now() < deadline,
            "something keeps the namespace alive"
        );
        thread::sleep(Duration::from_millis(1));
    }
    home.rename(101, ALIAS)?;
    ifmon.signal(Signal::CONT)?;
    followed.until_mark_of(&links, || {
        loop {
            let line = ifmon.next()?.context("ended early")?;
            if line["netns"] != ending {
                return Ok(line);
            }
            ended.push(line);
        }
    })?;
    followed.expect(&links)?;
    let told: Vec<_> = ended.iter().map(|line| line["event"].as_str()).collect();
    ensure!(
        told == [Some("watching"), Some("resynced"), Some("deleted")]
            && ended.last().is_some_and(|line| line["recovered"] == true),
        "of the namespace that ended: {told:?}, the last {:?}",
        ended.last()
    );
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.status.success() && outcome.lines.len() == 3,
        "ended with {}, {:?}",
        outcome.status,
        outcome.lines
    );

    alone.signal(Signal::CONT)?;
    let outcome = alone.finish()?;
    for line in &outcome.lines {
        if line["event"] == "stopped" {
            ensure!(line["reason"] == "error", "not the end of it: {line}");
        } else {
            followed_alone.line(line)?;
        }
    }
    ensure!(
        outcome.status.code() == Some(1)
            && followed_alone.resyncs > 0
            && followed_alone.holder.0.is_none(),
        "alone, ended with {} after {:?}",
        outcome.status,
        followed_alone.told.last()
    );
    followed.lost.context("an unknown loss")
}
