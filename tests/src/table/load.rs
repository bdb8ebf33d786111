//! Much at once: in the watched name, and beside it.

use anyhow::{Result, ensure};
use ifmon::BackendKind;

use super::{Scenario, only, veth};
use crate::{
    stage::Stage,
    want::{appeared, deleted, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("fifty devices with the name, one after the other", cycles),
    veth("fifty renames away and back", renames),
    only(
        FILTERED,
        veth("two thousand other links come and go", noise),
    ),
];

/// The others are woken for every link.
const FILTERED: &[BackendKind] = &[
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::Netlink,
];

const CYCLES: u32 = 50;

fn cycles(stage: &mut Stage) -> Result<()> {
    stage.watch(&[("wg0", None)])?;
    for index in 100..100 + CYCLES {
        stage.home.add("wg0", index)?;
        stage.home.delete(index)?;
    }
    stage.see("wg0", appeared(100))?;
    stage.see("wg0", deleted(100))?;
    for index in 101..100 + CYCLES {
        stage.see("wg0", recreated(index, index - 1))?;
        stage.see("wg0", deleted(index))?;
    }
    stage.nothing_more(&[])
}

fn renames(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..CYCLES {
        stage.home.rename(100, "old0")?;
        stage.home.rename(100, "wg0")?;
    }
    for _ in 0..CYCLES {
        stage.see("wg0", renamed(100, "old0"))?;
        stage.see("wg0", returned(100))?;
    }
    stage.nothing_more(&[])
}

/// Pairs, so twice as many links.
const PAIRS: u32 = 1000;
/// Links that are there at the same time, and are deleted together.
const BATCH: u32 = 50;
/// Those that are deleted one by one: each takes the kernel some milliseconds.
const SINGLE: u32 = 20;

/// How often the process may be woken beside what it does not watch. Who sleeps takes no time, so time is left to the
/// measurements: on a busy machine it says more about the machine.
const SWITCHES: u64 = 5;

fn noise(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    let switches = || stage.program()?.status("voluntary_ctxt_switches");
    let before = switches()?;
    for pair in 0..SINGLE {
        stage.home.add_unrelated(pair, 7)?;
        stage.home.delete_group(7)?;
    }
    for batch in 0..(PAIRS - SINGLE) / BATCH {
        for pair in 0..BATCH {
            stage.home.add_unrelated(batch * BATCH + pair, 7)?;
        }
        stage.home.delete_group(7)?;
    }
    let woken = switches()? - before;
    ensure!(woken <= SWITCHES, "woken {woken} times");
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.nothing_more(&[])
}
