//! How long it takes until a change has reached everyone who wants to know, and what each of them
//! takes: clients of one agent, beside as many processes that subscribe themselves.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{Timespec, epoll};
use serde_json::json;

use super::{
    figure::Figures,
    measure::Plan,
    process::{First, Process, Usage},
    report::number,
    statistics::Quantile,
    subject::{WATCHED, WATCHED_INDEX},
    unrelated,
};
use crate::{
    namespace::Namespace,
    open_files,
    program::{self, PATIENCE, wait_for},
    requests::{Requests, add_bridge},
    scratch::Scratch,
};

/// That each client of many watches.
const NAMES: usize = 10;
const ROW: &str = "clients";
const AGENT: &str = "ifmon --serve";
const PEER: &str = "`ip monitor`";

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    if plan.emulated {
        // A thousand processes on one slow processor would measure that.
        return Ok(());
    }
    open_files::raise()?;
    let count = plan.scale(1000, 0, 100);
    let changes = plan.scale(20, 0, 5);
    let agent = of_agent(count, changes)?;
    let peer = of_peer(count, changes)?;
    for (what, fraction) in [("p50", 0.5), ("p99", 0.99)] {
        let what = format!("a change reaches {count} clients, {what}");
        let [agent, peer] = [&agent, &peer].map(|all| Quantile::of(&all.times, fraction));
        figures.push_quantile(ROW, &what, AGENT, agent, "µs");
        figures.goal(peer.value);
        figures.push_quantile(ROW, &what, PEER, peer, "µs");
    }
    let what = "memory a client";
    figures.push(ROW, what, AGENT, agent.memory, "KiB");
    figures.goal(peer.memory);
    figures.push(ROW, what, PEER, peer.memory, "KiB");
    at_rest(plan, count, figures)
}

struct Outcome {
    /// Of each change, when each client had it, in microseconds.
    times: Vec<f64>,
    /// Of each client, in KiB.
    memory: f64,
}

/// An agent, and what its clients need.
struct Agent {
    namespace: Namespace,
    process: Process,
    scratch: Scratch,
}

impl Agent {
    /// One of this name.
    fn start(name: &str) -> Result<Self> {
        let namespace = Namespace::new()?;
        let scratch = Scratch::new(name)?;
        let mut command = Command::new(program::path());
        command
            .args(["--quiet", "--serve"])
            .arg(scratch.path().join("agent"));
        namespace.enter(&mut command)?;
        let process = Process(command.stdin(Stdio::null()).spawn()?);
        let agent = Self {
            namespace,
            process,
            scratch,
        };
        drop(wait_for(|| agent.connect().ok())?);
        Ok(agent)
    }

    fn connect(&self) -> Result<UnixStream> {
        let path = self.scratch.path().join("agent");
        Ok(self.namespace.run(|| UnixStream::connect(path))??)
    }

    /// Clients that watch these names, and what memory each takes, in KiB.
    fn clients(&self, count: usize, names: &[String]) -> Result<(Vec<File>, f64)> {
        let before = self.usage()?.resident;
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut stream = self.connect()?;
            let call = json!({
                "method": "io.ifmon.Watch",
                "parameters": { "interfaces": names },
                "more": true,
            });
            stream.write_all(format!("{call}\0").as_bytes())?;
            let mut told = 0;
            while told < names.len() {
                let mut replies = [0; 8192];
                let read = stream.read(&mut replies)?;
                ensure!(read > 0, "the agent closes a call");
                told += replies[..read].iter().filter(|byte| **byte == 0).count();
            }
            clients.push(File::from(OwnedFd::from(stream)));
        }
        let after = self.usage()?.resident;
        Ok((clients, (after as f64 - before as f64) / count as f64))
    }

    fn usage(&self) -> Result<Usage> {
        Usage::settled(self.process.pid())
    }
}

fn of_agent(count: usize, changes: usize) -> Result<Outcome> {
    let agent = Agent::start("changes")?;
    let (clients, memory) = agent.clients(count, &[WATCHED.to_owned()])?;
    let times = follow(&agent.namespace, clients, changes)?;
    Ok(Outcome { times, memory })
}

