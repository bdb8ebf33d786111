//! Patterns in all namespaces, those to come as well.

use std::{
    collections::BTreeMap,
    process::id,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    ONCE, Scenario, namespaces::another_with_number, native, only, peers::Process, users, veth,
};
use crate::{
    backend::{BY_NAMESPACE, TRACING},
    namespace::Namespace,
    program::wait_for,
    room::NamedNetns,
    scratch::Scratch,
    stage::Stage,
    want::{appeared, deleted, moved, renamed},
};

pub(super) const TABLE: &[Scenario] = &[
    only(
        TRACING,
        veth("all namespaces: there at the start, and to come", to_come),
    ),
    only(
        TRACING,
        veth(
            "all namespaces: the number of one comes again",
            number_again,
        ),
    ),
    only(
        TRACING,
        veth("all namespaces: a loss in several of them", loss_of_a_kind),
    ),
    only(
        TRACING,
        native(veth("all namespaces: a loss, and any kind", loss_of_any)),
    ),
    only(
        TRACING,
        native(veth("all namespaces: names are patterns", names)),
    ),
    only(
        BY_NAMESPACE,
        native(veth("all namespaces: not by this backend", refused)),
    ),
    only(
        ONCE,
        native(veth("all namespaces: auto has none for them", refused_auto)),
    ),
];

