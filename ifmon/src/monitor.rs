//! The monitor, as a caller sees it.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    BackendKind, Counters, Error, Event, InterfaceName, Netns, NetnsId, Pattern, Target,
    Unavailable,
    backend::{self, AgentChoice, needs_number},
    driver::{HandleCommand, Mailbox},
    engine::Targets,
    target::NameOrPattern,
    tracker::Watch,
};

/// Which backend to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The best that works: fentry, kprobe, netlink-ebpf, the agent of the host, netlink, netlink
    /// without a filter.
    #[default]
    Auto,
    /// The best that works of fentry, kprobe and netlink-ebpf.
    Ebpf,
    /// This one and no other.
    Only(BackendKind),
}

/// Says what to watch, and how.
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    targets: Vec<Target>,
    error: Option<Error>,
    options: backend::Options,
    agent: AgentChoice,
}

impl Builder {
    /// Watches an interface: a name in the caller's own network namespace, or a [`Target`]. A name
    /// that no interface can have fails at [`Builder::start`].
    pub fn watch(self, target: impl TryInto<Target, Error: Into<Error>>) -> Self {
        self.watch_all([target])
    }

    /// The same for many.
    pub fn watch_all<T: TryInto<Target, Error: Into<Error>>>(
        mut self,
        targets: impl IntoIterator<Item = T>,
    ) -> Self {
        match collect(targets) {
            Ok(targets) => self.targets.extend(targets),
            Err(error) => self.error = self.error.or(Some(error)),
        }
        self
    }

    /// Watches interfaces of another network namespace.
    pub fn watch_in(
        self,
        netns: Netns,
        interfaces: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Self {
        self.watch_all(
            interfaces
                .into_iter()
                .map(|name| InNetns(name, netns.clone())),
        )
    }

    /// Chooses the backend; [`BackendChoice::Auto`] if this is not called.
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.options.choice = choice;
        self
    }

    /// Asks the agent that listens on this socket; the one at `/run/ifmon/io.ifmon` if this is not
    /// called.
    ///
    /// [`BackendChoice::Auto`] asks an agent where no BPF program can be loaded. While it is away,
    /// as in an upgrade, netlink stands in for it: [`Resynced`](crate::EventKind::Resynced) tells of
    /// each change from one to the other.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = AgentChoice::At(path.into());
        self
    }

    /// Asks no agent.
    pub fn without_agent(mut self) -> Self {
        self.agent = AgentChoice::Nobody;
        self
    }

    /// Makes room for this many watches, if that is more than there are at the start. The BPF
    /// backends cannot make more room later: they have room for 1,024, or for as many as are asked
    /// for here (1,048,576 at most) or watched at the start. Where the kernel does not grant the memory, as
    /// by the limit on locked memory before Linux 5.11, it is 8 in place of 1,024.
    pub fn capacity(mut self, watches: usize) -> Self {
        self.options.capacity = watches;
        self
    }

    /// Makes room for patterns in this many network namespaces, if that is more than there are at
    /// the start. The BPF backends cannot make more room later: their programs for patterns take
    /// longer to be loaded, so that where this is not called, and the start has none, they are
    /// those for names alone, and [`Handle::watch`] refuses a pattern. 65,536 at most.
    pub fn pattern_capacity(mut self, namespaces: usize) -> Self {
        self.options.patterns = namespaces;
        self
    }

    /// Bytes of the queue between the kernel and this process: the socket's receive buffer, or the
    /// ring buffer of the BPF backends (rounded up to a power of two of pages). 4 MiB and 256
    /// KiB if this is not called, or 4 KiB where the kernel does not grant more (see
    /// [`Builder::capacity`]); 1 GiB at most. An agent has queues of its own.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.options.receive_buffer = Some(bytes);
        self
    }

    /// Lets the BPF program send every change of every interface, to compare the filter with none.
    /// For tests.
    #[doc(hidden)]
    pub fn open_filter(mut self, open: bool) -> Self {
        self.options.open_filter = open;
        self
    }

    /// Makes the watches live.
    ///
    /// When this returns, the hooks or the subscription are in place and the state was read after
    /// that. The events begin with one [`Watching`](crate::EventKind::Watching) for each watch.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NothingToWatch`], [`Error::OutOfRange`], and those of setting
    /// the backend up.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub async fn start(self) -> Result<Monitor, Error> {
        let Self {
            targets,
            error,
            mut options,
            mut agent,
        } = self;
        if let Some(error) = error {
            return Err(error);
        }
        if targets.is_empty() {
            return Err(Error::NothingToWatch);
        }
        let bytes = options.receive_buffer.map(|bytes| bytes as usize);
        for (setting, range, wanted) in [
            ("capacity", 0..=MOST_WATCHES, Some(options.capacity)),
            (
                "pattern_capacity",
                0..=MOST_NAMESPACES,
                Some(options.patterns),
            ),
            ("receive_buffer", 1..=MOST_BYTES, bytes),
        ] {
            if wanted.is_some_and(|wanted| !range.contains(&wanted)) {
                return Err(Error::OutOfRange {
                    setting,
                    least: *range.start(),
                    most: *range.end(),
                });
            }
        }
        // Of an agent only names can be asked, and only text.
        let can_ask = |target: &Target| {
            let name = target.name();
            name.is_some_and(|name| std::str::from_utf8(name.as_bytes()).is_ok())
        };
        if options.choice == BackendChoice::Auto && !targets.iter().all(can_ask) {
            agent = AgentChoice::Nobody;
        }
        options.everywhere = targets.iter().any(|target| target.is_everywhere);
        let is_pattern = |target: &&Target| target.name().is_none();
        let patterns = targets.iter().filter(is_pattern).count();
        options.patterns = options.patterns.max(patterns);
        options.capacity = options.capacity.max(targets.len() - patterns);
        // Without a timer it panics now, and not at the first failure that is worth a second attempt.
        drop(tokio::time::sleep(Duration::ZERO));
        let home = Netns::current()?.unopened();
        let is_numberless = |target: &Target| {
            let netns = target.netns.as_ref().unwrap_or(&home);
            !target.is_everywhere && netns.id() == NetnsId(0)
        };
        options.numberless = targets.iter().any(is_numberless);
        let shared = Arc::new(Mailbox::default());
        let (commands, receiver) = mpsc::channel(1);
        let (kind, task) = backend::start(options, &agent, receiver, Arc::clone(&shared))?;
        let monitor = Monitor {
            handle: Handle {
                commands,
                kind,
                shared,
                home,
            },
            task,
        };
        monitor.handle.watch_all(targets).await?;
        Ok(monitor)
    }
}

