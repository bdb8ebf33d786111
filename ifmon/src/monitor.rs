//! The monitor: joins a backend to the tracker, and hands out what the tracker decides.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::SystemTime,
};

use futures_core::Stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    BackendKind, Counters, Error, Event, InterfaceName, InvalidName, Netns, NetnsId,
    backend::{self, Backend, Signal},
    tracker::{Device, Tracker, Verdict, Watch},
};

/// Events that wait for a slow reader. When they are read no faster than this, the kernel's queue fills, and what is
/// lost there is made good by reading the state again: memory does not grow.
const EVENTS: usize = 64;

/// Which backend to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The best that works: fentry, kprobe, netlink, netlink without a filter.
    #[default]
    Auto,
    /// fentry or kprobe.
    Ebpf,
    /// This one and no other.
    Only(BackendKind),
}

/// Says what to watch, and how.
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    watches: Vec<(Option<Netns>, Vec<InterfaceName>)>,
    invalid: Option<InvalidName>,
    choice: BackendChoice,
    receive_buffer: Option<u32>,
    open_filter: bool,
}

impl Builder {
    /// Watches an interface of the caller's own network namespace. A name that no interface can have fails at
    /// [`Builder::start`].
    pub fn watch(self, interface: impl AsRef<[u8]>) -> Self {
        self.add(None, [interface])
    }

    /// Watches interfaces of another network namespace.
    pub fn watch_in(
        self,
        netns: Netns,
        interfaces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Self {
        self.add(Some(netns), interfaces)
    }

    fn add(
        mut self,
        netns: Option<Netns>,
        interfaces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Self {
        let mut names = Vec::new();
        for interface in interfaces {
            match InterfaceName::new(interface) {
                Ok(name) => names.push(name),
                Err(error) => self.invalid = self.invalid.or(Some(error)),
            }
        }
        match self.watches.last_mut() {
            Some((None, same)) if netns.is_none() => same.extend(names),
            _ => self.watches.push((netns, names)),
        }
        self
    }

    /// Chooses the backend; [`BackendChoice::Auto`] if this is not called.
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.choice = choice;
        self
    }

    /// Bytes of the queue between the kernel and this process: the socket's receive buffer, or the ring buffer of the
    /// BPF backends (rounded up to a power of two of pages). 4 MiB and 256 KiB if this is not called.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Lets the BPF program send every change of every interface, to compare the filter with none. For tests.
    #[doc(hidden)]
    pub fn open_filter(mut self, open: bool) -> Self {
        self.open_filter = open;
        self
    }

    /// Makes the watches live.
    ///
    /// When this returns, the hooks or the subscription are in place and the state was read after that. The events begin
    /// with one [`Watching`](crate::EventKind::Watching) for each watch. Needs a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NothingToWatch`], and those of setting the backend up.
    pub async fn start(self) -> Result<Monitor, Error> {
        let Self {
            watches,
            invalid,
            choice,
            receive_buffer,
            open_filter,
        } = self;
        if let Some(error) = invalid {
            return Err(error.into());
        }
        let count = watches.iter().map(|(_, names)| names.len()).sum();
        if count == 0 {
            return Err(Error::NothingToWatch);
        }
        let mut backend = backend::open(choice, count, receive_buffer)?;
        backend.open_filter(open_filter)?;
        let kind = backend.kind();
        let (events, receiver) = mpsc::channel(EVENTS);
        let (commands, command_receiver) = mpsc::channel(1);
        let last_counters = Arc::new(OnceLock::new());
        let mut driver = Driver {
            last_counters: Arc::clone(&last_counters),
            backend,
            tracker: Tracker::default(),
            pending: VecDeque::new(),
            events,
            commands: command_receiver,
        };
        for (netns, names) in watches {
            let netns = netns.map_or_else(Netns::current, Ok)?;
            driver.watch(&netns, names)?;
        }
        let task = tokio::spawn(driver.run());
        Ok(Monitor {
            events: receiver,
            handle: Handle {
                commands,
                kind,
                last_counters,
            },
            task: task.abort_handle(),
        })
    }
}

/// Watches interfaces, and is a [`Stream`] of what happens to them. Dropping it ends the watch.
#[derive(Debug)]
pub struct Monitor {
    events: mpsc::Receiver<Result<Event, Error>>,
    handle: Handle,
    task: AbortHandle,
}

impl Monitor {
    /// Begins to say what to watch.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The next event. After an error there is nothing more. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        self.events.recv().await
    }

