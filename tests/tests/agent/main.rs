//! One agent, and clients that need no privileges: `ifmon --serve`.
//!
//! Each test makes network namespaces of its own, which takes root.

mod backend;
mod languages;
mod storm;

use std::{
    fs,
    io::Write as _,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixListener},
    },
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use tests::{
    agent::{Client, Folder, Host, NOBODY, start, until},
    open_files,
    program::{self, Ifmon},
    room::{Device, NamedNetns, Room},
};

#[test]
fn users_are_told_of_their_own_namespace_and_not_who_made_a_change() -> Result<()> {
    let host = Host::new("users")?;
    let elsewhere = Room::new(Device::Veth)?;
    let wg0 = json!({ "interfaces": ["wg0"] });
    let mut root = host.client(&host.room, 0)?;
    let mut user = host.client(&host.room, NOBODY)?;
    let mut container = host.client(&elsewhere, NOBODY)?;
    // The socket belongs to the group of root.
    let mut member = Client::connect_as(&host.folder, &host.room, NOBODY, 0)?;
    let mut stranger = Client::connect_as(&host.folder, &elsewhere, 0, 0)?;
    for client in [
        &mut root,
        &mut user,
        &mut container,
        &mut member,
        &mut stranger,
    ] {
        client.watch(&wg0)?;
        ensure!(client.expect("wg0", "watching")?["ifindex"].is_null());
    }
    host.room.add("wg0", 7)?;
    elsewhere.add("wg0", 9)?;
    for client in [&mut root, &mut member] {
        let told = client.expect("wg0", "appeared")?;
        if told["backend"] != "netlink" {
            ensure!(told["by"]["comm"].is_string(), "nobody is named: {told}");
        }
    }
    let told = stranger.expect("wg0", "appeared")?;
    ensure!(told["ifindex"] == 9 && told["by"].is_null(), "{told}");
    let told = user.expect("wg0", "appeared")?;
    ensure!(told["ifindex"] == 7 && told["by"].is_null(), "{told}");
    // The first event in the other namespace is its own.
    let told = container.expect("wg0", "appeared")?;
    ensure!(
        told["ifindex"] == 9 && told["netns"] == elsewhere.id()?,
        "{told}"
    );

    // Root of a container is not root of the host.
    let there = json!({ "interfaces": ["wg0"], "netns": host.room.path() });
    for (room, uid) in [(&host.room, NOBODY), (&elsewhere, 0), (&elsewhere, NOBODY)] {
        let mut client = host.client(room, uid)?;
        client.watch(&there)?;
        client.refused("io.ifmon.NotPermitted")?;
        client.call("io.ifmon.List", &json!({}), true)?;
        let reply = client.next_reply()?;
        let listed = reply["parameters"]["interfaces"]
            .as_array()
            .context("no list")?;
        let own = room.id()?;
        ensure!(
            listed.len() == 1 && listed[0]["netns"] == own && listed[0]["netns_name"].is_null(),
            "{reply}"
        );
    }
    let mut client = host.client(&host.room, 0)?;
    client.call("io.ifmon.List", &json!({}), false)?;
    let reply = client.next_reply()?;
    ensure!(
        reply["parameters"]["interfaces"].as_array().map(Vec::len) == Some(2),
        "{reply}"
    );
    let name = format!("ifmon-agent-{}", std::process::id());
    let _named = NamedNetns::new(&elsewhere, &name)?;
    client.watch(&json!({ "interfaces": ["wg0"], "netns": name }))?;
    ensure!(client.expect("wg0", "watching")?["ifindex"] == 9);
    for wrong in ["no-such-netns", "/proc/self/mounts", "/etc"] {
        let mut client = host.client(&host.room, 0)?;
        client.watch(&json!({ "interfaces": ["wg0"], "netns": wrong }))?;
        client.refused("io.ifmon.CannotWatch")?;
    }
    Ok(())
}

