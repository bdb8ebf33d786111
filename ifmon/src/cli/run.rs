//! A run of the program: from the arguments to the last line.

use std::{
    collections::BTreeSet, ffi::OsString, io, os::unix::net::UnixListener, pin::pin, time::Duration,
};

use anyhow::Context as _;
use ifmon::{BackendKind, Error, Event, EventKind, LinkKind, Monitor, Pattern};
use tokio::time::{Instant, sleep, sleep_until, timeout};

#[cfg(feature = "metrics")]
use super::metrics::{self, Metrics};
use super::{
    Exit,
    args::{Args, WaitArg},
    children::{Children, ShellCommand},
    complain, memory, mine,
    notify::Notifier,
    output::{Output, facts::Reason, stdout::Stdout},
    privileges,
    restarts::Restarts,
    service,
    signals::Signals,
    state::{Directory, StateRecords},
    target::{self, WatchArgument},
    top::terminal::Terminal,
    watches::{self, Watches},
};

/// How long it may take to hear of what had happened before the end, and a reader to take a part of it.
const LAST_EVENTS: Duration = Duration::from_millis(500);
/// How long the last records may take, and the last counters.
const LAST_RECORDS: Duration = Duration::from_millis(500);
/// What a start is given at least, however short the time of `--timeout` is.
const START: Duration = Duration::from_secs(1);

/// Why the loop ended.
#[derive(Debug)]
enum End {
    Signal,
    /// `--once` or `--wait` saw what it was to see.
    Seen,
    /// The time of `--wait` is over.
    TimedOut,
    /// `--must-exist`, and this one does not.
    Absent(String),
    /// Whoever read standard output has gone: nobody is left to tell.
    ReaderGone,
    Failed(anyhow::Error),
}

/// Watches until something ends it, or serves, perhaps on a socket that was handed over.
pub(crate) async fn run(mut args: Args, handed_over: Option<UnixListener>) -> anyhow::Result<Exit> {
    if args.check {
        return check(args.json).await;
    }
    if let Some(path) = args.serve.take() {
        return service::serve(&args, path, handed_over).await;
    }
    let mut signals = Signals::new().context("cannot handle signals")?;
    let begin = Instant::now();
    let deadline = args.timeout.map(|timeout| begin + timeout);
    let terminal = args.top.then(Terminal::open).transpose()?;
    let notifier = Notifier::new();
    #[cfg(feature = "metrics")]
    let metrics = match args.metrics {
        Some(address) => Some(metrics::Listener::open(address).await?),
        None => None,
    };
    let is_elsewhere = |target: &WatchArgument| target.netns.is_some() && !target.is_everywhere();
    let is_named = |netns: &OsString| netns != target::EVERYWHERE;
    let elsewhere = args.netns.iter().any(is_named) || args.interfaces.iter().any(is_elsewhere);
    let pattern_elsewhere = args.interfaces.iter().any(|target| {
        let goes_elsewhere = target.netns.is_none() && args.netns.iter().any(is_named);
        target.is_pattern() && (is_elsewhere(target) || goes_elsewhere)
    });
    let mut directory = args.state.as_deref().map(Directory::open).transpose()?;
    let (builder, watches, places) = watches::builder(&mut args, directory.as_mut())?;
    // What the arguments took: a buffer of which little is used stands there next.
    memory::give_back();
    let monitor = tokio::select! {
        biased;
        () = signals.end() => return Ok(stopped(args.wait.is_none())),
        started = builder.start() => started?,
        // An agent may take the call and not answer.
        () = passed(deadline.map(|deadline| deadline.max(begin + START))) => {
            let seconds = args.timeout.unwrap_or_default().as_secs_f64();
            complain(&format!("no watch has begun in the {seconds} s of --timeout"));
            return Ok(Exit::InVain);
        }
    };
    let backend = monitor.backend();
    if elsewhere {
        warn_of_netns(backend, pattern_elsewhere);
    }
    if let Some(directory) = &mut directory
        && !backend.keeps_netns_alive()
    {
        directory.leave_others();
    }
    // An agent tells those whom it trusts.
    let tells_who = backend.is_ebpf() || backend == BackendKind::Agent;
    if !args.mine.is_empty() && !tells_who {
        log::warn!(
            "--mine has no effect: {backend} cannot tell who makes a change, the BPF backends can"
        );
    } else if !args.mine.is_empty() && !mine::can_be_told() {
        log::warn!(
            "--mine has no effect: no cgroups of version 2 are mounted here, as after `ip netns exec`; \
             nsenter --net keeps them"
        );
    }
    let stdout = Stdout::open().context("cannot use standard output")?;
    let has_commands = args.exec.is_some() || args.on_restart.is_some();
    let children = if has_commands {
        log::info!("keeping all privileges for the commands");
        Some(Children::new().context("cannot wait for commands")?)
    } else {
        privileges::drop_all(backend).context("cannot give up privileges")?;
        // Root may write anywhere, and is not root any more.
        directory.as_ref().map(Directory::try_out).transpose()?;
        Children::adopted().context("cannot wait for children")?;
        None
    };
    let restarts = args
        .on_restart
        .clone()
        .zip(children.clone())
        .map(|(command, children)| {
            let limit = args.exec_timeout;
            Restarts::new(children, ShellCommand { command, limit }, monitor.handle())
        });
    let output = Output::new(
        &args,
        stdout,
        places,
        children.as_ref(),
        &monitor.handle(),
        backend,
    );
    notifier.watch_over(monitor.handle());
    let mut run = Run {
        #[cfg(feature = "metrics")]
        metrics: metrics.map(|metrics| metrics.serve(monitor.handle(), backend)),
        deadline,
        args,
        output,
        restarts,
        state: directory.map(|directory| StateRecords::new(directory, monitor.handle())),
        watches,
        notifier,
        signals,
        terminal,
        monitor,
    };
    let end = run.follow().await;
    run.end(end).await
}