    /// Waits until an interface is no longer the one that its user set up, whatever else happens in between.
    ///
    /// What an engine behind a tunnel wants to know: restart if [`Event::should_restart`], and [`Event::error`] says
    /// why.
    ///
    /// # Errors
    /// Those of the watch itself; [`Error::Stopped`] when it was ended.
    pub async fn changed(&mut self) -> Result<Event, Error> {
        loop {
            match self.next().await {
                Some(Ok(event)) if event.should_restart() => return Ok(event),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Stopped),
            }
        }
    }

    /// The backend that was taken.
    pub const fn backend(&self) -> BackendKind {
        self.handle.kind
    }

    /// A handle to add and remove watches while the events are being read elsewhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Stream for Monitor {
    type Item = Result<Event, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().events.poll_recv(context)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Talks to a running [`Monitor`]. Works whether or not the events are being read.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    kind: BackendKind,
    /// What had been counted when the monitor ended by itself.
    last_counters: Arc<OnceLock<Counters>>,
}

#[derive(Debug)]
enum Command {
    Watch(
        Netns,
        Vec<InterfaceName>,
        oneshot::Sender<Result<(), Error>>,
    ),
    Unwatch(Watch, oneshot::Sender<bool>),
    Counters(oneshot::Sender<Counters>),
}

impl Handle {
    /// Begins to watch one more interface; its first event is `Watching`. A watch that is there already goes on.
    ///
    /// # Errors
    /// Those of reading its state; [`Error::Stopped`] when the monitor has ended.
    pub async fn watch(&self, netns: Netns, interface: InterfaceName) -> Result<(), Error> {
        self.ask(|reply| Command::Watch(netns, vec![interface], reply))
            .await?
    }

    /// Ends a watch; false when there was none.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor has ended.
    pub async fn unwatch(&self, netns: NetnsId, interface: InterfaceName) -> Result<bool, Error> {
        let watch = Watch {
            netns,
            name: interface,
        };
        self.ask(|reply| Command::Unwatch(watch, reply)).await
    }

