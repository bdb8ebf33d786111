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
mod text;

use std::{
    io,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use ifmon::{BackendKind, Counters, Event, Handle, Origins};
use tokio::time::timeout;

use self::{
    facts::{Facts, Reason, Stopped},
    hooks::Hooks,
    journal::{Journal, Priority},
    line::Line,
    stdout::Stdout,
};
use super::{
    args::Args,
    children::{Children, Environment, Job, Shell},
    mine::Mine,
    namespaces::Namespaces,
    state,
    watches::Account,
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
    hooks: Option<Hooks>,
    has_commands: bool,
    origins: Origins,
    mine: Vec<Mine>,
    namespaces: Namespaces,
}

/// What was told of an event.
#[derive(Debug)]
pub(crate) struct Told {
    /// It is the engine's own doing.
    pub(crate) own: bool,
    /// The interface is no longer the one that its user set up.
    pub(crate) restart: bool,
    /// The line, as the environment of a command, where there is one.
    pub(crate) environment: Option<Environment>,
}

impl Output {
    pub(crate) fn open(
        args: &Args,
        namespaces: Namespaces,
        children: Option<&Children>,
        monitor: &Handle,
    ) -> anyhow::Result<Self> {
        let hooks = args.exec.clone().zip(children).map(|(command, children)| {
            let limit = args.exec_timeout;
            Hooks::new(children.clone(), Shell { command, limit }, monitor.clone())
        });
        let journal = Journal::open();
        // The journal has a time of its own for each.
        let has_time = journal.is_none();
        Ok(Self {
            stdout: Stdout::open().context("cannot use standard output")?,
            journal,
            text: (!args.json).then(|| text::Writer::new(args.color.wanted(), has_time)),
            hooks,
            has_commands: children.is_some(),
            origins: Origins::default(),
            mine: args.mine.clone(),
            namespaces,
        })
    }

    /// What the watched namespaces are called.
    pub(crate) const fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Takes an event. That never waits, so that nothing is lost when the end comes meanwhile; see
    /// [`Self::is_ready`].
    pub(crate) fn event(&mut self, event: &Event, told: Option<state::Told>) -> Told {
        let facts = Facts::of(event, &mut self.origins, &self.mine);
        let line = Line::event(event, &facts, self.namespaces.name(event.netns));
        let text = match &self.text {
            Some(text) => text.event(event, &facts, &self.namespaces),
            None => line.to_json(),
        };
        let restart = facts.calls_for_restart(event);
        let wants_fields = self.has_commands || self.journal.is_some();
        let fields = wants_fields.then(|| line.to_environment());
        match (&mut self.journal, &fields) {
            (Some(journal), Some(fields)) => {
                journal.push(text, Priority::of(event, restart), fields);
            }
            _ => self.stdout.push(&text),
        }
        let line = Told {
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

    /// Is everything written, and room for more?
    pub(crate) fn is_ready(&self) -> bool {
        self.is_written() && self.hooks.as_ref().is_none_or(Hooks::has_room)
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
        accounts: Vec<Account>,
        counters: Counters,
        backend: BackendKind,
        reason: Reason,
    ) {
        for account in accounts {
            let stopped = Stopped {
                time: SystemTime::now(),
                watch: account.watch,
                ifindex: account.holder(),
                backend,
                reason,
                seen: counters.seen,
                delivered: account.delivered,
                lost: counters.lost,
            };
            let (netns, _) = stopped.watch;
            let line = Line::stopped(&stopped, self.namespaces.name(netns));
            let text = match &self.text {
                Some(text) => text.stopped(&stopped, &self.namespaces),
                None => line.to_json(),
            };
            let fields = line.to_environment();
            match &mut self.journal {
                Some(journal) => journal.push(text, Priority::Info, &fields),
                None => self.stdout.push(&text),
            }
            if let Some(hooks) = &self.hooks {
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

fn job(event: &str, environment: Environment) -> Job {
    Job {
        what: format!("the hook for {event}"),
        environment,
    }
}
