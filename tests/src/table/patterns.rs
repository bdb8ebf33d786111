//! Patterns: all interfaces whose names match.

use anyhow::Result;

use super::{ONCE, Scenario, native, only, veth};
use crate::{
    stage::Stage,
    want::{appeared, deleted, moved, recreated, renamed},
};

pub(super) const TABLE: &[Scenario] = &[
    veth(
        "pattern: renamed into it, within it and out of it, and made again",
        renamed_in_and_out,
    ),
    veth("pattern: moved away and back", moved_away_and_back),
    native(veth("pattern: hundreds of alternative names", altnames)),
    native(veth("pattern: made and deleted", made_and_deleted)),
    native(veth("pattern: interfaces of some kinds", of_kinds)),
    native(veth("pattern: a kind, and no pattern", kind_alone)),
    native(veth("pattern: a moved device has another name", moved_as)),
    native(veth("pattern: the same index and name again", same_again)),
    native(veth("pattern: renamed in the next moment", renamed_at_once)),
    native(veth("pattern: several, and names beside them", several)),
    native(veth("pattern: with no star", brackets)),
    native(veth(
        "pattern: what matches changes and has its name",
        silent,
    )),
    native(veth("pattern: in two namespaces", two_namespaces)),
    native(veth("pattern: many devices come and go", many)),
    only(
        ONCE,
        veth("pattern: an interface that is called so", literal),
    ),
    only(ONCE, veth("pattern: --once", once)),
    only(
        ONCE,
        veth("pattern: --must-exist and nothing matches", must_exist),
    ),
    only(ONCE, veth("pattern: --wait", wait)),
];

fn made_and_deleted(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("eth9", 101)?;
    stage.watch_patterns(&[("wg*", 1)], &[])?;
    stage.home.add("wg1", 102)?;
    stage.home.add("w", 103)?;
    stage.see("wg*", appeared(102).of("wg1"))?;
    stage.home.delete(101)?;
    stage.home.delete(100)?;
    stage.home.delete(102)?;
    stage.see("wg*", deleted(100).of("wg0"))?;
    stage.see("wg*", deleted(102).of("wg1"))?;
    stage.nothing_more(&[])
}

fn renamed_in_and_out(stage: &mut Stage) -> Result<()> {
    stage.home.add("eth9", 100)?;
    stage.home.add("other", 101)?;
    stage.watch_patterns_with(&["--kind", "vlan,veth"], &[("wg*", 0)], &[])?;
    stage.home.rename(101, "another")?;
    stage.home.add_bridge("wg5", 102)?;
    stage.home.rename(100, "wg9")?;
    stage.see("wg*", appeared(100).of("wg9").kind("veth"))?;
    stage.may_resync();
    stage.home.rename(100, "wg8")?;
    stage.see("wg*", renamed(100, "wg8").of("wg9"))?;
    stage.home.rename(100, "eth9")?;
    stage.see("wg*", renamed(100, "eth9").of("wg8"))?;
    stage.home.rename(100, "eth8")?;
    stage.home.rename(100, "wg9")?;
    stage.see("wg*", appeared(100).of("wg9"))?;
    stage.home.delete(100)?;
    stage.home.add("wg0", 100)?;
    stage.see("wg*", deleted(100).of("wg9").kind("veth"))?;
    stage.see("wg*", appeared(100).of("wg0").kind("veth"))?;
    stage.home.delete(102)?;
    stage.nothing_more(&[])
}

/// The kind is told of each, and another kind with the same name and the same index is another device.
fn of_kinds(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.home.add_bridge("wg1", 101)?;
    stage.watch_patterns_with(
        &["--kind", "veth", "--kind=vlan"],
        &[("wg*", 1)],
        &[("wg1", Some(101))],
    )?;
    stage.home.delete(101)?;
    stage.see("wg1", deleted(101))?;
    stage.home.add("wg1", 101)?;
    stage.see("wg1", recreated(101, 101))?;
    stage.see("wg*", appeared(101).of("wg1").kind("veth"))?;
    stage.home.delete(100)?;
    stage.see("wg*", deleted(100).of("wg0").kind("veth"))?;
    stage.home.add_bridge("wg0", 100)?;
    stage.home.rename(100, "wg9")?;
    stage.home.delete(100)?;
    stage.home.add("wg9", 100)?;
    stage.see("wg*", appeared(100).of("wg9").kind("veth"))?;
    stage.home.move_to(100, &away)?;
    stage.see("wg*", moved(100, away.id()?, 100).of("wg9"))?;
    stage.nothing_more(&[])
}