    /// What the backend has counted so far, or had counted when the watch ended.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor was dropped.
    pub async fn counters(&self) -> Result<Counters, Error> {
        match self.ask(Command::Counters).await {
            Err(Error::Stopped) => self.last_counters.get().copied().ok_or(Error::Stopped),
            result => result,
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

/// The task behind a monitor.
struct Driver {
    backend: Backend,
    tracker: Tracker,
    /// Decided and not yet handed over; while there are any, the backend is not read.
    pending: VecDeque<Pending>,
    events: mpsc::Sender<Result<Event, Error>>,
    commands: mpsc::Receiver<Command>,
    last_counters: Arc<OnceLock<Counters>>,
}

/// Something to be handed over.
enum Pending {
    Event(Event),
    /// Watches that have begun, one event each. There may be thousands, so the events are made when they are wanted.
    Begun {
        netns: NetnsId,
        time: SystemTime,
        holders: std::vec::IntoIter<(InterfaceName, Option<u32>)>,
    },
}

enum Step {
    Command(Command),
    /// The first pending event was handed over.
    Handed,
    /// Nobody reads the events any more.
    Closed,
    Signals(Result<(), Error>),
}

impl Driver {
    async fn run(mut self) {
        let mut signals = Vec::new();
        loop {
            match self.step(&mut signals).await {
                Step::Command(command) => self.command(command),
                Step::Handed => {
                    self.advance();
                    if self.pending.is_empty() {
                        // What thousands of watches had to say at once needs no room for ever.
                        self.pending.shrink_to(EVENTS);
                    }
                }
                Step::Closed => return,
                Step::Signals(result) => {
                    let ended = self.apply(&mut signals).map(Error::NetnsGone);
                    if let Some(error) = result.err().or(ended) {
                        return self.end(error).await;
                    }
                }
            }
        }
    }

    /// Waits for whatever comes next.
    async fn step(&mut self, signals: &mut Vec<Signal>) -> Step {
        let Self {
            backend,
            tracker: _,
            pending,
            events,
            commands,
            last_counters: _,
        } = self;
        tokio::select! {
            biased;
            Some(command) = commands.recv() => Step::Command(command),
            permit = events.reserve(), if !pending.is_empty() => match (permit, pending.front()) {
                (Ok(permit), Some(pending)) => {
                    if let Some(event) = pending.event(backend.kind()) {
                        permit.send(Ok(event));
                    }
                    Step::Handed
                }
                _ => Step::Closed,
            },
            () = events.closed() => Step::Closed,
            result = backend.signals(signals), if pending.is_empty() => Step::Signals(result),
        }
    }

    /// Hands over what is left, then the error.
    async fn end(mut self, error: Error) {
        let _ = self.last_counters.set(self.backend.counters());
        while let Some(pending) = self.pending.front() {
            if let Some(event) = pending.event(self.backend.kind())
                && self.events.send(Ok(event)).await.is_err()
            {
                return;
            }
            self.advance();
        }
        let _ = self.events.send(Err(error)).await;
    }

    /// The first pending event was handed over.
    fn advance(&mut self) {
        if let Some(Pending::Begun { holders, .. }) = self.pending.front_mut() {
            holders.next();
            if holders.len() > 0 {
                return;
            }
        }
        self.pending.pop_front();
    }

    fn command(&mut self, command: Command) {
        // Whoever asked may have gone meanwhile.
        match command {
            Command::Watch(netns, names, reply) => {
                let _ = reply.send(self.watch(&netns, names));
            }
            Command::Unwatch(watch, reply) => {
                let watched = self.tracker.end(watch);
                if watched {
                    self.backend.unwatch(watch);
                }
                let _ = reply.send(watched);
            }
            Command::Counters(reply) => {
                let _ = reply.send(self.backend.counters());
            }
        }
    }

    fn watch(&mut self, netns: &Netns, mut names: Vec<InterfaceName>) -> Result<(), Error> {
        let watch = |name| Watch {
            netns: netns.id(),
            name,
        };
        let mut seen = std::collections::HashSet::new();
        names.retain(|&name| seen.insert(name) && !self.tracker.is_watching(watch(name)));
        let mut signals = Vec::new();
        let holders = self.backend.watch(netns, &names, &mut signals)?;
        self.apply(&mut signals);
        let begun = names.iter().zip(&holders);
        self.tracker
            .begin_all(begun.map(|(&name, &holder)| (watch(name), holder)));
        let ifindex = |holder: Option<Device>| holder.map(|device| device.ifindex);
        let holders: Vec<_> = names
            .into_iter()
            .zip(holders.into_iter().map(ifindex))
            .collect();
        if !holders.is_empty() {
            self.pending.push_back(Pending::Begun {
                netns: netns.id(),
                time: SystemTime::now(),
                holders: holders.into_iter(),
            });
        }
        Ok(())
    }

    /// Lets the tracker decide on signals. Some when a namespace ended and nothing is left to watch.
    fn apply(&mut self, signals: &mut Vec<Signal>) -> Option<NetnsId> {
        let mut verdicts = Vec::new();
        let mut ended = None;
        for signal in signals.drain(..) {
            let gone = match signal {
                Signal::NetnsGone { netns, .. } => Some(netns),
                _ => None,
            };
            let (time, by) = signal.decide(&mut self.tracker, &mut verdicts);
            if gone.is_some() && self.tracker.watches().next().is_none() {
                ended = gone;
            }
            for verdict in verdicts.drain(..) {
                let event = event(verdict, time, by.clone(), self.backend.kind());
                self.pending.push_back(Pending::Event(event));
            }
        }
        ended
    }
}

impl Pending {
    /// The event to be handed over next.
    fn event(&self, backend: BackendKind) -> Option<Event> {
        match self {
            Self::Event(event) => Some(event.clone()),
            Self::Begun {
                netns,
                time,
                holders,
            } => {
                let &(name, ifindex) = holders.as_slice().first()?;
                let watch = Watch {
                    netns: *netns,
                    name,
                };
                let verdict = Verdict::watching(watch, ifindex);
                Some(event(verdict, *time, None, backend))
            }
        }
    }
}

fn event(
    verdict: Verdict,
    time: SystemTime,
    by: Option<crate::Actor>,
    backend: BackendKind,
) -> Event {
    let Verdict {
        watch: Watch { netns, name },
        kind,
        recovered,
    } = verdict;
    Event {
        time,
        interface: name,
        netns,
        kind,
        backend,
        by,
        recovered,
    }
}
