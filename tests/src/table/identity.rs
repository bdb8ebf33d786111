//! Is it the same device? Indexes and names that come round again.

use anyhow::Result;
use ifmon::BackendKind;
use rustix::process::Signal;

use super::{Scenario, all, native, only, verdicts::goes_and_returns, veth};
use crate::{
    stage::Stage,
    want::{appeared, deleted, moved, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    all("same index again, back to back", same_index),
    veth("same index again, one at a time", same_index_slowly),
    all("two names swapped through a third", swapped),
    veth("both names of a rename watched", both_names),
    veth("deleted under another name", deleted_under_another_name),
    veth("same index under another name", index_of_another_name),
    veth(
        "the old device comes back after the new one",
        old_one_comes_back,
    ),
    veth(
        "renamed, moved, and back by another way",
        back_by_another_way,
    ),
    veth("deleted elsewhere after a move", deleted_elsewhere),
    veth(
        "a new device that is renamed away at once",
        new_one_leaves_at_once,
    ),
    veth("many names in one process", many_names),
    native(veth(
        "with no descriptor left: moved away and back",
        no_descriptor,
    )),
    only(
        NETLINK,
        native(veth(
            "with no descriptor left: a loss among many names",
            loss_without_descriptor,
        )),
    ),
    veth(
        "back to the first of two names, the second being another's",
        first_of_two,
    ),
];

fn same_index(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..3 {
        stage.home.delete(100)?;
        stage.home.add("wg0", 100)?;
    }
    for _ in 0..3 {
        stage.see("wg0", deleted(100))?;
        stage.see("wg0", recreated(100, 100))?;
    }
    stage.nothing_more(&[])
}

fn same_index_slowly(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..3 {
        stage.home.delete(100)?;
        stage.see("wg0", deleted(100))?;
        stage.home.add("wg0", 100)?;
        stage.see("wg0", recreated(100, 100))?;
    }
    stage.nothing_more(&[])
}

fn swapped(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("wg1", 101)?;
    stage.watch(&[("wg0", Some(100)), ("wg1", Some(101))])?;
    stage.home.rename(100, "third")?;
    stage.home.rename(101, "wg0")?;
    stage.home.rename(100, "wg1")?;
    stage.see("wg0", renamed(100, "third"))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.see("wg1", renamed(101, "wg0"))?;
    stage.see("wg1", recreated(100, 101))?;
    stage.nothing_more(&[])
}

fn both_names(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), ("old0", None)])?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("old0", appeared(100))?;
    stage.home.rename(100, "wg0")?;
    stage.see("old0", renamed(100, "wg0"))?;
    stage.see("wg0", returned(100))?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("old0", returned(100))?;
    stage.home.delete(100)?;
    stage.see("old0", deleted(100))?;
    stage.nothing_more(&[])
}

/// Two names were its: that another device has one of them now does not make it a stranger to the
/// other.
fn first_of_two(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), ("wg1", None)])?;
    stage.home.rename(100, "wg1")?;
    stage.see("wg0", renamed(100, "wg1"))?;
    stage.see("wg1", appeared(100))?;
    stage.home.rename(100, "old0")?;
    stage.see("wg1", renamed(100, "old0"))?;
    stage.home.add("wg1", 101)?;
    stage.see("wg1", recreated(101, 100))?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", returned(100))?;
    stage.nothing_more(&[])
}

/// The watched name is absent already, so its device's end is no event.
fn deleted_under_another_name(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.home.delete(100)?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

/// The index that the device had goes to another one, which then takes the name.
fn index_of_another_name(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.home.add("other0", 100)?;
    stage.see("wg0", deleted(100))?;
    stage.home.rename(100, "other1")?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", recreated(100, 100))?;
    stage.nothing_more(&[])
}

fn old_one_comes_back(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.home.delete(101)?;
    stage.see("wg0", deleted(101))?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", recreated(100, 101))?;
    stage.nothing_more(&[])
}

fn back_by_another_way(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.home.move_to(100, &away)?;
    away.rename(100, "wg0")?;
    away.move_to(100, &stage.home)?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("wg0", returned(100))?;
    stage.nothing_more(&[])
}

fn deleted_elsewhere(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    away.delete(100)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", recreated(100, 100))?;
    stage.nothing_more(&[])
}

fn new_one_leaves_at_once(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.may_resync();
    stage.home.delete(100)?;
    stage.home.add("wg0", 101)?;
    stage.home.rename(101, "old0")?;
    stage.see("wg0", deleted(100))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.see("wg0", renamed(101, "old0"))?;
    stage.nothing_more(&[])
}

/// By its inode, which takes some to read, as a rule.
fn no_descriptor(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..2 {
        goes_and_returns(stage, &away)?;
        stage.program()?.opens_nothing()?;
    }
    stage.nothing_more(&[])
}

/// So many that they are looked up in one go, as a rule.
fn loss_without_descriptor(stage: &mut Stage) -> Result<()> {
    const COUNT: u32 = 80;
    let names: Vec<String> = (0..COUNT).map(|number| format!("wg{number}")).collect();
    stage.home.add("wg0", 100)?;
    stage.home.add("wg1", 101)?;
    let index = |name: &str| match name {
        "wg0" => Some(100),
        "wg1" => Some(101),
        _ => None,
    };
    let watches: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), index(name)))
        .collect();
    stage.watch_home_with(&["--receive-buffer", "4096"], &watches)?;
    stage.may_resync();
    stage.program()?.hold()?;
    for _ in 0..40 {
        stage.home.rename(100, "wg2")?;
        stage.home.rename(100, "wg0")?;
    }
    stage.home.delete(101)?;
    stage.program()?.opens_nothing()?;
    stage.program()?.signal(Signal::CONT)?;
    let until_deleted = |stage: &mut Stage, name| -> Result<()> {
        loop {
            let line = stage.next_line()?;
            if line["event"] == "deleted" && line["interface"] == name {
                return Ok(());
            }
        }
    };
    until_deleted(stage, "wg1")?;
    stage.home.delete(100)?;
    until_deleted(stage, "wg0")?;
    stage.nothing_more(&[])
}

/// Others know without a look.
const NETLINK: &[BackendKind] = &[BackendKind::Netlink];

/// So many that all are looked up in one go, in a namespace where few of them are.
fn many_names(stage: &mut Stage) -> Result<()> {
    const COUNT: u32 = 16;
    const ABSENT: u32 = 64;
    let away = stage.room()?;
    let name = |number| format!("wg{number}");
    let names: Vec<String> = (0..COUNT).map(name).collect();
    let absent: Vec<String> = (COUNT..COUNT + ABSENT).map(name).collect();
    for (name, index) in names.iter().zip(100..) {
        stage.home.add(name, index)?;
    }
    let watches = names.iter().zip((100..).map(Some));
    let watches = watches.chain(absent.iter().map(|name| (name, None)));
    let watches: Vec<_> = watches
        .map(|(name, index)| (name.as_str(), index))
        .collect();
    stage.watch(&watches)?;
    // It is known again by what was read of it then.
    goes_and_returns(stage, &away)?;
    for index in (100..100 + COUNT).rev() {
        stage.home.delete(index)?;
    }
    for (name, index) in names.iter().zip(200..) {
        stage.home.add(name, index)?;
    }
    for (name, index) in names.iter().zip(100..) {
        stage.see(name, deleted(index))?;
        stage.see(name, recreated(index + 100, index))?;
    }
    stage.nothing_more(&[])
}
