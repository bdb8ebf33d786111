//! The same name and the same index, in several network namespaces.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::{Scenario, all, only, veth};
use crate::{
    backend::TRACING,
    namespace::Namespace,
    room::{Device, NamedNetns, Room},
    scratch::Scratch,
    stage::{SENTINEL, Stage, left_out},
    want::{appeared, deleted, moved, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    all("same name and index in another namespace", elsewhere),
    veth("both namespaces of a move watched", both_ends),
    veth("moved to a namespace with a name", moved_to_name),
    veth("moved to where the index is taken", moved_to_other_index),
    veth("moved to where the name is taken", moved_to_other_name),
    veth("moved into a watched name by a pattern", moved_by_pattern),
    veth(
        "another device is called like ours where it goes",
        called_like_ours_elsewhere,
    ),
    veth("watched from outside, by --netns twice", netns_twice),
    veth("watched by the name of the namespace", netns_by_name),
    veth("watched by a process in the namespace", netns_by_process),
    veth("the peer's namespace ends", peer_ends),
    // A socket keeps its namespace alive, so these are for tracing.
    only(TRACING, veth("a watched namespace ends", watched_ends)),
    only(
        TRACING,
        veth("a watched namespace ends, by --state", ends_on_record),
    ),
    only(
        TRACING,
        veth("the only watched namespace ends", only_watched_ends),
    ),
    only(
        TRACING,
        veth("the number of a namespace comes again", number_again),
    ),
];

fn elsewhere(stage: &mut Stage) -> Result<()> {
    let other = stage.room()?;
    stage.home.add("wg0", 100)?;
    other.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), ("wg1", None)])?;
    other.rename(100, "wg1")?;
    other.rename(100, "wg0")?;
    other.delete(100)?;
    other.add("wg0", 100)?;
    other.add("wg1", 101)?;
    other.delete(100)?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.nothing_more(&[])
}

fn both_ends(stage: &mut Stage) -> Result<()> {
    let (one, two) = (stage.room()?, stage.room()?);
    let (first, second) = (one.id()?, two.id()?);
    one.add("wg0", 100)?;
    stage.watch_rooms(&[(&one, "wg0", Some(100)), (&two, "wg0", None)])?;
    one.move_to(100, &two)?;
    stage.see_in(first, "wg0", moved(100, second, 100))?;
    stage.see_in(second, "wg0", appeared(100))?;
    two.move_to(100, &one)?;
    stage.see_in(second, "wg0", moved(100, first, 100))?;
    stage.see_in(first, "wg0", returned(100))?;
    one.delete(100)?;
    stage.see_in(first, "wg0", deleted(100))?;
    stage.nothing_more(&[&one, &two])
}

fn moved_to_name(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    let name = format!("ifmon-away-{}", std::process::id());
    let _named = NamedNetns::new(&away, &name)?;
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.move_to(100, &away)?;
    stage.see("wg0", moved(100, away.id()?, 100).to_named(&name))?;
    stage.nothing_more(&[])
}

/// The kernel gives it the next free index there.
fn moved_to_other_index(stage: &mut Stage) -> Result<()> {
    let (one, two) = (stage.room()?, stage.room()?);
    let (first, second) = (one.id()?, two.id()?);
    one.add("wg0", 100)?;
    two.add("other0", 100)?;
    stage.watch_rooms(&[(&one, "wg0", Some(100)), (&two, "wg0", None)])?;
    one.move_to(100, &two)?;
    // The peer of other0 has the first free index.
    stage.see_in(first, "wg0", moved(100, second, 3))?;
    stage.see_in(second, "wg0", appeared(3))?;
    two.delete(3)?;
    stage.see_in(second, "wg0", deleted(3))?;
    stage.nothing_more(&[&one, &two])
}

/// Some kernels overwrite the name before they tell of the move.
fn moved_to_other_name(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    away.add("wg0", 101)?;
    stage.watch(&[("wg0", Some(100)), ("dev0", None)])?;
    stage.home.move_to_as(100, &away, "dev%d")?;
    stage.see("wg0", moved(100, away.id()?, 100))?;
    away.delete(101)?;
    away.rename(100, "wg0")?;
    away.move_to(100, &stage.home)?;
    stage.see("wg0", returned(100))?;
    stage.nothing_more(&[])
}

/// Kernels that overwrite the name before they tell of the move show two devices with our name for
/// a moment.
fn called_like_ours_elsewhere(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.home.add("other0", 101)?;
    away.add("other0", 102)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.move_to_as(101, &away, "wg0")?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.home.rename(100, "wg0")?;
    stage.see("wg0", returned(100))?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.nothing_more(&[])
}

/// The kernel applies the pattern twice: to the name in the new namespace, and then as a rename
/// like any other.
fn moved_by_pattern(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    away.add("wg0", 101)?;
    stage.watch(&[("wg0", Some(100)), ("new0", None)])?;
    stage.may_resync();
    away.move_to_as(101, &stage.home, "new%d")?;
    stage.see("new0", appeared(101))?;
    stage.see("new0", renamed(101, "new1"))?;
    stage.nothing_more(&[])
}

fn netns_twice(stage: &mut Stage) -> Result<()> {
    let (one, two) = (stage.room()?, stage.room()?);
    let (first, second) = (one.id()?, two.id()?);
    one.add("wg0", 100)?;
    two.add("wg0", 100)?;
    let args = [
        "--netns",
        &one.path(),
        "--netns",
        &two.path(),
        "wg0",
        SENTINEL,
    ];
    let watches = [
        (first, "wg0", Some(100)),
        (first, SENTINEL, None),
        (second, "wg0", Some(100)),
        (second, SENTINEL, None),
    ];
    stage.watch_with(&args, &watches)?;
    two.delete(100)?;
    one.rename(100, "old0")?;
    two.add("wg0", 101)?;
    stage.see_in(first, "wg0", renamed(100, "old0"))?;
    stage.see_in(second, "wg0", deleted(100))?;
    stage.see_in(second, "wg0", recreated(101, 100))?;
    stage.nothing_more(&[&one, &two])
}

