//! One agent and clients that come, go, stop reading and are killed, while the names that they
//! watch change all the time.

mod account;
mod plot;

use std::{collections::BTreeMap, io::Write as _, process::Command, thread};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Map, Value, json};

use self::{
    account::{Account, Means},
    plot::Plot,
};
use super::{Random, Settings};
use crate::{
    agent::{self, Folder, Host, NOBODY, until},
    backend::{follows_moves, knows_new_devices},
    program::{self, Ifmon},
    room::{Device, Room},
};

/// So many clients at a time.
const CLIENTS: usize = 50;
/// Of these are programs, the others connections of this process.
const PROGRAMS: usize = 8;
/// Changes that are made one right after the other, before those who read are up to date again. Two
/// events come of each, and the agent keeps 256 for a client: nobody who reads loses any.
const BURST: u64 = 60;

/// One client.
struct Client {
    who: Who,
    accounts: BTreeMap<String, Account>,
    /// It does not read.
    is_stopped: bool,
    /// It has not read for a while, and not everything since.
    may_have_lost: bool,
}

enum Who {
    Connection(agent::Client),
    Program(Ifmon),
}

/// What has been seen.
#[derive(Default)]
struct Sum {
    came: u64,
    closed: u64,
    killed: u64,
    told: u64,
    resyncs: u64,
    lost: u64,
}

impl Sum {
    fn gone(&mut self, client: &Client) {
        for account in client.accounts.values() {
            self.resyncs += account.resyncs;
            self.lost += account.lost;
        }
    }
}

/// 60,000 changes of a dozen names, and 50 clients of which each is told, from its beginning to
/// its end, what happened: each change once and in order, or how many of them it has lost.
pub(super) fn clients(settings: &Settings) -> Result<String> {
    let host = Host::with("clients", &["--backend", settings.backend.as_str()])?;
    let elsewhere = Room::new(Device::Veth)?;
    let mut all = Clients {
        host: &host,
        means: Means {
            is_exact: knows_new_devices(settings.backend),
            follows_moves: follows_moves(settings.backend),
        },
        random: Random(settings.seed),
        plot: Plot::new(),
        clients: Vec::new(),
        sum: Sum::default(),
    };
    let changes = settings.scaled(60_000);
    let mut made = 0;
    while made < changes {
        let count = (1 + all.random.below(BURST)).min(u64::from(changes - made));
        let from = all.plot.counts();
        let burst: Vec<_> = (0..count)
            .map(|_| all.plot.go_on(&mut all.random))
            .collect();
        made += burst.len() as u32;
        let is_done = thread::scope(|scope| -> Result<()> {
            let host = &host.room;
            let maker = scope.spawn(|| {
                burst.iter().try_for_each(|change| {
                    change
                        .make(host, &elsewhere)
                        .with_context(|| format!("{change:?}"))
                })
            });
            let played = all.play(&from);
            maker.join().expect("the thread does not panic")?;
            played
        });
        is_done.with_context(|| format!("after {made} changes"))?;
        all.catch_up(false)
            .with_context(|| format!("after {made} changes"))?;
    }
    all.catch_up(true)?;
    all.end()?;
    let Sum {
        came,
        closed,
        killed,
        told,
        resyncs,
        lost,
    } = all.sum;
    ensure!(
        resyncs > 0 && killed > 0 && closed > 0,
        "not everything was tried: {killed} killed, {closed} closed, {resyncs} losses"
    );
    until("an end of all watches", || {
        let info = host.info()?;
        Ok(info["watches"]["now"] == 0 && info["names"]["now"] == 0)
    })?;
    let stopped = host.agent.stop()?;
    ensure!(stopped.status.success(), "{stopped:?}");
    Ok(format!(
        "{changes} changes; {came} clients, {closed} closed and {killed} killed; {told} events, {resyncs} losses of \
         {lost} more"
    ))
}

/// The clients of a host, and what happens to it.
struct Clients<'a> {
    host: &'a Host,
    means: Means,
    random: Random,
    plot: Plot,
    clients: Vec<Client>,
    sum: Sum,
}

