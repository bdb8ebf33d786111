//! The agent is killed while names change all the time, again and again.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    agent::{Client, Folder, Host, start, until},
    holder::Holder,
    program::Ifmon,
    room::Room,
};

use crate::{backend::client, languages::go_examples};

/// One in Go, and programs.
const CLIENTS: usize = 7;
/// How often the agent is killed.
const DEATHS: u32 = 2;
/// Changes that pass before it is killed, and before it is there again.
const MEANWHILE: u64 = 50;
/// The index of the device that has the name in the end, and of the one after that.
const LAST: u64 = 99;
const NEXT: u64 = 100;

/// Changes who has the name, until it is to stop. Nobody has it then.
fn storm(room: &Room, made: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut index = 7;
    while !stop.load(Ordering::Relaxed) {
        room.add("wg0", index)?;
        for _ in 0..20 {
            room.rename(index, "away")?;
            room.rename(index, "wg0")?;
            made.fetch_add(2, Ordering::Relaxed);
        }
        // Sometimes it has left before it is deleted.
        if index % 2 == 0 {
            room.rename(index, "away")?;
        }
        room.delete(index)?;
        made.fetch_add(2, Ordering::Relaxed);
        index = if index == 10 { 7 } else { index + 1 };
    }
    Ok(())
}

/// Waits until so many changes more were made.
fn weather(made: &AtomicU64) -> Result<()> {
    let from = made.load(Ordering::Relaxed);
    until("a storm", || {
        Ok(made.load(Ordering::Relaxed) > from + MEANWHILE)
    })
}

/// Kills the agent in the midst of it, whenever all clients are with it.
fn kill(room: &Room, folder: &Folder, mut agent: Ifmon, made: &AtomicU64) -> Result<Ifmon> {
    for _ in 0..DEATHS {
        weather(made)?;
        agent.signal(Signal::KILL)?;
        agent.finish()?;
        weather(made)?;
        agent = start(room, folder, &[])?;
        until("a watch of each client", || {
            let mut client = Client::connect(folder, room, 0)?;
            client.call("io.ifmon.Info", &json!({}), false)?;
            Ok(client.next_reply()?["parameters"]["watches"]["now"] == CLIENTS as u64)
        })?;
    }
    weather(made)?;
    Ok(agent)
}

/// What a client believes, line by line.
#[derive(Debug, Default)]
struct Belief {
    holder: Holder,
    resyncs: u32,
}

impl Belief {
    fn take(&mut self, line: &Value) -> Result<()> {
        self.resyncs += u32::from(line["event"] == "resynced");
        self.holder.take(line)
    }

    /// What comes next is the end of that device and the beginning of another, and nothing that is
    /// left from the storm. Whoever comes back to the agent meanwhile is told of both in one.
    fn until_next(&mut self, mut next: impl FnMut() -> Result<Value>) -> Result<()> {
        while self.holder != Holder(Some(NEXT)) {
            let line = next()?;
            self.take(&line)?;
            ensure!(
                line["event"] == "resynced"
                    || line["event"] == "deleted" && line["ifindex"] == LAST
                    || line["event"] == "recreated" && line["old_ifindex"] == LAST,
                "{line}"
            );
        }
        ensure!(self.resyncs > 0, "it has not noticed anything");
        Ok(())
    }
}

#[test]
fn the_last_word_is_right_after_the_agent_was_killed_in_the_midst_of_a_storm() -> Result<()> {
    let Host {
        room,
        folder,
        agent,
    } = Host::new("storm")?;
    let mut watch = Command::new(go_examples(&folder)?.join("watch"));
    watch.arg("-agent").arg(folder.socket()).arg("wg0");
    room.enter(&mut watch)?;
    let mut clients = vec![Ifmon::spawn(watch)?];
    while clients.len() < CLIENTS {
        let backend = ["agent", "auto"][clients.len() % 2];
        clients.push(client(&room, &folder, &["--backend", backend, "wg0"])?);
    }
    let mut all = Vec::new();
    for client in clients {
        let mut belief = Belief::default();
        belief.take(&client.expect("wg0", "watching")?)?;
        all.push((client, belief));
    }

    let (made, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let agent = thread::scope(|scope| {
        let storm = scope.spawn(|| storm(&room, &made, &stop));
        let agent = kill(&room, &folder, agent, &made);
        stop.store(true, Ordering::Relaxed);
        storm.join().expect("the thread does not panic")?;
        agent
    })?;
    room.add("wg0", LAST as u32)?;
    let next = |client: &Ifmon| client.next()?.context("it has ended");
    for (client, belief) in &mut all {
        while belief.holder != Holder(Some(LAST)) {
            belief.take(&next(client)?)?;
        }
    }

    room.delete(LAST as u32)?;
    room.add("wg0", NEXT as u32)?;
    for (client, mut belief) in all {
        belief.until_next(|| next(&client))?;
        for line in client.stop()?.lines {
            belief.take(&line)?;
        }
        ensure!(belief.holder == Holder(Some(NEXT)), "{belief:?}");
    }
    agent.stop()?;
    Ok(())
}
