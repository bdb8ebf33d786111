//! `--exec`: a command for each event.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use super::{Scenario, veth};
use crate::{
    program,
    stage::Stage,
    want::{deleted, recreated},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("hooks run in order, with the event as variables", in_order),
    veth("a name is never a part of a hook's text", name_is_data),
    veth("a hook that fails is a warning", failing),
    veth("a hook that takes too long is ended", too_long),
];

/// A directory of a scenario's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ifmon-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(stage: &Stage, scratch: &Scratch, hook: &str, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--backend", stage.backend.as_str()])
        .args(["--exec", hook])
        .args(more)
        .current_dir(scratch.path());
    stage.home.enter(&mut command)?;
    Ok(command)
}

fn in_order(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("order")?;
    let hook = r#"echo "$IFMON_EVENT $IFMON_INTERFACE $IFMON_IFINDEX $IFMON_OLD_IFINDEX $IFMON_RESTART $IFMON_NETNS" >> out"#;
    let command = command(stage, &scratch, hook, &[])?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    stage.nothing_more(&[])?;
    let netns = stage.home.id()?;
    let expected = [
        format!("watching wg0 100  false {netns}"),
        format!("watching sentinel0   false {netns}"),
        format!("deleted wg0 100  true {netns}"),
        format!("recreated wg0 101 100 true {netns}"),
        format!("appeared sentinel0 900  false {netns}"),
        format!("stopped wg0 101  false {netns}"),
        format!("stopped sentinel0 900  false {netns}"),
    ];
    let out = fs::read_to_string(scratch.path().join("out"))?;
    ensure!(out.lines().eq(expected), "the hooks wrote: {out}");
    Ok(())
}

fn name_is_data(stage: &mut Stage) -> Result<()> {
    const NAME: &str = "$(>pwned)`>p`;";
    let scratch = Scratch::new("data")?;
    let hook = r#"echo "$IFMON_INTERFACE" >> out"#;
    let command = command(stage, &scratch, hook, &[])?;
    stage.home.add(NAME, 100)?;
    stage.launch_home(command, &[(NAME, Some(100))])?;
    stage.home.delete(100)?;
    stage.see(NAME, deleted(100))?;
    stage.nothing_more(&[])?;
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        files.push(entry?.file_name());
    }
    ensure!(files == ["out"], "the hooks made files: {files:?}");
    let out = fs::read_to_string(scratch.path().join("out"))?;
    let named = out.lines().filter(|&line| line == NAME).count();
    // watching, deleted, stopped.
    ensure!(named == 3, "the hooks wrote: {out}");
    Ok(())
}

fn failing(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("failing")?;
    let hook = r#"[ "$IFMON_EVENT" != deleted ] || exit 7"#;
    let command = command(stage, &scratch, hook, &[])?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.warns("the hook for deleted failed: exit status 7");
    stage.nothing_more(&[])
}

/// Short for this hook, long for a shell that does nothing.
const LIMIT: &str = "3";

fn too_long(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("long")?;
    let hook = r#"[ "$IFMON_EVENT" != deleted ] || sleep 100000"#;
    let command = command(stage, &scratch, hook, &["--exec-timeout", LIMIT])?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    stage.warns("the hook for deleted was ended: it ran longer than 3 s");
    stage.nothing_more(&[])
}
