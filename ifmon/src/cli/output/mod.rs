//! Where events go: standard output, as text or JSON, and the hooks.

mod environment;
pub(crate) mod facts;
mod feedback;
mod hooks;
mod journal;
pub(crate) mod json;
pub(crate) mod line;
pub(crate) mod stderr;
pub(crate) mod stdout;
mod summary;
pub(crate) mod text;

use std::{
    io,
    time::{Duration, SystemTime},
};

use ifmon::{
    BackendKind, Counters, Event, EventKind, Handle, InterfaceName, NetnsId, Origins, Peers,
};
use tokio::time::{Instant, timeout};

use self::{
    facts::{EventFacts, Reason, Stopped},
    hooks::Hooks,
    journal::{Journal, Priority},
    line::Line,
    stdout::Stdout,
    summary::Summary,
};
use super::{
    args::Args,
    children::{Children, Environment, Job, ShellCommand},
    mine::Mine,
    namespaces::Namespaces,
    state,
    top::{Top, terminal::Terminal},
    watches::{Account, PatternAccount},
};

/// How long the last lines wait for a reader that has stopped reading: whoever asked for an end
/// wants it now.
const LAST_LINE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Output {
    stdout: Stdout,
    /// Takes the lines in place of standard output, where that is a stream to it.
    journal: Option<Journal>,
    text: Option<text::Writer>,
    sums: SumsWriter,
    hooks: Option<Hooks>,
    has_commands: bool,
    origins: Origins,
    peers: Peers,
    mine: Vec<Mine>,
    namespaces: Namespaces,
}

/// What takes the events where no line tells of each.
#[derive(Debug)]
enum SumsWriter {
    None,
    Summary(Box<Summary>),
    Top(Box<Top>),
}

/// What was told of an event.
#[derive(Debug)]
pub(crate) struct Reported {
    /// It is the engine's own doing.
    pub(crate) own: bool,
    /// The interface is no longer the one that its user set up.
    pub(crate) restart: bool,
    /// The line, as the environment of a command, where there is one.
    pub(crate) environment: Option<Environment>,
}

impl Output {
    pub(crate) fn new(
        args: &Args,
        stdout: Stdout,
        (namespaces, peers): (Namespaces, Peers),
        children: Option<&Children>,
        monitor: &Handle,
        backend: BackendKind,
    ) -> Self {
        let hooks = args.exec.clone().zip(children).map(|(command, children)| {
            let limit = args.exec_timeout;
            Hooks::new(
                children.clone(),
                ShellCommand { command, limit },
                monitor.clone(),
            )
        });
        let journal = Journal::open();
        // The journal has a time of its own for each.
        let has_time = journal.is_none() && !args.top;
        Self {
            stdout,
            journal,
            text: (!args.json)
                .then(|| text::Writer::new(args.color.wanted() && !args.top, has_time)),
            sums: match args.summary {
                Some(every) => SumsWriter::Summary(Box::new(Summary::new(every, args.json))),
                None if args.top => SumsWriter::Top(Box::new(Top::new(backend))),
                None => SumsWriter::None,
            },
            hooks,
            has_commands: children.is_some(),
            origins: Origins::default(),
            peers,
            mine: args.mine.clone(),
            namespaces,
        }
    }

    /// What the watched namespaces are called.
    pub(crate) const fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Takes an event. That never waits, so that nothing is lost when the end comes meanwhile; see
    /// [`Self::has_room`].
    pub(crate) fn event(&mut self, event: &Event, told: Option<state::Unfinished>) -> Reported {
        self.namespaces.look_again();
        let mut facts = EventFacts::of(event, &mut self.origins, &self.mine);
        let has_line = matches!(self.sums, SumsWriter::None);
        let is_of_pattern = event.pattern.is_some();
        if let EventKind::Appeared { .. } = event.kind
            && is_of_pattern
            && (has_line || self.has_commands)
        {
            facts.peer = self.peers.of(event);
        }
        let line = Line::event(event, &facts, self.namespaces.name(event.netns));
        let restart = facts.calls_for_restart(event);
        let wants_fields = self.has_commands || has_line && self.journal.is_some();
        let fields = wants_fields.then(|| line.to_environment());
        let text = |text: &Option<text::Writer>| match text {
            Some(text) => text.event(event, &facts, &self.namespaces),
            None => line.to_json(),
        };
        match &mut self.sums {
            SumsWriter::Summary(summary) => summary.tally.event(event, &facts),
            SumsWriter::Top(top) => {
                let line = text(&self.text);
                top.event(event, &facts, String::from_utf8_lossy(&line).trim_end());
            }
            SumsWriter::None => push(
                &mut self.stdout,
                &mut self.journal,
                text(&self.text),
                Priority::of(event, restart),
                fields.as_ref(),
            ),
        }
        let line = Reported {
            own: facts.own,
            restart,
            environment: fields.filter(|_| self.has_commands),
        };
        if let (Some(hooks), Some(environment)) = (&self.hooks, &line.environment) {
            let watch = (event.netns, event.interface);
            let restarts = line.restart.then_some(watch);
            hooks.push(
                job(event.kind.as_str(), environment.clone()),
                restarts,
                told,
            );
        }
        line
    }