/// More than any host has, and what the kernel can do with.
const MOST_WATCHES: usize = 1 << 20;
const MOST_NAMESPACES: usize = 1 << 16;
const MOST_BYTES: usize = 1 << 30;

/// A name in a namespace, still to be checked.
struct InNetns<T>(T, Netns);

impl<T: AsRef<[u8]>> TryFrom<InNetns<T>> for Target {
    type Error = Error;

    fn try_from(InNetns(name, netns): InNetns<T>) -> Result<Self, Error> {
        Ok(Self::new(name)?.in_netns(netns))
    }
}

/// Watches that begin together.
#[derive(Debug)]
enum Group {
    Names(Targets),
    Patterns(Vec<Pattern>),
}

fn collect<T: TryInto<Target, Error: Into<Error>>>(
    targets: impl IntoIterator<Item = T>,
) -> Result<Vec<Target>, Error> {
    targets
        .into_iter()
        .map(|target| target.try_into().map_err(Into::into))
        .collect()
}

/// Watches interfaces, and is a [`Stream`] of what happens to them. Dropping it ends the watch.
#[derive(Debug)]
pub struct Monitor {
    handle: Handle,
    task: AbortHandle,
}

impl Monitor {
    /// Begins to say what to watch.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The next event. After an error there is nothing more. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        std::future::poll_fn(|context| self.handle.shared.poll_next(context)).await
    }

    /// Waits until an interface is no longer the one that its user set up, whatever else happens in
    /// between.
    ///
    /// What an engine behind a tunnel wants to know: restart if [`Event::should_restart`], and
    /// [`Event::error`] says why.
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
        self.handle.shared.poll_next(context)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Talks to a running [`Monitor`]. But for [`Handle::sync`], it works whether or not the events are
/// being read.
///
/// What is asked comes after all that happened before. Of a watch that ends nothing is told after
/// that, nor what nobody had read until then: who wants that, asks for [`Handle::sync`] first. What is
/// asked may be done although its future was dropped; to ask again does no harm.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<HandleCommand>,
    kind: BackendKind,
    shared: Arc<Mailbox>,
    /// Where the monitor was started.
    home: Netns,
}

impl Handle {
    /// Begins to watch one more interface; its first event is `Watching`. A watch that is there
    /// already goes on.
    ///
    /// # Errors
    /// [`Error::InvalidName`] and [`Error::InvalidPattern`]; [`Error::Netns`] and [`Error::Subscribe`]
    /// when its network namespace cannot be entered; [`Error::Recheck`] when its state cannot be read;
    /// [`Error::Filter`] when a BPF backend has no room for one more (see [`Builder::capacity`]);
    /// [`Error::Unavailable`], [`Error::AllNamespaces`] and [`Error::Agent`] when the backend or the agent
    /// does not do it; [`Error::Stopped`] when the monitor has ended.
    pub async fn watch(
        &self,
        target: impl TryInto<Target, Error: Into<Error>>,
    ) -> Result<(), Error> {
        self.watch_all([target]).await
    }

