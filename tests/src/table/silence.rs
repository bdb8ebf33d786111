//! What is no event.

use anyhow::Result;
use netlink_packet_route::link::LinkAttribute;

use super::{Scenario, all, veth};
use crate::{stage::Stage, want::renamed};

pub(super) const TABLE: &[Scenario] = &[
    all("silent: up and down", up_and_down),
    all("silent: MTU and queue length", mtu),
    veth("silent: address, flags and group", address_and_flags),
    veth("silent: into a bridge and out of it", bridge),
    veth("silent: alternative names", altnames),
    veth(
        "silent: an alternative name like a watched one",
        altname_is_no_name,
    ),
    veth("silent: alias", alias),
    veth("silent: carrier", carrier),
    all("silent: rename to the same name", same_name),
    veth("silent: a refused rename and a refused link", refused),
    veth("silent: a device changes and has no watched name", stranger),
    veth("silent: what is said of a wireless device late", wireless),
];

fn up_and_down(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..3 {
        stage.home.set(100, |link| link.up())?;
        stage.home.set(100, |link| link.down())?;
    }
    stage.nothing_more(&[])
}

fn mtu(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.set(100, |link| link.mtu(1280))?;
    stage.home.set(100, |link| link.txqueuelen(7))?;
    stage.nothing_more(&[])
}

fn address_and_flags(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage
        .home
        .set(100, |link| link.address(vec![2, 0, 0, 0, 0, 7]))?;
    stage.home.set(100, |link| link.promiscuous(true))?;
    stage.home.set(100, |link| link.arp(false))?;
    stage.home.set(100, |link| {
        link.append_extra_attribute(LinkAttribute::Group(7))
    })?;
    stage.nothing_more(&[])
}

/// Leaving a bridge is told as RTM_DELLINK, of another address family.
fn bridge(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add_bridge("br0", 101)?;
    stage.home.set(100, |link| link.up())?;
    stage.watch(&[("wg0", Some(100)), ("br0", Some(101))])?;
    for _ in 0..2 {
        stage.home.set(100, |link| link.controller(101))?;
        stage.home.set(101, |link| link.up())?;
        stage.home.set(100, |link| link.nocontroller())?;
        stage.home.set(101, |link| link.down())?;
    }
    stage.nothing_more(&[])
}

fn altnames(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.add_altname(100, "tunnel")?;
    stage.home.set(100, |link| link.up())?;
    stage
        .home
        .add_altname(100, "another-name-that-is-longer-than-a-name")?;
    stage.home.remove_altname(100, "tunnel")?;
    stage.nothing_more(&[])
}

/// The kernel finds a link by its alternative name too, when it is asked for a name.
fn altname_is_no_name(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add_altname(100, "wg1")?;
    stage.watch(&[("wg0", Some(100)), ("wg1", None), ("wg2", None)])?;
    stage.home.add_altname(100, "wg2")?;
    stage.home.set(100, |link| link.up())?;
    stage.home.remove_altname(100, "wg1")?;
    stage.nothing_more(&[])
}

fn alias(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.set_alias(100, b"before \xff\xfe")?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.set_alias(100, b"plain")?;
    stage.home.set_alias(100, b"not \xff UTF-8 \xc3\x28")?;
    stage.home.set_alias(100, [b'x'; 200])?;
    stage.nothing_more(&[])
}

/// The other end of the pair decides on the carrier.
fn carrier(stage: &mut Stage) -> Result<()> {
    let other = stage.room()?;
    stage.home.add_pair("wg0", 100, &other)?;
    stage.home.set(100, |link| link.up())?;
    stage.watch(&[("wg0", Some(100))])?;
    for _ in 0..2 {
        other.set(100, |link| link.up())?;
        other.set(100, |link| link.down())?;
    }
    other.rename(100, "far1")?;
    stage.nothing_more(&[])
}

fn same_name(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, "wg0")?;
    stage.nothing_more(&[])
}

fn refused(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("other0", 101)?;
    stage.watch(&[("wg0", Some(100))])?;
    // The name is taken.
    anyhow::ensure!(stage.home.rename(101, "wg0").is_err());
    anyhow::ensure!(stage.home.add("wg0", 102).is_err());
    // The index is taken.
    anyhow::ensure!(stage.home.add("new0", 100).is_err());
    stage.nothing_more(&[])
}

fn stranger(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    stage.home.add("wg0", 100)?;
    stage.home.add("other0", 101)?;
    stage.watch(&[("wg0", Some(100)), ("wg1", None)])?;
    stage.home.rename(101, "other1")?;
    stage.home.move_to(101, &away)?;
    away.move_to(101, &stage.home)?;
    stage.home.delete(101)?;
    stage.nothing_more(&[])
}

/// The name in such a message can be the one that a device had before.
fn wireless(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.home.add("other0", 101)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.say_wireless(101, "wg0")?;
    stage.home.rename(100, "old0")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.home.say_wireless(100, "wg0")?;
    stage.nothing_more(&[])
}
