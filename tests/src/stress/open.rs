//! The filter in the kernel, against none.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ifmon::{BackendChoice, Counters, Handle, Monitor, Netns};
use serde_json::Value;

use super::{
    Random, Settings,
    follow::{self, MARK},
};
use crate::{
    links::{Kind, Links},
    namespace::Namespace,
    program::{self, Ifmon, PATIENCE},
};
use rustix::process::Signal;

/// Links have these names in both namespaces, in turn; those of `WATCHED` are watched there.
const NAMES: [&str; 4] = ["wg0", "wg1", "wg00", "tmp0"];
const WATCHED: [&[&str]; 2] = [&["wg0", "wg1", MARK], &["wg0"]];
/// Room for every change, which is what an open filter sends.
const ROOM: u32 = 8 << 20;

/// With the filter wide open every change comes through, and what is told is the same; what is
/// counted adds up.
pub(super) fn open(settings: &Settings) -> Result<String> {
    comes_through(settings)?;
    let attempts = settings.scaled(10_000);
    let places = [Place::new()?, Place::new()?];
    let mut random = Random(settings.seed);
    let programs = [
        start(settings, &places, false)?,
        start(settings, &places, true)?,
    ];
    let library = Library::start(settings, &places)?;
    let before = library.counters()?;

    let mut changes: u64 = 0;
    for number in 0..attempts {
        changes += u64::from(change(&places, &mut random, number).is_ok());
    }
    let [home, _] = &places;
    home.links.add_quick(MARK, Kind::Veth { peer: "mark1" })?;
    let [filtered, opened] = [until_mark(&programs[0])?, until_mark(&programs[1])?];
    for (filtered, opened) in filtered.iter().zip(&opened) {
        ensure!(
            filtered == opened,
            "{filtered} with the filter, {opened} without"
        );
    }
    ensure!(filtered.len() == opened.len(), "one told more");
    let verdicts = filtered.len() as u64;
    ensure!(
        verdicts > changes / 10,
        "{verdicts} lines for {changes} changes"
    );
    for (place, names) in places.iter().zip(WATCHED) {
        for name in names {
            place.expect(name, &filtered)?;
        }
    }

    let after = library.counters()?;
    let mut counted = before.iter().zip(&after).map(|(before, after)| {
        let since = |count: fn(&Counters) -> Option<u64>| {
            count(after)
                .zip(count(before))
                .map(|(after, before)| after - before)
        };
        [
            since(|counters| counters.seen),
            since(|counters| counters.matched),
            since(|counters| counters.ignored),
        ]
    });
    let (filtered, opened) = (counted.next(), counted.next());
    ensure!(
        filtered == opened,
        "{filtered:?} with the filter, {opened:?} without"
    );
    let Some([Some(seen), Some(matched), Some(ignored)]) = filtered else {
        bail!("not counted: {filtered:?}");
    };
    ensure!(
        seen >= changes && ignored > 0 && matched <= verdicts,
        "{seen} seen and {matched} matched of {changes} changes with {verdicts} lines"
    );
    for ifmon in programs {
        for line in ifmon.stop()?.lines {
            ensure!(
                line["event"] == "stopped"
                    && line["lost"] == 0
                    && line["seen"].as_u64().is_some_and(|count| count >= seen),
                "not the end of a watch without a loss: {line}"
            );
        }
    }
    Ok(format!(
        "{changes} changes gave the same {verdicts} lines; {seen} seen = {matched} matched + {ignored} ignored"
    ))
}

/// Is it open? What concerns nobody fills the queue of a process that is stopped, so that two
/// changes of ours are lost.
fn comes_through(settings: &Settings) -> Result<()> {
    for open in [false, true] {
        let Place { namespace, links } = Place::new()?;
        let ours = links.add(follow::WATCHED, Kind::Veth { peer: "peer0" }, None)?;
        let other = links.add("other0", Kind::Veth { peer: "other1" }, None)?;
        let mut args = vec![
            "--backend",
            settings.backend.as_str(),
            "--receive-buffer",
            "4096",
        ];
        args.extend(open.then_some("--open-filter"));
        args.extend([follow::WATCHED, MARK]);
        let ifmon = Ifmon::start(&namespace, &args)?;
        let mut followed = follow::begin(&ifmon)?;
        ifmon.signal(Signal::STOP)?;
        for _ in 0..100 {
            links.rename_index(other, "wg00")?;
            links.rename_index(other, "other0")?;
        }
        links.rename_index(ours, follow::ALIAS)?;
        links.rename_index(ours, follow::WATCHED)?;
        ifmon.signal(Signal::CONT)?;
        followed.until_mark(&ifmon, &links)?;
        let lost = if open { Some(2) } else { Some(0) };
        ensure!(
            followed.lost == lost && followed.told.len() == if open { 2 } else { 3 },
            "open: {open}, and told: {:?}",
            followed.told
        );
    }
    Ok(())
}

