//! Where a scenario takes place: a namespace of its own, and an ifmon that watches there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsStr,
    fmt,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ifmon::{BackendKind, NetnsId};
use serde_json::Value;

use crate::{
    backend::{counts_changes, knows_new_devices},
    format,
    program::{self, Ifmon, Outcome},
    room::{Device, Room},
    want::{Want, appeared, matching, watching},
};

/// A second name that is watched in each namespace. It is made last, so that its line comes after
/// any line that should not be there.
pub const SENTINEL: &str = "sentinel0";
const SENTINEL_INDEX: u32 = 900;

/// Why a scenario cannot take place here: neither a pass nor a failure.
#[derive(Debug)]
pub struct LeftOut(pub String);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LeftOut {}

/// Ends a scenario that cannot take place here.
pub fn left_out<T>(why: impl Into<String>) -> Result<T> {
    Err(LeftOut(why.into()).into())
}

/// A watched name: namespace and name.
type Watch = (u32, String);

/// The place of one scenario.
#[derive(Debug)]
pub struct Stage {
    /// How ifmon hears of changes here.
    pub backend: BackendKind,
    /// The namespace in which most happens.
    pub home: Room,
    /// The processor is emulated, so that everything takes many times as long.
    pub is_emulated: bool,
    device: Device,
    begin: i64,
    program: Option<Ifmon>,
    watches: BTreeSet<Watch>,
    /// In the order in which they began: those of names, and those of patterns, which end after them.
    begun: Vec<Watch>,
    begun_patterns: Vec<Watch>,
    /// Lines that were read while another was waited for.
    unread: BTreeMap<Watch, VecDeque<Value>>,
    /// What was read of each watch: how many lines, and the time of the last change.
    read: BTreeMap<Watch, (u64, i64)>,
    gone: BTreeSet<u32>,
    lossy: bool,
    /// What has to be on standard error.
    warnings: Vec<String>,
    verdicts: BTreeMap<String, u64>,
}

impl Stage {
    /// A stage with nothing on it.
    pub fn new(backend: BackendKind, device: Device) -> Result<Self> {
        Ok(Self {
            backend,
            home: Room::new(device)?,
            is_emulated: false,
            device,
            begin: format::now(),
            program: None,
            watches: BTreeSet::new(),
            begun: Vec::new(),
            begun_patterns: Vec::new(),
            unread: BTreeMap::new(),
            read: BTreeMap::new(),
            gone: BTreeSet::new(),
            lossy: false,
            warnings: Vec::new(),
            verdicts: BTreeMap::new(),
        })
    }

    /// How often something is repeated that takes its time from the processor.
    pub fn repeated(&self, times: u32) -> u32 {
        if self.is_emulated { times / 10 } else { times }
    }

    /// Another namespace.
    pub fn room(&self) -> Result<Room> {
        Room::new(self.device)
    }

    /// Starts ifmon in the home namespace; each name has to be held by the link of this index, or
    /// by none.
    pub fn watch(&mut self, names: &[(&str, Option<u32>)]) -> Result<()> {
        let mut args: Vec<_> = names.iter().map(|(name, _)| word(name)).collect();
        args.push(SENTINEL.to_owned());
        let home = self.home.id()?;
        self.start(&args, true)?;
        self.begin_watches(names.iter().map(|&(name, index)| (home, name, index)))?;
        self.begin_watches([(home, SENTINEL, None)])
    }

    /// The same for a name that is not text, and how it is shown.
    pub fn watch_bytes(&mut self, name: &OsStr, shown: &str, index: Option<u32>) -> Result<()> {
        let home = self.home.id()?;
        self.start(&[name, OsStr::new(SENTINEL)], true)?;
        self.begin_watches([(home, shown, index), (home, SENTINEL, None)])
    }

