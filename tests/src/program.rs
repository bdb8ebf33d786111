//! The program under test: started, listened to, stopped.

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Resource, Rlimit, prlimit},
};
use std::{
    env,
    io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Read as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::namespace::Namespace;

/// How long something may take that has to happen. Only a failing test ever waits that long, so it
/// is generous: emulated kernels are slow, and other work may run beside.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Where the program is: `IFMON` in the environment, else on PATH, else beside this test's own
/// executable.
pub fn path() -> PathBuf {
    if let Some(path) = env::var_os("IFMON") {
        return path.into();
    }
    let beside = env::current_exe().ok().and_then(|exe| {
        exe.ancestors()
            .skip(1)
            .take(2)
            .map(|folder| folder.join("ifmon"))
            .find(|path| path.is_file())
    });
    beside.unwrap_or_else(|| "ifmon".into())
}

/// A pipe that takes no byte more: whoever writes waits for a reader.
pub fn full_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    let flags = fcntl_getfl(&writer)?;
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK)?;
    for size in [4096, 1] {
        while rustix::io::write(&writer, &vec![b'.'; size]).is_ok() {}
    }
    fcntl_setfl(&writer, flags)?;
    Ok((reader, writer))
}

/// A running ifmon with `--json`.
#[derive(Debug)]
pub struct Ifmon {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Ifmon {
    /// Starts it in a namespace.
    pub fn start(namespace: &Namespace, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(path());
        command.arg("--json").args(args);
        namespace.enter(&mut command)?;
        Self::spawn(command)
    }

    /// Starts any command that writes JSON lines.
    pub fn spawn(command: Command) -> Result<Self> {
        Self::spawn_by(command, Command::spawn)
    }

    /// The same for a process that is not simply started.
    pub fn spawn_by(
        mut command: Command,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command)
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut stderr = child.stderr.take().context("no standard error")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = thread::spawn(move || {
            // A hook may write a name that is not UTF-8.
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self {
            child,
            lines,
            stderr: Some(stderr),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, parsed; `None` once standard output is closed.
    pub fn next(&self) -> Result<Option<Value>> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line)
                .map(Some)
                .with_context(|| format!("not JSON: {line}")),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("no line for {PATIENCE:?}"),
        }
    }

    /// The next line, which has to be this event of this interface.
    pub fn expect(&self, interface: &str, event: &str) -> Result<Value> {
        let line = self
            .next()?
            .with_context(|| format!("ended before {event} of {interface}"))?;
        if line["event"] != event || line["interface"] != interface {
            bail!("expected {event} of {interface}, got {line}");
        }
        Ok(line)
    }

    /// Asks it to stop and returns the lines that were left, the last ones being `stopped`, with
    /// the exit status and what it wrote to standard error.
    ///
    /// Whatever happened before is in these lines.
    pub fn stop(self) -> Result<Outcome> {
        self.signal(rustix::process::Signal::TERM)?;
        self.finish()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
        rustix::process::kill_process(pid, signal)?;
        Ok(())
    }

    /// Waits until it waits for something to happen itself (a kernel before 5.16 may not say where it
    /// does).
    pub fn comes_to_rest(&self) -> Result<()> {
        self.wait_until("wchan", "poll")
    }

    /// Stops it until it gets SIGCONT: then it finds what has happened meanwhile, and what signals it got.
    pub fn hold(&self) -> Result<()> {
        self.signal(rustix::process::Signal::STOP)?;
        self.wait_until("status", "State:\tT")
    }

    /// From here on it can open nothing more.
    pub fn opens_nothing(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid())?);
        let limit = Rlimit {
            current: Some(3),
            maximum: Some(1024),
        };
        prlimit(pid, Resource::Nofile, limit)?;
        Ok(())
    }

    fn wait_until(&self, file: &str, word: &str) -> Result<()> {
        let path = format!("/proc/{}/{file}", self.pid());
        wait_for(|| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            text.contains(word).then_some(())
        })
    }

    /// Waits for it to end by itself.
    pub fn finish(mut self) -> Result<Outcome> {
        let mut lines = Vec::new();
        while let Some(line) = self.next()? {
            lines.push(line);
        }
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("closed its output and did not end");
            }
            thread::sleep(Duration::from_millis(5));
        };
        let stderr = self
            .stderr
            .take()
            .and_then(|stderr| stderr.join().ok())
            .unwrap_or_default();
        Ok(Outcome {
            lines,
            status,
            stderr,
        })
    }

    pub fn status(&self, field: &str) -> Result<u64> {
        status(self.pid(), field)
    }
}

impl Drop for Ifmon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number from `/proc/PID/status`, such as `voluntary_ctxt_switches`.
pub fn status(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {field} in /proc/PID/status"))
}

/// Waits until there is something.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited in vain");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The lines that had not been read before.
    pub lines: Vec<Value>,
    /// The exit status.
    pub status: ExitStatus,
    /// Everything on standard error.
    pub stderr: String,
}
