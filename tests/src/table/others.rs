//! Beside other programs: `ip monitor` as a second opinion.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{Scenario, veth};
use crate::{
    stage::{Stage, left_out},
    want::{deleted, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[veth("as ip monitor saw it", as_ip_monitor_saw_it)];

/// `ip monitor` tells of every message; those that delete wg0 or give it another name are as many
/// as the verdicts.
fn as_ip_monitor_saw_it(stage: &mut Stage) -> Result<()> {
    let mut command = Command::new("ip");
    command
        .args(["-o", "monitor", "link"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It complains of what came before it, which does not matter here.
        .stderr(Stdio::null());
    stage.home.enter(&mut command)?;
    let Ok(mut oracle) = command.spawn() else {
        return left_out("there is no ip here");
    };
    let stdout = oracle.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    // It listens once it tells of something. That can take so long that links made for it would have
    // the indexes below.
    stage.home.add("probe0", 90)?;
    let ready = std::thread::spawn(move || {
        let first = lines.next();
        (first, lines)
    });
    while !ready.is_finished() {
        stage.home.set(90, |link| link.up())?;
        stage.home.set(90, |link| link.down())?;
    }
    let (_, mut lines) = ready
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.home.rename(100, "wg0")?;
    stage.home.set(100, |link| link.up())?;
    stage.home.delete(100)?;
    stage.home.add("wg0", 101)?;
    stage.home.delete(101)?;
    stage.home.add("last0", 102)?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("wg0", returned(100))?;
    stage.see("wg0", deleted(100))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.see("wg0", deleted(101))?;
    stage.nothing_more(&[])?;

    let (mut deletions, mut names) = (0, Vec::new());
    loop {
        let line = lines.next().context("ip monitor ended")??;
        let is = |index: u32, name: &str| line.contains(&format!("{index}: {name}"));
        if is(102, "last0") {
            break;
        }
        if line.starts_with("Deleted") && (is(100, "wg0") || is(101, "wg0")) {
            deletions += 1;
        } else if is(100, "") || is(101, "") {
            let name = if is(100, "wg0") || is(101, "wg0") {
                "wg0"
            } else {
                "old0"
            };
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
    }
    oracle.kill()?;
    oracle.wait()?;
    ensure!(deletions == 2, "ip monitor saw {deletions} deletions");
    ensure!(
        names == ["wg0", "old0", "wg0"],
        "ip monitor saw the names {names:?}"
    );
    Ok(())
}