/// `--check`.
async fn check(json: bool) -> anyhow::Result<Exit> {
    let check = ifmon::Check::run();
    let shown = if json {
        format!("{}\n", super::check::json(&check))
    } else {
        super::check::text(&check)
    };
    let mut stdout = Stdout::open()?;
    stdout.push(shown.as_bytes());
    let written = stdout.flush().await;
    written.or_else(reader_gone).map(|()| Exit::Stopped)
}

/// The next keys, where there is a terminal for them; the end when it has gone.
async fn next_keys(terminal: &Option<Terminal>) -> (Vec<u8>, &Terminal) {
    match terminal {
        Some(terminal) => (terminal.keys().await, terminal),
        None => std::future::pending().await,
    }
}

/// A socket keeps its network namespace alive; a BPF program does not. For a pattern, the table of
/// its devices is read through a socket, also later.
fn warn_of_netns(backend: BackendKind, has_patterns: bool) {
    if has_patterns {
        log::warn!(
            "watching a pattern in another network namespace keeps it alive until ifmon ends"
        );
    } else if backend.keeps_netns_alive() {
        log::warn!(
            "watching another network namespace by {backend} keeps it alive until ifmon ends; fentry and kprobe do not"
        );
    }
}

/// How a run ends that somebody ended. A script goes on only when what it waits for is there.
const fn stopped(is_as_wanted: bool) -> Exit {
    if is_as_wanted {
        Exit::Stopped
    } else {
        Exit::InVain
    }
}

/// Everything that a run has in hand.
struct Run {
    args: Args,
    monitor: Monitor,
    output: Output,
    restarts: Option<Restarts>,
    state: Option<StateRecords>,
    watches: Watches,
    notifier: Notifier,
    signals: Signals,
    terminal: Option<Terminal>,
    /// When `--wait` gives up.
    deadline: Option<Instant>,
    #[cfg(feature = "metrics")]
    metrics: Option<Metrics>,
}

