//! Much at once: in the watched name, and beside it.

use anyhow::{Result, ensure};
use ifmon::BackendKind;

use super::{Scenario, only, veth};
use crate::{
    requests,
    stage::Stage,
    want::{appeared, deleted, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("fifty devices with the name, one after the other", cycles),
    veth("fifty renames away and back", renames),
    only(
        NETLINK_EBPF,
        veth("short lives by the thousand, sent in one go", short_lives),
    ),
    only(
        FILTERED,
        veth("other links come and go by the thousand", noise),
    ),
];

/// The others are woken for every link.
const FILTERED: &[BackendKind] = &[
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::NetlinkEbpf,
    BackendKind::Netlink,
];

/// The tracing programs hear of the same changes in the same order, and are tried with fewer above:
/// emulated kernels are slow.
const NETLINK_EBPF: &[BackendKind] = &[BackendKind::NetlinkEbpf];

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

/// Devices that come and go within microseconds, of so many names: to delete several at once takes
/// the kernel no longer than to delete one.
const LIVES: u32 = 1000;
const NAMES: u32 = 10;
/// Rounds that are sent in one go. Their changes fit into the queue, however long nobody reads it.
const AT_ONCE: u32 = 10;

/// Beyond those that the other ends of the pairs get.
const FIRST: u32 = 100_000;

/// Made, renamed away, renamed back and deleted, always by the same index: each change is told, and
/// nothing has to be looked up.
fn short_lives(stage: &mut Stage) -> Result<()> {
    let names: Vec<_> = (0..NAMES).map(|number| format!("wg{number}")).collect();
    let watches: Vec<_> = names.iter().map(|name| (name.as_str(), None)).collect();
    stage.watch(&watches)?;
    let rounds = stage.repeated(LIVES) / NAMES;
    for begin in (0..rounds).step_by(AT_ONCE as usize) {
        let mut changes = Vec::new();
        for _ in 0..AT_ONCE {
            for (name, index) in names.iter().zip(FIRST..) {
                changes.push(requests::add_pair(name, &format!("p{index}"), index, 7));
                changes.push(requests::rename(index, "old0"));
                changes.push(requests::rename(index, name));
            }
            changes.push(requests::delete_group(7));
        }
        stage.home.in_one_go(changes.into_iter())?;
        for round in begin..begin + AT_ONCE {
            for (name, index) in names.iter().zip(FIRST..) {
                let made = if round == 0 {
                    appeared(index)
                } else {
                    recreated(index, index)
                };
                stage.see(name, made)?;
                stage.see(name, renamed(index, "old0"))?;
                stage.see(name, returned(index))?;
                stage.see(name, deleted(index))?;
            }
        }
    }
    stage.nothing_more(&[])
}

/// Pairs, so twice as many links.
const PAIRS: u32 = 1000;
/// Links that are there at the same time, and are deleted together.
const BATCH: u32 = 50;
/// Those that are deleted one by one: each takes the kernel some milliseconds.
const SINGLE: u32 = 20;

/// How often the process may be woken beside what it does not watch. Who sleeps takes no time, so
/// time is left to the measurements: on a busy machine it says more about the machine.
const SWITCHES: u64 = 5;

fn noise(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    // All of them: who is never done is switched from, too.
    let switches = || -> Result<u64> {
        let program = stage.program()?;
        let unasked = program.status("nonvoluntary_ctxt_switches")?;
        Ok(program.status("voluntary_ctxt_switches")? + unasked)
    };
    let before = switches()?;
    for pair in 0..SINGLE {
        stage.home.add_unrelated(pair, 7)?;
        stage.home.delete_group(7)?;
    }
    for batch in 0..(stage.repeated(PAIRS) - SINGLE) / BATCH {
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
