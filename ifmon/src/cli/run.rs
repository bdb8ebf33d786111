//! A run of the program: from the arguments to the last line.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use ifmon::{
    BackendKind, Builder, Counters, Error, Event, EventKind, InterfaceName, Monitor, Netns, NetnsId,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

#[cfg(feature = "metrics")]
use super::metrics::{self, Metrics};
use super::{
    Exit,
    args::Args,
    complain,
    detail::{Known, Reason, Stopped},
    exec::Hooks,
    json::Line,
    notify::Notifier,
    origin::Origins,
    privileges,
    stdout::Stdout,
    text,
};

/// How long the last lines wait for a reader that has stopped reading: whoever asked for an end wants it now.
const LAST_LINE: Duration = Duration::from_millis(500);

/// What is remembered of a watch for its last line. There may be thousands, so it is kept small.
#[derive(Clone, Copy, Debug)]
struct Tally {
    watch: (NetnsId, InterfaceName),
    /// Its place among the watches that have begun, from 1: their last lines come in the order of their first.
    began: Option<NonZeroU32>,
    ifindex: Option<NonZeroU32>,
    delivered: u64,
}

impl Tally {
    fn new(watch: (NetnsId, InterfaceName)) -> Self {
        Self {
            watch,
            began: None,
            ifindex: None,
            delivered: 0,
        }
    }
}

/// Why the loop ended.
enum End {
    Reason(Reason),
    /// Whoever read standard output has gone: nobody is left to tell.
    ReaderGone,
    Failed(anyhow::Error),
}

/// Watches until something ends it.
pub(crate) async fn run(mut args: Args) -> anyhow::Result<Exit> {
    if args.check {
        let check = ifmon::Check::run();
        let shown = if args.json {
            format!("{}\n", super::check::json(&check))
        } else {
            super::check::text(&check)
        };
        let written = Stdout::open()?.write(shown.as_bytes()).await;
        return written.or_else(reader_gone).map(|()| Exit::Stopped);
    }
    let signals = Signals::new().context("cannot handle signals")?;
    let notifier = Notifier::new();
    #[cfg(feature = "metrics")]
    let metrics = match args.metrics {
        Some(address) => Some(metrics::Listener::open(address).await?),
        None => None,
    };
    let elsewhere =
        !args.netns.is_empty() || args.interfaces.iter().any(|target| target.netns.is_some());
    let (builder, tallies) = builder(&mut args)?;
    let mut monitor = builder.start().await?;
    if elsewhere {
        warn_of_netns(monitor.backend());
    }
    if args.exec.is_none() {
        privileges::drop_all(monitor.backend()).context("cannot give up privileges")?;
    } else {
        log::info!("keeping all privileges for the commands of --exec");
    }
    let mut output = Output::open(&args, tallies, notifier)?;
    output.notifier.watch_over(monitor.handle());
    #[cfg(feature = "metrics")]
    if let Some(metrics) = metrics {
        output.metrics = Some(metrics.serve(monitor.handle(), monitor.backend()));
    }

    let end = output.follow(&mut monitor, signals, &args).await;
    output.notifier.stopping();
    match end {
        End::Reason(reason) => {
            output.stop(&monitor, reason).await.or_else(reader_gone)?;
            Ok(Exit::Stopped)
        }
        End::ReaderGone => {
            output.finish_hooks().await;
            Ok(Exit::Stopped)
        }
        End::Failed(error) => {
            if let Some(Absent) = error.downcast_ref() {
                // The context says which one.
                complain(&error.to_string());
                return Ok(Exit::Absent);
            }
            // Best effort: standard output may be what failed.
            let _ = output.stop(&monitor, Reason::Error).await;
            Err(error)
        }
    }
}

/// What is to be watched, and the tallies of the watches that this makes.
///
/// There may be thousands of interfaces: they are taken out of the arguments, and a namespace is looked for once.
fn builder(args: &mut Args) -> Result<(Builder, Box<[Tally]>), Error> {
    let mut watches = Vec::new();
    let mut builder = Monitor::builder()
        .backend(args.backend.into())
        .open_filter(args.open_filter);
    if let Some(bytes) = args.receive_buffer {
        builder = builder.receive_buffer(bytes);
    }
    let mut names = Vec::new();
    let interfaces = std::mem::take(&mut args.interfaces);
    for targets in interfaces.chunk_by(|one, next| one.netns == next.netns) {
        let here = targets.iter().map(|target| target.name);
        match targets.first().and_then(|target| target.netns.as_deref()) {
            Some(netns) => {
                let netns = Netns::find(netns)?;
                watches.extend(here.clone().map(|name| (netns.id(), name)));
                let here: Vec<_> = here.collect();
                builder = builder.watch_in(netns, here.iter().map(InterfaceName::as_bytes));
            }
            None if args.netns.is_empty() => {
                let own = Netns::current()?.id();
                for name in here {
                    watches.push((own, name));
                    builder = builder.watch(name.as_bytes());
                }
            }
            None => names.extend(here),
        }
    }
    for netns in &args.netns {
        let netns = Netns::find(netns)?;
        watches.extend(names.iter().map(|&name| (netns.id(), name)));
        builder = builder.watch_in(netns, names.iter().map(InterfaceName::as_bytes));
    }
    watches.sort_unstable();
    watches.dedup();
    Ok((builder, watches.into_iter().map(Tally::new).collect()))
}

