//! The task behind a monitor: does what the engine asks for, and waits when it says so.
//!
//! Nothing that matters is kept here, so that nothing is lost with a future that is dropped.

use std::{
    collections::HashMap,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    Counters, Error, Event, Netns, NetnsId, Pattern,
    engine::{Ask, Asking, Engine, Output, Reply, Targets},
    machine::{Now, Source},
    outbox::{Item, Outbox},
    tracker::Watch,
};

/// After so many requests in a row others have their turn.
const REQUESTS_IN_A_ROW: u32 = 256;

/// The part of a backend that has descriptors. It does one thing at a time and decides nothing.
pub(crate) trait Shell {
    type Request;
    type Reply;

    /// The namespace that the next watches are in, to be opened if it is not open already; `None`
    /// when it is not needed any more.
    fn offer(&mut self, netns: Option<Netns>);
    /// Does something that does not wait.
    fn perform(&mut self, request: Self::Request) -> Self::Reply;
    /// Waits until something can be read. Nothing is lost when the future is dropped.
    async fn ready(&mut self, sources: &mut Vec<Source>) -> io::Result<()>;
}

/// What a handle asks for.
#[derive(Debug)]
pub(crate) enum HandleCommand {
    Watch(Netns, Targets, oneshot::Sender<Result<(), Error>>),
    /// In a namespace, or in all.
    WatchPatterns(
        Option<Netns>,
        Vec<Pattern>,
        oneshot::Sender<Result<(), Error>>,
    ),
    Unwatch(Watch, oneshot::Sender<bool>),
    UnwatchPattern(NetnsId, Pattern, oneshot::Sender<bool>),
    /// Answered when all that happened before was taken by the reader.
    Sync(oneshot::Sender<()>),
    Count(oneshot::Sender<Counters>),
}

/// Whom to reply to.
#[derive(Debug)]
enum Asker {
    Watch(oneshot::Sender<Result<(), Error>>),
    Unwatch(oneshot::Sender<bool>),
    Count(oneshot::Sender<Counters>),
    Sync,
}

/// Between the task and the reader.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
    /// The reader has taken something.
    taken: Notify,
    /// What had been counted when the monitor ended by itself.
    pub(crate) last_counters: OnceLock<Counters>,
}