impl Clients<'_> {
    /// What clients do while changes are made. `from`: how much had happened to each name
    /// before these.
    fn play(&mut self, from: &BTreeMap<String, usize>) -> Result<()> {
        for _ in 0..self.random.below(6) {
            let at = self.random.below(CLIENTS as u64) as usize;
            let Some(client) = self.clients.get_mut(at) else {
                continue;
            };
            match self.random.below(16) {
                0 => {
                    let client = self.clients.swap_remove(at);
                    self.leave(client)?;
                }
                1 => {
                    let is_program = |client: &Client| matches!(client.who, Who::Program(_));
                    if let Some(at) = self.clients.iter().position(is_program) {
                        let client = self.clients.remove(at);
                        self.leave(client)?;
                    }
                }
                2..6 => client.stop()?,
                _ => client.read(&self.plot, self.means, &mut self.sum)?,
            }
        }
        while self.clients.len() < CLIENTS {
            let client = self.come(from)?;
            self.clients.push(client);
        }
        for client in &mut self.clients {
            client.read(&self.plot, self.means, &mut self.sum)?;
            if client.is_stopped && self.random.below(60) == 0 {
                client.go_on()?;
            }
        }
        Ok(())
    }

    fn come(&mut self, from: &BTreeMap<String, usize>) -> Result<Client> {
        self.sum.came += 1;
        let wants_all = self.random.below(8) == 0;
        let mut accounts = BTreeMap::new();
        while accounts.is_empty() {
            for name in self.plot.names() {
                if wants_all || self.random.below(4) == 0 {
                    let expected =
                        (self.random.below(3) == 0).then(|| self.plot.any_index(&mut self.random));
                    let account = Account::new(expected, from[name]);
                    accounts.insert(name.clone(), account);
                }
            }
        }
        let programs = self
            .clients
            .iter()
            .filter(|client| matches!(client.who, Who::Program(_)));
        let who = if programs.count() < PROGRAMS {
            Who::Program(program(&self.host.room, &self.host.folder, &accounts)?)
        } else {
            let mut connection = self.host.client(&self.host.room, NOBODY)?;
            let expect: Map<String, Value> = accounts
                .iter()
                .filter_map(|(name, account)| Some((name.clone(), account.expected?.into())))
                .collect();
            let names: Vec<&String> = accounts.keys().collect();
            connection.watch(&json!({ "interfaces": names, "expect": expect }))?;
            Who::Connection(connection)
        };
        Ok(Client {
            who,
            accounts,
            is_stopped: false,
            may_have_lost: false,
        })
    }

    /// A client goes without a word.
    fn leave(&mut self, mut client: Client) -> Result<()> {
        self.sum.gone(&client);
        match client.who {
            Who::Connection(mut connection) => {
                self.sum.closed += 1;
                if self.random.below(2) == 0 {
                    // In the middle of a call. The agent may not have room for it.
                    connection.stream.set_nonblocking(true)?;
                    let _ = connection.stream.write(b"{\"method\":\"io.ifmon.Sy");
                }
            }
            Who::Program(ifmon) => {
                self.sum.killed += 1;
                ifmon.signal(Signal::KILL)?;
                for line in ifmon.finish()?.lines {
                    take(&mut client.accounts, &line, &self.plot, self.means)?;
                }
            }
        }
        Ok(())
    }

    /// All that happened is told to all who read.
    fn catch_up(&mut self, is_last: bool) -> Result<()> {
        for client in &mut self.clients {
            if is_last {
                client.go_on()?;
            }
            if !client.is_stopped {
                client.catch_up(&self.plot, self.means, &mut self.sum)?;
            }
        }
        Ok(())
    }

    /// What they know is what there is, and nothing more is told.
    fn end(&mut self) -> Result<()> {
        for client in std::mem::take(&mut self.clients) {
            self.sum.gone(&client);
            let Client {
                who, mut accounts, ..
            } = client;
            if let Who::Program(ifmon) = who {
                let outcome = ifmon.stop()?;
                ensure!(outcome.status.success(), "{outcome:?}");
                for line in outcome.lines {
                    if line["event"] != "stopped" {
                        take(&mut accounts, &line, &self.plot, self.means)?;
                    }
                }
            }
            for (name, account) in &mut accounts {
                account.done(self.plot.turns(name), self.means)?;
            }
        }
        Ok(())
    }
}