/// How interfaces begin that this scenario alone has: what others made still ends, and others may run
/// beside it.
fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("e{}x{}x", id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn to_come(stage: &mut Stage) -> Result<()> {
    let own = prefix();
    let all = format!("{own}*");
    let name = |number: u32| format!("{own}{number}");
    let scratch = Scratch::new("everywhere")?;
    let (inhabited, mounted, hidden) = (stage.room()?, stage.room()?, stage.room()?);
    let (home, first, second) = (stage.home.id()?, inhabited.id()?, mounted.id()?);
    stage.home.add(name(0), 100)?;
    inhabited.add(name(0), 100)?;
    mounted.add(name(1), 101)?;
    hidden.add(name(2), 100)?;
    let process = Process::new(&inhabited, None)?;
    let mount = NamedNetns::at(&mounted, scratch.path().join("a b"))?;
    // Nothing shows that there is a hidden one, until something happens in it.
    stage.watch_everywhere(&[], &[(&all, 3)])?;
    stage.home.delete(100)?;
    stage.see_in(home, &all, deleted(100).of(&name(0)))?;
    inhabited.rename(100, name(9))?;
    stage.see_in(first, &all, renamed(100, &name(9)).of(&name(0)))?;
    hidden.add(name(3), 101)?;
    stage.see_in(hidden.id()?, &all, appeared(101).of(&name(3)))?;

    // A new one, with a name and without.
    let new = stage.room()?;
    let third = new.id()?;
    let called = format!("ifmon-new-{}", id());
    let named = NamedNetns::new(&new, &called)?;
    new.add("other", 110)?;
    new.rename(110, name(4))?;
    let made = appeared(110).of(&name(4)).kind("veth");
    stage.see_in(third, &all, made.in_named(&called))?;
    new.rename(110, name(5))?;
    let again = renamed(110, &name(5)).of(&name(4));
    stage.see_in(third, &all, again.in_named(&called))?;
    new.move_to(110, &inhabited)?;
    let left = moved(110, first, 110).of(&name(5));
    stage.see_in(third, &all, left.in_named(&called))?;
    stage.see_in(first, &all, appeared(110).of(&name(5)).in_unnamed())?;
    inhabited.move_to(110, &new)?;
    let there = moved(110, third, 110).of(&name(5)).to_named(&called);
    stage.see_in(first, &all, there)?;
    stage.see_in(third, &all, appeared(110).of(&name(5)).in_named(&called))?;
    new.rename(110, "other")?;
    let out = renamed(110, "other").of(&name(5));
    stage.see_in(third, &all, out.in_named(&called))?;
    new.add(name(6), 111)?;
    new.delete(111)?;
    new.add_bridge(&name(7), 112)?;
    for (index, number) in [(111, 6), (112, 7)] {
        let made = appeared(index).of(&name(number));
        stage.see_in(third, &all, made.in_named(&called))?;
        if number == 6 {
            let gone = deleted(index).of(&name(number)).kind("veth");
            stage.see_in(third, &all, gone.in_named(&called))?;
        }
    }

    // None is kept alive.
    drop(named);
    drop(new);
    let gone = deleted(112).of(&name(7)).kind("bridge").by_the_kernel();
    stage.see_in(third, &all, gone.in_unnamed())?;
    drop(mount);
    drop(mounted);
    let gone = deleted(101).of(&name(1)).kind("veth").by_the_kernel();
    stage.see_in(second, &all, gone)?;
    drop(process);
    drop(inhabited);
    let gone = deleted(100).of(&name(9)).kind("veth").by_the_kernel();
    stage.see_in(first, &all, gone)?;
    stage.nothing_more(&[])
}

const BELOW: usize = 20;

fn number_again(stage: &mut Stage) -> Result<()> {
    let own = prefix();
    let all = format!("{own}*");
    let name = |number: u32| format!("{own}{number}");
    // The files of /proc/net have such numbers, too, and each namespace has files there: while these
    // stay, no lower numbers come and go.
    let below: Result<_> = (0..BELOW).map(|_| Namespace::new()).collect();
    let mut below: Vec<_> = below?;
    let mut doomed = stage.room()?;
    let netns = doomed.id()?;
    let process = Process::new(&doomed, None)?;
    doomed.add(name(0), 100)?;
    stage.watch_everywhere(&[], &[(&all, 1)])?;
    drop(process);
    for number in 0..3 {
        // One batch ends after the other: when this one goes, nothing is left of the one before.
        let next_batch = stage.room()?;
        next_batch.add_pair("near0", 300, &stage.home)?;
        drop(doomed);
        let gone = deleted(100).of(&name(number)).by_the_kernel();
        stage.see_in(netns, &all, gone)?;
        drop(next_batch);
        wait_for(|| stage.home.index_of("far0").is_err().then_some(()))?;
        doomed = another_with_number(netns, &mut below)?;
        doomed.add(name(number + 1), 100)?;
        stage.see_in(netns, &all, appeared(100).of(&name(number + 1)))?;
    }
    doomed.delete(100)?;
    stage.see_in(netns, &all, deleted(100).of(&name(3)))?;
    stage.nothing_more(&[])
}

fn names(stage: &mut Stage) -> Result<()> {
    let own = prefix();
    let (one, some) = (format!("{own}1"), format!("{own}x*"));
    let args = ["--netns", "*", "--kind", "bridge", &one, &some];
    stage.start(&args, true)?;
    stage.expect_everywhere(&one, 0)?;
    stage.expect_everywhere(&some, 0)?;
    let room = stage.room()?;
    let netns = room.id()?;
    room.add(format!("{own}11"), 100)?;
    room.add(format!("{own}x0"), 101)?;
    room.add(&one, 102)?;
    stage.see_in(netns, &one, appeared(102).of(&one).kind("veth"))?;
    stage.home.add_bridge(&one, 103)?;
    let home = stage.home.id()?;
    stage.see_in(home, &one, appeared(103).of(&one).kind("bridge"))?;
    room.rename(102, format!("{own}1x"))?;
    let out = renamed(102, &format!("{own}1x")).of(&one);
    stage.see_in(netns, &one, out)?;
    let last = format!("{own}x1");
    room.add_bridge(&last, 104)?;
    stage.see_in(netns, &some, appeared(104).of(&last).kind("bridge"))?;
    stage.nothing_more(&[])
}

/// By namespace and index.
type Devices = BTreeMap<(u32, u32), String>;

/// Takes a line, which must make sense after those before.
fn follow(devices: &mut Devices, line: &Value) -> Result<()> {
    let number = |field: &str| -> Result<u32> {
        let value = line[field].as_u64();
        Ok(u32::try_from(value.with_context(|| {
            format!("{field} is no number: {line}")
        })?)?)
    };
    let event = line["event"].as_str().unwrap_or_default();
    if event == "resynced" {
        return Ok(());
    }
    let device = (number("netns")?, number("ifindex")?);
    let name = line["interface"].as_str().context("no name")?.to_owned();
    let before = match event {
        "appeared" => devices.insert(device, name).map(|_| "another"),
        "deleted" | "renamed" | "moved" => {
            let had = devices.remove(&device);
            // Its new name matches, too: everything that is renamed here stays what it is.
            if let Some(to) = line["to"].as_str() {
                devices.insert(device, to.to_owned());
            }
            (had != Some(name)).then_some("none")
        }
        _ => Some("no such event"),
    };
    ensure!(before.is_none(), "{before:?} was there before: {line}");
    Ok(())
}

fn loss_of_any(stage: &mut Stage) -> Result<()> {
    loss(stage, &[])
}

fn loss_of_a_kind(stage: &mut Stage) -> Result<()> {
    loss(stage, &["--kind", "veth"])
}

/// More changes than the queue of this scenario has room for.
const CHANGES: u32 = 40;

fn loss(stage: &mut Stage, kind: &[&str]) -> Result<()> {
    let own = prefix();
    let all = format!("{own}*");
    let name = |number: u32| format!("{own}{number}");
    let before = stage.room()?;
    let _process = Process::new(&before, None)?;
    before.add(name(0), 100)?;
    let options = [&["--receive-buffer", "4096"], kind].concat();
    stage.watch_everywhere(&options, &[(&all, 1)])?;
    stage.may_resync();
    let (one, other, doomed) = (stage.room()?, stage.room()?, stage.room()?);
    let ids = [before.id()?, one.id()?, other.id()?, doomed.id()?];
    let [first, second, third, ending] = ids;
    one.add(name(1), 100)?;
    other.add(name(2), 100)?;
    doomed.add_pair(&name(3), 100, &stage.home)?;
    for (netns, number) in [(second, 1), (third, 2), (ending, 3)] {
        stage.see_in(netns, &all, appeared(100).of(&name(number)))?;
    }
    let mut devices = Devices::from([
        ((first, 100), name(0)),
        ((second, 100), name(1)),
        ((third, 100), name(2)),
        ((ending, 100), name(3)),
    ]);

    stage.program()?.signal(Signal::STOP)?;
    for _ in 0..CHANGES {
        one.add(name(4), 101)?;
        one.delete(101)?;
    }
    before.rename(100, name(5))?;
    one.delete(100)?;
    one.add(name(6), 100)?;
    one.add_bridge(&name(7), 102)?;
    other.move_to(100, &one)?;
    other.add(name(8), 103)?;
    drop(doomed);
    wait_for(|| stage.home.index_of("far0").is_err().then_some(()))?;
    let new = stage.room()?;
    new.add(name(9), 100)?;
    let fourth = new.id()?;
    let moved_to = one.index_of(&name(2))?;
    let mut after = Devices::from([
        ((first, 100), name(5)),
        ((second, 100), name(6)),
        ((second, moved_to), name(2)),
        ((third, 103), name(8)),
        ((fourth, 100), name(9)),
    ]);
    if kind.is_empty() {
        after.insert((second, 102), name(7));
    }
    stage.program()?.signal(Signal::CONT)?;

    let mut losses = 0;
    while devices != after {
        let line = stage.next_line().with_context(|| {
            format!("after {losses} losses there are {devices:?}, and should be {after:?}")
        })?;
        losses += u32::from(line["event"] == "resynced");
        follow(&mut devices, &line)?;
    }
    ensure!(losses > 0, "nothing was lost");
    // From there on each change is told as before.
    for (room, index, number) in [(&before, 100, 5), (&new, 100, 9), (&other, 103, 8)] {
        room.delete(index)?;
        stage.see_in(room.id()?, &all, deleted(index).of(&name(number)))?;
    }
    stage.nothing_more(&[])
}

const REASON: &str = "network namespaces are heard of one by one, as they are watched; all of them, and those to \
                      come, take fentry or kprobe";

fn refused(stage: &mut Stage) -> Result<()> {
    for args in [&["--netns", "*", "wg0"][..], &["*/wg*", "wg0"]] {
        stage.start(args, true)?;
        let outcome = stage.ends_silently(1)?;
        let backend = stage.backend;
        let expected = format!("ifmon: the {backend} backend does not work here: {REASON}\n");
        ensure!(
            outcome.stderr == expected,
            "on standard error: {}",
            outcome.stderr
        );
    }
    Ok(())
}

/// Without capabilities there is neither of the two.
fn refused_auto(stage: &mut Stage) -> Result<()> {
    let (_file, mut command) = users::program()?;
    command.args(["--json", "--netns", "*", "wg*"]);
    stage.home.enter(&mut command)?;
    users::as_nobody(&mut command);
    stage.launch(command)?;
    let outcome = stage.ends_silently(1)?;
    let stderr = outcome.stderr;
    ensure!(
        stderr.starts_with("ifmon: fentry ")
            && stderr.lines().count() == 1
            && stderr.contains(&format!(
                "netlink and netlink-unfiltered do not work here: {REASON}"
            )),
        "on standard error: {stderr}"
    );
    Ok(())
}