#[derive(Debug, Default)]
struct MailboxState {
    outbox: Outbox,
    reader: Option<Waker>,
    /// Whoever waits for a mark to be taken.
    marks: HashMap<u64, oneshot::Sender<()>>,
    mark: u64,
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next event for the reader.
    pub(crate) fn poll_next(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Event, Error>>> {
        let mut state = self.state();
        loop {
            let was_full = state.outbox.is_full();
            let item = state.outbox.pop();
            if was_full && !state.outbox.is_full() {
                self.taken.notify_one();
            }
            return match item {
                Some(Item::Event(event)) => Poll::Ready(Some(Ok(event))),
                Some(Item::Error(error)) => Poll::Ready(Some(Err(error))),
                Some(Item::Mark(mark)) => {
                    if let Some(asker) = state.marks.remove(&mark) {
                        // Whoever asked may have gone meanwhile.
                        let _ = asker.send(());
                        // It has its turn before the next event, which came later.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                None if state.outbox.has_ended() => Poll::Ready(None),
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        }
    }

    fn wake_reader(state: &mut MailboxState) {
        if (!state.outbox.is_empty() || state.outbox.has_ended())
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
    }
}

/// The reader is told when the task ends, however it ends.
struct EndOfTask(Arc<Mailbox>);

impl Drop for EndOfTask {
    fn drop(&mut self) {
        let Self(shared) = self;
        let mut state = shared.state();
        if thread::panicking() {
            let error = io::Error::other("the task of the monitor was ended by a panic");
            state.outbox.end(Error::Ended(error));
        }
        state.outbox.close();
        state.marks.clear();
        Mailbox::wake_reader(&mut state);
    }
}

/// Runs the engine until nobody needs it any more.
pub(crate) async fn run<M, S>(
    mut engine: Engine<M>,
    mut shell: S,
    mut commands: mpsc::Receiver<HandleCommand>,
    shared: Arc<Mailbox>,
) where
    M: Asking,
    S: Shell<Request = M::Request, Reply = M::Answer>,
{
    let _end = EndOfTask(Arc::clone(&shared));
    let clock = Clock::new();
    let mut asker = None;
    let mut sources = Vec::new();
    let mut busy = 0;
    loop {
        let now = clock.now();
        let (output, is_unread) = {
            let mut state = shared.state();
            let output = engine.poll(&now, &mut state.outbox);
            Mailbox::wake_reader(&mut state);
            (output, !state.outbox.is_empty())
        };
        busy += 1;
        if busy > REQUESTS_IN_A_ROW {
            busy = 0;
            tokio::task::yield_now().await;
        }
        let wake_up = match output {
            Output::Request(request) => {
                engine.answer(&now, shell.perform(request));
                continue;
            }
            Output::Background(request) => {
                if is_unread {
                    // What is known is told before more is asked.
                    tokio::task::yield_now().await;
                }
                engine.answer(&now, shell.perform(request));
                continue;
            }
            Output::Reply(reply) => {
                shell.offer(None);
                give(asker.take(), reply);
                continue;
            }
            Output::End(counters) => {
                let _ = shared.last_counters.set(counters);
                return;
            }
            // Which may be for nothing: something can be there that is not read.
            Output::Wait(until) => {
                wait(&mut engine, &mut shell, &mut sources, &mut commands, until).await
            }
            Output::Full => {
                busy = 0;
                tokio::select! {
                    biased;
                    command = commands.recv() => WakeUp::Command(command),
                    () = shared.taken.notified() => WakeUp::Other,
                }
            }
        };
        match wake_up {
            WakeUp::Command(Some(command)) => {
                asker = Some(ask(command, &mut engine, &mut shell, &shared));
            }
            // The monitor and all handles are gone.
            WakeUp::Command(None) => return,
            WakeUp::Other => {}
        }
    }
}

enum WakeUp {
    Command(Option<HandleCommand>),
    Other,
}

/// Waits until there is something to do.
async fn wait<M, S>(
    engine: &mut Engine<M>,
    shell: &mut S,
    sources: &mut Vec<Source>,
    commands: &mut mpsc::Receiver<HandleCommand>,
    until: Option<Instant>,
) -> WakeUp
where
    M: Asking,
    S: Shell<Request = M::Request, Reply = M::Answer>,
{
    let deadline = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        ready = shell.ready(sources) => {
            if let Err(error) = ready {
                engine.cannot_wait(error);
            }
            for source in sources.drain(..) {
                engine.machine.ready(source);
            }
            WakeUp::Other
        }
        command = commands.recv(), if engine.is_free() => WakeUp::Command(command),
        () = deadline => WakeUp::Other,
    }
}

/// Hands a command to the engine; says who wants the reply.
fn ask<M, S>(
    command: HandleCommand,
    engine: &mut Engine<M>,
    shell: &mut S,
    shared: &Mailbox,
) -> Asker
where
    M: Asking,
    S: Shell<Request = M::Request, Reply = M::Answer>,
{
    match command {
        HandleCommand::Watch(netns, targets, asker) => {
            engine.ask(Ask::Watch {
                netns: netns.id(),
                targets,
            });
            shell.offer(Some(netns));
            Asker::Watch(asker)
        }
        HandleCommand::WatchPatterns(netns, patterns, asker) => {
            engine.ask(Ask::WatchPatterns {
                netns: netns.as_ref().map_or(NetnsId::ALL, Netns::id),
                patterns,
            });
            shell.offer(netns);
            Asker::Watch(asker)
        }
        HandleCommand::UnwatchPattern(netns, pattern, asker) => {
            engine.ask(Ask::UnwatchPattern(netns, pattern));
            Asker::Unwatch(asker)
        }
        HandleCommand::Unwatch(watch, asker) => {
            engine.ask(Ask::Unwatch(watch));
            Asker::Unwatch(asker)
        }
        HandleCommand::Sync(asker) => {
            let mut state = shared.state();
            let MailboxState {
                outbox,
                marks,
                mark,
                ..
            } = &mut *state;
            // While nobody reads, whoever gave up can ask again and again.
            marks.retain(|_, asker| !asker.is_closed());
            outbox.keep_marks(|mark| marks.contains_key(&mark));
            *mark += 1;
            let mark = *mark;
            marks.insert(mark, asker);
            engine.ask(Ask::Sync(mark));
            Asker::Sync
        }
        HandleCommand::Count(asker) => {
            engine.ask(Ask::Count);
            Asker::Count(asker)
        }
    }
}

/// Replies to whoever asked, who may have gone meanwhile.
fn give(asker: Option<Asker>, reply: Reply) {
    match (asker, reply) {
        (Some(Asker::Watch(asker)), Reply::Watched(result)) => drop(asker.send(result)),
        (Some(Asker::Unwatch(asker)), Reply::Unwatched(found)) => drop(asker.send(found)),
        (Some(Asker::Count(asker)), Reply::Counted(counters)) => drop(asker.send(counters)),
        // Replied to when the mark is taken.
        (Some(Asker::Sync), Reply::Synced) => {}
        (asker, reply) => debug_assert!(false, "{reply:?} to {asker:?}"),
    }
}

/// Reads the time.
struct Clock {
    /// How far `CLOCK_BOOTTIME` of this process is ahead of the kernel's own, in a time namespace.
    offset: Offset,
}

#[derive(Clone, Copy)]
enum Offset {
    Ahead(Duration),
    Behind(Duration),
}

impl Clock {
    fn new() -> Self {
        Self {
            offset: boot_offset().unwrap_or(Offset::Ahead(Duration::ZERO)),
        }
    }

    fn now(&self) -> Now {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot = Duration::new(boot.tv_sec.unsigned_abs(), boot.tv_nsec as u32);
        Now {
            instant: Instant::now(),
            wall: SystemTime::now(),
            boot: match self.offset {
                Offset::Ahead(offset) => boot.saturating_sub(offset),
                Offset::Behind(offset) => boot.saturating_add(offset),
            },
        }
    }
}

/// The offset of the boot clock in the time namespace of this process (`time_namespaces(7)`).
fn boot_offset() -> Option<Offset> {
    // The file tells of the namespace of children. That of this process is the same, unless it made
    // a new one and has not moved there: then its own clocks are not shifted by these numbers.
    let of = |link: &str| fs::read_link(link).ok();
    if of("/proc/self/ns/time")? != of("/proc/self/ns/time_for_children")? {
        return None;
    }
    let offsets = fs::read_to_string("/proc/self/timens_offsets").ok()?;
    let line = offsets.lines().find(|line| line.starts_with("boottime"))?;
    let mut numbers = line.split_whitespace().skip(1);
    let seconds: i64 = numbers.next()?.parse().ok()?;
    let nanoseconds: i64 = numbers.next()?.parse().ok()?;
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let size = Duration::from_nanos(u64::try_from(total.unsigned_abs()).ok()?);
    Some(if total < 0 {
        Offset::Behind(size)
    } else {
        Offset::Ahead(size)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::sync::{mpsc, oneshot};

    use super::{HandleCommand, Mailbox, Shell, run};
    use crate::{
        BackendKind, Counters, Error, Netns, NetnsId,
        engine::{Asking, Engine},
        machine::{self, Answer, Machine, Now, Outcome, Question, Source, Step},
        outbox::Item,
    };

    /// Has nothing to say.
    #[derive(Debug, Default)]
    struct Idle {
        outcome: Option<Outcome>,
    }

    impl Machine for Idle {
        type Request = ();
        type Answer = ();

        fn poll(&mut self, _: &Now) -> Step<()> {
            self.outcome.take().map_or(Step::Wait(None), Step::Done)
        }

        fn answer(&mut self, _: &Now, (): ()) {}

        fn ready(&mut self, _: Source) {}

        fn command(&mut self, command: machine::Command) {
            self.outcome = match command {
                machine::Command::Count => Some(Outcome::Counted(Counters::default())),
                machine::Command::Sync => Some(Outcome::Synced),
                _ => None,
            };
        }
    }

    impl Asking for Idle {
        fn ask(_: NetnsId, _: Question) {}

        fn answered((): ()) -> Option<Answer> {
            None
        }
    }

    /// Its wait ends so.
    struct Waiting<F>(F);

    impl<F: AsyncFnMut() -> io::Result<()>> Shell for Waiting<F> {
        type Request = ();
        type Reply = ();

        fn offer(&mut self, _: Option<Netns>) {}

        fn perform(&mut self, (): ()) {}

        async fn ready(&mut self, _: &mut Vec<Source>) -> io::Result<()> {
            let Self(wait) = self;
            wait().await
        }
    }

    #[tokio::test]
    async fn whoever_gives_a_sync_up_leaves_nothing_behind() {
        let shared = Arc::new(Mailbox::default());
        let (asker, commands) = mpsc::channel(1);
        let engine = Engine::new(BackendKind::Netlink, Idle::default());
        let hears_nothing = Waiting(async || std::future::pending().await);
        tokio::spawn(run(engine, hears_nothing, commands, Arc::clone(&shared)));
        let (sender, mut awaited) = oneshot::channel();
        asker
            .send(HandleCommand::Sync(sender))
            .await
            .expect("it runs");
        for _ in 0..100 {
            let (sender, _) = oneshot::channel();
            asker
                .send(HandleCommand::Sync(sender))
                .await
                .expect("it runs");
        }
        let (sender, counted) = oneshot::channel();
        asker
            .send(HandleCommand::Count(sender))
            .await
            .expect("it runs");
        counted.await.expect("it counts");
        assert_eq!(shared.state().outbox.len(), 2, "its mark, and the last");
        assert_eq!(shared.state().marks.len(), 2);
        let next = poll_fn(|context| {
            // Takes the marks on its way to nothing.
            std::task::Poll::Ready(shared.poll_next(context).is_pending())
        });
        assert!(next.await);
        assert_eq!(awaited.try_recv(), Ok(()));
    }

    /// What came after it must not be taken for what came before.
    #[tokio::test]
    async fn whoever_waits_for_a_sync_has_its_turn_before_the_next_event() {
        let shared = Arc::new(Mailbox::default());
        let (sender, mut awaited) = oneshot::channel();
        {
            let mut state = shared.state();
            state.marks.insert(1, sender);
            state.outbox.push(Item::Mark(1));
            let next = io::Error::other("what comes after it");
            state.outbox.push(Item::Error(Error::Wait(next)));
        }
        let mut turns = Vec::new();
        poll_fn(|context| {
            let next = shared.poll_next(context);
            turns.push((awaited.try_recv().is_ok(), next.is_ready()));
            next
        })
        .await;
        assert_eq!(turns, [(true, false), (false, true)]);
    }

    /// Nobody has stopped it, so it is not told as if somebody had.
    #[tokio::test]
    async fn a_task_that_panics_ends_the_monitor_with_an_error() {
        let shared = Arc::new(Mailbox::default());
        let (_asker, commands) = mpsc::channel(1);
        let engine = Engine::new(BackendKind::Netlink, Idle::default());
        let is_broken = Waiting(async || panic!("a fault in a shell"));
        let task = tokio::spawn(run(engine, is_broken, commands, Arc::clone(&shared)));
        assert!(task.await.is_err_and(|error| error.is_panic()));
        let first = poll_fn(|context| shared.poll_next(context)).await;
        let Some(Err(error)) = first else {
            panic!("no reason was told: {first:?}");
        };
        assert!(error.should_restart(), "{error}");
    }

    #[tokio::test]
    async fn a_wait_that_fails_ends_the_monitor_with_the_reason() {
        let shared = Arc::new(Mailbox::default());
        let waits = Arc::new(AtomicU32::new(0));
        let (_asker, commands) = mpsc::channel(1);
        let engine = Engine::new(BackendKind::Netlink, Idle::default());
        let counted = Arc::clone(&waits);
        let is_deaf = Waiting(async move || {
            let before = counted.fetch_add(1, Ordering::Relaxed);
            assert!(before < 100, "it goes on waiting for what fails");
            Err(io::Error::from_raw_os_error(libc::EBADF))
        });
        tokio::spawn(run(engine, is_deaf, commands, Arc::clone(&shared)));
        let first = poll_fn(|context| shared.poll_next(context)).await;
        assert!(
            matches!(first, Some(Err(Error::Wait(_)))),
            "the reason was not told: {first:?}"
        );
        let second = poll_fn(|context| shared.poll_next(context)).await;
        assert!(second.is_none(), "more was told: {second:?}");
        assert_eq!(waits.load(Ordering::Relaxed), 1, "it waited again");
    }
}