fn kind_alone(stage: &mut Stage) -> Result<()> {
    stage.home.add_bridge("br0", 100)?;
    stage.start(&["--kind", "bridge,fifteen-bytes-x"], true)?;
    stage.expect_pattern("*", 1)?;
    for index in 101..104 {
        stage.home.add(format!("wg{index}"), index)?;
        stage.home.set(index, |link| link.controller(100))?;
        stage.home.rename(index, format!("eth{index}"))?;
    }
    stage.home.rename(100, "br1")?;
    stage.see("*", renamed(100, "br1").of("br0"))?;
    for index in 101..104 {
        stage.home.delete(index)?;
    }
    stage.home.delete(100)?;
    stage.see("*", deleted(100).of("br1").kind("bridge"))?;
    stage.home.add_bridge("br0", 105)?;
    stage.see("*", appeared(105).of("br0").kind("bridge"))?;
    Ok(())
}

fn moved_away_and_back(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.home.add("eth9", 101)?;
    stage.watch_patterns(&[("wg*", 1)], &[])?;
    for _ in 0..2 {
        stage.home.move_to(101, &away)?;
        stage.home.move_to(100, &away)?;
        away.move_to(101, &stage.home)?;
        away.move_to(100, &stage.home)?;
        stage.see("wg*", moved(100, away.id()?, 100).of("wg0"))?;
        stage.see("wg*", appeared(100).of("wg0"))?;
    }
    stage.nothing_more(&[])
}

/// Of a device that does not match, too.
fn altnames(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    for (name, index) in [("wg0", 100), ("eth9", 101)] {
        stage.home.add(name, index)?;
        stage.home.add_altnames(index)?;
    }
    stage.watch_patterns(&[("wg*", 1)], &[])?;
    for index in [101, 100] {
        stage.home.set(index, |link| link.mtu(1280))?;
        stage.home.move_to(index, &away)?;
        away.move_to(index, &stage.home)?;
    }
    stage.see("wg*", moved(100, away.id()?, 100).of("wg0"))?;
    stage.see("wg*", appeared(100).of("wg0"))?;
    stage.nothing_more(&[])
}

/// As udev does it: before a filter of classic BPF can know the index.
fn renamed_at_once(stage: &mut Stage) -> Result<()> {
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    stage.may_resync();
    for index in 100..120 {
        stage.home.add("wg0", index)?;
        stage.home.rename(index, format!("eth{index}"))?;
        stage.see("wg*", appeared(index).of("wg0"))?;
        stage.see("wg*", renamed(index, &format!("eth{index}")).of("wg0"))?;
    }
    stage.nothing_more(&[])
}

fn several(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch_patterns(
        &[("wg*", 1), ("?g0", 1)],
        &[("wg0", Some(100)), ("wg1", None)],
    )?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.see("wg*", deleted(100).of("wg0"))?;
    stage.see("?g0", deleted(100).of("wg0"))?;
    stage.home.add("wg1", 101)?;
    stage.see("wg1", appeared(101))?;
    stage.see("wg*", appeared(101).of("wg1"))?;
    stage.home.add("xg0", 102)?;
    stage.see("?g0", appeared(102).of("xg0"))?;
    stage.nothing_more(&[])
}

fn brackets(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("wg7", 101)?;
    stage.watch_patterns(&[("w[fgh][0-6]", 1)], &[])?;
    stage.home.add("wg00", 102)?;
    stage.home.add("wi0", 103)?;
    stage.home.add("wh6", 104)?;
    stage.see("w[fgh][0-6]", appeared(104).of("wh6"))?;
    stage.home.delete(102)?;
    stage.home.delete(104)?;
    stage.see("w[fgh][0-6]", deleted(104).of("wh6"))?;
    stage.nothing_more(&[])
}

