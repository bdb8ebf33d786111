//! The program as a client of the agent.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Write as _},
    os::fd::AsRawFd as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{
    agent::{Folder, Host, NOBODY, start, until},
    program::{self, Ifmon},
    room::{Device, Room},
};

/// The program of an ordinary user.
pub(crate) fn client(room: &Room, folder: &Folder, args: &[&str]) -> Result<Ifmon> {
    // By a descriptor, which needs no way through folders.
    let file = File::open(program::path())?;
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command
        .arg("--json")
        .args(args)
        .arg("--agent")
        .arg(folder.socket());
    room.enter(&mut command)?;
    // SAFETY: system calls alone, in a process that has one thread.
    unsafe {
        command.pre_exec(|| {
            let changed = libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>())
                == 0
                && libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) == 0
                && libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) == 0;
            if changed {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let ifmon = Ifmon::spawn(command)?;
    drop(file);
    Ok(ifmon)
}

fn is_resync(line: &Value, changed: bool) -> bool {
    line["lost"].is_null() && line["changed"] == changed
}

fn last(ifmon: Ifmon) -> Result<Value> {
    ifmon.stop()?.lines.pop().context("no last line")
}

#[test]
fn a_user_without_privileges_gets_the_agent_and_netlink_while_it_is_away() -> Result<()> {
    let Host {
        room,
        folder,
        agent,
    } = Host::new("client")?;
    room.add("wg0", 7)?;
    let ifmon = client(&room, &folder, &["wg0=5", "eth9"])?;
    ensure!(ifmon.expect("wg0", "watching")?["backend"] == "agent");
    let told = ifmon.expect("wg0", "recreated")?;
    ensure!(
        told["old_ifindex"] == 5 && told["recovered"] == true,
        "{told}"
    );
    ifmon.expect("eth9", "watching")?;
    room.rename(7, "away")?;
    ensure!(ifmon.expect("wg0", "renamed")?["to"] == "away");
    room.rename(7, "wg0")?;
    ifmon.expect("wg0", "returned")?;

    agent.signal(Signal::KILL)?;
    agent.finish()?;
    for name in ["eth9", "wg0"] {
        let line = ifmon.expect(name, "resynced")?;
        ensure!(is_resync(&line, false), "{line}");
    }
    // It is netlink that hears of these.
    room.delete(7)?;
    ifmon.expect("wg0", "deleted")?;
    room.add("wg0", 8)?;
    ensure!(ifmon.expect("wg0", "recreated")?["old_ifindex"] == 7);
    room.rename(8, "away")?;
    ifmon.expect("wg0", "renamed")?;

    let agent = start(&room, &folder, &["--backend", "netlink"])?;
    for name in ["eth9", "wg0"] {
        let line = ifmon.expect(name, "resynced")?;
        ensure!(is_resync(&line, false), "{line}");
    }
    // Nobody knows whether it is the device that was away when the agent came back.
    room.rename(8, "wg0")?;
    let line = ifmon.expect("wg0", "recreated")?;
    ensure!(line["ifindex"] == 8 && line["restart"] == true, "{line}");
    room.delete(8)?;
    ifmon.expect("wg0", "deleted")?;

    let outcome = ifmon.stop()?;
    ensure!(outcome.status.success(), "{outcome:?}");
    let said: Vec<&str> = outcome.stderr.lines().collect();
    ensure!(
        said.iter()
            .filter(|line| line.contains("netlink until the agent serves"))
            .count()
            == 1,
        "{said:?}"
    );
    agent.stop()?;
    Ok(())
}

/// Its capabilities are given up by the time that netlink stands in.
#[test]
fn who_could_mount_a_sysfs_knows_a_device_that_comes_back_while_the_agent_is_away() -> Result<()> {
    let Host {
        room,
        folder,
        agent,
    } = Host::new("sysfs")?;
    let other = Room::new(Device::Veth)?;
    room.add("wg0", 7)?;
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--backend", "agent", "wg0", "--agent"])
        .arg(folder.socket());
    room.enter(&mut command)?;
    let ifmon = Ifmon::spawn(command)?;
    ifmon.expect("wg0", "watching")?;
    agent.signal(Signal::KILL)?;
    agent.finish()?;
    ifmon.expect("wg0", "resynced")?;
    room.move_to(7, &other)?;
    ifmon.expect("wg0", "moved")?;
    other.move_to(7, &room)?;
    ifmon.expect("wg0", "returned")?;
    ifmon.stop()?;
    Ok(())
}

/// As while a service manager has the socket and the agent is about to begin.
#[test]
fn an_agent_that_is_slow_to_answer_is_heard_whatever_happens_meanwhile() -> Result<()> {
    let Host {
        room,
        folder,
        agent,
    } = Host::new("slow")?;
    room.add("wg0", 7)?;
    let ifmon = client(&room, &folder, &["wg0"])?;
    ifmon.expect("wg0", "watching")?;
    agent.signal(Signal::KILL)?;
    agent.finish()?;
    let line = ifmon.expect("wg0", "resynced")?;
    ensure!(is_resync(&line, false), "{line}");

    fs::remove_file(folder.socket())?;
    let listener = UnixListener::bind(folder.socket())?;
    fs::set_permissions(folder.socket(), Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    let mut call = None;
    until("a call", || match listener.accept() {
        Ok((stream, _)) => {
            call = Some(stream);
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    })?;
    room.delete(7)?;
    room.add("wg0", 8)?;
    let watching = "{\"parameters\":{\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"watching\",\
                    \"interface\":\"wg0\",\"ifindex\":8},\"continues\":true}\0";
    let mut call = call.context("nobody called")?;
    call.write_all(watching.as_bytes())?;
    // Without a word of netlink, which waits no longer than for the answer.
    let line = ifmon.expect("wg0", "resynced")?;
    ensure!(is_resync(&line, true), "{line}");
    let line = ifmon.expect("wg0", "recreated")?;
    ensure!(
        line["ifindex"] == 8 && line["old_ifindex"] == 7 && line["recovered"] == true,
        "{line}"
    );
    ifmon.stop()?;
    Ok(())
}

#[test]
fn what_happened_while_the_agent_was_being_replaced_is_told() -> Result<()> {
    let host = Host::new("replaced")?;
    host.room.add("wg0", 7)?;
    let ifmon = client(&host.room, &host.folder, &["--backend", "agent", "wg0"])?;
    ifmon.expect("wg0", "watching")?;
    // Who has the agent from the begin to the end has lost nothing.
    let other = client(&host.room, &host.folder, &["--backend", "agent", "wg0"])?;
    other.expect("wg0", "watching")?;
    ensure!(last(other)?["lost"] == 0);
    // While both sleep, the device is replaced and the agent ends.
    ifmon.signal(Signal::STOP)?;
    host.agent.signal(Signal::KILL)?;
    host.agent.finish()?;
    host.room.delete(7)?;
    host.room.add("wg0", 8)?;
    host.room.rename(8, "other")?;
    host.room.add("wg0", 9)?;
    ifmon.signal(Signal::CONT)?;
    let line = ifmon.expect("wg0", "resynced")?;
    ensure!(is_resync(&line, true), "{line}");
    let line = ifmon.expect("wg0", "recreated")?;
    ensure!(
        line["ifindex"] == 9 && line["old_ifindex"] == 7 && line["recovered"] == true,
        "{line}"
    );
    ensure!(last(ifmon)?["lost"].is_null());
    Ok(())
}

#[test]
fn an_agent_that_is_asked_for_by_name_has_to_be_there() -> Result<()> {
    let room = Room::new(Device::Veth)?;
    let folder = Folder::new("nobody")?;
    let refused = client(&room, &folder, &["--backend", "agent", "wg0"])?.finish()?;
    ensure!(
        refused.status.code() == Some(1) && refused.lines.is_empty(),
        "{refused:?}"
    );
    let said = refused.stderr.lines().last().context("it said nothing")?;
    ensure!(
        said.contains("io.ifmon; `systemctl enable --now ifmon.socket`"),
        "{said}"
    );
    // Else netlink is taken, and it is said why.
    let ifmon = client(&room, &folder, &["wg0"])?;
    ensure!(ifmon.expect("wg0", "watching")?["backend"] == "netlink");
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.stderr.contains("no agent listens on"),
        "{outcome:?}"
    );
    Ok(())
}

#[test]
fn what_is_restarted_by_an_agent_makes_its_interface_again() -> Result<()> {
    let host = Host::new("restarts")?;
    host.room.add("wg0", 7)?;
    let log = host.folder.path().join("log");
    let script = format!(
        "echo \"$IFMON_EVENT\" >> {log}; ip link del wg0 2> /dev/null; ip link add wg0 type bridge; ip link del wg0; ip link add wg0 type bridge",
        log = log.display()
    );
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--backend", "agent", "--agent"])
        .arg(host.folder.socket())
        .args(["--on-restart", &script, "wg0"]);
    host.room.enter(&mut command)?;
    let ifmon = Ifmon::spawn(command)?;
    ifmon.expect("wg0", "watching")?;
    host.room.delete(7)?;
    ifmon.expect("wg0", "deleted")?;
    ifmon.expect("wg0", "recreated")?;
    ifmon.expect("wg0", "deleted")?;
    ifmon.expect("wg0", "recreated")?;
    let outcome = ifmon.stop()?;
    ensure!(outcome.status.success(), "{outcome:?}");
    let ran = std::fs::read_to_string(log)?;
    ensure!(ran == "deleted\n", "it ran for {ran:?}");
    Ok(())
}
