//! What the demo plays on: ifmon at work, and interfaces that come and go beside it.

use std::{
    io::{BufRead as _, BufReader, Write as _, stdout},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// How long an event may take. On a busy machine the kernel needs a moment to delete a link.
const PATIENCE: Duration = Duration::from_secs(30);
/// Links that come and go at a time.
const BATCH: u32 = 20;
/// Those that come and go between two changes: noise for ifmon, and time to read for whoever looks
/// on.
const BETWEEN: u32 = 40;

pub(super) struct Stage {
    ifmon: Child,
    lines: Receiver<String>,
    color: bool,
    churn: Churn,
}

impl Stage {
    pub(super) fn open(program: &Path, color: bool) -> Result<Self> {
        let mut ifmon = Command::new(program)
            .args(["--color", if color { "always" } else { "never" }, "wg0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let output = ifmon.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            ifmon,
            lines,
            color,
            churn: Churn::begin(),
        })
    }

    /// Shows a command.
    pub(super) fn say(&self, command: &str) -> Result<()> {
        let mut out = stdout().lock();
        if self.color {
            writeln!(out, "\x1b[2m# {command}\x1b[0m")?;
        } else {
            writeln!(out, "# {command}")?;
        }
        Ok(())
    }

    /// Shows a command of `ip`, runs it, and shows the event that it must lead to.
    pub(super) fn change(&self, words: &str, event: &str) -> Result<()> {
        self.churn.wait_for(BETWEEN)?;
        self.say(&format!("ip {words}"))?;
        super::ip(words)?;
        self.expect(event)
    }

    /// Shows the next line of ifmon, which has to be this event.
    pub(super) fn expect(&self, event: &str) -> Result<()> {
        let line = self
            .lines
            .recv_timeout(PATIENCE)
            .with_context(|| format!("ifmon did not say `{event}`"))?;
        writeln!(stdout().lock(), "{line}")?;
        if !line.contains(event) {
            bail!("ifmon said this instead of `{event}`: {line}");
        }
        Ok(())
    }

    /// Ends ifmon, shows its last line, and says how many interfaces came and went beside it.
    pub(super) fn close(mut self) -> Result<u32> {
        let others = self.churn.end()?;
        self.say("kill ifmon")?;
        // The shell's own `kill`: the program of that name is not everywhere.
        let kill = format!("kill {}", self.ifmon.id());
        command::output(Command::new("sh").args(["-c", &kill]))?;
        self.expect("stopped")?;
        let status = self.ifmon.wait()?;
        if !status.success() {
            bail!("ifmon ended with {status}");
        }
        Ok(others)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Both do nothing when it has ended already.
        let _ = self.ifmon.kill();
        let _ = self.ifmon.wait();
    }
}

/// Makes and deletes links until it is told to end.
struct Churn {
    ended: Arc<AtomicBool>,
    /// One item for each batch.
    batches: Receiver<()>,
    thread: Option<JoinHandle<Result<u32>>>,
}

impl Churn {
    fn begin() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let (sender, batches) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut links = 0;
            while !seen.load(Ordering::Relaxed) {
                links += batch()?;
                // Nobody may wait for it any more.
                let _ = sender.send(());
            }
            Ok(links)
        });
        Self {
            ended,
            batches,
            thread: Some(thread),
        }
    }

    /// Waits until so many more links have come and gone.
    fn wait_for(&self, links: u32) -> Result<()> {
        self.batches.try_iter().for_each(drop);
        for _ in 0..links.div_ceil(BATCH) {
            self.batches
                .recv_timeout(PATIENCE)
                .context("no links come and go beside wg0")?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<u32> {
        self.ended.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(links)) => links,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(0),
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Makes pairs of links and deletes them again; returns how many links that were.
fn batch() -> Result<u32> {
    let mut commands = String::new();
    for n in 0..BATCH / 2 {
        commands.push_str(&format!(
            "link add veth{n}a type veth peer name veth{n}b\nlink delete veth{n}a\n"
        ));
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run ip")?;
    let mut input = ip.stdin.take().context("no standard input")?;
    input.write_all(commands.as_bytes())?;
    drop(input);
    if !ip.wait()?.success() {
        bail!("the links beside wg0 could not be made");
    }
    Ok(BATCH)
}