    /// The same from outside: names in several namespaces, in one process that lives in none of
    /// them.
    pub fn watch_rooms(&mut self, names: &[(&Room, &str, Option<u32>)]) -> Result<()> {
        let mut args = Vec::new();
        let mut watches = Vec::new();
        let mut rooms = BTreeMap::new();
        for &(room, name, index) in names {
            args.push(format!("{}/{name}", room.path()));
            watches.push((room.id()?, name, index));
            rooms.insert(room.id()?, room.path());
        }
        for (id, path) in rooms {
            args.push(format!("{path}/{SENTINEL}"));
            watches.push((id, SENTINEL, None));
        }
        self.start(&args, false)?;
        self.begin_watches(watches)
    }

    /// The same for patterns, each matching so many, and names beside them.
    pub fn watch_patterns(
        &mut self,
        patterns: &[(&str, u32)],
        names: &[(&str, Option<u32>)],
    ) -> Result<()> {
        self.watch_patterns_with(&[], patterns, names)
    }

    /// The same with options.
    pub fn watch_patterns_with(
        &mut self,
        options: &[&str],
        patterns: &[(&str, u32)],
        names: &[(&str, Option<u32>)],
    ) -> Result<()> {
        let words = names.iter().map(|(name, _)| word(name));
        let options = options.iter().map(|&option| option.to_owned());
        let mut args: Vec<_> = options.chain(words).chain([SENTINEL.to_owned()]).collect();
        args.extend(patterns.iter().map(|(pattern, _)| (*pattern).to_owned()));
        let home = self.home.id()?;
        self.start(&args, true)?;
        self.begin_watches(names.iter().map(|&(name, index)| (home, name, index)))?;
        self.begin_watches([(home, SENTINEL, None)])?;
        for &(pattern, matches) in patterns {
            self.expect_pattern(pattern, matches)?;
        }
        Ok(())
    }

    /// The same from outside: a pattern in each of several namespaces.
    pub fn watch_patterns_in(&mut self, patterns: &[(&Room, &str, u32)]) -> Result<()> {
        let mut args = Vec::new();
        for (room, _, _) in patterns {
            args.push(format!("{}/{SENTINEL}", room.path()));
        }
        for (room, pattern, _) in patterns {
            args.push(format!("{}/{pattern}", room.path()));
        }
        if !self.backend.keeps_netns_alive() {
            self.warns("keeps it alive until ifmon ends");
        }
        self.start(&args, false)?;
        for (room, _, _) in patterns {
            self.begin_watches([(room.id()?, SENTINEL, None)])?;
        }
        for &(room, pattern, matches) in patterns {
            self.begin_pattern(room.id()?, pattern, matches)?;
        }
        Ok(())
    }

    /// The same in all namespaces, those to come as well. The sentinel is at home.
    pub fn watch_everywhere(&mut self, options: &[&str], patterns: &[(&str, u32)]) -> Result<()> {
        let mut args: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        args.push(SENTINEL.to_owned());
        args.extend(patterns.iter().map(|(pattern, _)| format!("*/{pattern}")));
        let home = self.home.id()?;
        self.start(&args, true)?;
        self.begin_watches([(home, SENTINEL, None)])?;
        for &(pattern, matches) in patterns {
            self.expect_everywhere(pattern, matches)?;
        }
        Ok(())
    }

    /// A pattern that is watched in all namespaces has to match so many.
    pub fn expect_everywhere(&mut self, pattern: &str, matches: u32) -> Result<()> {
        self.begin_pattern(NetnsId::ALL.0, pattern, matches)
    }

    /// A pattern that is watched at home has to match so many.
    pub fn expect_pattern(&mut self, pattern: &str, matches: u32) -> Result<()> {
        let home = self.home.id()?;
        self.begin_pattern(home, pattern, matches)
    }

    fn begin_pattern(&mut self, netns: u32, pattern: &str, matches: u32) -> Result<()> {
        let watch = (netns, pattern.to_owned());
        self.watches.insert(watch.clone());
        self.see_watch(watch, &matching(matches))
    }

    /// The same with arguments of one's own, from outside: what is then watched is named by
    /// namespace and name.
    pub fn watch_with(
        &mut self,
        args: &[impl AsRef<OsStr>],
        watches: &[(u32, &str, Option<u32>)],
    ) -> Result<()> {
        self.start(args, false)?;
        self.begin_watches(watches.iter().copied())
    }

