//! Hooks: a command for each event, one at a time and in order.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use crate::cli::{
    children::{Children, Job, Shell},
    state::Told,
};

/// Events that wait for the hook. When it is slower than this, events are no longer read, and what
/// the kernel then drops is made good by reading the state again.
const WAITING: usize = 256;

/// The queue of hooks and the task that runs them.
#[derive(Debug)]
pub(crate) struct Hooks {
    /// Closed when no more will come.
    queue: Option<mpsc::UnboundedSender<(Job, Option<Told>)>>,
    waiting: Arc<Waiting>,
    runner: JoinHandle<()>,
}

/// How many wait.
#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    fell: Notify,
}

impl Hooks {
    pub(crate) fn new(children: Children, shell: Shell) -> Self {
        let (queue, mut jobs) = mpsc::unbounded_channel::<(Job, Option<Told>)>();
        let waiting = Arc::<Waiting>::default();
        let left = Arc::clone(&waiting);
        let runner = tokio::spawn(async move {
            while let Some((job, told)) = jobs.recv().await {
                children.run(&shell, job).await;
                drop(told);
                left.count.fetch_sub(1, Ordering::Relaxed);
                left.fell.notify_one();
            }
        });
        Self {
            queue: Some(queue),
            waiting,
            runner,
        }
    }

    /// Queues the hook for an event. That never waits, so that none is lost when the end comes
    /// meanwhile.
    pub(crate) fn push(&self, job: Job, told: Option<Told>) {
        if let Some(queue) = &self.queue {
            self.waiting.count.fetch_add(1, Ordering::Relaxed);
            // The runner ends only when the queue does.
            let _ = queue.send((job, told));
        }
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
        let _ = (&mut self.runner).await;
    }

    /// Ends the hook that runs; no other begins.
    pub(crate) async fn kill(&mut self) {
        self.runner.abort();
        let _ = (&mut self.runner).await;
    }
}
