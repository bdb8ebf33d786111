//! Which name is it? Names that are alike, and names that are strange.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Result, ensure};

use super::{Scenario, veth};
use crate::{
    backend::sees_unannounced_devices,
    room::errno,
    stage::Stage,
    want::{appeared, deleted, recreated, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("names that begin alike", alike),
    veth("the longest name", longest),
    veth("names with a meaning to a shell or to JSON", strange),
    veth("a name that is not UTF-8", not_utf8),
    veth("a rename to a name that is not UTF-8", renamed_to_not_utf8),
    veth("made by a pattern", made_by_pattern),
    veth("renamed by a pattern", renamed_by_pattern),
    veth("a rename that is vetoed", rename_vetoed),
    veth("a registration that is vetoed", registration_vetoed),
];

/// No device can be called like this: the kernel has settings of that name
/// (`sysctl_dev_name_is_allowed`). Whoever makes the settings finds out when `rtnetlink_event` was
/// told already, and has the change taken back.
const VETOED: &str = "default";

fn is_vetoed(result: Result<()>) -> Result<()> {
    let refused = result.err().and_then(|error| errno(&error));
    ensure!(
        refused == Some(libc::EINVAL),
        "a device called {VETOED} was not refused"
    );
    Ok(())
}

fn alike(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), ("wg00", None)])?;
    for name in ["wg", "w", "wg1", "wg000", "awg0", "WG0", "wg0.1", "wg0_"] {
        stage.home.add(name, 101)?;
        stage.home.rename(101, "other0")?;
        stage.home.rename(101, name)?;
        stage.home.delete(101)?;
    }
    stage.home.add("wg00", 102)?;
    stage.see("wg00", appeared(102))?;
    stage.home.rename(102, "wg000")?;
    stage.see("wg00", renamed(102, "wg000"))?;
    stage.nothing_more(&[])
}

fn longest(stage: &mut Stage) -> Result<()> {
    const NAME: &str = "abcdefghijklmno";
    const ALMOST: &str = "abcdefghijklmn";
    stage.home.add(NAME, 100)?;
    stage.watch(&[(NAME, Some(100)), (ALMOST, None)])?;
    stage.home.rename(100, ALMOST)?;
    stage.see(NAME, renamed(100, ALMOST))?;
    stage.see(ALMOST, appeared(100))?;
    stage.home.rename(100, "abcdefghijklmnp")?;
    stage.see(ALMOST, renamed(100, "abcdefghijklmnp"))?;
    stage.nothing_more(&[])
}

fn strange(stage: &mut Stage) -> Result<()> {
    const NAMES: [&str; 6] = [
        "$(reboot)",
        "`id`;&&|",
        "\"quoted'",
        "back\\slash",
        "\u{1}\u{1b}[31m",
        "ünï☃",
    ];
    let watches: Vec<_> = NAMES.into_iter().zip((100..).map(Some)).collect();
    for (name, index) in NAMES.into_iter().zip(100..) {
        stage.home.add(name, index)?;
    }
    stage.watch(&watches)?;
    for (name, index) in NAMES.into_iter().zip(100..) {
        stage.home.delete(index)?;
        stage.see(name, deleted(index))?;
    }
    stage.nothing_more(&[])
}

/// In JSON, what is not UTF-8 is U+FFFD. No sentinel beside it: that the right device is meant
/// shows by the index.
fn not_utf8(stage: &mut Stage) -> Result<()> {
    const NAME: &[u8] = b"wg\xff0";
    const SHOWN: &str = "wg\u{fffd}0";
    stage.home.add(NAME, 100)?;
    stage.watch_bytes(OsStr::from_bytes(NAME), SHOWN, Some(100))?;
    // Looks the same, and is not the same.
    stage.home.add(b"wg\xfe0", 101)?;
    stage.home.delete(100)?;
    stage.see(SHOWN, deleted(100))?;
    stage.home.add(NAME, 102)?;
    stage.see(SHOWN, recreated(102, 100))?;
    stage.nothing_more(&[])
}

fn renamed_to_not_utf8(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    stage.home.rename(100, b"old\xff")?;
    stage.see("wg0", renamed(100, "old\u{fffd}"))?;
    stage.nothing_more(&[])
}

fn made_by_pattern(stage: &mut Stage) -> Result<()> {
    stage.watch(&[("wg0", None)])?;
    stage.home.add("wg%d", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.nothing_more(&[])
}

fn renamed_by_pattern(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), ("old0", None)])?;
    stage.home.rename(100, "old%d")?;
    stage.see("wg0", renamed(100, "old0"))?;
    stage.see("old0", appeared(100))?;
    stage.nothing_more(&[])
}

/// There and back, as everybody on the host can see.
fn rename_vetoed(stage: &mut Stage) -> Result<()> {
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100)), (VETOED, None)])?;
    is_vetoed(stage.home.rename(100, VETOED))?;
    stage.see("wg0", renamed(100, VETOED))?;
    stage.see(VETOED, appeared(100))?;
    stage.see(VETOED, renamed(100, "wg0"))?;
    stage.see("wg0", returned(100))?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.nothing_more(&[])
}

/// A tracing program sees the device for the moment that it has; no link message ever tells of it.
fn registration_vetoed(stage: &mut Stage) -> Result<()> {
    stage.watch(&[(VETOED, None)])?;
    for round in 0..2 {
        is_vetoed(stage.home.add(VETOED, 100))?;
        if sees_unannounced_devices(stage.backend) {
            let here = if round == 0 {
                appeared(100)
            } else {
                recreated(100, 100)
            };
            stage.see(VETOED, here)?;
            stage.see(VETOED, deleted(100))?;
        }
    }
    stage.nothing_more(&[])
}
