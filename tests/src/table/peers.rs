//! The other end of a pair, and the container that it is in.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{ONCE, Scenario, native, only, veth};
use crate::{
    cgroup::Cgroup,
    program,
    room::{NamedNetns, Room},
    scratch::Scratch,
    stage::Stage,
    want::{appeared, deleted},
};

pub(super) const TABLE: &[Scenario] = &[
    native(veth("peer: in the same namespace, and none", here)),
    native(veth("peer: in a namespace with a name", in_named)),
    native(veth("peer: in a container", in_container)),
    native(veth(
        "peer: in the next container, whose namespace has the number of the last",
        in_next_container,
    )),
    native(veth(
        "peer: of a process in no container, and of none",
        in_no_container,
    )),
    only(
        ONCE,
        native(veth("peer: in the namespace of ifmon itself", in_own)),
    ),
    only(
        ONCE,
        native(veth(
            "peer: in the namespace of the host, which a container shares",
            in_that_of_the_host,
        )),
    ),
    only(ONCE, native(veth("peer: what hooks are given", hooks))),
];

const A: &str = "6f0a1d2c3b4e5f60718293a4b5c6d7e8f9000102030405060708090a0b0c0d0e";
const Z: &str = "f9ab8e7d4c5f6aa9827364b5a4d7c6f9e8aaabacadaeafa0a1a2a3abacadaeaf";

/// A process in a namespace, and in a cgroup that ends with it.
pub(super) struct Process {
    child: Child,
    _cgroup: Option<Cgroup>,
}

impl Process {
    pub(super) fn new(room: &Room, cgroup: Option<&str>) -> Result<Self> {
        let cgroup = cgroup.map(Cgroup::new).transpose()?;
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        room.enter(&mut command)?;
        let child = command.spawn().context("cannot run sleep")?;
        if let Some(cgroup) = &cgroup {
            cgroup.take(child.id())?;
        }
        Ok(Self {
            child,
            _cgroup: cgroup,
        })
    }

