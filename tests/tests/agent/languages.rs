//! Clients in other languages, as an ordinary user runs them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::agent::{Folder, Host, NOBODY, Program, start};

/// Where the client in Go is.
const GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ifmon/clients/go");

/// The page's own words, by an ordinary user, with the library that Python people take.
#[test]
fn the_python_of_the_page_works() -> Result<()> {
    let host = Host::new("python")?;
    let packages = host.folder.path().join("packages");
    let installed = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--target"])
        .arg(&packages)
        .arg("varlink")
        .output()
        .context("python3 with pip is missing")?;
    ensure!(
        installed.status.success(),
        "cannot install varlink: {installed:?}"
    );
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md"))?;
    let script = page
        .split("```")
        .find_map(|part| part.strip_prefix("python\n"))
        .context("no Python on the page")?
        .replace(
            "/run/ifmon/io.ifmon",
            &host.folder.socket().to_string_lossy(),
        );
    host.room.add("wg0", 7)?;
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", &script])
        .env("PYTHONPATH", &packages)
        .env("PYTHONUNBUFFERED", "1");
    let mut python = Program::start(&host.room, command)?;
    ensure!(python.line()? == "watching 7 False");
    host.room.delete(7)?;
    ensure!(python.line()? == "deleted 7 True");
    host.room.add("wg0", 8)?;
    ensure!(python.line()? == "recreated 8 True");
    Ok(())
}

/// Runs the go command where the client in Go is, and returns what that says.
fn go(args: &[&str]) -> Result<String> {
    let output = Command::new("go")
        .args(args)
        .current_dir(GO)
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "on")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOPROXY", "off")
        .output()
        .context("go is missing")?;
    ensure!(output.status.success(), "go {args:?} fails: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Builds the examples of the client in Go, and returns the folder that they are in.
pub(crate) fn go_examples(folder: &Folder) -> Result<PathBuf> {
    let built = folder.path().join("go");
    fs::create_dir(&built)?;
    go(&["build", "-o", &built.to_string_lossy(), "./examples/..."])?;
    Ok(built)
}

/// An engine in Go, and one that prints all, without cgo and without any library.
#[test]
fn engines_in_go_are_told_also_when_the_agent_was_away() -> Result<()> {
    let host = Host::new("go")?;
    go(&["vet", "./..."])?;
    let unformatted = Command::new("gofmt")
        .args(["-l", "."])
        .current_dir(GO)
        .output()?;
    ensure!(unformatted.stdout.is_empty(), "{unformatted:?}");
    let tested = go(&["test", "-count=1", "."])?;
    ensure!(tested.starts_with("ok"), "{tested}");
    let built = go_examples(&host.folder)?;

    let Host {
        room,
        folder,
        agent,
    } = host;
    let run = |name: &str| {
        let mut command = Command::new(built.join(name));
        command.arg("-agent").arg(folder.socket()).arg("wg0");
        Program::start(&room, command)
    };
    room.add("wg0", 7)?;
    let mut engine = run("engine")?;
    ensure!(engine.line()? == "running on wg0, index 7");
    let mut watch = run("watch")?;
    let mut told = |kind: &str, ifindex: u32| -> Result<Value> {
        let event: Value = serde_json::from_str(&watch.line()?)?;
        ensure!(
            event["event"] == kind && event["ifindex"] == ifindex,
            "{kind}: {event}"
        );
        Ok(event)
    };
    told("watching", 7)?;
    room.rename(7, "wg1")?;
    ensure!(engine.line()? == "restarting: ifmon: wg0 was renamed to wg1");
    ensure!(told("renamed", 7)?["to"] == "wg1");
    room.rename(7, "wg0")?;
    ensure!(engine.line()? == "running on wg0, index 7");
    told("returned", 7)?;

    agent.signal(Signal::KILL)?;
    agent.finish()?;
    room.delete(7)?;
    room.add("wg0", 8)?;
    let agent = start(&room, &folder, &[])?;
    ensure!(engine.line()? == "restarting: another device has the name");
    ensure!(engine.line()? == "running on wg0, index 8");
    ensure!(told("resynced", 8)?["changed"] == true);
    let recreated = told("recreated", 8)?;
    ensure!(
        recreated["old_ifindex"] == 7
            && recreated["recovered"] == true
            && recreated["restart"] == true,
        "{recreated}"
    );
    room.delete(8)?;
    ensure!(engine.line()? == "restarting: ifmon: wg0 was deleted");
    told("deleted", 8)?;
    agent.stop()?;
    Ok(())
}

/// A command in a Debian system that has the folder at /mnt.
fn in_debian(host: &Host, user: u32, words: &[&str]) -> Result<Command> {
    let debian = env::var_os("IFMON_DEBIAN")
        .context("a Debian system is missing; `cargo xtask test` has one")?;
    let script = "mount --bind \"$1\" \"$2/mnt\" && mount -t proc proc \"$2/proc\" && user=$3 root=$2 && shift 3 && \
                  exec chroot --userspec=\"$user:$user\" \"$root\" \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(host.folder.path())
        .arg(debian)
        .arg(user.to_string())
        .args(words);
    host.room.enter(&mut command)?;
    Ok(command)
}

/// By systemd of Debian 13.
#[test]
fn varlinkctl_and_c_by_sd_varlink_are_told() -> Result<()> {
    const SOCKET: &str = "/mnt/run/io.ifmon";
    let host = Host::new("systemd")?;
    host.room.add("wg0", 7)?;

    let words = ["varlinkctl", "introspect", SOCKET, "io.ifmon"];
    let described = in_debian(&host, NOBODY, &words)?.output()?;
    ensure!(
        described.status.success()
            && String::from_utf8_lossy(&described.stdout).contains("method Watch("),
        "{described:?}"
    );
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md"))?;
    let line = page
        .lines()
        .find(|line| line.starts_with("varlinkctl call"))
        .context("no varlinkctl on the page")?;
    let shell = format!("exec {}", line.replace("/run/ifmon/io.ifmon", SOCKET));
    let mut varlinkctl = Program::spawn(in_debian(&host, NOBODY, &["sh", "-c", &shell])?)?;
    // It separates objects as RFC 7464 has it.
    let event: Value = serde_json::from_str(varlinkctl.line()?.trim_start_matches('\x1e'))?;
    ensure!(
        event["event"] == "watching" && event["ifindex"] == 7,
        "{event}"
    );

    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ifmon/clients/c");
    fs::copy(sources.join("watch.c"), host.folder.path().join("watch.c"))?;
    let words = [
        "cc",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        "/mnt/watch",
        "/mnt/watch.c",
        "-lsystemd",
    ];
    let built = in_debian(&host, 0, &words)?.output()?;
    ensure!(built.status.success(), "{built:?}");
    let engine = |index: &str| {
        let words = ["/mnt/watch", "wg0", index, SOCKET];
        Program::spawn(in_debian(&host, NOBODY, &words)?)
    };
    let mut late = engine("5")?;
    ensure!(late.line()? == "wg0 watching, index 7");
    ensure!(late.line()? == "wg0 recreated, index 7");
    late.end()?;
    let mut engine = engine("7")?;
    ensure!(engine.line()? == "wg0 watching, index 7");

    let Host {
        room,
        folder,
        agent,
    } = host;
    agent.signal(Signal::KILL)?;
    agent.finish()?;
    room.delete(7)?;
    room.add("wg0", 8)?;
    let agent = start(&room, &folder, &[])?;
    ensure!(engine.line()? == "wg0 watching, index 8");
    ensure!(engine.line()? == "wg0 recreated, index 8");
    engine.end()?;
    agent.stop()?;
    Ok(())
}