#[test]
fn a_policy_widens_and_narrows_who_may_ask_what() -> Result<()> {
    let wg0 = json!({ "interfaces": ["wg0"] });
    // The socket belongs to the group of root.
    let member = |host: &Host| Client::connect_as(&host.folder, &host.room, NOBODY, 0);

    let host = Host::with("narrow", &["--policy", "watch=group,who=root"])?;
    let elsewhere = Room::new(Device::Veth)?;
    for (room, uid) in [(&host.room, NOBODY), (&elsewhere, NOBODY), (&elsewhere, 0)] {
        let mut client = host.client(room, uid)?;
        client.watch(&wg0)?;
        client.refused("io.ifmon.NotPermitted")?;
        client.call("io.ifmon.List", &json!({}), true)?;
        client.refused("io.ifmon.NotPermitted")?;
    }
    let mut clients = [(host.client(&host.room, 0)?, true), (member(&host)?, false)];
    for (client, _) in &mut clients {
        client.watch(&wg0)?;
        client.expect("wg0", "watching")?;
    }
    host.room.add("wg0", 7)?;
    for (client, is_told_who) in &mut clients {
        let told = client.expect("wg0", "appeared")?;
        let is_known = told["backend"] != "netlink";
        ensure!(
            told["by"].is_object() == (is_known && *is_told_who),
            "{told}"
        );
    }

    let host = Host::with("wide", &["--policy", "who=all", "--policy", "netns=group"])?;
    let mut user = host.client(&host.room, NOBODY)?;
    let mut container = host.client(&elsewhere, NOBODY)?;
    for client in [&mut user, &mut container] {
        client.watch(&wg0)?;
        client.expect("wg0", "watching")?;
    }
    let name = format!("ifmon-policy-{}", std::process::id());
    let _named = NamedNetns::new(&elsewhere, &name)?;
    let path = json!({ "interfaces": ["wg0"], "netns": format!("/run/netns/{name}") });
    let there = json!({ "interfaces": ["wg0"], "netns": name });
    let mut member = member(&host)?;
    // What the agent opens by its path is for root to say.
    member.watch(&path)?;
    member.refused("io.ifmon.NotPermitted")?;
    member.watch(&there)?;
    member.expect("wg0", "watching")?;
    let mut other = host.client(&host.room, NOBODY)?;
    other.watch(&there)?;
    other.refused("io.ifmon.NotPermitted")?;
    host.room.add("wg0", 7)?;
    elsewhere.add("wg0", 9)?;
    let told = user.expect("wg0", "appeared")?;
    let is_known = told["backend"] != "netlink";
    ensure!(told["by"].is_object() == is_known, "{told}");
    ensure!(member.expect("wg0", "appeared")?["ifindex"] == 9);
    // Nobody of another namespace is told of the host's users.
    let told = container.expect("wg0", "appeared")?;
    ensure!(told["ifindex"] == 9 && told["by"].is_null(), "{told}");
    Ok(())
}

#[test]
fn a_client_that_comes_late_is_told_the_state_and_what_it_did_not_expect() -> Result<()> {
    let host = Host::new("late")?;
    let wg0 = json!({ "interfaces": ["wg0"] });
    host.room.add("wg0", 7)?;
    let mut first = host.client(&host.room, NOBODY)?;
    first.watch(&wg0)?;
    ensure!(first.expect("wg0", "watching")?["ifindex"] == 7);

    let mut expects = host.client(&host.room, NOBODY)?;
    expects.watch(&json!({ "interfaces": ["wg0"], "expect": { "wg0": 5 } }))?;
    ensure!(expects.expect("wg0", "watching")?["ifindex"] == 7);
    let told = expects.expect("wg0", "recreated")?;
    ensure!(
        told["old_ifindex"] == 5 && told["recovered"] == true,
        "{told}"
    );

    host.room.delete(7)?;
    first.expect("wg0", "deleted")?;
    expects.expect("wg0", "deleted")?;
    let mut late = host.client(&host.room, NOBODY)?;
    late.watch(&json!({ "interfaces": ["wg0"], "expect": { "wg0": 7 } }))?;
    ensure!(late.expect("wg0", "watching")?["ifindex"].is_null());
    let told = late.expect("wg0", "deleted")?;
    ensure!(told["ifindex"] == 7 && told["restart"] == true, "{told}");
    let mut last = host.client(&host.room, NOBODY)?;
    last.watch(&wg0)?;
    ensure!(last.expect("wg0", "watching")?["ifindex"].is_null());

    host.room.add("wg0", 8)?;
    for client in [&mut first, &mut expects, &mut late] {
        let told = client.expect("wg0", "recreated")?;
        ensure!(told["ifindex"] == 8 && told["old_ifindex"] == 7, "{told}");
    }
    // Since this one began, the name was free.
    last.expect("wg0", "appeared")?;
    Ok(())
}

