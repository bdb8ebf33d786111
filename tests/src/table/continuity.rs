//! `--state`: what became of interfaces while ifmon was not running.

use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Scenario, hooks::Gate, native, veth};
use crate::{
    program::{self, wait_for},
    room::NamedNetns,
    scratch::Scratch,
    stage::Stage,
    want::{deleted, moved, recreated, renamed},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("changes while ifmon was stopped", |stage| {
        meanwhile(stage, |stage| stage.nothing_more(&[]))
    }),
    veth("changes after ifmon was killed", |stage| {
        meanwhile(stage, Stage::kill)
    }),
    native(veth("a change whose line could not be written", unwritten)),
    native(veth(
        "killed before the first hook has ended",
        killed_at_first,
    )),
    native(veth(
        "what a restart does after the end was asked for",
        own_doing,
    )),
];

/// What is watched: a name, and the index of its device before and after.
const FATES: [(&str, Option<u32>, Option<u32>); 9] = [
    ("left0", Some(100), Some(100)),
    ("replaced0", Some(101), Some(201)),
    ("sameindex0", Some(102), Some(102)),
    ("renamed0", Some(103), None),
    ("moved0", Some(104), None),
    ("hidden0", Some(105), None),
    ("deleted0", Some(106), None),
    ("taken0", Some(107), Some(207)),
    ("new0", None, Some(208)),
];
/// A namespace's name of `ip netns`.
const AWAY: &str = "ifmon-away";

/// Every change at once, so that each is told from the others.
fn meanwhile(stage: &mut Stage, end: fn(&mut Stage) -> Result<()>) -> Result<()> {
    let scratch = Scratch::new("state")?;
    let away = stage.room()?;
    let _name = NamedNetns::new(&away, AWAY)?;
    let hidden = stage.room()?;
    let before = FATES.map(|(name, before, _)| (name, before));
    let after = FATES.map(|(name, _, after)| (name, after));

    for (name, index) in before {
        if let Some(index) = index {
            stage.home.add(name, index)?;
        }
    }
    watch(stage, &scratch, &before)?;
    recorded(stage, &scratch, &before)?;
    let old_one = record(stage, &scratch, "sameindex0");
    end(stage)?;

    stage.home.delete(101)?;
    stage.home.add("replaced0", 201)?;
    stage.home.delete(102)?;
    stage.home.add("sameindex0", 102)?;
    stage.home.rename(103, "other0")?;
    stage.home.move_to(104, &away)?;
    stage.home.move_to(105, &hidden)?;
    stage.home.delete(106)?;
    stage.home.rename(107, "other1")?;
    stage.home.add("taken0", 207)?;
    stage.home.add("new0", 208)?;
    watch(stage, &scratch, &after)?;
    for (name, want) in [
        ("replaced0", recreated(201, 101)),
        ("sameindex0", recreated(102, 102)),
        ("renamed0", renamed(103, "other0")),
        ("moved0", moved(104, away.id()?, 104).to_named(AWAY)),
        // Nobody can find it, as if it were gone.
        ("hidden0", deleted(105)),
        ("deleted0", deleted(106)),
        ("taken0", recreated(207, 107)),
    ] {
        stage.see(name, want.recovered())?;
    }
    recorded(stage, &scratch, &after)?;
    wait_for(|| (record(stage, &scratch, "sameindex0") != old_one).then_some(()))?;
    end(stage)?;

    // Nothing is told again: what is told next is what happens next.
    watch(stage, &scratch, &after)?;
    stage.home.delete(100)?;
    stage.see("left0", deleted(100))?;
    stage.nothing_more(&[])
}

/// It was not told, so it is told at the next start.
fn unwritten(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("unwritten")?;
    let watched = [("wg0", Some(100))];
    stage.home.add("wg0", 100)?;
    watch(stage, &scratch, &watched)?;
    recorded(stage, &scratch, &watched)?;
    stage.nothing_more(&[])?;

    stage.home.delete(100)?;
    let (reader, no_reader) = io::pipe()?;
    drop(reader);
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    for (stdout, code) in [(full.into(), 1), (OwnedFd::from(no_reader), 0)] {
        let mut command = Command::new(program::path());
        command
            .args(["--json", "--quiet", "--backend", stage.backend.as_str()])
            .args(["wg0", "--state"])
            .arg(scratch.path())
            .stdout(stdout)
            .stderr(Stdio::null());
        stage.home.enter(&mut command)?;
        let status = command.status()?;
        ensure!(status.code() == Some(code), "ended with {status}");
    }
    watch(stage, &scratch, &[("wg0", None)])?;
    stage.see("wg0", deleted(100).recovered())?;
    stage.nothing_more(&[])
}

/// That the watch has begun is on record all the same.
fn killed_at_first(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("first")?;
    let watched = [("wg0", Some(100))];
    stage.home.add("wg0", 100)?;
    let directory = scratch.path().to_str().context("a path in UTF-8")?;
    let gate = Gate::new(&scratch);
    // It outlives ifmon, and nobody waits for what it could say.
    let hook = format!("exec > /dev/null 2>&1; cd {directory}; {} true", Gate::WAIT);
    stage.watch_home_with(&["--state", directory, "--exec", &hook], &watched)?;
    recorded(stage, &scratch, &watched)?;
    stage.kill()?;
    gate.open()?;
    stage.home.delete(100)?;
    watch(stage, &scratch, &[("wg0", None)])?;
    stage.see("wg0", deleted(100).recovered())?;
    stage.nothing_more(&[])
}

/// It is the state that was meant to be there.
fn own_doing(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("own")?;
    let directory = scratch.path().to_str().context("a path in UTF-8")?;
    let watched = [("wg0", Some(100))];
    stage.home.add("wg0", 100)?;
    let gate = Gate::new(&scratch);
    let on_restart = format!("cd {directory}; echo > runs; {} true", Gate::WAIT);
    stage.watch_home_with(
        &["--state", directory, "--on-restart", &on_restart],
        &watched,
    )?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    wait_for(|| scratch.path().join("runs").exists().then_some(()))?;
    stage.program()?.signal(Signal::TERM)?;
    stage.program()?.expect("wg0", "stopped")?;
    // As the command may do it.
    stage.home.add("wg0", 101)?;
    gate.open()?;
    stage.ends_anyhow(0)?;
    watch(stage, &scratch, &[("wg0", Some(101))])?;
    stage.nothing_more(&[])
}

fn watch(stage: &mut Stage, scratch: &Scratch, names: &[(&str, Option<u32>)]) -> Result<()> {
    let directory = scratch.path().to_str().context("a path in UTF-8")?;
    stage.watch_home_with(&["--state", directory], names)
}

/// Waits until it is on record who holds these names.
fn recorded(stage: &Stage, scratch: &Scratch, names: &[(&str, Option<u32>)]) -> Result<()> {
    for &(name, index) in names {
        wait_for(|| {
            let record = record(stage, scratch, name)?;
            (record["holder"]["ifindex"] == json!(index)).then_some(())
        })
        .with_context(|| format!("{name} is not on record with {index:?}"))?;
    }
    Ok(())
}

fn record(stage: &Stage, scratch: &Scratch, name: &str) -> Option<Value> {
    let file = format!("{}:{name}", stage.home.id().ok()?);
    serde_json::from_slice(&fs::read(scratch.path().join(file)).ok()?).ok()
}