fn netns_by_name(stage: &mut Stage) -> Result<()> {
    let room = stage.room()?;
    let id = room.id()?;
    let name = format!("ifmon-{}", std::process::id());
    let _named = NamedNetns::new(&room, &name)?;
    room.add("wg0", 100)?;
    let args = [format!("{name}/wg0"), format!("{name}/{SENTINEL}")];
    stage.watch_with(&args, &[(id, "wg0", Some(100)), (id, SENTINEL, None)])?;
    room.delete(100)?;
    stage.see_in(id, "wg0", deleted(100).in_named(&name))?;
    stage.nothing_more(&[&room])
}

fn netns_by_process(stage: &mut Stage) -> Result<()> {
    let room = stage.room()?;
    let id = room.id()?;
    room.add("wg0", 100)?;
    let mut command = Command::new("cat");
    // It waits for the end of its input, which is when this scenario drops it.
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    room.enter(&mut command)?;
    let mut child = command.spawn().context("cannot run cat")?;
    let pid = child.id().to_string();
    let args = ["--netns", &pid, "wg0", SENTINEL];
    let begun = stage.watch_with(&args, &[(id, "wg0", Some(100)), (id, SENTINEL, None)]);
    drop(child.stdin.take());
    child.wait()?;
    begun?;
    room.delete(100)?;
    stage.see_in(id, "wg0", deleted(100))?;
    stage.nothing_more(&[&room])
}

fn peer_ends(stage: &mut Stage) -> Result<()> {
    let other = stage.room()?;
    stage.home.add_pair("wg0", 100, &other)?;
    stage.watch(&[("wg0", Some(100))])?;
    drop(other);
    stage.see("wg0", deleted(100).by_the_kernel())?;
    stage.nothing_more(&[])
}

fn watched_ends(stage: &mut Stage) -> Result<()> {
    let (doomed, other) = (stage.room()?, stage.room()?);
    let (ending, lasting) = (doomed.id()?, other.id()?);
    doomed.add("wg0", 100)?;
    other.add("wg0", 100)?;
    let watches = [(&doomed, "wg0", Some(100)), (&other, "wg0", Some(100))];
    stage.watch_rooms(&watches)?;
    stage.end_room(doomed)?;
    stage.see_in(ending, "wg0", deleted(100).by_the_kernel())?;
    other.delete(100)?;
    stage.see_in(lasting, "wg0", deleted(100))?;
    stage.nothing_more(&[&other])
}

/// To be able to read who has a name there would keep it alive.
fn ends_on_record(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("state")?;
    let directory = scratch.path().to_str().context("a path in UTF-8")?;
    let (doomed, other) = (stage.room()?, stage.room()?);
    let (ending, lasting) = (doomed.id()?, other.id()?);
    doomed.add("wg0", 100)?;
    let names = [doomed.path(), other.path()].map(|path| format!("{path}/wg0"));
    let args = ["--state", directory, &names[0], &names[1]];
    let watches = [(ending, "wg0", Some(100)), (lasting, "wg0", None)];
    stage.watch_with(&args, &watches)?;
    stage.end_room(doomed)?;
    stage.see_in(ending, "wg0", deleted(100).by_the_kernel())?;
    other.add("wg0", 101)?;
    stage.see_in(lasting, "wg0", appeared(101))?;
    stage.nothing_more(&[])
}

fn only_watched_ends(stage: &mut Stage) -> Result<()> {
    let doomed = stage.room()?;
    let ending = doomed.id()?;
    doomed.add("wg0", 100)?;
    stage.watch_rooms(&[(&doomed, "wg0", Some(100))])?;
    stage.end_room(doomed)?;
    stage.see_in(ending, "wg0", deleted(100).by_the_kernel())?;
    stage.ends(1, "error")?;
    Ok(())
}

/// How many namespaces are made until one has the number of that which ended.
const ATTEMPTS: usize = 200;

/// A namespace with the number of one that ends.
pub(super) fn another_with_number(ending: u32, below: &mut Vec<Namespace>) -> Result<Room> {
    // The number is free a moment after the last device is gone. The lowest free one is given, so
    // those below are used up.
    let most = below.len() + ATTEMPTS;
    loop {
        let namespace = Namespace::new()?;
        if namespace.id()? == ending {
            return Room::of(namespace, Device::Veth);
        }
        below.push(namespace);
        if below.len() == most {
            return left_out("this kernel did not give the number of a namespace again");
        }
    }
}

fn number_again(stage: &mut Stage) -> Result<()> {
    let (doomed, other) = (stage.room()?, stage.room()?);
    let ending = doomed.id()?;
    doomed.add("wg0", 100)?;
    stage.watch_rooms(&[(&doomed, "wg0", Some(100)), (&other, "wg0", None)])?;
    stage.end_room(doomed)?;
    stage.see_in(ending, "wg0", deleted(100).by_the_kernel())?;
    let next = another_with_number(ending, &mut Vec::new())?;
    next.add("wg0", 100)?;
    next.rename(100, "old0")?;
    next.rename(100, "wg0")?;
    next.delete(100)?;
    stage.nothing_more(&[&other])
}