    /// The same at home.
    pub fn watch_home_with(&mut self, args: &[&str], names: &[(&str, Option<u32>)]) -> Result<()> {
        let home = self.home.id()?;
        let args: Vec<&str> = args
            .iter()
            .copied()
            .chain(names.iter().map(|&(name, _)| name))
            .collect();
        self.start(&args, true)?;
        self.begin_watches(names.iter().map(|&(name, index)| (home, name, index)))
    }

    /// Starts ifmon with any arguments beside the backend, at home or outside, and without a
    /// sentinel.
    pub fn start(&mut self, args: &[impl AsRef<OsStr>], at_home: bool) -> Result<()> {
        let mut command = Command::new(program::path());
        command
            .args(["--json", "--backend", self.backend.as_str()])
            .args(args);
        if at_home {
            self.home.enter(&mut command)?;
        } else if self.backend.keeps_netns_alive() {
            self.warns("keeps it alive until ifmon ends");
        }
        self.launch(command)
    }

    /// Starts a command that runs ifmon with `--json`, in whatever way. What an earlier run told is
    /// over.
    pub fn launch(&mut self, command: Command) -> Result<()> {
        self.begin = format::now();
        self.watches.clear();
        self.begun.clear();
        self.begun_patterns.clear();
        self.unread.clear();
        self.read.clear();
        self.program = Some(Ifmon::spawn(command)?);
        Ok(())
    }

    /// The same; it watches these at home, and the sentinel.
    pub fn launch_home(
        &mut self,
        mut command: Command,
        names: &[(&str, Option<u32>)],
    ) -> Result<()> {
        command
            .args(names.iter().map(|(name, _)| word(name)))
            .arg(SENTINEL);
        self.launch(command)?;
        let home = self.home.id()?;
        self.begin_watches(names.iter().map(|&(name, index)| (home, name, index)))?;
        self.begin_watches([(home, SENTINEL, None)])
    }

    /// By its end it has to have said this on standard error.
    pub fn warns(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }

    /// The process under test.
    pub fn program(&self) -> Result<&Ifmon> {
        self.program.as_ref().context("ifmon was not started")
    }

    fn begin_watches<'a>(
        &mut self,
        watches: impl IntoIterator<Item = (u32, &'a str, Option<u32>)>,
    ) -> Result<()> {
        for (netns, name, index) in watches {
            let watch = (netns, name.to_owned());
            self.watches.insert(watch.clone());
            self.see_watch(watch, &watching(index))?;
        }
        Ok(())
    }

    /// The next line of this interface at home has to say this.
    #[track_caller]
    pub fn see(&mut self, interface: &str, want: Want) -> Result<()> {
        let place = std::panic::Location::caller();
        let watch = (self.home.id()?, interface.to_owned());
        self.see_watch(watch, &want)
            .with_context(|| format!("{}:{}", place.file(), place.line()))
    }

    /// The next line of this interface in another namespace has to say this.
    #[track_caller]
    pub fn see_in(&mut self, netns: u32, interface: &str, want: Want) -> Result<()> {
        let place = std::panic::Location::caller();
        self.see_watch((netns, interface.to_owned()), &want)
            .with_context(|| format!("{}:{}", place.file(), place.line()))
    }

    fn see_watch(&mut self, watch: Watch, want: &Want) -> Result<()> {
        let line = loop {
            if let Some(line) = self.unread.get_mut(&watch).and_then(VecDeque::pop_front) {
                break line;
            }
            let next = self.program()?.next();
            match next.with_context(|| format!("while waiting for {want}"))? {
                Some(line) => self.keep(line)?,
                None => return self.ended(want),
            }
        };
        want.check(&line, self.backend)
    }

    /// It ended too early: what it said about that is what matters.
    fn ended(&mut self, want: &Want) -> Result<()> {
        let program = self.program.take().context("ifmon was not started")?;
        let Outcome { status, stderr, .. } = program.finish()?;
        anyhow::bail!(
            "ended with {status} before {want}: {}",
            stderr.trim().replace('\n', "; ")
        )
    }