/// A socket keeps its network namespace alive; a BPF program does not.
fn warn_of_netns(backend: BackendKind) {
    if matches!(
        backend,
        BackendKind::Netlink | BackendKind::NetlinkUnfiltered
    ) {
        log::warn!(
            "watching another network namespace by {backend} keeps it alive until ifmon ends; fentry and kprobe do not"
        );
    }
}

#[derive(Debug, thiserror::Error)]
#[error("an interface does not exist")]
struct Absent;

/// Where events go: standard output, and the hooks.
struct Output {
    stdout: Stdout,
    text: Option<text::Writer>,
    hooks: Option<Hooks>,
    origins: Origins,
    /// Sorted by watch.
    tallies: Box<[Tally]>,
    /// How many watches have begun.
    begun: u32,
    notifier: Notifier,
    #[cfg(feature = "metrics")]
    metrics: Option<Metrics>,
}

impl Output {
    fn open(args: &Args, tallies: Box<[Tally]>, notifier: Notifier) -> anyhow::Result<Self> {
        let stdout = Stdout::open().context("cannot use standard output")?;
        let own = Netns::current().ok().map(|netns| netns.id());
        Ok(Self {
            stdout,
            text: (!args.json).then(|| text::Writer::new(own, args.color.wanted())),
            hooks: args
                .exec
                .clone()
                .map(|command| Hooks::new(command, args.exec_timeout)),
            origins: Origins::default(),
            tallies,
            begun: 0,
            notifier,
            #[cfg(feature = "metrics")]
            metrics: None,
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
        let is_begin = matches!(event.kind, EventKind::Watching { .. });
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.event(event);
        }
        let at = self.tallies.binary_search_by_key(&key, |tally| tally.watch);
        if let Some(tally) = at.ok().and_then(|at| self.tallies.get_mut(at)) {
            if is_begin && tally.began.is_none() {
                self.begun += 1;
                tally.began = NonZeroU32::new(self.begun);
            }
            tally.delivered += 1;
            let ifindex = match event.kind {
                EventKind::Deleted { .. } | EventKind::Renamed { .. } | EventKind::Moved { .. } => {
                    None
                }
                ref kind => kind.ifindex(),
            };
            tally.ifindex = ifindex.and_then(NonZeroU32::new);
        }
        let known = Known::of(event, &mut self.origins);
        let line = Line::event(event, &known);
        match &self.text {
            Some(text) => self.stdout.write(&text.event(event, &known)).await?,
            None => self.stdout.write(&line.to_json()).await?,
        }
        if let Some(hooks) = &self.hooks {
            hooks.run(line.to_environment()).await;
        }
        if is_begin && self.begun as usize == self.tallies.len() {
            let plural = if self.begun == 1 { "" } else { "s" };
            let status = format!(
                "watching {} interface{plural} by {}",
                self.begun, event.backend
            );
            self.notifier.ready(&status);
            super::memory::give_back();
        }
        Ok(())
    }

    /// Runs the hooks that are still waiting.
    async fn finish_hooks(&mut self) {
        if let Some(hooks) = self.hooks.take() {
            hooks.finish().await;
        }
    }

    /// The last line of each watch, unless nobody reads them; then the hooks that are still waiting.
    async fn stop(&mut self, monitor: &Monitor, reason: Reason) -> std::io::Result<()> {
        let counters = monitor.handle().counters().await.unwrap_or_default();
        let Counters { seen, lost, .. } = counters;
        let mut is_read = true;
        let begun = self.tallies.iter().filter(|tally| tally.began.is_some());
        let mut tallies: Vec<&Tally> = begun.collect();
        tallies.sort_unstable_by_key(|tally| tally.began);
        for tally in tallies {
            let Tally {
                watch: (netns, interface),
                began: _,
                ifindex,
                delivered,
            } = *tally;
            let stopped = Stopped {
                time: SystemTime::now(),
                interface,
                netns,
                ifindex: ifindex.map(NonZeroU32::get),
                backend: monitor.backend(),
                reason,
                seen,
                delivered,
                lost,
            };
            let line = Line::stopped(&stopped);
            let text = match &self.text {
                Some(text) => text.stopped(&stopped),
                None => line.to_json(),
            };
            if is_read {
                match timeout(LAST_LINE, self.stdout.write(&text)).await {
                    Ok(written) => written?,
                    Err(_) => is_read = false,
                }
            }
            if let Some(hooks) = &self.hooks {
                hooks.run(line.to_environment()).await;
            }
        }
        self.finish_hooks().await;
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