    /// When sums are to be told next, if they are wanted.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.sums {
            SumsWriter::None => None,
            SumsWriter::Summary(summary) => Some(summary.next),
            SumsWriter::Top(top) => Some(top.next),
        }
    }

    /// Tells the sums, if they are wanted.
    pub(crate) fn summarize(&mut self, terminal: Option<&Terminal>) {
        match (&mut self.sums, terminal) {
            (SumsWriter::Summary(summary), _) => {
                let text = summary.take(&self.namespaces);
                let Self {
                    stdout, journal, ..
                } = self;
                push(stdout, journal, text, Priority::Info, None);
            }
            (SumsWriter::Top(top), Some(terminal)) => {
                top.tick();
                // A terminal that is behind gets the next one.
                if self.stdout.is_flushed() {
                    self.stdout
                        .push(&top.draw(terminal.size(), &self.namespaces));
                }
            }
            (SumsWriter::None | SumsWriter::Top(_), _) => {}
        }
    }

    /// Takes keys from the terminal; false when the end is asked for.
    pub(crate) fn keys(&mut self, keys: &[u8], terminal: &Terminal) -> bool {
        let SumsWriter::Top(top) = &mut self.sums else {
            return true;
        };
        let goes_on = top.keys(keys);
        self.summarize(Some(terminal));
        goes_on
    }

    /// Is there room for an event?
    pub(crate) fn has_room(&self) -> bool {
        let has_room =
            self.journal.as_ref().is_none_or(Journal::is_flushed) && self.stdout.has_room();
        // A screen needs none: what it did not show is not shown later.
        (has_room || self.is_screen()) && self.have_hooks_room()
    }

    /// Is everything written, and room for more?
    pub(crate) fn is_ready(&self) -> bool {
        (self.is_written() || self.is_screen()) && self.have_hooks_room()
    }

    fn is_screen(&self) -> bool {
        matches!(self.sums, SumsWriter::Top(_))
    }

    fn have_hooks_room(&self) -> bool {
        self.hooks.as_ref().is_none_or(Hooks::has_room)
    }

    /// Is everything written?
    pub(crate) fn is_written(&self) -> bool {
        self.stdout.is_flushed() && self.journal.as_ref().is_none_or(Journal::is_flushed)
    }

    /// Writes what is to be written and waits for room, or, where there is nothing to do, for
    /// whoever reads standard output to go: that is an error. Nothing is lost when the future
    /// is dropped.
    pub(crate) async fn progress(&mut self) -> io::Result<()> {
        if !self.is_written() {
            return self.flush().await;
        }
        match &self.hooks {
            Some(hooks) if !hooks.has_room() => tokio::select! {
                () = hooks.room() => Ok(()),
                () = self.stdout.closed() => Err(io::ErrorKind::BrokenPipe.into()),
            },
            Some(_) | None => {
                self.stdout.closed().await;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// Writes what was told. Nothing is lost when the future is dropped.
    async fn flush(&mut self) -> io::Result<()> {
        while !self.is_written() {
            self.write().await?;
        }
        Ok(())
    }

    /// Writes a part of what was told.
    async fn write(&mut self) -> io::Result<()> {
        match &mut self.journal {
            Some(journal) if !journal.is_flushed() => {
                if journal.write().await.is_err() {
                    // The stream is there still, and takes lines without fields.
                    for line in self
                        .journal
                        .take()
                        .into_iter()
                        .flat_map(Journal::into_lines)
                    {
                        self.stdout.push(&line);
                    }
                }
                Ok(())
            }
            Some(_) | None => self.stdout.write().await,
        }
    }

    /// The last line of each watch.
    pub(crate) fn stopped(
        &mut self,
        accounts: Vec<(NetnsId, Account)>,
        patterns: Vec<PatternAccount>,
        counters: Counters,
        backend: BackendKind,
        reason: Reason,
    ) {
        self.summarize(None);
        let names = accounts.into_iter().map(|(netns, account)| {
            let watch = (netns, account.name);
            (watch, None, account.holder(), account.delivered)
        });
        let patterns = patterns.into_iter().map(|account| {
            let watch = (account.netns, InterfaceName::NONE);
            (watch, Some(account.pattern), None, account.delivered)
        });
        for (watch, pattern, ifindex, delivered) in names.chain(patterns) {
            let stopped = Stopped {
                time: SystemTime::now(),
                watch,
                pattern,
                ifindex,
                backend,
                reason,
                seen: counters.seen,
                delivered,
                lost: counters.lost,
            };
            let (netns, _) = stopped.watch;
            let line = Line::stopped(&stopped, self.namespaces.name(netns));
            let wants_fields = self.hooks.is_some() || self.journal.is_some();
            let fields = wants_fields.then(|| line.to_environment());
            if let SumsWriter::None = self.sums {
                let text = match &self.text {
                    Some(text) => text.stopped(&stopped, &self.namespaces),
                    None => line.to_json(),
                };
                let Self {
                    stdout, journal, ..
                } = self;
                push(stdout, journal, text, Priority::Info, fields.as_ref());
            }
            if let (Some(hooks), Some(fields)) = (&self.hooks, fields) {
                hooks.push(job("stopped", fields), None, None);
            }
        }
    }

    /// Writes the last lines, as long as somebody reads them.
    pub(crate) async fn finish_lines(&mut self) -> io::Result<()> {
        while !self.is_written() {
            match timeout(LAST_LINE, self.write()).await {
                Ok(written) => written?,
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Runs the hooks that are still waiting.
    pub(crate) async fn finish_hooks(&mut self) {
        if let Some(hooks) = &mut self.hooks {
            hooks.finish().await;
        }
    }

    /// Ends the hook that runs; no other begins.
    pub(crate) async fn kill_hooks(&mut self) {
        if let Some(hooks) = &mut self.hooks {
            hooks.kill().await;
        }
    }
}

fn push(
    stdout: &mut Stdout,
    journal: &mut Option<Journal>,
    text: Vec<u8>,
    priority: Priority,
    fields: Option<&Environment>,
) {
    match journal {
        Some(journal) => journal.push(text, priority, fields.map_or(&[], Vec::as_slice)),
        None => stdout.push(&text),
    }
}

fn job(event: &str, environment: Environment) -> Job {
    Job {
        what: format!("the hook for {event}"),
        environment,
    }
}
