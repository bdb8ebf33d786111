//! `--exec`: a command for each event.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{ONCE, Scenario, native, only, veth};
use crate::{
    program::{self, wait_for},
    scratch::Scratch,
    stage::Stage,
    want::{appeared, deleted, recreated, renamed},
};

pub(super) const TABLE: &[Scenario] = &[
    veth("hooks run in order, with the event as variables", in_order),
    veth("a name is never a part of a hook's text", name_is_data),
    only(ONCE, veth("a hook that fails is a warning", failing)),
    only(ONCE, veth("a hook that takes too long is ended", too_long)),
    only(
        ONCE,
        veth(
            "a hook ends with what went to a session of its own",
            session,
        ),
    ),
    only(
        ONCE,
        veth("a hook that answers itself comes to an end", feedback),
    ),
    only(
        ONCE,
        veth(
            "hooks write to standard error, and see the event alone",
            clean,
        ),
    ),
    only(
        ONCE,
        veth(
            "hooks of a watch that began, when another has to exist",
            must_exist,
        ),
    ),
    only(
        ONCE,
        native(veth(
            "a full queue of hooks loses none at the end",
            full_queue,
        )),
    ),
    only(
        ONCE,
        veth("a second signal ends the hook that runs", second_signal),
    ),
    only(
        ONCE,
        veth("no zombies of hooks as process 1", first_process),
    ),
    only(
        ONCE,
        veth("a hangup that was ignored stays ignored", ignored_hangup),
    ),
];

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

fn session(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("session")?;
    // Its parent ends at once, so nothing but the reaper of its orphans leads to it.
    let hook = r#"[ "$IFMON_EVENT" != deleted ] || {
        (setsid sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 100000' &)
        sleep 100000
    }"#;
    let command = command(stage, &scratch, hook, &["--exec-timeout", "1"])?;
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    let pid = wait_for(|| fs::read_to_string(scratch.path().join("pid")).ok())?;
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    wait_for(|| (!process.exists()).then_some(()))?;
    stage.warns("the hook for deleted was ended: it ran longer than 1 s");
    stage.nothing_more(&[])
}

fn clean(stage: &mut Stage) -> Result<()> {
    const NAME: &[u8] = b"old\xff";
    let scratch = Scratch::new("clean")?;
    let hook = r#"echo "noise ${IFMON_TO-unset}"; printf %s "$IFMON_TO" > "$IFMON_EVENT""#;
    let mut command = command(stage, &scratch, hook, &[])?;
    command
        .env("IFMON_TO", "stale")
        .env("IFMON_ANYTHING", "else");
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.rename(100, NAME)?;
    stage.see("wg0", renamed(100, "old\u{fffd}"))?;
    // What is no JSON on standard output is an error of each line that is read.
    stage.warns("noise");
    stage.nothing_more(&[])?;
    let to = fs::read(scratch.path().join("renamed"))?;
    ensure!(to == NAME, "the name was {}", to.escape_ascii());
    let to = fs::read(scratch.path().join("watching"))?;
    ensure!(to.is_empty(), "of the caller: {}", to.escape_ascii());
    Ok(())
}

fn must_exist(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("must")?;
    let hook = r#"echo "$IFMON_EVENT $IFMON_INTERFACE $IFMON_REASON" >> out"#;
    let mut command = command(stage, &scratch, hook, &["--must-exist"])?;
    command.args(["wg0", "wg1"]);
    stage.home.add("wg0", 100)?;
    stage.launch(command)?;
    let outcome = stage.ends_anyhow(3)?;
    let events: Vec<_> = outcome.lines.iter().map(|line| &line["event"]).collect();
    ensure!(events == ["watching", "stopped"], "told: {events:?}");
    ensure!(
        outcome.stderr.contains("wg1 does not exist"),
        "on standard error: {}",
        outcome.stderr
    );
    let out = fs::read_to_string(scratch.path().join("out"))?;
    ensure!(
        out == "watching wg0 \nstopped wg0 error\n",
        "the hooks wrote: {out}"
    );
    Ok(())
}

/// A gate that holds commands up until it is opened.
pub(super) struct Gate(PathBuf);

impl Gate {
    /// What a command does to wait.
    pub(super) const WAIT: &str = "until [ -e open ]; do sleep 0.01; done; ";

    pub(super) fn new(scratch: &Scratch) -> Self {
        Self(scratch.path().join("open"))
    }

    pub(super) fn open(&self) -> Result<()> {
        fs::write(&self.0, "").map_err(Into::into)
    }
}