/// A namespace and its links.
struct Place {
    namespace: Namespace,
    links: Links,
}

impl Place {
    fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let links = Links::new(&namespace)?;
        Ok(Self { namespace, links })
    }

    /// Do the lines end with what is?
    fn expect(&self, name: &str, lines: &[Value]) -> Result<()> {
        let netns = self.namespace.id()?;
        let last = lines
            .iter()
            .rfind(|line| line["interface"] == name && line["netns"] == netns)
            .with_context(|| format!("no line of {name}"))?;
        let has_left =
            ["deleted", "renamed", "moved"].contains(&last["event"].as_str().unwrap_or_default());
        let told = last["ifindex"].as_u64().filter(|_| !has_left);
        let truth = self.links.index_of(name)?.map(u64::from);
        ensure!(told == truth, "{truth:?} has the name: {last}");
        Ok(())
    }
}

fn start(settings: &Settings, places: &[Place; 2], open: bool) -> Result<Ifmon> {
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--quiet", "--backend", settings.backend.as_str()])
        .args(["--receive-buffer", &ROOM.to_string()])
        .args(open.then_some("--open-filter"));
    for (place, names) in places.iter().zip(WATCHED) {
        let path = place.namespace.path();
        command.args(names.iter().map(|name| format!("{path}/{name}")));
    }
    let ifmon = Ifmon::spawn(command)?;
    for _ in WATCHED.iter().copied().flatten() {
        let line = ifmon.next()?.context("ended before it began")?;
        ensure!(line["event"] == "watching", "not what comes first: {line}");
    }
    Ok(ifmon)
}

/// Something that may well be refused.
fn change(places: &[Place; 2], random: &mut Random, number: u32) -> Result<()> {
    let here = random.below(2) as usize;
    let (place, other) = (&places[here], &places[1 - here]);
    let mut name = || NAMES[random.below(NAMES.len() as u64) as usize];
    let (name, new_name) = (name(), name());
    match random.below(9) {
        0..=2 => {
            let peer = format!("p{number}");
            // Indexes are used again and again.
            let index = Some(random.below(8) as u32).filter(|&index| index > 0);
            let index = index.map(|index| 5000 + index);
            let kind = Kind::Veth { peer: &peer };
            place.links.add(name, kind, index).map(drop)
        }
        3 => place.links.delete(name),
        4 | 5 => place.links.rename(name, new_name),
        6 => place.links.move_to(name, &other.namespace),
        7 => place.links.set_mtu(name, 1280 + random.below(200) as u32),
        _ => place.links.set_up(name, random.below(2) == 0),
    }
}

/// The lines up to that of the mark, without what differs from run to run.
fn until_mark(ifmon: &Ifmon) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    loop {
        let mut line = ifmon.next()?.context("ended early")?;
        let is_mark = line["interface"] == MARK;
        if let Some(fields) = line.as_object_mut() {
            fields.remove("time");
        }
        lines.push(line);
        if is_mark {
            return Ok(lines);
        }
    }
}

/// The library with the filter and without, for what the program does not print.
struct Library {
    runtime: tokio::runtime::Runtime,
    handles: Vec<Handle>,
}

impl Library {
    fn start(settings: &Settings, places: &[Place; 2]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut handles = Vec::new();
        for open in [false, true] {
            let mut builder = Monitor::builder()
                .backend(BackendChoice::Only(settings.backend))
                .receive_buffer(ROOM)
                .open_filter(open);
            for (place, names) in places.iter().zip(WATCHED) {
                builder = builder.watch_in(Netns::from_path(place.namespace.path())?, names);
            }
            let mut monitor = runtime.block_on(builder.start())?;
            handles.push(monitor.handle());
            runtime.spawn(async move { while monitor.next().await.is_some() {} });
        }
        Ok(Self { runtime, handles })
    }

    /// What both have counted, once nothing is being counted any more.
    fn counters(&self) -> Result<Vec<Counters>> {
        let deadline = Instant::now() + PATIENCE;
        let read = || {
            self.handles
                .iter()
                .map(|handle| Ok(self.runtime.block_on(handle.counters())?))
                .collect::<Result<Vec<_>>>()
        };
        let mut last = read()?;
        loop {
            // What other namespaces do at their end is counted, too.
            std::thread::sleep(Duration::from_millis(20));
            let next = read()?;
            let adds_up = |counters: &Counters| {
                let sum = counters.matched.zip(counters.ignored);
                counters.seen == sum.map(|(matched, ignored)| matched + ignored)
            };
            if next == last && next.iter().all(adds_up) {
                return Ok(next);
            }
            ensure!(
                Instant::now() < deadline,
                "what is counted does not add up: {next:?}"
            );
            last = next;
        }
    }
}