#[test]
fn what_happened_before_a_sync_is_told_before_it() -> Result<()> {
    let host = Host::new("sync")?;
    host.room.add("wg0", 7)?;
    let mut client = host.client(&host.room, NOBODY)?;
    let sync = |client: &mut Client| {
        let message = b"{\"method\":\"io.ifmon.Sync\",\"oneway\":true}\0";
        client.stream.write_all(message)
    };
    // Without a watch nobody is told anything.
    sync(&mut client)?;
    client.watch(&json!({ "interfaces": ["wg0"] }))?;
    client.expect("wg0", "watching")?;
    for _ in 0..200 {
        host.room.rename(7, "away")?;
        host.room.rename(7, "wg0")?;
        sync(&mut client)?;
        client.expect("wg0", "renamed")?;
        client.expect("wg0", "returned")?;
        client.expect("", "synced")?;
    }
    // It is not ahead of the watch of a name that nobody has asked for before.
    for name in ["new0", "new1", "new2"] {
        let mut client = host.client(&host.room, NOBODY)?;
        client.watch(&json!({ "interfaces": [name], "expect": { name: 9 } }))?;
        sync(&mut client)?;
        client.expect(name, "watching")?;
        client.expect(name, "deleted")?;
        client.expect("", "synced")?;
    }
    // It has no reply of its own, so whoever wants one is not understood.
    client.call("io.ifmon.Sync", &json!({}), false)?;
    ensure!(client.reply()?.is_none());
    Ok(())
}

#[test]
fn what_is_watched_is_listed_in_parts_that_are_bounded() -> Result<()> {
    let host = Host::new("list")?;
    let names: Vec<String> = (0..512).map(|number| format!("if{number:03}")).collect();
    let mut client = host.client(&host.room, NOBODY)?;
    client.watch(&json!({ "interfaces": names }))?;
    for name in &names {
        client.expect(name, "watching")?;
    }
    let mut other = host.client(&host.room, NOBODY)?;
    other.call("io.ifmon.List", &json!({}), false)?;
    other.refused("org.varlink.service.ExpectedMore")?;
    other.call("io.ifmon.List", &json!({}), true)?;
    let (mut listed, mut parts) = (Vec::new(), 0);
    loop {
        let reply = other.next_reply()?;
        let part = reply["parameters"]["interfaces"]
            .as_array()
            .context("no list")?;
        ensure!(part.len() <= 256, "{} in one reply", part.len());
        listed.extend(part.iter().map(|one| one["interface"].clone()));
        parts += 1;
        if reply["continues"] != true {
            break;
        }
    }
    ensure!(listed == names, "{listed:?}");
    ensure!(parts == 2, "{parts} parts");
    // A call is refused as a whole, and the connection goes on.
    let too_many: Vec<String> = (0..1025).map(|number| format!("b{number}")).collect();
    other.watch(&json!({ "interfaces": too_many }))?;
    other.refused("io.ifmon.TooMany")?;
    Ok(())
}

#[test]
fn a_thousand_clients_share_their_watches_and_leave_nothing() -> Result<()> {
    open_files::raise()?;
    let host = Host::new("thousand")?;
    let names: Vec<String> = (0..10).map(|number| format!("if{number}")).collect();
    let before = host.agent.status("VmRSS")?;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut client = host.client(&host.room, NOBODY)?;
        client.watch(&json!({ "interfaces": names }))?;
        clients.push(client);
    }
    for client in &mut clients {
        for name in &names {
            client.expect(name, "watching")?;
        }
    }
    let info = host.info()?;
    ensure!(
        info["watches"]["now"] == 10_000 && info["names"]["now"] == 10,
        "{info}"
    );
    host.room.add("if3", 7)?;
    for client in &mut clients {
        client.expect("if3", "appeared")?;
    }
    // Nobody is woken for what none of them watches.
    host.room.add("other0", 9)?;
    let awake = host.agent.status("voluntary_ctxt_switches")?;
    for number in 0..500 {
        host.room.rename(9, format!("other{number}"))?;
    }
    let awake = host.agent.status("voluntary_ctxt_switches")? - awake;
    ensure!(awake <= 2, "woken {awake} times");
    // Each is a task, a socket and ten entries.
    let grown = host.agent.status("VmRSS")?.saturating_sub(before);
    ensure!(grown < 16 << 10, "{grown} KiB for 1,000 clients");
    // Half of them go while they have something to read.
    host.room.delete(7)?;
    let rest = clients.split_off(500);
    drop(clients);
    for mut client in rest {
        client.expect("if3", "deleted")?;
    }
    until("the end of all watches", || {
        let info = host.info()?;
        Ok(info["watches"]["now"] == 0 && info["names"]["now"] == 0)
    })
}