    /// The same for many at once, which takes less than one after the other.
    ///
    /// # Errors
    /// As [`Handle::watch`]. Names of one network namespace that follow each other begin together or not
    /// at all; those before them have begun, and go on.
    pub async fn watch_all<T: TryInto<Target, Error: Into<Error>>>(
        &self,
        targets: impl IntoIterator<Item = T>,
    ) -> Result<(), Error> {
        let mut own = None;
        let mut groups: Vec<(Netns, Group)> = Vec::new();
        let mut everywhere = Vec::new();
        for Target {
            what,
            netns,
            is_everywhere,
            expected,
        } in collect(targets)?
        {
            if is_everywhere && let NameOrPattern::Pattern(pattern) = what {
                everywhere.push(pattern);
                continue;
            }
            let netns = match (netns, &own) {
                (Some(netns), _) => netns,
                (None, Some(own)) => Netns::clone(own),
                (None, None) => own.insert(Netns::current_or(&self.home)?).clone(),
            };
            needs_number(self.kind, netns.id()).map_err(|reason| Error::Unavailable {
                backend: self.kind,
                reason,
            })?;
            // In the order in which they were named, but for patterns of all namespaces, which come first.
            let last = groups
                .last_mut()
                .filter(|(last, _)| last.id() == netns.id());
            match (what, last) {
                (NameOrPattern::Name(name), Some((_, Group::Names(targets)))) => {
                    targets.push((name, expected));
                }
                (NameOrPattern::Pattern(pattern), Some((_, Group::Patterns(patterns)))) => {
                    patterns.push(pattern);
                }
                (NameOrPattern::Name(name), _) => {
                    groups.push((netns, Group::Names(vec![(name, expected)])));
                }
                (NameOrPattern::Pattern(pattern), _) => {
                    groups.push((netns, Group::Patterns(vec![pattern])));
                }
            }
        }
        if !everywhere.is_empty() {
            if self.kind.keeps_netns_alive() {
                return Err(Error::Unavailable {
                    backend: self.kind,
                    reason: Unavailable::OneNamespace,
                });
            }
            self.ask(|reply| HandleCommand::WatchPatterns(None, everywhere, reply))
                .await??;
        }
        for (netns, group) in groups {
            self.ask(|reply| match group {
                Group::Names(targets) => HandleCommand::Watch(netns, targets, reply),
                Group::Patterns(patterns) => {
                    HandleCommand::WatchPatterns(Some(netns), patterns, reply)
                }
            })
            .await??;
        }
        Ok(())
    }

    /// Ends the watch of a pattern; false when there was none. Kinds belong to the pattern (see
    /// [`Pattern::of_kinds`]). One of all namespaces is that of [`NetnsId::ALL`], as is a name that was
    /// watched there. Nothing of it is handed out after that.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor has ended.
    pub async fn unwatch_pattern(&self, netns: NetnsId, pattern: Pattern) -> Result<bool, Error> {
        self.ask(|reply| HandleCommand::UnwatchPattern(netns, pattern, reply))
            .await
    }

    /// Ends a watch; false when there was none. Nothing of it is handed out after that.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor has ended.
    pub async fn unwatch(&self, netns: NetnsId, interface: InterfaceName) -> Result<bool, Error> {
        let watch = Watch {
            netns,
            name: interface,
        };
        self.ask(|reply| HandleCommand::Unwatch(watch, reply)).await
    }

    /// Returns when everything that happened before the call was handed out by the monitor, whose
    /// events somebody has to read meanwhile.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor has ended.
    pub async fn sync(&self) -> Result<(), Error> {
        self.ask(HandleCommand::Sync).await
    }

    /// What the backend has counted so far, or had counted when the watch ended. Netlink counts what
    /// was read, which waits for whoever reads the events.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the monitor was dropped.
    pub async fn counters(&self) -> Result<Counters, Error> {
        match self.ask(HandleCommand::Count).await {
            Err(Error::Stopped) => {
                let last = self.shared.last_counters.get();
                last.copied().ok_or(Error::Stopped)
            }
            result => result,
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> HandleCommand,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_as_they_are_at_hand() {
        assert_eq!(collect(["lo", "wg0"]).map(|all| all.len()).ok(), Some(2));
        assert_eq!(collect(&["lo", "wg0"]).map(|all| all.len()).ok(), Some(2));
        let owned = ["lo".to_owned()];
        assert_eq!(collect(&owned).map(|all| all.len()).ok(), Some(1));
    }

    #[tokio::test]
    async fn a_number_that_is_out_of_range_is_named() {
        let builder = || Monitor::builder().watch("lo");
        for (builder, named) in [
            (builder().receive_buffer(0), "receive_buffer"),
            (builder().receive_buffer(u32::MAX), "receive_buffer"),
            (builder().capacity(usize::MAX), "capacity"),
            (builder().pattern_capacity(usize::MAX), "pattern_capacity"),
        ] {
            let error = builder.start().await.expect_err("no backend can do that");
            assert!(
                matches!(error, Error::OutOfRange { setting, .. } if setting == named),
                "{error}"
            );
        }
    }
}
