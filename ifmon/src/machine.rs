//! The shape of a backend's deciding part: a state machine without I/O.
//!
//! A machine owns no descriptor, reads no clock and waits for nothing. Whoever runs it asks it what
//! to do next ([`Machine::poll`]), does that one thing, and gives it the answer. So what a machine
//! knows survives whatever becomes of the code around it, and a test can play the kernel, with
//! every failure that a kernel has, at every step.

use std::{
    fmt, io,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    Counters, Error, Identity, InterfaceName, LinkKind, NetnsId, Pattern,
    signal::Signal,
    tracker::{Destination, Device, Watch},
};

/// The time, read by whoever runs the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// For deadlines.
    pub(crate) instant: Instant,
    /// For people.
    pub(crate) wall: SystemTime,
    /// The kernel's `CLOCK_BOOTTIME`, by which the BPF programs tell the time.
    pub(crate) boot: Duration,
}

impl Now {
    /// For tests, to which the other clocks do not matter.
    #[cfg(test)]
    pub(crate) const fn at(instant: Instant) -> Self {
        Self {
            instant,
            wall: SystemTime::UNIX_EPOCH,
            boot: Duration::ZERO,
        }
    }

    /// The time of day of a moment on the kernel's boot clock.
    pub(crate) fn wall_time(&self, boot: Duration) -> SystemTime {
        self.wall - self.boot.saturating_sub(boot)
    }
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Step<R> {
    /// Do this and give back the answer.
    Request(R),
    /// The same, after what was said was handed on, so that nobody waits for it.
    Background(R),
    /// Hand this on.
    Signal(Signal),
    /// The command was carried out. The next one may come.
    Done(Outcome),
    /// Wait until something can be read, a command comes, or until this moment.
    Wait(Option<Instant>),
    /// It cannot go on.
    Failed(Error),
}

/// What is asked of a backend, one at a time. But for [`Command::Count`], each comes after all that
/// was queued in the kernel before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Begin to watch these names, none of which is watched.
    Watch { netns: NetnsId, wanted: Vec<Wanted> },
    /// Begin to watch what matches these patterns, none of which is watched. That they are is said
    /// as a signal.
    WatchPatterns {
        netns: NetnsId,
        patterns: Vec<Pattern>,
    },
    /// End a watch.
    Unwatch(Watch),
    /// The same of a pattern.
    UnwatchPattern(NetnsId, Pattern),
    /// Say all that happened so far.
    Sync,
    /// Say what was counted.
    Count,
}

/// A name to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: InterfaceName,
    /// Whether the inode of the device that has it is wanted as well.
    pub(crate) inode: bool,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Who holds each name, in the order in which they were given; nothing for patterns. After an
    /// error nothing is left of any of these watches.
    Watched(Result<Vec<Option<Holder>>, Error>),
    Unwatched,
    Synced,
    Counted(Counters),
}

/// The holder of a name that has just begun to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) device: Device,
    /// The inode of its directory in sysfs, where that was asked for and could be read.
    pub(crate) inode: Option<u64>,
}

/// A question about the devices of a namespace. The system calls that answer it do not wait for
/// anything but locks of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The index of the device that has this name now: [`Answer::Index`].
    IndexOf(InterfaceName),
    /// The name and the kind of the device that has this index now: [`Answer::Name`].
    NameOf(u32),
    /// The inode in sysfs of the device that has this name now: [`Answer::Inode`].
    InodeOf(InterfaceName),
    /// The index of that device as well, both of the same one: [`Answer::Identity`].
    IdentityOf(InterfaceName),
    /// The namespace that has this id in the numbering of the one asked: [`Answer::Netns`].
    NetnsOf(i32),
    /// Where on the host the device with this inode is: [`Answer::Place`].
    WhereIs(u64),
    /// All devices: [`Answer::Table`].
    Table,
    /// Who has which name, inodes too, where there are no more devices than these:
    /// [`Answer::Census`].
    Census(usize),
    /// Come back once every change that had begun before has ended and was told:
    /// [`Answer::Waited`].
    Barrier,
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub(crate) enum Answer {
    Index(io::Result<Option<u32>>),
    Name(io::Result<Option<Named>>),
    /// `None` where there is no such device, or nobody can tell.
    Inode(io::Result<Option<u64>>),
    /// `None` where there is none with an inode that can be read.
    Identity(io::Result<Option<Identity>>),
    /// `None` where nobody can tell.
    Netns(Option<NetnsId>),
    /// `None` where nobody can tell.
    Place(Option<Destination>),
    Table(io::Result<LinkTable>),
    /// `None` where there are more, or where some came or went meanwhile.
    Census(io::Result<Option<Census>>),
    /// False where that cannot be waited for.
    Waited(bool),
}