/// Many clients of many names, and changes that concern none of them.
fn at_rest(plan: &Plan, count: usize, figures: &mut Figures) -> Result<()> {
    let rounds = plan.scale(200, 0, 4);
    let names: Vec<String> = (0..NAMES).map(|number| format!("wg{number}")).collect();
    let (one, agent) = (Agent::start("one-client")?, Agent::start("many-clients")?);
    let (_client, _) = one.clients(1, &names)?;
    let (clients, memory) = agent.clients(count, &names)?;
    let before = agent.usage()?.switches;
    // In turns, so that both see the same host.
    let mut sides = [
        (Requests::new(&one.namespace)?, Vec::new()),
        (Requests::new(&agent.namespace)?, Vec::new()),
    ];
    for _ in 0..rounds {
        for (requests, times) in &mut sides {
            let begin = Instant::now();
            unrelated::round(requests)?;
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    let woken = agent.usage()?.switches - before;
    let told = Waiting::new(&clients)?.ready(0)?.len();
    ensure!(
        told == 0,
        "{told} clients were told what does not concern them"
    );
    let what = format!(
        "wake-ups for {} changes of others, {count} clients of {NAMES} names",
        number(f64::from(rounds * unrelated::CHANGES_OF_ROUND))
    );
    figures.push(ROW, &what, AGENT, woken as f64, "");
    figures.goal(5.0);
    let [one, many] = sides.map(|(_, times)| Quantile::of(&times, 0.5));
    let what = format!("changes of others, {count} clients : 1");
    figures.push_quantile(ROW, &what, AGENT, many.ratio(one), "");
    figures.goal(1.01);
    let what = format!("memory a client of {NAMES} names");
    figures.push(ROW, &what, AGENT, memory, "KiB");
    Ok(())
}

fn of_peer(count: usize, changes: usize) -> Result<Outcome> {
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    let mut processes = Vec::new();
    let mut pipes = Vec::new();
    for _ in 0..count {
        let mut command = Command::new("ip");
        command.args(["-o", "monitor", "link"]);
        namespace.enter(&mut command)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        processes.push(Process(child));
        pipes.push(File::from(OwnedFd::from(stdout)));
    }
    // It does not say when it listens.
    for pipe in &pipes {
        let probe = Waiting::new(std::slice::from_ref(pipe))?;
        let deadline = Instant::now() + PATIENCE;
        while probe.ready(20)?.is_empty() {
            ensure!(Instant::now() < deadline, "a peer stays silent");
            requests.add_bridge(WATCHED, WATCHED_INDEX)?;
            requests.delete(WATCHED_INDEX)?;
        }
    }
    let mut memory = 0.0;
    for process in &processes {
        memory += proportional(process.pid())?;
    }
    let times = follow(&namespace, pipes, changes)?;
    Ok(Outcome {
        times,
        memory: memory / count as f64,
    })
}

/// Makes changes, one when all have heard of the one before.
fn follow(namespace: &Namespace, mut clients: Vec<File>, changes: usize) -> Result<Vec<f64>> {
    let mut requests = Requests::new(namespace)?;
    let waiting = Waiting::new(&clients)?;
    let mut times = Vec::new();
    let _first = First::come()?;
    for _ in 0..changes {
        discard(&waiting, &mut clients)?;
        let begin = Instant::now();
        requests.send(add_bridge(WATCHED, WATCHED_INDEX))?;
        let mut heard = vec![false; clients.len()];
        let mut missing = clients.len();
        while missing > 0 {
            ensure!(begin.elapsed() < PATIENCE, "{missing} have not heard of it");
            let ready = waiting.ready(1000)?;
            let time = begin.elapsed().as_secs_f64() * 1e6;
            for at in ready {
                read(clients.get_mut(at))?;
                if let Some(heard) = heard.get_mut(at)
                    && !std::mem::replace(heard, true)
                {
                    times.push(time);
                    missing -= 1;
                }
            }
        }
        requests.answer()?;
        requests.delete(WATCHED_INDEX)?;
    }
    Ok(times)
}

/// Throws away what is still to come of the change before, until all is quiet.
fn discard(waiting: &Waiting, clients: &mut [File]) -> Result<()> {
    loop {
        let ready = waiting.ready(200)?;
        if ready.is_empty() {
            return Ok(());
        }
        for at in ready {
            read(clients.get_mut(at))?;
        }
    }
}

fn read(client: Option<&mut File>) -> Result<()> {
    let mut bytes = [0; 4096];
    let read = client.context("no such client")?.read(&mut bytes)?;
    ensure!(read > 0, "ended while it was measured");
    Ok(())
}

/// Who of many can be read.
struct Waiting(OwnedFd);

impl Waiting {
    fn new(files: &[File]) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (at, file) in files.iter().enumerate() {
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&epoll, file, data, epoll::EventFlags::IN)?;
        }
        Ok(Self(epoll))
    }

    fn ready(&self, milliseconds: i64) -> Result<Vec<usize>> {
        let Self(epoll) = self;
        let mut room = [MaybeUninit::uninit(); 64];
        let within = Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        };
        let (found, _) = epoll::wait(epoll, &mut room, Some(&within))?;
        let at = found.iter().map(|event| {
            // A copy: the structure is packed on some architectures.
            let data = event.data;
            data.u64() as usize
        });
        Ok(at.collect())
    }
}

/// Memory of a process, where what several share counts in parts, in KiB.
fn proportional(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .context("no Pss")
}