    /// The next line, whatever it says.
    pub fn next_line(&mut self) -> Result<Value> {
        self.no_unread()?;
        let line = self.program()?.next()?;
        let line = line.context("ended, and a line was wanted")?;
        self.account(&line)?;
        Ok(line)
    }

    /// Checks what has to be right about any line, and keeps it until it is asked for.
    fn keep(&mut self, mut line: Value) -> Result<()> {
        let watch = self.account(&line)?;
        if self.lossy && !knows_new_devices(self.backend) {
            if line["event"] == "resynced" {
                return Ok(());
            }
            if let Some(fields) = line.as_object_mut() {
                fields.remove("recovered");
            }
        }
        self.unread.entry(watch).or_default().push_back(line);
        Ok(())
    }

    /// Checks what has to be right about any line; says whose it is.
    fn account(&mut self, line: &Value) -> Result<Watch> {
        let time = format::check(line, self.backend.as_str(), self.begin)?;
        let event = line["event"].as_str().unwrap_or_default().to_owned();
        *self.verdicts.entry(event.clone()).or_default() += 1;
        let watch = watch_of(line)?;
        if event == "watching" {
            let begun = if line["pattern"].is_string() {
                &mut self.begun_patterns
            } else {
                &mut self.begun
            };
            begun.push(watch.clone());
        }
        // Whatever namespace the line is of, it may be the watch of all of them.
        let everywhere = (NetnsId::ALL.0, watch.1.clone());
        let counted = if self.watches.contains(&everywhere) {
            everywhere
        } else {
            watch.clone()
        };
        let (count, last) = self.read.entry(counted).or_insert((0, self.begin));
        *count += 1;
        ensure!(format::in_order(*last, time), "before its time: {line}");
        *last = time;
        Ok(watch)
    }

    /// From here on netlink may have missed a message, and have to read the state again.
    ///
    /// A filter learns the index of a device only when the device takes a watched name: what it
    /// does right after can go by unheard. The verdicts are the same all the same.
    pub fn may_resync(&mut self) {
        self.lossy = true;
    }

    /// The namespace ends with this: nothing can be made in it any more.
    pub fn end_room(&mut self, room: Room) -> Result<()> {
        self.gone.insert(room.id()?);
        drop(room);
        Ok(())
    }

    /// Shows that there is nothing more to be seen, at home and in these rooms: the next line is
    /// that of the sentinel, which is made now. Then stops ifmon.
    pub fn nothing_more(&mut self, rooms: &[&Room]) -> Result<()> {
        let watched: BTreeSet<u32> = self
            .watches
            .iter()
            .filter(|(_, name)| name == SENTINEL)
            .map(|&(netns, _)| netns)
            .filter(|netns| !self.gone.contains(netns))
            .collect();
        for netns in watched {
            let mut room = None;
            for candidate in rooms.iter().copied().chain([&self.home]) {
                if candidate.id()? == netns {
                    room = Some(candidate);
                }
            }
            room.context("a watched namespace is not given")?
                .add(SENTINEL, SENTINEL_INDEX)?;
            self.see_watch((netns, SENTINEL.to_owned()), &appeared(SENTINEL_INDEX))
                .context("after the last change")?;
        }
        self.no_unread()?;
        let program = self.program.take().context("ifmon was not started")?;
        let outcome = program.stop()?;
        ensure!(
            outcome.status.success(),
            "ended with {}: {}",
            outcome.status,
            outcome.stderr
        );
        self.check_end(&outcome, "signal")
    }

    /// Ends ifmon so that it cannot do anything about it.
    pub fn kill(&mut self) -> Result<()> {
        self.no_unread()?;
        let program = self.program.take().context("ifmon was not started")?;
        program.signal(rustix::process::Signal::KILL)?;
        let outcome = program.finish()?;
        ensure!(
            outcome.lines.is_empty(),
            "not expected: {:?}",
            outcome.lines
        );
        Ok(())
    }

