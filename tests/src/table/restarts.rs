//! `--on-restart`: a command that sets up again what is no longer the interface that was set up.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{Scenario, hooks::Gate, native, only, veth};
use crate::{
    backend::{TRACING, UNPRIVILEGED},
    program::{self, wait_for},
    scratch::Scratch,
    stage::{Stage, left_out},
    want::{appeared, deleted, recreated, renamed},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("what happens during a restart starts no other", own_doing),
    veth("a change after a restart starts another", later_change),
    veth("no restart for a name that is free and then taken", taken),
    native(veth("no restart once the end was asked for", at_the_end)),
    native(veth("a second signal ends the command that runs", at_once)),
    only(
        TRACING,
        veth("no restart for what the engine does itself", mine),
    ),
    only(
        UNPRIVILEGED,
        veth("a warning where who does it cannot be known", mine_unknown),
    ),
];

/// Each run writes what it was told.
const NOTE: &str = r#"echo "$IFMON_EVENT $IFMON_INTERFACE" >> runs"#;

fn command(stage: &Stage, scratch: &Scratch, on_restart: &str) -> Result<Command> {
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--backend", stage.backend.as_str()])
        .args(["--on-restart", on_restart])
        .current_dir(scratch.path());
    stage.home.enter(&mut command)?;
    Ok(command)
}

fn runs(scratch: &Scratch) -> Vec<String> {
    let runs = fs::read_to_string(scratch.path().join("runs")).unwrap_or_default();
    runs.lines().map(str::to_owned).collect()
}

fn wait_for_runs(scratch: &Scratch, count: usize) -> Result<()> {
    wait_for(|| (runs(scratch).len() >= count).then_some(()))
}

fn own_doing(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("own")?;
    let gate = Gate::new(&scratch);
    let command = command(stage, &scratch, &format!("{NOTE}; {}", Gate::WAIT))?;
    stage.home.add("wg0", 100)?;
    stage.home.add("wg1", 200)?;
    stage.launch_home(command, &[("wg0", Some(100)), ("wg1", Some(200))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    wait_for_runs(&scratch, 1)?;
    // As an engine may do it.
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.home.delete(101)?;
    stage.see("wg0", deleted(101))?;
    stage.home.add("wg0", 102)?;
    stage.see("wg0", recreated(102, 101))?;
    // Another watch has a run of its own, at the same time.
    stage.home.rename(200, "old1")?;
    stage.see("wg1", renamed(200, "old1"))?;
    wait_for_runs(&scratch, 2)?;
    gate.open()?;
    stage.nothing_more(&[])?;
    ensure!(
        runs(&scratch) == ["deleted wg0", "renamed wg1"],
        "runs: {:?}",
        runs(&scratch)
    );
    Ok(())
}

fn later_change(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("later")?;
    let command = command(stage, &scratch, &format!("{NOTE}; exit 7"))?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    let mut index = 100;
    // When a run is over cannot be seen from outside; a change during it is its own doing.
    for run in 1..=2 {
        while runs(&scratch).len() < run {
            stage.home.delete(index)?;
            stage.see("wg0", deleted(index))?;
            stage.home.add("wg0", index + 1)?;
            stage.see("wg0", recreated(index + 1, index))?;
            index += 1;
        }
    }
    stage.warns("the command of --on-restart for wg0 failed: exit status 7");
    stage.nothing_more(&[])
}

fn taken(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("taken")?;
    let command = command(stage, &scratch, NOTE)?;
    stage.launch_home(command, &[("wg0", None), ("wg1", None)])?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.home.add("wg1", 101)?;
    stage.see("wg1", appeared(101))?;
    stage.home.delete(101)?;
    stage.see("wg1", deleted(101))?;
    // This one does; one for the other would have come before.
    wait_for_runs(&scratch, 1)?;
    stage.nothing_more(&[])?;
    ensure!(
        runs(&scratch) == ["deleted wg1"],
        "runs: {:?}",
        runs(&scratch)
    );
    Ok(())
}

/// Whoever stops a service may take its interfaces away as well.
fn at_the_end(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("end")?;
    let command = command(stage, &scratch, NOTE)?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    // In the midst of something, it may take the change before it looks for signals.
    stage.program()?.comes_to_rest()?;
    stage.program()?.hold()?;
    stage.program()?.signal(Signal::TERM)?;
    stage.home.delete(100)?;
    stage.program()?.signal(Signal::CONT)?;
    stage.see("wg0", deleted(100))?;
    stage.ends(0, "signal")?;
    ensure!(runs(&scratch).is_empty(), "runs: {:?}", runs(&scratch));
    Ok(())
}

/// Also when all hooks have ended.
fn at_once(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("at-once")?;
    let on_restart = format!("{NOTE}; {} true", Gate::WAIT);
    let mut command = command(stage, &scratch, &on_restart)?;
    command.args(["--exec", "echo $IFMON_EVENT >> hooks"]);
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    wait_for_runs(&scratch, 1)?;
    stage.program()?.signal(Signal::TERM)?;
    // The hook of the last line is the last.
    wait_for(|| {
        let hooks = fs::read_to_string(scratch.path().join("hooks")).unwrap_or_default();
        hooks.ends_with("stopped\n").then_some(())
    })?;
    stage.program()?.signal(Signal::TERM)?;
    stage.ends(0, "signal").map(drop)
}

/// All that is below the root of the cgroups, which is everything.
const EVERYBODY: [&str; 2] = ["--mine", "/"];

fn mine(stage: &mut Stage) -> Result<()> {
    let cgroups = "/sys/fs/cgroup";
    if !fs::exists("/sys/fs/cgroup/cgroup.procs")? {
        use rustix::mount::{MountFlags, mount};
        mount("cgroup2", cgroups, "cgroup2", MountFlags::empty(), None)
            .or_else(|error| left_out(format!("no cgroups of version 2 here: {error}")))?;
    }
    let scratch = Scratch::new("mine")?;
    let mut command = command(stage, &scratch, NOTE)?;
    command.args(EVERYBODY);
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100).own())?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100).own())?;
    // A command that had begun would be waited for.
    stage.nothing_more(&[])?;
    ensure!(runs(&scratch).is_empty(), "runs: {:?}", runs(&scratch));
    Ok(())
}

fn mine_unknown(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("unknown")?;
    let mut command = command(stage, &scratch, NOTE)?;
    command.args(EVERYBODY);
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    wait_for_runs(&scratch, 1)?;
    stage.warns("--mine has no effect");
    stage.nothing_more(&[])
}