#[test]
fn a_user_with_too_many_clients_is_told_so_and_others_are_served() -> Result<()> {
    open_files::raise()?;
    let host = Host::new("crowd")?;
    let clients = (0..1536).map(|_| host.client(&host.room, NOBODY));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let mut one_more = host.client(&host.room, NOBODY)?;
    // By then the agent has seen that it is one too many.
    ensure!(host.info()?["clients"]["now"] == clients.len() + 1);
    one_more.call("io.ifmon.Info", &json!({}), false)?;
    one_more.refused("io.ifmon.TooMany")?;
    ensure!(host.info()?["clients"]["now"] == clients.len() + 1);
    Ok(())
}

#[test]
fn a_client_that_does_not_read_loses_its_own_events_alone() -> Result<()> {
    const CYCLES: u64 = 1000;
    // It hears of every change, so that only this client loses any.
    let host = Host::with("silent", &["--backend", "netlink"])?;
    let wg0 = json!({ "interfaces": ["wg0"] });
    host.room.add("wg0", 7)?;
    let mut eager = host.client(&host.room, NOBODY)?;
    let mut silent = host.client(&host.room, NOBODY)?;
    for client in [&mut eager, &mut silent] {
        client.watch(&wg0)?;
        client.expect("wg0", "watching")?;
    }
    for _ in 0..CYCLES {
        host.room.rename(7, "away")?;
        host.room.rename(7, "wg0")?;
        eager.expect("wg0", "renamed")?;
        eager.expect("wg0", "returned")?;
    }
    host.room.delete(7)?;
    host.room.add("wg0", 8)?;
    eager.expect("wg0", "deleted")?;
    eager.expect("wg0", "recreated")?;
    let mut told = 0;
    let lost = loop {
        let event = silent.next_reply()?["parameters"].take();
        if event["event"] == "resynced" {
            ensure!(event["changed"] == true, "{event}");
            break event["lost"].as_u64().context("no count")?;
        }
        let expected = ["renamed", "returned"][usize::try_from(told % 2)?];
        ensure!(event["event"] == expected, "{event} after {told}");
        told += 1;
    };
    ensure!(
        lost > 0 && told + lost == 2 * CYCLES + 2,
        "{told} and {lost}"
    );
    let verdict = silent.expect("wg0", "recreated")?;
    ensure!(
        verdict["old_ifindex"] == 7 && verdict["ifindex"] == 8 && verdict["recovered"] == true,
        "{verdict}"
    );
    host.room.delete(8)?;
    silent.expect("wg0", "deleted")?;
    eager.expect("wg0", "deleted")?;
    Ok(())
}

#[test]
fn nothing_that_a_client_sends_harms_the_agent_or_another_client() -> Result<()> {
    let host = Host::new("hostile")?;
    let mut good = host.client(&host.room, NOBODY)?;
    good.watch(&json!({ "interfaces": ["wg0"] }))?;
    good.expect("wg0", "watching")?;

    // A call that never ends is cut off; a call behind a watch, which would never be answered, too.
    let mut client = host.client(&host.room, NOBODY)?;
    let _ = client.stream.write_all(&vec![b' '; 80 << 10]);
    ensure!(client.reply()?.is_none());
    let mut client = host.client(&host.room, NOBODY)?;
    client.watch(&json!({ "interfaces": ["wg0"] }))?;
    client.expect("wg0", "watching")?;
    client.call("io.ifmon.Info", &json!({}), false)?;
    ensure!(client.reply()?.is_none());

    let seeds: [&[u8]; 4] = [
        b"{\"method\":\"io.ifmon.Watch\",\"parameters\":{\"interfaces\":[\"wg0\",\"a\"],\"expect\":{\"a\":7}},\"more\":true}\0",
        b"{\"method\":\"io.ifmon.List\",\"more\":true}\0{\"method\":\"io.ifmon.Info\",\"oneway\":true}\0",
        b"{\"method\":\"org.varlink.service.GetInterfaceDescription\",\"parameters\":{\"interface\":\"io.ifmon\"}}\0",
        b"{\"method\":\"io.ifmon.Watch\",\"parameters\":{\"interfaces\":[\"wg0\"],\"netns\":\"/proc/1/ns/net\"},\"more\":true}\0",
    ];
    let before = host.agent.status("VmRSS")?;
    let mut random = 1_u64;
    let mut below = |limit: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % limit
    };
    for _ in 0..3000 {
        let mut message = seeds[below(seeds.len())].to_vec();
        for _ in 0..below(4) {
            let at = below(message.len());
            match below(4) {
                0 => message[at] = below(256) as u8,
                1 => drop(message.remove(at)),
                2 => message.insert(at, b"\0{}[]\":,"[below(8)]),
                _ => message.truncate(at + 1),
            }
        }
        let mut client = host.client(&host.room, NOBODY)?;
        // The agent may have closed it before all is written.
        let _ = client.stream.write_all(&message);
        if below(3) == 0 {
            let _ = client.stream.shutdown(Shutdown::Write);
            while client.reply()?.is_some() {}
        }
    }
    until("an end of these clients", || {
        Ok(host.info()?["clients"]["now"] == 2)
    })?;
    let grown = host.agent.status("VmRSS")?.saturating_sub(before);
    ensure!(grown < 8 << 10, "{grown} KiB more than before");
    host.room.add("wg0", 7)?;
    good.expect("wg0", "appeared")?;
    Ok(())
}