fn silent(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add_bridge("br0", 101)?;
    stage.watch_patterns(&[("wg*", 1)], &[])?;
    for _ in 0..3 {
        stage.home.set(100, |link| link.up())?;
        stage.home.set(100, |link| link.controller(101))?;
        stage.home.set(100, |link| link.mtu(1280))?;
        stage.home.set(100, |link| link.nocontroller())?;
        stage.home.set(100, |link| link.down())?;
        stage.home.set(100, |link| link.mtu(1400))?;
    }
    stage.home.add_altname(101, "wg1")?;
    stage.nothing_more(&[])
}

fn two_namespaces(stage: &mut Stage) -> Result<()> {
    let (one, other) = (stage.room()?, stage.room()?);
    one.add("wg0", 100)?;
    stage.watch_patterns_in(&[(&one, "wg*", 1), (&other, "wg*", 0)])?;
    one.move_to(100, &other)?;
    stage.see_in(one.id()?, "wg*", moved(100, other.id()?, 100).of("wg0"))?;
    stage.see_in(other.id()?, "wg*", appeared(100).of("wg0"))?;
    other.delete(100)?;
    stage.see_in(other.id()?, "wg*", deleted(100).of("wg0"))?;
    stage.nothing_more(&[&one, &other])
}

/// Older kernels give the new name away before they tell that the device goes.
fn moved_as(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    away.add("wg0", 100)?;
    stage.home.add("wg0", 101)?;
    stage.watch_patterns(&[("wg*", 1)], &[])?;
    stage.home.move_to_as(101, &away, "eth%d")?;
    stage.see("wg*", moved(101, away.id()?, 101).of("wg0"))?;
    stage.nothing_more(&[])
}

fn same_again(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch_patterns(&[("wg?", 1)], &[])?;
    for _ in 0..3 {
        stage.home.delete(100)?;
        stage.home.add("wg0", 100)?;
        stage.see("wg?", deleted(100).of("wg0"))?;
        stage.see("wg?", appeared(100).of("wg0"))?;
    }
    stage.nothing_more(&[])
}

/// Beyond those that the other ends of the pairs get.
const FIRST: u32 = 10_000;

fn many(stage: &mut Stage) -> Result<()> {
    let many = stage.repeated(200);
    let name = |index: u32| format!("wg{index}");
    for index in FIRST..FIRST + many {
        stage.home.add(name(index), index)?;
    }
    stage.watch_patterns(&[("wg*", many)], &[])?;
    for index in FIRST..FIRST + many {
        stage.home.add(name(index + many), index + many)?;
        stage.home.delete(index)?;
    }
    for index in FIRST..FIRST + many {
        let next = index + many;
        stage.see("wg*", appeared(next).of(&name(next)))?;
        stage.see("wg*", deleted(index).of(&name(index)))?;
    }
    stage.nothing_more(&[])
}

fn literal(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg*", 100)?;
    stage.home.add("wg0", 101)?;
    stage.watch_home_with(&["--literal"], &[("wg*", Some(100))])?;
    stage.home.delete(101)?;
    stage.home.delete(100)?;
    stage.see("wg*", deleted(100))?;
    stage.nothing_more(&[])
}

fn once(stage: &mut Stage) -> Result<()> {
    stage.start(&["--once", "wg*"], true)?;
    stage.expect_pattern("wg*", 0)?;
    stage.home.add("wg0", 100)?;
    stage.see("wg*", appeared(100).of("wg0"))?;
    stage.ends(0, "once")?;
    Ok(())
}

fn must_exist(stage: &mut Stage) -> Result<()> {
    stage.home.add("eth9", 100)?;
    stage.warns("no interface matches wg*, and --must-exist was given");
    stage.start(&["--must-exist", "wg*"], true)?;
    stage.ends_anyhow(3)?;
    Ok(())
}

fn wait(stage: &mut Stage) -> Result<()> {
    stage.home.add("eth9", 100)?;
    stage.start(&["--wait", "wg*"], true)?;
    stage.expect_pattern("wg*", 0)?;
    stage.home.rename(100, "wg9")?;
    stage.see("wg*", appeared(100).of("wg9"))?;
    stage.ends(0, "once")?;
    Ok(())
}
