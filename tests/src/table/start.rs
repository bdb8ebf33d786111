//! The start and the end: absent interfaces, `--must-exist`, `--once`.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ifmon::BackendKind;
use rustix::process::Signal;

use super::{Scenario, hooks::Gate, native, only, veth};
use crate::{
    program,
    scratch::Scratch,
    stage::Stage,
    want::{appeared, deleted, moved, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("absent, then made, for ever", absent),
    veth("--must-exist and it does not", must_exist_absent),
    veth("--must-exist and it does", must_exist_present),
    veth("--once: deleted", once_deleted),
    veth("--once: renamed", once_renamed),
    veth("--once: moved", once_moved),
    veth("--once: appeared", once_appeared),
    veth("--once: one event ends two watches", once_ends_two_watches),
    native(veth(
        "--once: one signal while the last hooks run",
        once_and_a_signal,
    )),
    veth("--wait: for all to be there", wait_present),
    veth("--wait: for all to be gone", wait_absent),
    veth("--wait: in vain", wait_in_vain),
    only(
        NETLINK,
        native(veth("--wait: at the last moment", just_in_time)),
    ),
    veth(
        "what happened before the signal to end",
        told_before_the_end,
    ),
];

/// For what is the program's own, and takes its time.
const NETLINK: &[BackendKind] = &[BackendKind::Netlink];

fn absent(stage: &mut Stage) -> Result<()> {
    stage.watch(&[("wg0", None)])?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.home.rename(101, "old0")?;
    stage.see("wg0", renamed(101, "old0"))?;
    stage.home.rename(101, "wg0")?;
    stage.see("wg0", returned(101))?;
    stage.nothing_more(&[])
}

fn must_exist_absent(stage: &mut Stage) -> Result<()> {
    stage.start(&["--must-exist", "wg0"], true)?;
    let outcome = stage.ends_silently(3)?;
    ensure!(
        outcome.stderr.lines().count() == 1 && outcome.stderr.contains("wg0 does not exist"),
        "on standard error: {}",
        outcome.stderr
    );
    Ok(())
}

fn must_exist_present(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch_home_with(&["--must-exist"], &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    // It must exist at the start only.
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

fn once_deleted(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch_home_with(&["--once"], &[("wg0", Some(100))])?;
    stage.home.set(100, |link| link.up())?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.ends(0, "once").map(drop)
}

fn once_renamed(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch_home_with(&["--once"], &[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.ends(0, "once").map(drop)
}

fn once_moved(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch_home_with(&["--once"], &[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.ends(0, "once").map(drop)
}

fn once_appeared(stage: &mut Stage) -> Result<()> {
    stage.watch_home_with(&["--once"], &[("wg0", None)])?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.ends(0, "once").map(drop)
}

/// The event of one watch ends all of them.
fn once_ends_two_watches(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("wg1", 101)?;
    let watches = [("wg0", Some(100)), ("wg1", Some(101))];
    stage.watch_home_with(&["--once"], &watches)?;
    stage.home.delete(101)?;
    stage.see("wg1", deleted(101))?;
    stage.ends(0, "once").map(drop)
}

/// The run ends by itself: the first signal is no second one.
fn once_and_a_signal(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("once")?;
    let gate = Gate::new(&scratch);
    let hook = format!(
        "test $IFMON_INTERFACE = wg0 || exit 0; {} echo $IFMON_EVENT >> out",
        Gate::WAIT
    );
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--backend", stage.backend.as_str()])
        .args(["--once", "--exec", &hook])
        .current_dir(scratch.path());
    stage.home.enter(&mut command)?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.program()?.expect("wg0", "stopped")?;
    stage.program()?.signal(Signal::TERM)?;
    gate.open()?;
    stage.ends_anyhow(0)?;
    let out = fs::read_to_string(scratch.path().join("out"))?;
    ensure!(out == "watching\ndeleted\nstopped\n", "hooks: {out}");
    Ok(())
}

fn wait_present(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg1", 101)?;
    let watches = [("wg0", None), ("wg1", Some(101))];
    stage.watch_home_with(&["--wait"], &watches)?;
    // There and gone again: both have to be there at a time.
    stage.home.delete(101)?;
    stage.see("wg1", deleted(101))?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.home.add("wg1", 102)?;
    stage.see("wg1", recreated(102, 101))?;
    stage.ends(0, "once").map(drop)
}

fn wait_absent(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("wg1", 101)?;
    let watches = [("wg0", Some(100)), ("wg1", Some(101))];
    stage.watch_home_with(&["--wait", "absent"], &watches)?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.home.rename(101, "old1")?;
    stage.see("wg1", renamed(101, "old1"))?;
    stage.ends(0, "once")?;
    // What is so already is not waited for.
    stage.start(&["--wait=absent", "--quiet", "wg0"], true)?;
    let lines = stage.ends_anyhow(0)?.lines;
    ensure!(lines.len() == 2, "told: {lines:?}");
    Ok(())
}

fn wait_in_vain(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.start(&["--wait", "--timeout", "0.1", "-q", "wg0", "wg1"], true)?;
    let outcome = stage.ends_anyhow(4)?;
    ensure!(
        outcome.stderr == "ifmon: wg1 does not exist after the 0.1 s of --timeout\n",
        "on standard error: {}",
        outcome.stderr
    );
    let last = outcome.lines.last();
    ensure!(
        last.is_some_and(|line| line["event"] == "stopped" && line["reason"] == "timeout"),
        "told: {:?}",
        outcome.lines
    );
    Ok(())
}

/// It came in time, and ifmon finds it when the time is over.
fn just_in_time(stage: &mut Stage) -> Result<()> {
    let begin = Instant::now();
    let args = ["--wait", "--timeout", "2"];
    stage.watch_home_with(&args, &[("wg0", None)])?;
    stage.program()?.hold()?;
    stage.home.add("wg0", 100)?;
    thread::sleep(Duration::from_secs(3).saturating_sub(begin.elapsed()));
    stage.program()?.signal(Signal::CONT)?;
    stage.see("wg0", appeared(100))?;
    stage.ends(0, "once").map(drop)
}

/// ifmon finds the changes and the signal at the same time.
fn told_before_the_end(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.program()?.hold()?;
    stage.home.delete(100)?;
    stage.home.add("wg0", 101)?;
    stage.program()?.signal(Signal::TERM)?;
    stage.program()?.signal(Signal::CONT)?;
    stage.see("wg0", deleted(100))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.ends(0, "signal").map(drop)
}