#[test]
fn an_agent_takes_the_place_of_one_that_was_killed_and_of_no_other() -> Result<()> {
    let host = Host::new("place")?;
    let mut second = Command::new(program::path());
    second.arg("--serve").arg(host.folder.socket());
    host.room.enter(&mut second)?;
    let refused = Ifmon::spawn(second)?.finish()?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        refused.stderr.contains("another agent listens"),
        "{refused:?}"
    );

    let Host {
        room,
        folder,
        agent,
    } = host;
    let mut client = Client::connect(&folder, &room, NOBODY)?;
    client.watch(&json!({ "interfaces": ["wg0"] }))?;
    client.expect("wg0", "watching")?;
    agent.signal(Signal::KILL)?;
    agent.finish()?;
    ensure!(client.reply()?.is_none());
    let agent = start(&room, &folder, &[])?;
    let mut client = Client::connect(&folder, &room, NOBODY)?;
    client.watch(&json!({ "interfaces": ["wg0"] }))?;
    client.expect("wg0", "watching")?;
    let outcome = agent.stop()?;
    ensure!(outcome.status.success(), "{outcome:?}");
    ensure!(!folder.socket().exists());
    Ok(())
}

/// Whatever else is at its path stays what it is.
#[test]
fn an_agent_takes_the_place_of_no_other_file() -> Result<()> {
    let room = Room::new(Device::Veth)?;
    let folder = Folder::new("files")?;
    let path = folder.socket();
    fs::create_dir_all(path.parent().context("no folder")?)?;
    let target = path.with_extension("target");
    let refused = |what: &str, says: &str| -> Result<()> {
        let mut command = Command::new(program::path());
        command.arg("--serve").arg(&path);
        room.enter(&mut command)?;
        let outcome = Ifmon::spawn(command)?.finish()?;
        ensure!(outcome.status.code() == Some(1), "{what}: {outcome:?}");
        let said = &outcome.stderr;
        ensure!(said.contains(says), "{what}: {outcome:?}");
        Ok(())
    };
    fs::write(&path, "dear")?;
    refused("a file", "and no socket")?;
    ensure!(fs::read(&path)? == b"dear");
    fs::rename(&path, &target)?;
    symlink(&target, &path)?;
    refused("a link", "and no socket")?;
    ensure!(fs::read_link(&path)? == target && fs::read(&target)? == b"dear");
    fs::remove_file(&path)?;
    fs::create_dir(&path)?;
    refused("a folder", "is a directory: name a file in it")?;
    fs::remove_dir(&path)?;

    // Nor does it remove the socket of another one when it ends.
    let agent = start(&room, &folder, &[])?;
    fs::remove_file(&path)?;
    let next = start(&room, &folder, &[])?;
    agent.stop()?;
    ensure!(path.exists());
    next.stop()?;
    ensure!(!path.exists());
    Ok(())
}

#[test]
fn a_service_manager_can_hold_the_socket() -> Result<()> {
    let room = Room::new(Device::Veth)?;
    let folder = Folder::new("activation")?;
    fs::create_dir_all(folder.socket().parent().context("no folder")?)?;
    let listener = UnixListener::bind(folder.socket())?;
    // A client that comes before the agent does is served.
    let mut client = Client::connect(&folder, &room, 0)?;
    client.watch(&json!({ "interfaces": ["wg0"] }))?;
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --serve 3<&0 </dev/null",
        ])
        .arg(program::path())
        .stdin(Stdio::from(OwnedFd::from(listener)));
    room.enter(&mut command)?;
    let mut agent = command.spawn()?;
    let told = client.expect("wg0", "watching");
    agent.kill()?;
    agent.wait()?;
    told?;
    // It is the service manager's, and stays.
    ensure!(folder.socket().exists());
    Ok(())
}