    /// ifmon ends by itself, with this code and for this reason, and says nothing else before.
    pub fn ends(&mut self, code: i32, reason: &str) -> Result<Outcome> {
        self.no_unread()?;
        let program = self.program.take().context("ifmon was not started")?;
        let outcome = program.finish()?;
        ensure!(
            outcome.status.code() == Some(code),
            "ended with {} instead of {code}: {}",
            outcome.status,
            outcome.stderr
        );
        self.check_end(&outcome, reason)?;
        Ok(outcome)
    }

    /// ifmon ends by itself with this code and without a line.
    pub fn ends_silently(&mut self, code: i32) -> Result<Outcome> {
        let outcome = self.ends_anyhow(code)?;
        ensure!(outcome.lines.is_empty(), "told: {:?}", outcome.lines);
        Ok(outcome)
    }

    /// ifmon ends with this code, whatever it says.
    pub fn ends_anyhow(&mut self, code: i32) -> Result<Outcome> {
        let program = self.program.take().context("ifmon was not started")?;
        let outcome = program.finish()?;
        ensure!(
            outcome.status.code() == Some(code),
            "ended with {} instead of {code}, after {:?}: {}",
            outcome.status,
            outcome.lines,
            outcome.stderr
        );
        Ok(outcome)
    }

    fn no_unread(&self) -> Result<()> {
        match self.unread.values().flatten().next() {
            Some(line) => anyhow::bail!("not expected: {line}"),
            None => Ok(()),
        }
    }

    /// One `stopped` for each watch, in order, with the right counts, and nothing else.
    fn check_end(&mut self, outcome: &Outcome, reason: &str) -> Result<()> {
        let Outcome { lines, stderr, .. } = outcome;
        for line in lines {
            self.keep(line.clone())?;
        }
        let begun = self.begun.len() + self.begun_patterns.len();
        ensure!(
            lines.len() == self.watches.len() && lines.len() == begun,
            "{} lines at the end, not one for each of {} watches: {lines:?}",
            lines.len(),
            self.watches.len()
        );
        for (line, watch) in lines
            .iter()
            .zip(self.begun.iter().chain(&self.begun_patterns))
        {
            ensure!(
                line["event"] == "stopped" && watch_of(line)? == *watch,
                "not the end of {watch:?}: {line}"
            );
            ensure!(line["reason"] == reason, "not by {reason}: {line}");
            let (read, _) = self.read.get(watch).copied().unwrap_or_default();
            ensure!(
                // The line itself was read, and is not counted in it.
                line["delivered"] == read - 1,
                "{} lines were read before: {line}",
                read - 1
            );
            ensure!(
                line["seen"].is_u64() == counts_changes(self.backend),
                "a wrong count: {line}"
            );
            ensure!(
                self.lossy || line["lost"] == 0,
                "something was lost: {line}"
            );
        }
        for warning in &self.warnings {
            ensure!(
                stderr.contains(warning),
                "not on standard error: {warning}; there is: {stderr}"
            );
        }
        for line in stderr.lines() {
            let waits = line.ends_with(" yet; waiting for it");
            let failed = reason == "error" && line.starts_with("ifmon: ");
            let warned = self.warnings.iter().any(|warning| line.contains(warning));
            ensure!(waits || failed || warned, "on standard error: {line}");
        }
        Ok(())
    }

    /// How often each event was seen.
    pub fn verdicts(&self) -> &BTreeMap<String, u64> {
        &self.verdicts
    }
}

/// A name as an argument: what would have a meaning has none after a backslash.
fn word(name: &str) -> String {
    let mut word = String::new();
    for character in name.chars() {
        if "*?[]=\\".contains(character) {
            word.push('\\');
        }
        word.push(character);
    }
    word
}

fn watch_of(line: &Value) -> Result<Watch> {
    let netns = match &line["netns"] {
        // It has no number that a namespace has.
        Value::Null => NetnsId::ALL.0.into(),
        netns => netns.as_u64().context("no netns")?,
    };
    let name = line.get("pattern").unwrap_or(&line["interface"]);
    let name = name.as_str().context("no interface")?;
    Ok((u32::try_from(netns)?, name.to_owned()))
}