    fn in_docker(room: &Room, id: &str) -> Result<Self> {
        Self::new(room, Some(&format!("/system.slice/docker-{id}.scope")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn docker(id: &str) -> Value {
    json!({"runtime": "docker", "id": id})
}

fn here(stage: &mut Stage) -> Result<()> {
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    stage.home.add_bridge("wg0", 100)?;
    stage.see("wg*", appeared(100).of("wg0").with_peer(Value::Null))?;
    stage.home.add("wg1", 101)?;
    let other = stage.home.index_of("peer0")?;
    let netns = stage.home.id()?;
    let peer = json!({"ifindex": other, "netns": netns});
    stage.see("wg*", appeared(101).of("wg1").with_peer(peer))?;
    stage.nothing_more(&[])
}

fn in_named(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    let named = NamedNetns::new(&away, "web")?;
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    let peer = json!({"ifindex": 100, "netns": away.id()?, "netns_name": "web"});
    stage.home.add_pair("wg0", 100, &away)?;
    stage.see("wg*", appeared(100).of("wg0").with_peer(peer))?;
    drop(named);
    let peer = json!({"ifindex": 101, "netns": null});
    away.delete(100)?;
    stage.see("wg*", deleted(100).of("wg0"))?;
    stage.home.add_pair("wg1", 101, &away)?;
    stage.see("wg*", appeared(101).of("wg1").with_peer(peer))?;
    stage.nothing_more(&[])
}

fn in_container(stage: &mut Stage) -> Result<()> {
    let away = stage.room()?;
    // The first process there is in none, as one that has entered it to look around.
    let _visitor = Process::new(&away, None)?;
    let _process = Process::in_docker(&away, A)?;
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    for index in 100..103 {
        let name = format!("wg{index}");
        // ifmon may not look at a process that has more rights, and so not at its namespace.
        let peer = json!({"ifindex": index, "netns": null, "container": docker(A)});
        stage.home.add_pair(&name, index, &away)?;
        stage.see("wg*", appeared(index).of(&name).with_peer(peer))?;
        away.rename(index, format!("far{index}"))?;
    }
    stage.nothing_more(&[])
}

fn in_next_container(stage: &mut Stage) -> Result<()> {
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    for (index, id) in (100..).zip([A, Z, A]) {
        let name = format!("wg{index}");
        let away = stage.room()?;
        let process = Process::in_docker(&away, id)?;
        stage.home.add_pair(&name, index, &away)?;
        let peer = json!({"ifindex": index, "netns": null, "container": docker(id)});
        stage.see("wg*", appeared(index).of(&name).with_peer(peer))?;
        drop(process);
        // With its last process the namespace ends, and with that the pair.
        drop(away);
        stage.see("wg*", deleted(index).of(&name).by_the_kernel())?;
    }
    stage.nothing_more(&[])
}

fn in_no_container(stage: &mut Stage) -> Result<()> {
    let (away, empty) = (stage.room()?, stage.room()?);
    let _process = Process::new(&away, None)?;
    stage.watch_patterns(&[("wg*", 0)], &[])?;
    for (index, room) in [(100, &away), (101, &empty)] {
        let name = format!("wg{index}");
        let peer = json!({"ifindex": index, "netns": null});
        stage.home.add_pair(&name, index, room)?;
        stage.see("wg*", appeared(index).of(&name).with_peer(peer))?;
    }
    stage.nothing_more(&[])
}

fn in_own(stage: &mut Stage) -> Result<()> {
    let own = stage.room()?;
    // One that ifmon may not look at.
    let _process = Process::new(&own, None)?;
    let mut command = ifmon(stage);
    command.arg(format!("{}/wg*", stage.home.path()));
    own.enter(&mut command)?;
    stage.warns("keeps it alive until ifmon ends");
    stage.launch(command)?;
    stage.expect_pattern("wg*", 0)?;
    let peer = json!({"ifindex": 100, "netns": own.id()?});
    stage.home.add_pair("wg0", 100, &own)?;
    stage.see("wg*", appeared(100).of("wg0").with_peer(peer))?;
    stage.nothing_more(&[])
}

fn in_that_of_the_host(stage: &mut Stage) -> Result<()> {
    // The shell is the first process, and is where the container is, too.
    let script = r#"sleep 1000 & echo $! > "$1"/cgroup.procs; shift; "$@"; exit $?"#;
    let host = stage.room()?;
    let _named = NamedNetns::new(&stage.home, "home")?;
    let cgroup = Cgroup::new(&format!("/system.slice/docker-{A}.scope"))?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", script, "sh"])
        .arg(cgroup.directory())
        .args(["nsenter", "--net=/run/netns/home"])
        .arg(program::path())
        .args(["--json", "--backend", stage.backend.as_str(), "wg*"]);
    host.enter(&mut command)?;
    stage.launch(command)?;
    stage.expect_pattern("wg*", 0)?;
    let peer = json!({"ifindex": 100, "netns": null});
    stage.home.add_pair("wg0", 100, &host)?;
    stage.see("wg*", appeared(100).of("wg0").with_peer(peer))?;
    stage.kill()
}

/// To be started with other arguments than a stage starts it with.
fn ifmon(stage: &Stage) -> Command {
    let mut command = Command::new(program::path());
    command.args(["--json", "--backend", stage.backend.as_str()]);
    command
}

fn hooks(stage: &mut Stage) -> Result<()> {
    let scratch = Scratch::new("peer")?;
    let away = stage.room()?;
    let _process = Process::in_docker(&away, A)?;
    let _named = NamedNetns::new(&away, "web")?;
    let hook = r#"echo "$IFMON_EVENT" "${IFMON_PEER_IFINDEX-none}" "$IFMON_PEER_NETNS" "$IFMON_PEER_NETNS_NAME" "$IFMON_PEER_CONTAINER_RUNTIME" "$IFMON_PEER_CONTAINER_ID" >> out"#;
    let mut command = ifmon(stage);
    command
        .args(["--exec", hook, "wg*"])
        .current_dir(scratch.path());
    stage.home.enter(&mut command)?;
    stage.launch(command)?;
    stage.expect_pattern("wg*", 0)?;
    stage.home.add_pair("wg0", 100, &away)?;
    let netns = away.id()?;
    let peer = json!({"ifindex": 100, "netns": netns, "netns_name": "web", "container": docker(A)});
    stage.see("wg*", appeared(100).of("wg0").with_peer(peer))?;
    stage.nothing_more(&[])?;
    let expected = [
        "watching none    ".to_owned(),
        format!("appeared 100 {netns} web docker {A}"),
        "stopped none    ".to_owned(),
    ];
    let out = fs::read_to_string(scratch.path().join("out"))?;
    ensure!(out.lines().eq(expected), "the hooks wrote: {out}");
    Ok(())
}