impl Client {
    fn stop(&mut self) -> Result<()> {
        self.is_stopped = true;
        self.may_have_lost = true;
        if let Who::Program(ifmon) = &self.who {
            ifmon.signal(Signal::STOP)?;
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<()> {
        self.is_stopped = false;
        if let Who::Program(ifmon) = &self.who {
            ifmon.signal(Signal::CONT)?;
        }
        Ok(())
    }

    /// Reads what there is. A program does so by itself.
    fn read(&mut self, plot: &Plot, means: Means, sum: &mut Sum) -> Result<()> {
        if self.is_stopped {
            return Ok(());
        }
        let Who::Connection(connection) = &mut self.who else {
            return Ok(());
        };
        while connection.is_ready()? {
            sum.told += 1;
            take(&mut self.accounts, &event(connection)?, plot, means)?;
        }
        Ok(())
    }

    /// Reads until it was told everything.
    fn catch_up(&mut self, plot: &Plot, means: Means, sum: &mut Sum) -> Result<()> {
        let before: u64 = self.accounts.values().map(|account| account.resyncs).sum();
        match &mut self.who {
            Who::Connection(connection) => {
                while !self.accounts.values().all(Account::has_begun) {
                    sum.told += 1;
                    take(&mut self.accounts, &event(connection)?, plot, means)?;
                }
                let sync = b"{\"method\":\"io.ifmon.Sync\",\"oneway\":true}\0";
                connection.stream.write_all(sync)?;
                loop {
                    let event = event(connection)?;
                    if event["event"] == "synced" {
                        break;
                    }
                    sum.told += 1;
                    take(&mut self.accounts, &event, plot, means)?;
                }
                for (name, account) in &mut self.accounts {
                    account.done(plot.turns(name), means)?;
                }
            }
            Who::Program(ifmon) => {
                let is_done = |accounts: &BTreeMap<String, Account>| {
                    accounts
                        .iter()
                        .all(|(name, account)| account.can_be_done(plot.turns(name), means))
                };
                while !is_done(&self.accounts) {
                    sum.told += 1;
                    let line = ifmon
                        .next()
                        .with_context(|| format!("{:?}", self.accounts))?
                        .context("a client has ended")?;
                    take(&mut self.accounts, &line, plot, means)?;
                }
            }
        }
        let resyncs: u64 = self.accounts.values().map(|account| account.resyncs).sum();
        ensure!(
            self.may_have_lost || !means.is_exact || resyncs == before,
            "one that reads has lost something: {:?}",
            self.accounts
        );
        self.may_have_lost = false;
        Ok(())
    }
}

fn event(connection: &mut agent::Client) -> Result<Value> {
    let mut reply = connection.next_reply()?;
    ensure!(reply["continues"] == true, "a call has ended: {reply}");
    Ok(reply["parameters"].take())
}

fn take(
    accounts: &mut BTreeMap<String, Account>,
    event: &Value,
    plot: &Plot,
    means: Means,
) -> Result<()> {
    let name = event["interface"].as_str().context("no interface")?;
    let account = accounts
        .get_mut(name)
        .with_context(|| format!("nobody asked: {event}"))?;
    account.take(plot.turns(name), event, means)
}

/// The program as a client, which is another process.
fn program(room: &Room, folder: &Folder, accounts: &BTreeMap<String, Account>) -> Result<Ifmon> {
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--quiet", "--backend", "agent", "--agent"])
        .arg(folder.socket());
    for (name, account) in accounts {
        command.arg(match account.expected {
            Some(index) => format!("{name}={index}"),
            None => name.clone(),
        });
    }
    room.enter(&mut command)?;
    Ifmon::spawn(command)
}
