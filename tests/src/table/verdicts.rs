//! Each verdict by the shortest way to it.

use anyhow::Result;

use super::{Scenario, all, native, veth};
use crate::{
    room::{Room, errno},
    stage::Stage,
    want::{appeared, deleted, moved, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    all("deleted", is_deleted),
    all("appeared", is_made),
    all("recreated", is_made_again),
    all("renamed", is_renamed),
    all("renamed while up", is_renamed_while_up),
    all("returned by a rename back", is_renamed_back),
    all("recreated by a rename into the name", is_renamed_into),
    all("moved", is_moved),
    all("returned by a move back", is_moved_back),
    native(veth("hundreds of alternative names", has_many_names)),
    all(
        "recreated while the old one is elsewhere",
        is_replaced_after_move,
    ),
    veth("appeared by a rename", appears_by_rename),
    veth("appeared by a move", appears_by_move),
];

fn is_deleted(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.nothing_more(&[])
}

fn is_made(stage: &mut Stage) -> Result<()> {
    stage.watch(&[("wg0", None)])?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.nothing_more(&[])
}

fn is_made_again(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", deleted(100))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

fn is_renamed(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.nothing_more(&[])
}

/// Older kernels refuse this, and then nothing has happened.
fn is_renamed_while_up(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.set(100, |link| link.up())?;
    stage.watch(&[("wg0", Some(100))])?;
    match stage.home.rename(100, "old0") {
        Ok(()) => {
            stage.see("wg0", renamed(100, "old0"))?;
            stage.home.rename(100, "wg0")?;
            stage.see("wg0", returned(100))?;
        }
        Err(error) if errno(&error) == Some(libc::EBUSY) => {}
        Err(error) => return Err(error),
    }
    stage.nothing_more(&[])
}

fn is_renamed_back(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..2 {
        stage.home.rename(100, "old0")?;
        stage.home.rename(100, "wg0")?;
        stage.see("wg0", renamed(100, "old0"))?;
        stage.see("wg0", returned(100))?;
    }
    stage.nothing_more(&[])
}

fn is_renamed_into(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("new0", 101)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "old0")?;
    stage.home.rename(101, "wg0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

fn is_moved(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.nothing_more(&[])
}

fn is_moved_back(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..2 {
        goes_and_returns(stage, &away)?;
    }
    stage.nothing_more(&[])
}

/// wg0, which has the index 100, is moved away and back.
pub(super) fn goes_and_returns(stage: &mut Stage, away: &Room) -> Result<()> {
    stage.home.move_to(100, away)?;
    away.move_to(100, &stage.home)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.see("wg0", returned(100))
}

/// What is said of it, and what is answered, is longer than of any other.
fn has_many_names(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.home.add_altnames(100)?;
    stage.watch(&[("wg0", Some(100)), ("wg1", None)])?;
    stage.home.set(100, |link| link.mtu(1280))?;
    stage.home.move_to(100, &away)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    away.move_to(100, &stage.home)?;
    stage.see("wg0", returned(100))?;
    stage.home.rename(100, "wg1")?;
    stage.see("wg0", renamed(100, "wg1"))?;
    stage.see("wg1", appeared(100))?;
    stage.nothing_more(&[])
}

fn is_replaced_after_move(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])
}

fn appears_by_rename(stage: &mut Stage) -> Result<()> {
    stage.home.add("new0", 100)?;
    stage.watch(&[("wg0", None)])?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", appeared(100))?;
    stage.nothing_more(&[])
}

fn appears_by_move(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    away.add("wg0", 100)?;
    stage.watch(&[("wg0", None)])?;
    away.move_to(100, &stage.home)?;
    stage.see("wg0", appeared(100))?;
    stage.nothing_more(&[])
}