/// What a device is called, and of what kind it is, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: InterfaceName,
    pub(crate) kind: Option<LinkKind>,
}

/// The devices of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkTable {
    /// Index and name of each.
    pub(crate) links: Vec<(u32, Named)>,
    /// Some came or went meanwhile, and others may be left out.
    pub(crate) is_interrupted: bool,
}

/// Who has which name in a namespace, read in one go: thousands of names for a tenth of what as many
/// questions cost. Each line was true at some moment of the reading, the index and the inode not
/// even at the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census(Vec<Counted>);

/// A line of a [`Census`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) name: InterfaceName,
    pub(crate) ifindex: u32,
    /// Of its directory in sysfs, where that could be read.
    pub(crate) inode: Option<u64>,
}

impl Census {
    pub(crate) fn new(mut lines: Vec<Counted>) -> Self {
        lines.sort_unstable_by_key(|line| line.name);
        Self(lines)
    }

    /// How many devices it is worth to read for so many names. To read one costs a third of what it
    /// does to ask for one.
    pub(crate) const fn worth(names: usize) -> usize {
        2 * names
    }

    /// The device that has this name.
    pub(crate) fn by_name(&self, name: InterfaceName) -> Option<Counted> {
        let Self(lines) = self;
        let at = lines.binary_search_by_key(&name, |line| line.name).ok()?;
        Some(lines[at])
    }
}

/// Where there may be something to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The ring buffer of the BPF programs.
    Ring,
    /// A call of the agent.
    Call,
    /// The subscription to link messages in a namespace.
    Socket(NetnsId),
}

/// A backend's deciding part.
pub(crate) trait Machine {
    /// What it can ask of the shell around it.
    type Request: fmt::Debug;
    /// The answers to these, errors among them.
    type Answer: fmt::Debug;

    /// What to do next. Each [`Step::Request`] and [`Step::Background`] wants its answer before
    /// the next call.
    fn poll(&mut self, now: &Now) -> Step<Self::Request>;
    /// The answer to the request that was made last.
    fn answer(&mut self, now: &Now, answer: Self::Answer);
    /// Something can be read, perhaps.
    fn ready(&mut self, source: Source);
    /// Asks for something, after the outcome of the command before.
    fn command(&mut self, command: Command);
}

impl Answer {
    /// The answer where there is nobody to ask.
    pub(crate) fn unknown(question: Question) -> Self {
        match question {
            Question::IndexOf(_) => Self::Index(Err(io::ErrorKind::NotConnected.into())),
            Question::NameOf(_) => Self::Name(Err(io::ErrorKind::NotConnected.into())),
            Question::InodeOf(_) => Self::Inode(Err(io::ErrorKind::NotConnected.into())),
            Question::IdentityOf(_) => Self::Identity(Err(io::ErrorKind::NotConnected.into())),
            Question::NetnsOf(_) => Self::Netns(None),
            Question::WhereIs(_) => Self::Place(None),
            Question::Table => Self::Table(Err(io::ErrorKind::NotConnected.into())),
            Question::Census(_) => Self::Census(Err(io::ErrorKind::NotConnected.into())),
            Question::Barrier => Self::Waited(false),
        }
    }
}
