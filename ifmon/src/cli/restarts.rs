//! `--on-restart`: runs the command for each watch when `restart.rs` says so.

use std::{
    collections::{BTreeSet, HashMap},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use ifmon::{Event, EventKind, Handle};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::{
    children::{Children, Environment, Job, ShellCommand},
    restart::{Action, HolderChange, Restart},
    state::Unfinished,
    watches::WatchKey,
};

/// Commands at a time: with a namespace, thousands of devices may go at once.
const AT_ONCE: usize = 8;

pub(crate) struct Restarts {
    shell: ShellCommand,
    children: Children,
    monitor: Handle,
    watches: HashMap<WatchKey, WatchRestart>,
    timers: BTreeSet<(Instant, WatchKey)>,
    /// Commands that run, or wait for their turn; whether they had it.
    commands: JoinSet<(WatchKey, bool)>,
    /// Watches whose command has ended, until all that happened before was told.
    ended: BTreeSet<WatchKey>,
    syncs: Vec<Pin<Box<dyn Future<Output = WatchKey>>>>,
    turns: Arc<Semaphore>,
    begin: Instant,
}

#[derive(Debug)]
struct WatchRestart {
    restart: Restart,
    /// What the command will be told: the last change that called for it.
    job: Option<Job>,
    /// Held until what is there is what is meant to be there.
    told: Option<Unfinished>,
}

impl Restarts {
    pub(crate) fn new(children: Children, shell: ShellCommand, monitor: Handle) -> Self {
        Self {
            shell,
            children,
            monitor,
            watches: HashMap::new(),
            timers: BTreeSet::new(),
            commands: JoinSet::new(),
            ended: BTreeSet::new(),
            syncs: Vec::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            begin: Instant::now(),
        }
    }

    /// An event was told, perhaps one of the engine's own doing. The environment is there if it
    /// calls for a restart.
    pub(crate) fn event(
        &mut self,
        event: &Event,
        own: bool,
        environment: Option<Environment>,
        told: Option<Unfinished>,
    ) {
        let watch = (event.netns, event.interface);
        let Some(change) = change(event) else {
            if let EventKind::Watching { ifindex } = event.kind {
                let restart = Restart::new(ifindex.is_some());
                let (job, told) = (None, None);
                self.watches
                    .insert(watch, WatchRestart { restart, job, told });
            }
            return;
        };
        let now = self.begin.elapsed();
        let Some(watched) = self.watches.get_mut(&watch) else {
            return;
        };
        if let Some(environment) = environment {
            watched.job = Some(Job {
                what: format!("the command of --on-restart for {}", event.interface),
                environment,
            });
        }
        let action = watched.restart.change(now, change, own);
        watched.told = told.filter(|_| !watched.restart.is_settled());
        self.act(watch, action);
    }

    fn act(&mut self, watch: WatchKey, action: Action) {
        match action {
            Action::Nothing => {}
            Action::WakeAt(time) => {
                log::info!(
                    "{} changed soon after its restart; the next is in {:.1} s at the earliest",
                    watch.1,
                    time.saturating_sub(self.begin.elapsed()).as_secs_f64()
                );
                self.timers.insert((self.begin + time, watch));
            }
            Action::Start => {
                let job = self.watches.get_mut(&watch).and_then(|it| it.job.take());
                let (children, shell) = (self.children.clone(), self.shell.clone());
                let turns = Arc::clone(&self.turns);
                self.commands.spawn(async move {
                    let turn = turns.acquire().await;
                    if let (Ok(_), Some(job)) = (&turn, job) {
                        children.run(&shell, job).await;
                    }
                    (watch, turn.is_ok())
                });
            }
        }
    }

    /// A command has ended, or all that happened until then was told.
    ///
    /// To be awaited before each event, also while lines wait for a reader: what is told after that is
    /// no doing of the command. Nothing is lost when the future is dropped.
    pub(crate) async fn next_end(&mut self) {
        let Self {
            commands, syncs, ..
        } = self;
        // Not as tasks, which would have their turn after the next event.
        let synced = poll_fn(|context| {
            for (at, sync) in syncs.iter_mut().enumerate() {
                if let Poll::Ready(watch) = sync.as_mut().poll(context) {
                    drop(syncs.swap_remove(at));
                    return Poll::Ready(watch);
                }
            }
            Poll::Pending
        });
        tokio::select! {
            biased;
            watch = synced => {
                let now = self.begin.elapsed();
                self.ended.remove(&watch);
                if let Some(watched) = self.watches.get_mut(&watch) {
                    watched.restart.ended(now);
                    watched.job = None;
                    watched.told = None;
                }
            }
            Some(Ok((watch, _))) = commands.join_next() => {
                let monitor = self.monitor.clone();
                self.ended.insert(watch);
                self.syncs.push(Box::pin(async move {
                    // When the monitor has ended, that is told elsewhere.
                    let _ = monitor.sync().await;
                    watch
                }));
            }
        }
    }

    /// When the next command that had to wait may begin.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.timers.first().map(|&(time, _)| time)
    }

    /// Begins the first of the commands that had to wait, if there is still reason to.
    pub(crate) fn begin_due(&mut self) {
        let now = self.begin.elapsed();
        if let Some((_, watch)) = self.timers.pop_first()
            && let Some(watched) = self.watches.get_mut(&watch)
        {
            let action = watched.restart.due(now);
            if watched.restart.is_settled() {
                watched.told = None;
            }
            self.act(watch, action);
        }
    }

    /// No other command begins.
    pub(crate) fn close(&self) {
        self.turns.close();
    }

    /// Waits for the commands that run; no other begins. Of what they were run for all is done then,
    /// and it is not told again at the next start.
    pub(crate) async fn finish(&mut self) {
        self.close();
        while let Some(ended) = self.commands.join_next().await {
            if let Ok((watch, true)) = ended {
                self.ended.insert(watch);
            }
        }
        for watch in &self.ended {
            if let Some(watched) = self.watches.get_mut(watch) {
                watched.told = None;
            }
        }
    }

    /// Watches whose command has ended, and about which not all that happened until then was told.
    pub(crate) const fn ended(&self) -> &BTreeSet<WatchKey> {
        &self.ended
    }

    /// Ends the commands that run.
    pub(crate) async fn kill(&mut self) {
        self.commands.shutdown().await;
    }
}

/// What an event means for who holds the name.
fn change(event: &Event) -> Option<HolderChange> {
    if let EventKind::Returned { .. } = event.kind {
        return Some(HolderChange::Back);
    }
    let is_new = event.should_restart() || matches!(event.kind, EventKind::Appeared { .. });
    is_new.then_some(match event.kind.holder() {
        Some(_) => HolderChange::New,
        None => HolderChange::Gone,
    })
}
