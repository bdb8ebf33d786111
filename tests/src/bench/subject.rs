//! Who is measured.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail};

use super::{
    lines::Lines,
    process::{Process, Usage, is_asleep},
};
use crate::requests::Requests;
use crate::{
    namespace::Namespace,
    program::{self, PATIENCE},
};

/// The interface that is watched where one is enough.
pub(super) const WATCHED: &str = "wg0";
/// Its index.
pub(super) const WATCHED_INDEX: u32 = 1000;
/// The index of a link that comes and goes to see whether anyone hears of it.
const PROBE_INDEX: u32 = 999;

/// As long as this nobody says anything more who sleeps.
const QUIET: Duration = Duration::from_millis(1);

/// A program to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// With this backend.
    Ifmon(&'static str),
    /// Another ifmon with this backend, to be compared with.
    Before(&'static str),
    /// `ip -o monitor link`
    IpMonitor,
    /// Takes and decodes every link message.
    Subscribe,
    /// The same in Go, as the design did that this project replaces.
    Go,
    /// Reads the table of links every two seconds.
    Poll,
    /// The least that can be done in the way of this backend.
    Bare(&'static str),
}

impl Subject {
    pub(super) fn name(self) -> String {
        match self {
            Self::Ifmon(backend) => format!("ifmon {backend}"),
            Self::Before(backend) => format!("before: {backend}"),
            Self::IpMonitor => "`ip monitor`".to_owned(),
            Self::Subscribe => "unfiltered subscription".to_owned(),
            Self::Go => "vishvananda/netlink, in Go".to_owned(),
            Self::Poll => "polling every 2 s".to_owned(),
            Self::Bare(backend) => format!("bare {backend}"),
        }
    }

    /// Is it what shows how far others could get?
    pub(super) const fn is_limit(self) -> bool {
        matches!(self, Self::IpMonitor | Self::Bare(_))
    }

    pub(super) const fn is_ifmon(self) -> bool {
        matches!(self, Self::Ifmon(_) | Self::Before(_))
    }

    pub(super) fn is_bpf(self) -> bool {
        self.is_tracing() || matches!(self, Self::Ifmon("netlink-ebpf"))
    }

    pub(super) fn is_tracing(self) -> bool {
        matches!(
            self,
            Self::Ifmon("fentry" | "kprobe") | Self::Before("fentry" | "kprobe")
        )
    }

    /// An ifmon to be compared with.
    pub(super) fn before() -> Option<PathBuf> {
        env::var_os("IFMON_BEFORE").map(PathBuf::from)
    }

    /// The peer in Go, where it was built.
    pub(super) fn go() -> Option<PathBuf> {
        env::var_os("GO_PEER").map(PathBuf::from)
    }

    /// ifmon as it is meant to be used, which the goals are about.
    pub(super) fn has_goals(self) -> bool {
        matches!(self, Self::Ifmon(backend) if backend != "netlink-unfiltered")
    }

    /// The bare program in many namespaces.
    pub(super) fn bare_in(
        backend: &str,
        interface: &str,
        namespaces: impl Iterator<Item = String>,
    ) -> Result<Command> {
        let mut command = peer(&["bare-in", backend, interface])?;
        command.args(namespaces);
        Ok(command)
    }

    /// The program, without a namespace.
    pub(super) fn command(self, interfaces: &[String]) -> Result<Command> {
        let mut command = match self {
            Self::Ifmon(backend) | Self::Before(backend) => {
                let path = match self {
                    Self::Before(_) => Self::before().context("there is no other ifmon")?,
                    _ => program::path(),
                };
                let mut command = Command::new(path);
                command.args(["--quiet", "--json", "--backend", backend]);
                command
            }
            Self::IpMonitor => {
                let mut command = Command::new("ip");
                command.args(["-o", "monitor", "link"]);
                return Ok(command);
            }
            Self::Subscribe => peer(&["subscribe"])?,
            Self::Go => Command::new(Self::go().context("the peer in Go was not built")?),
            Self::Poll => peer(&["poll"])?,
            Self::Bare(backend) => {
                let mut command = peer(&["bare", backend])?;
                command.args(interfaces.first());
                if backend == "fentry" {
                    let hook = ifmon::internals::read_btf()?.context("no type of the hook")?;
                    command.arg(hook.to_string());
                }
                return Ok(command);
            }
        };
        command.args(interfaces);
        Ok(command)
    }
}

/// This program, as a peer.
fn peer(mode: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("peer").args(mode);
    Ok(command)
}

/// A program that runs, and is ended with this.
pub(super) struct Running {
    process: Process,
    lines: Option<Lines>,
    /// From its start until it was ready; not known of `ip monitor`, which does not say.
    pub(super) start: Duration,
}

impl Running {
    /// Starts it in a namespace, and waits until it is ready.
    pub(super) fn start(
        subject: Subject,
        namespace: &Namespace,
        interfaces: &[String],
    ) -> Result<Self> {
        let mut command = subject.command(interfaces)?;
        namespace.enter(&mut command)?;
        let mut running = Self::spawn(subject, command, interfaces.len())?;
        if subject == Subject::IpMonitor {
            running.probe(namespace)?;
        }
        Ok(running)
    }

    /// Starts the command, and waits until it is ready: ifmon says so once for each watch, `ip
    /// monitor` not at all.
    pub(super) fn spawn(subject: Subject, mut command: Command, watches: usize) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let begin = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", subject.name()))?;
        let stdout = child.stdout.take().context("no standard output")?;
        // Ended with this if anything fails from here on.
        let mut running = Self {
            process: Process(child),
            lines: Some(Lines::new(stdout)),
            start: Duration::ZERO,
        };
        let lines = match subject {
            Subject::IpMonitor => 0,
            Subject::Ifmon(_) | Subject::Before(_) => watches,
            Subject::Subscribe | Subject::Go | Subject::Poll | Subject::Bare(_) => 1,
        };
        running.lines()?.expect(lines, PATIENCE)?;
        running.start = begin.elapsed();
        Ok(running)
    }

    /// Changes links until it says something.
    fn probe(&mut self, namespace: &Namespace) -> Result<()> {
        let mut requests = Requests::new(namespace)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            requests.add_bridge("probe", PROBE_INDEX)?;
            requests.delete(PROBE_INDEX)?;
            if self.lines()?.read(Duration::from_millis(20))? > 0 {
                Usage::settled(self.pid())?;
                return self.lines()?.discard();
            }
            if Instant::now() > deadline {
                bail!("a peer stays silent");
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<Error> {
        self.process.ended()
    }

    /// Reads until it sleeps and has nothing more to say.
    pub(super) fn drain(&mut self) -> Result<()> {
        while self.lines()?.read(QUIET)? > 0 || !is_asleep(self.pid())? {}
        Ok(())
    }

    /// What it prints.
    pub(super) fn lines(&mut self) -> Result<&mut Lines> {
        self.lines.as_mut().context("its output is thrown away")
    }

    /// Nobody wants to see what it prints.
    pub(super) fn discard_output(&mut self) {
        if let Some(lines) = self.lines.take() {
            lines.discard_in_background();
        }
    }
}