impl Run {
    /// Hands events on as they come, until something ends it.
    async fn follow(&mut self) -> End {
        loop {
            // A slow reader or a slow hook holds the events up: the queue is the kernel's, and
            // memory does not grow.
            let has_room = self.output.has_room();
            let is_ready = self.output.is_ready();
            let due = self.output.due();
            let restart_due = self.restarts.as_ref().and_then(Restarts::due);
            let event = tokio::select! {
                biased;
                () = self.signals.end() => return self.take_rest(End::Signal).await,
                // Before the events: those that come now are not the doing of a command that has ended.
                () = next_end(&mut self.restarts) => continue,
                // Before the events, of which there may always be more.
                () = passed(due), if is_ready => {
                    self.output.summarize(self.terminal.as_ref());
                    continue;
                }
                (keys, terminal) = next_keys(&self.terminal) => {
                    if keys.is_empty() {
                        return End::ReaderGone;
                    }
                    if self.output.keys(&keys, terminal) {
                        continue;
                    }
                    return End::Signal;
                }
                // Those that are there already, before their lines are written together.
                event = self.monitor.next(), if has_room => event,
                progress = self.output.progress() => match progress {
                    Ok(()) => {
                        // A hook that waits for a mark has its turn before what comes behind that.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Err(error) => return End::of(error),
                },
                // After the events: what was told already counts as having happened before.
                () = passed(restart_due), if is_ready => {
                    if let Some(restarts) = &mut self.restarts {
                        restarts.begin_due();
                    }
                    continue;
                }
                () = next_record(&mut self.state, &self.watches), if is_ready => continue,
                () = passed(self.deadline) => return self.take_rest(End::TimedOut).await,
            };
            let mut told = self.take(event);
            // What is there is not yet what was expected: that comes behind it.
            while let Err(End::Seen) = told
                && self.args.wait.is_some()
                && let Some(event) = self.next_at_hand().await
            {
                told = self.take(event);
            }
            if let Err(end) = told {
                // What was told is written first, for as long as that takes.
                return match self.written().await {
                    Ok(()) => end,
                    Err(end) => end,
                };
            }
        }
    }

    /// Takes what had happened by the time of this end. It is told, and starts no restart.
    async fn take_rest(&mut self, end: End) -> End {
        if let Some(restarts) = &self.restarts {
            restarts.close();
        }
        let handle = self.monitor.handle();
        let mut all = pin!(handle.sync());
        let mut patience = LAST_EVENTS;
        loop {
            let has_room = self.output.has_room();
            // A reader may be slow, as long as it reads; and hooks end, for which ifmon waits anyway.
            let waits = has_room || !self.output.is_written();
            let begin = Instant::now();
            let event = tokio::select! {
                biased;
                () = self.signals.end_at_once() => return end,
                event = self.monitor.next(), if has_room => event,
                _ = &mut all => return end,
                progress = self.output.progress() => match progress {
                    Ok(()) => continue,
                    Err(error) => return End::of(error),
                },
                () = sleep(if has_room { patience } else { LAST_EVENTS }), if waits => return end,
            };
            patience = patience.saturating_sub(begin.elapsed());
            match self.take(event) {
                Ok(()) => {}
                // It was to end anyway.
                Err(End::Failed(_)) => return end,
                Err(other) => return other,
            }
        }
    }

    /// What the monitor hands out without a wait, if there is anything.
    async fn next_at_hand(&mut self) -> Option<Option<Result<Event, Error>>> {
        // A mark can be in front of it, which has a turn of its own.
        for _ in 0..2 {
            tokio::select! {
                biased;
                event = self.monitor.next() => return Some(event),
                () = std::future::ready(()) => {}
            }
        }
        None
    }

    fn take(&mut self, event: Option<Result<Event, Error>>) -> Result<(), End> {
        match event {
            Some(Ok(event)) => self.event(&event),
            Some(Err(error)) => Err(End::Failed(error.into())),
            None => Err(End::Failed(Error::Stopped.into())),
        }
    }

    /// Takes an event; an error when it is the last.
    fn event(&mut self, event: &Event) -> Result<(), End> {
        let is_absent = matches!(event.kind, EventKind::Watching { ifindex: None })
            && event.matches.is_none_or(|matches| matches == 0);
        if is_absent && self.args.wait != Some(WaitArg::Absent) {
            let whereabouts = self.output.namespaces().whereabouts(event.netns);
            let what = match &event.pattern {
                Some(pattern) => {
                    let kinds = of_kinds(pattern);
                    format!("no interface{kinds} matches {pattern}{whereabouts}")
                }
                None => format!("{}{whereabouts} does not exist", event.interface),
            };
            if self.args.must_exist {
                return Err(End::Absent(format!("{what}, and --must-exist was given")));
            }
            log::warn!("{what} yet; waiting for it");
        }
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &self.metrics {
            metrics.event(event);
        }
        let all_have_begun = self.watches.event(event);
        let state = self.state.as_mut();
        // That it begins is no change, and goes on record without a wait for what is done about it, as does
        // whoever takes a name that nobody had: only what is on record can be missed at the next start.
        let unfinished = state.and_then(|state| {
            let watch = (event.netns, event.interface);
            let unfinished = state.told(watch);
            let begins = matches!(event.kind, EventKind::Watching { .. });
            let is_new = || event.kind.holder().is_some() && state.expects_nobody(watch);
            (!begins && !is_new()).then_some(unfinished)
        });
        let told = self.output.event(event, unfinished.clone());
        if all_have_begun {
            let count = self.watches.begun();
            let plural = if count == 1 { "" } else { "s" };
            let status = format!("watching {count} interface{plural} by {}", event.backend);
            self.notifier.ready(&status);
            memory::give_back();
        }
        let restart = told.restart;
        if let Some(restarts) = &mut self.restarts {
            let environment = told.environment.filter(|_| restart);
            restarts.event(event, told.own, environment, unfinished);
        }
        let is_seen = self.args.once
            && (restart || matches!(event.kind, EventKind::Appeared { .. }))
            || self.args.wait.is_some() && self.is_as_wanted();
        if is_seen { Err(End::Seen) } else { Ok(()) }
    }

    /// Waits until all that was told is written.
    async fn written(&mut self) -> Result<(), End> {
        while !self.output.is_written() {
            tokio::select! {
                biased;
                () = self.signals.end() => return Err(End::Signal),
                progress = self.output.progress() => progress.map_err(End::of)?,
                () = passed(self.deadline) => return Err(End::TimedOut),
            }
        }
        Ok(())
    }

    /// Says what is left to be said, and waits for the commands that are left to be run.
    async fn end(mut self, end: End) -> anyhow::Result<Exit> {
        self.notifier.stopping();
        let is_as_wanted = self.is_as_wanted();
        match &end {
            End::Absent(what) => complain(what),
            End::TimedOut => complain(&self.waited_in_vain()),
            End::Signal | End::Seen | End::ReaderGone | End::Failed(_) => {}
        }
        let Self {
            output,
            restarts,
            state,
            signals,
            monitor,
            watches,
            ..
        } = &mut self;
        let finish = async {
            // Else it stays untold, as far as the records know.
            let mut is_told = output.is_written();
            let handle = monitor.handle();
            let counted = timeout(LAST_RECORDS, handle.counters()).await;
            output.stopped(
                watches.in_order(),
                watches.patterns(),
                counted.ok().and_then(Result::ok).unwrap_or_default(),
                monitor.backend(),
                end.reason(),
            );
            let written = match end {
                End::ReaderGone => Ok(()),
                End::Signal | End::Seen | End::TimedOut | End::Absent(_) | End::Failed(_) => {
                    output.finish_lines().await
                }
            };
            is_told |= output.is_written();
            output.finish_hooks().await;
            if let Some(restarts) = restarts.as_mut() {
                restarts.finish().await;
            }
            // What is not read here fast enough is told again at the next start.
            if is_told {
                let restarted = restarts.as_ref().map(Restarts::ended);
                let records = finish_records(state, watches, monitor, restarted);
                let _ = timeout(LAST_RECORDS, records).await;
            }
            written
        };
        let written = tokio::select! {
            written = finish => written,
            () = signals.end_at_once() => {
                output.kill_hooks().await;
                if let Some(restarts) = restarts {
                    restarts.kill().await;
                }
                Ok(())
            }
        };
        match end {
            // Best effort: standard output may be what failed.
            End::Failed(error) => Err(error),
            End::Absent(_) => Ok(Exit::Absent),
            End::TimedOut => Ok(Exit::InVain),
            End::Signal | End::Seen | End::ReaderGone => {
                written.or_else(reader_gone).map(|()| stopped(is_as_wanted))
            }
        }
    }

    /// Is all as `--wait` wants it?
    fn is_as_wanted(&self) -> bool {
        let is_it = |state| self.watches.are_all(state == WaitArg::Present);
        self.args.wait.is_none_or(is_it)
    }

    /// Which interfaces `--wait` waited for.
    fn waited_in_vain(&self) -> String {
        /// Enough to see what is wrong.
        const NAMED: usize = 3;
        let is_wanted = self.args.wait == Some(WaitArg::Present);
        let patterns = self.watches.patterns();
        let patterns = patterns
            .iter()
            .filter(|account| (account.matches > 0) != is_wanted)
            .map(|account| {
                let whereabouts = self.output.namespaces().whereabouts(account.netns);
                format!(
                    "{}{}{whereabouts}",
                    account.pattern,
                    of_kinds(&account.pattern)
                )
            });
        let missing: Vec<String> = self
            .watches
            .in_order()
            .iter()
            .filter(|(_, account)| account.holder().is_some() != is_wanted)
            .map(|&(netns, account)| {
                let whereabouts = self.output.namespaces().whereabouts(netns);
                format!("{}{whereabouts}", account.name)
            })
            .chain(patterns)
            .collect();
        let verb = match (is_wanted, missing.len()) {
            (true, 1) => "does not exist",
            (true, _) => "do not exist",
            (false, 1) => "still exists",
            (false, _) => "still exist",
        };
        let others = match missing.len().saturating_sub(NAMED) {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let named: Vec<&str> = missing.iter().take(NAMED).map(String::as_str).collect();
        let seconds = self.args.timeout.unwrap_or_default().as_secs_f64();
        if named.is_empty() {
            return format!("nobody has read standard output in the {seconds} s of --timeout");
        }
        format!(
            "{}{others} {verb} after the {seconds} s of --timeout",
            named.join(", ")
        )
    }
}

impl End {
    /// Standard output cannot be written. A reader that has gone is a clean end.
    fn of(error: io::Error) -> Self {
        match reader_gone(error) {
            Ok(()) => Self::ReaderGone,
            Err(error) => Self::Failed(error),
        }
    }

    const fn reason(&self) -> Reason {
        match self {
            // For most programs a reader that has gone is a signal (SIGPIPE).
            Self::Signal | Self::ReaderGone => Reason::Signal,
            Self::Seen => Reason::Once,
            Self::TimedOut => Reason::Timeout,
            Self::Absent(_) | Self::Failed(_) => Reason::Error,
        }
    }
}

/// To which kinds a pattern is narrowed, for a person.
fn of_kinds(pattern: &Pattern) -> String {
    let kinds: Vec<_> = pattern.kinds().iter().map(LinkKind::to_string).collect();
    match kinds.as_slice() {
        [] => String::new(),
        [kind] => format!(" of kind {kind}"),
        kinds => format!(" of the kinds {}", kinds.join(", ")),
    }
}

/// Takes note of the next end of a command of `--on-restart`.
async fn next_end(restarts: &mut Option<Restarts>) {
    match restarts {
        Some(restarts) => restarts.next_end().await,
        None => std::future::pending().await,
    }
}

/// Writes down what was told, for `--state`.
async fn next_record(state: &mut Option<StateRecords>, watches: &Watches) {
    match state {
        Some(state) => state.next(watches).await,
        None => std::future::pending().await,
    }
}

/// Writes down what is left. What happens meanwhile is not told any more, and not written down, but
/// for what the command of `--on-restart` did itself to interfaces that it was run for.
async fn finish_records(
    state: &mut Option<StateRecords>,
    watches: &mut Watches,
    monitor: &mut Monitor,
    restarted: Option<&BTreeSet<watches::WatchKey>>,
) {
    let Some(state) = state else {
        return;
    };
    let mut has_ended = false;
    while !state.is_idle() {
        tokio::select! {
            biased;
            event = monitor.next(), if !has_ended => match event {
                Some(Ok(event)) => {
                    let watch = (event.netns, event.interface);
                    if restarted.is_some_and(|restarted| restarted.contains(&watch)) {
                        watches.event(&event);
                        drop(state.told(watch));
                    } else {
                        state.leave_untold(watch);
                    }
                }
                Some(Err(_)) | None => has_ended = true,
            },
            () = state.next(watches) => {}
        }
    }
}

/// Waits for a time that may never come.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A reader that has gone is a clean end; any other failure to write is an error.
fn reader_gone(error: io::Error) -> anyhow::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(anyhow::Error::new(error).context("cannot write to standard output"))
    }
}
