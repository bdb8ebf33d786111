//! Hooks: a command for each event, one at a time and in order.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use ifmon::Handle;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::feedback::{Depth, Feedback};
use crate::cli::{
    children::{Children, Job, ShellCommand},
    state::Unfinished,
    watches::WatchKey,
};

/// Events that wait for the hook. When it is slower than this, events are no longer read, and what
/// the kernel then drops is made good by reading the state again.
const WAITING: usize = 256;

/// The queue of hooks and the task that runs them.
#[derive(Debug)]
pub(crate) struct Hooks {
    /// Closed when no more will come.
    queue: Option<mpsc::UnboundedSender<QueuedHook>>,
    feedback: Arc<Mutex<Feedback>>,
    waiting: Arc<Waiting>,
    /// Until it was seen to end.
    runner: Option<JoinHandle<()>>,
}

/// A hook that is to be run.
#[derive(Debug)]
struct QueuedHook {
    job: Job,
    /// The watch that it is to restart something for, unless the change is the hook's own doing.
    restarts: Option<(WatchKey, Depth)>,
    told: Option<Unfinished>,
}

/// How many wait.
#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    fell: Notify,
}

impl Hooks {
    pub(crate) fn new(children: Children, shell: ShellCommand, monitor: Handle) -> Self {
        let (queue, mut hooks) = mpsc::unbounded_channel::<QueuedHook>();
        let waiting = Arc::<Waiting>::default();
        let left = Arc::clone(&waiting);
        let feedback = Arc::<Mutex<Feedback>>::default();
        let runs = Arc::clone(&feedback);
        let runner = tokio::spawn(async move {
            while let Some(QueuedHook {
                job,
                restarts,
                told,
            }) = hooks.recv().await
            {
                let run = restarts.map(|(watch, depth)| lock(&runs).begins(watch, depth));
                children.run(&shell, job).await;
                drop(told);
                if let Some(run) = run {
                    let (monitor, runs) = (monitor.clone(), Arc::clone(&runs));
                    // Not awaited here: what happened is told only while hooks are taken.
                    tokio::spawn(async move {
                        // When the monitor has ended, nothing more is told.
                        let _ = monitor.sync().await;
                        lock(&runs).ended(run);
                    });
                }
                left.count.fetch_sub(1, Ordering::Relaxed);
                left.fell.notify_one();
            }
        });
        Self {
            queue: Some(queue),
            feedback,
            waiting,
            runner: Some(runner),
        }
    }

    /// Queues the hook for an event; with the watch, when that calls for a restart. That never
    /// waits, so that none is lost when the end comes meanwhile.
    pub(crate) fn push(&self, mut job: Job, restarts: Option<WatchKey>, told: Option<Unfinished>) {
        let Some(queue) = &self.queue else {
            return;
        };
        let restarts = restarts.and_then(|watch| {
            let depth = lock(&self.feedback).told(watch);
            if depth.is_own() {
                log::warn!(
                    "{} changed while its hook ran, twice in a row: taken for the hook's own \
                     doing, with IFMON_RESTART=false; to restart something, use --on-restart",
                    watch.1
                );
                job.no_restart();
                return None;
            }
            Some((watch, depth))
        });
        self.waiting.count.fetch_add(1, Ordering::Relaxed);
        // The runner ends only when the queue does.
        let _ = queue.send(QueuedHook {
            job,
            restarts,
            told,
        });
    }

    /// Shall more events be read?
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.count.load(Ordering::Relaxed) < WAITING
    }

    /// Waits until more events shall be read.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.waiting.fell.notified().await;
        }
    }

    /// Waits until every queued hook has run.
    pub(crate) async fn finish(&mut self) {
        self.queue = None;
        self.join().await;
    }

    /// Ends the hook that runs; no other begins.
    pub(crate) async fn kill(&mut self) {
        if let Some(runner) = &self.runner {
            runner.abort();
        }
        self.join().await;
    }

    /// Nothing is lost when the future is dropped.
    async fn join(&mut self) {
        if let Some(runner) = &mut self.runner {
            let _ = runner.await;
            self.runner = None;
        }
    }
}

fn lock(feedback: &Mutex<Feedback>) -> MutexGuard<'_, Feedback> {
    feedback.lock().unwrap_or_else(PoisonError::into_inner)
}