/// Each hook that is told to restart holds up until the test has changed the interface, as a restart
/// would.
fn feedback(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("feedback")?;
    let hook = r#"case $IFMON_RESTART in true)
        echo "$IFMON_EVENT $IFMON_IFINDEX begins" >> out
        until [ -e "done $IFMON_EVENT" ]; do sleep 0.01; done
    esac
    echo "$IFMON_EVENT $IFMON_IFINDEX $IFMON_RESTART" >> out"#;
    let command = command(stage, &scratch, hook, &[])?;
    let has_begun = |what: &str| {
        let out = scratch.path().join("out");
        wait_for(|| {
            let out = fs::read_to_string(&out).unwrap_or_default();
            out.contains(&format!("{what} begins")).then_some(())
        })
    };
    let is_done = |event: &str| fs::write(scratch.path().join(format!("done {event}")), "");
    stage.home.add("wg0", 100)?;
    stage.launch_home(command, &[("wg0", Some(100))])?;
    stage.home.delete(100)?;
    stage.see("wg0", deleted(100))?;
    has_begun("deleted 100")?;
    stage.home.add("wg0", 101)?;
    stage.see("wg0", recreated(101, 100))?;
    is_done("deleted")?;
    has_begun("recreated 101")?;
    stage.home.delete(101)?;
    stage.see("wg0", deleted(101))?;
    stage.home.add("wg0", 102)?;
    stage.see("wg0", recreated(102, 101))?;
    is_done("recreated")?;
    stage.warns("taken for the hook's own doing");
    stage.nothing_more(&[])?;
    let out = fs::read_to_string(scratch.path().join("out"))?;
    let told: Vec<_> = out
        .lines()
        .filter(|line| !line.contains("begins") && !line.contains("watching"))
        .take(4)
        .collect();
    let expected = [
        "deleted 100 true",
        "recreated 101 true",
        "deleted 101 false",
        "recreated 102 false",
    ];
    ensure!(told == expected, "the hooks wrote: {out}");
    Ok(())
}

/// More changes than hooks can wait: the program no longer reads then. What had happened when the end was
/// asked for is told all the same.
fn full_queue(stage: &mut Stage) -> Result<()> {
    const CHANGES: u32 = 300;
    let scratch = Scratch::new("full")?;
    let gate = Gate::new(&scratch);
    let hook = format!("{} echo \"$IFMON_EVENT\" >> out", Gate::WAIT);
    let command = command(stage, &scratch, &hook, &["wg0"])?;
    stage.home.add("wg0", 100)?;
    stage.launch(command)?;
    let program = stage.program()?;
    program.expect("wg0", "watching")?;
    for change in 0..CHANGES {
        let to = if change % 2 == 0 { "old0" } else { "wg0" };
        stage.home.rename(100, to)?;
    }
    // As many as wait, the one that runs, and the one for which there is no room.
    for _ in 0..255 {
        program.next()?.context("it ended")?;
    }
    program.signal(Signal::TERM)?;
    gate.open()?;
    let mut lines = 256;
    loop {
        let line = program.next()?.context("it ended")?;
        lines += 1;
        if line["event"] == "stopped" {
            break;
        }
    }
    ensure!(lines == CHANGES as usize + 2, "{lines} lines");
    let outcome = stage.ends_anyhow(0)?;
    ensure!(outcome.lines.is_empty(), "more: {:?}", outcome.lines);
    let out = fs::read_to_string(scratch.path().join("out"))?;
    let hooks = out.lines().count();
    ensure!(hooks == lines, "{hooks} hooks ran for {lines} lines");
    ensure!(out.ends_with("stopped\n"), "the last hook: {out}");
    Ok(())
}

fn second_signal(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("second")?;
    let hook = "echo $$ > pid.new; mv pid.new pid; sleep 100000 & wait";
    let command = command(stage, &scratch, hook, &["--exec-timeout", "100000", "wg0"])?;
    stage.home.add("wg0", 100)?;
    stage.launch(command)?;
    let program = stage.program()?;
    program.expect("wg0", "watching")?;
    let pid = wait_for(|| fs::read_to_string(scratch.path().join("pid")).ok())?;
    program.signal(Signal::TERM)?;
    program.expect("wg0", "stopped")?;
    program.signal(Signal::TERM)?;
    stage.ends_anyhow(0)?;
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    // It is killed by then, and perhaps not yet waited for by whoever adopted it.
    wait_for(|| is_gone(&process).then_some(()))?;
    Ok(())
}

fn is_gone(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn first_process(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("first")?;
    // Each hook leaves a process that ends after it.
    let hook = "(sleep 0.01 &) ; echo >> out";
    let ifmon = command(stage, &scratch, hook, &["wg0"])?;
    let mut command = Command::new("unshare");
    command
        .args(["-p", "-f"])
        .arg(ifmon.get_program())
        .args(ifmon.get_args())
        .current_dir(scratch.path());
    stage.home.enter(&mut command)?;
    stage.home.add("wg0", 100)?;
    stage.launch(command)?;
    let program = stage.program()?;
    program.expect("wg0", "watching")?;
    for _ in 0..5 {
        stage.home.rename(100, "old0")?;
        stage.home.rename(100, "wg0")?;
    }
    let hooks = || fs::read_to_string(scratch.path().join("out")).unwrap_or_default();
    wait_for(|| (hooks().lines().count() == 11).then_some(()))?;
    let children = |pid: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let list = list.unwrap_or_default();
        list.split_whitespace().flat_map(str::parse).collect()
    };
    let first = *children(program.pid()).first().context("no process 1")?;
    let reaped = wait_for(|| children(first).is_empty().then_some(()));
    let first = i32::try_from(first).ok().and_then(Pid::from_raw);
    kill_process(first.context("no process 1")?, Signal::TERM)?;
    stage.ends_anyhow(0)?;
    reaped.context("children were left as zombies")
}

fn ignored_hangup(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("hangup")?;
    let mut command = command(stage, &scratch, "true", &[])?;
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    stage.launch_home(command, &[("wg0", None)])?;
    stage.program()?.signal(Signal::HUP)?;
    stage.home.add("wg0", 100)?;
    stage.see("wg0", appeared(100))?;
    stage.nothing_more(&[])
}
