//! A run of the program: from the arguments to the last line.

use std::{collections::HashMap, io::IsTerminal as _, time::SystemTime};

use anyhow::Context as _;
use ifmon::{
    BackendKind, Builder, Counters, Error, Event, EventKind, InterfaceName, Monitor, Netns, NetnsId,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Exit, args::Args, complain, exec::Hooks, json::Line, privileges, stdout::Stdout, text,
};

/// Why the watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Signal,
    Once,
    Error,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Once => "once",
            Self::Error => "error",
        }
    }
}

/// The last line of a watch.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) time: SystemTime,
    pub(crate) interface: InterfaceName,
    pub(crate) netns: NetnsId,
    pub(crate) ifindex: Option<u32>,
    pub(crate) backend: BackendKind,
    pub(crate) reason: Reason,
    pub(crate) seen: Option<u64>,
    pub(crate) delivered: u64,
    pub(crate) lost: Option<u64>,
}

/// What is remembered of a watch for its last line.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    ifindex: Option<u32>,
    delivered: u64,
}

/// Why the loop ended.
enum End {
    Reason(Reason),
    /// Whoever read standard output has gone: nobody is left to tell.
    ReaderGone,
    Failed(anyhow::Error),
}

/// Watches until something ends it.
pub(crate) async fn run(args: &Args) -> anyhow::Result<Exit> {
    let signals = Signals::new().context("cannot handle signals")?;
    let mut monitor = builder(args)?.start().await?;
    if args.exec.is_none() {
        privileges::drop_all(monitor.backend()).context("cannot give up privileges")?;
    } else {
        log::info!("keeping all privileges for the commands of --exec");
    }
    let mut output = Output::open(args)?;

    let end = output.follow(&mut monitor, signals, args).await;
    match end {
        End::Reason(reason) => {
            output.stop(&monitor, reason).await.or_else(reader_gone)?;
            Ok(Exit::Stopped)
        }
        End::ReaderGone => Ok(Exit::Stopped),
        End::Failed(error) => {
            if let Some(Absent) = error.downcast_ref() {
                complain(&format!("{error:#}"));
                return Ok(Exit::Absent);
            }
            // Best effort: standard output may be what failed.
            let _ = output.stop(&monitor, Reason::Error).await;
            Err(error)
        }
    }
}

fn builder(args: &Args) -> Result<Builder, Error> {
    let mut builder = Monitor::builder().backend(args.backend.into());
    if let Some(bytes) = args.receive_buffer {
        builder = builder.receive_buffer(bytes);
    }
    for target in &args.interfaces {
        let name = target.name.as_bytes();
        match &target.netns {
            Some(netns) => builder = builder.watch_in(Netns::find(netns)?, [name]),
            None if args.netns.is_empty() => builder = builder.watch(name),
            None => {}
        }
    }
    let names: Vec<_> = args
        .interfaces
        .iter()
        .filter(|target| target.netns.is_none())
        .map(|target| target.name.as_bytes())
        .collect();
    for netns in &args.netns {
        builder = builder.watch_in(Netns::find(netns)?, &names);
    }
    Ok(builder)
}

#[derive(Debug, thiserror::Error)]
#[error("an interface does not exist")]
struct Absent;

/// Where events go: standard output, and the hooks.
struct Output {
    stdout: Stdout,
    text: Option<text::Writer>,
    hooks: Option<Hooks>,
    tallies: HashMap<(NetnsId, InterfaceName), Tally>,
    /// The watches in the order in which they began.
    order: Vec<(NetnsId, InterfaceName)>,
}

impl Output {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let stdout = Stdout::open().context("cannot use standard output")?;
        let color = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let own = Netns::current().ok().map(|netns| netns.id());
        Ok(Self {
            stdout,
            text: (!args.json).then(|| text::Writer::new(own, color)),
            hooks: args
                .exec
                .clone()
                .map(|command| Hooks::new(command, args.exec_timeout)),
            tallies: HashMap::new(),
            order: Vec::new(),
        })
    }

    /// Writes events as they come, until something ends it.
    async fn follow(&mut self, monitor: &mut Monitor, mut signals: Signals, args: &Args) -> End {
        loop {
            let event = tokio::select! {
                biased;
                () = signals.next() => return End::Reason(Reason::Signal),
                () = self.stdout.closed() => return End::ReaderGone,
                event = monitor.next() => match event {
                    Some(Ok(event)) => event,
                    Some(Err(error)) => return End::Failed(error.into()),
                    None => return End::Failed(Error::Stopped.into()),
                },
            };
            if let EventKind::Watching { ifindex: None } = event.kind {
                if args.must_exist {
                    let what = format!(
                        "{} does not exist, and --must-exist was given",
                        event.interface
                    );
                    return End::Failed(anyhow::Error::new(Absent).context(what));
                }
                log::warn!("{} does not exist yet; waiting for it", event.interface);
            }
            let last = args.once
                && (event.should_restart() || matches!(event.kind, EventKind::Appeared { .. }));
            let written = tokio::select! {
                biased;
                written = self.event(&event) => written,
                () = signals.next() => return End::Reason(Reason::Signal),
            };
            if let Err(error) = written {
                return match reader_gone(error) {
                    Ok(()) => End::ReaderGone,
                    Err(error) => End::Failed(error),
                };
            }
            if last {
                return End::Reason(Reason::Once);
            }
        }
    }

    async fn event(&mut self, event: &Event) -> std::io::Result<()> {
        let key = (event.netns, event.interface);
        if matches!(event.kind, EventKind::Watching { .. }) {
            self.order.push(key);
        }
        let tally = self.tallies.entry(key).or_default();
        tally.delivered += 1;
        tally.ifindex = match event.kind {
            EventKind::Deleted { .. } | EventKind::Renamed { .. } | EventKind::Moved { .. } => None,
            ref kind => kind.ifindex(),
        };
        let line = Line::event(event);
        match &self.text {
            Some(text) => self.stdout.write(&text.event(event)).await?,
            None => self.stdout.write(&line.to_json()).await?,
        }
        if let Some(hooks) = &self.hooks {
            hooks.run(line.to_environment()).await;
        }
        Ok(())
    }

    /// The last line of each watch; then the hooks that are still waiting.
    async fn stop(&mut self, monitor: &Monitor, reason: Reason) -> std::io::Result<()> {
        let counters = monitor.handle().counters().await.unwrap_or_default();
        let Counters { seen, lost, .. } = counters;
        for &(netns, interface) in &self.order {
            let Tally { ifindex, delivered } = self
                .tallies
                .get(&(netns, interface))
                .copied()
                .unwrap_or_default();
            let stopped = Stopped {
                time: SystemTime::now(),
                interface,
                netns,
                ifindex,
                backend: monitor.backend(),
                reason,
                seen,
                delivered,
                lost,
            };
            let line = Line::stopped(&stopped);
            match &self.text {
                Some(text) => self.stdout.write(&text.stopped(&stopped)).await?,
                None => self.stdout.write(&line.to_json()).await?,
            }
            if let Some(hooks) = &self.hooks {
                hooks.run(line.to_environment()).await;
            }
        }
        if let Some(hooks) = self.hooks.take() {
            hooks.finish().await;
        }
        Ok(())
    }
}

/// A reader that has gone is a clean end; any other failure to write is an error.
fn reader_gone(error: std::io::Error) -> anyhow::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(anyhow::Error::new(error).context("cannot write to standard output"))
    }
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
