//! What can go wrong, and what each case means for the engine behind an interface.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    BackendKind, InterfaceName, InvalidName, InvalidPattern, NetnsId, host::Unavailable, netns,
};

/// Why a watch failed or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The monitor was cancelled; or it has ended, and [`Monitor::next`](crate::Monitor::next) says why.
    #[error("stopped")]
    Stopped,

    /// The watched device was unregistered.
    #[error("interface {interface} was deleted")]
    Deleted {
        /// The watched name.
        interface: InterfaceName,
    },

    /// The watched device has another name now.
    #[error("interface {interface} was renamed to {to}")]
    Renamed {
        /// The watched name.
        interface: InterfaceName,
        /// What it is called now.
        to: InterfaceName,
    },

    /// The watched device went to another network namespace.
    #[error("interface {interface} was moved to another network namespace")]
    Moved {
        /// The watched name.
        interface: InterfaceName,
        /// Where it went, where that can be known.
        to_netns: Option<NetnsId>,
    },

    /// The network namespace of the watches is gone, and with it everything in it.
    #[error("network namespace {0} is gone")]
    NetnsGone(NetnsId),

    /// No interface can have this name.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),

    /// This is no pattern for names of interfaces.
    #[error(transparent)]
    InvalidPattern(#[from] InvalidPattern),

    /// Nothing to watch was named.
    #[error("no interface to watch was named")]
    NothingToWatch,

    /// A number that the [`Builder`](crate::Builder) was given is out of its range.
    #[error("{setting} is a number from {least} to {most}")]
    OutOfRange {
        /// The method of the builder.
        setting: &'static str,
        /// The least that it takes.
        least: usize,
        /// The most that it takes.
        most: usize,
    },

    /// Patterns of all network namespaces cannot be added to others.
    #[error(
        "patterns of all network namespaces are watched from the start on, and none of one namespace beside them"
    )]
    AllNamespaces,

    /// A network namespace could not be opened.
    #[error("cannot open the network namespace {}: {}", .path.display(), not_opened(.path, .source))]
    Netns {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// A backend that was asked for by name does not work here, or one that works cannot do what was
    /// asked.
    #[error("the {backend} backend does not work here: {reason}")]
    Unavailable {
        /// The backend.
        backend: BackendKind,
        /// Why, with what would change it.
        reason: Unavailable,
    },

    /// None of the backends that were allowed works here.
    #[error("{0}")]
    NoBackend(String),

    /// A network namespace could not be entered, or its link messages not be subscribed to.
    #[error("cannot begin to watch in a network namespace: {0}")]
    Subscribe(#[source] io::Error),

    /// The kernel did not answer when it was asked for the state of a link.
    #[error("cannot read the state of a link: {0}")]
    Recheck(#[source] io::Error),

    /// The agent does not do what was asked of it.
    #[error("{0}")]
    Agent(String),

    /// The filter in the kernel could not be told of a watch.
    #[error("cannot add a watch to the filter in the kernel: {0}")]
    Filter(#[source] io::Error),

    /// The kernel did not say when there is something to read.
    #[error("cannot wait for events: {0}")]
    Wait(#[source] io::Error),

    /// The stream of events ended, and opening it again failed for good.
    #[error("the stream of events ended and could not be opened again: {0}")]
    Ended(#[source] io::Error),
}

/// A name or a process that is not there is most often one that was mistyped.
fn not_opened(path: &Path, source: &io::Error) -> String {
    let process = path.ancestors().nth(2);
    let is_missing = |process: &Path| {
        path == process.join("ns/net")
            && process.parent() == Some(Path::new("/proc"))
            && Path::new("/proc/self").exists()
            && !process.exists()
    };
    if source.kind() == io::ErrorKind::NotFound && path.parent() == Some(Path::new(netns::NAMES)) {
        "there is none of that name; `ip netns` lists those that there are".to_owned()
    } else if source.kind() == io::ErrorKind::NotFound && process.is_some_and(is_missing) {
        "there is no such process; `ps -e` lists those that there are".to_owned()
    } else if source.kind() == io::ErrorKind::PermissionDenied && path.starts_with("/proc") {
        "that of somebody else's process takes CAP_SYS_PTRACE; run it as root or give it the capability".to_owned()
    } else if source.raw_os_error() == Some(libc::EMFILE) {
        Unavailable::OpenFiles.to_string()
    } else {
        source.to_string()
    }
}

impl Error {
    /// Should the engine behind the interface restart?
    ///
    /// Yes wherever the interface is not, or may not be, the one that it set up; no when the
    /// monitor was cancelled, or was asked for something that cannot be.
    pub const fn should_restart(&self) -> bool {
        match self {
            Self::Stopped
            | Self::InvalidName(_)
            | Self::InvalidPattern(_)
            | Self::NothingToWatch
            | Self::OutOfRange { .. }
            | Self::AllNamespaces => false,
            Self::Deleted { .. }
            | Self::Renamed { .. }
            | Self::Moved { .. }
            | Self::NetnsGone(_)
            | Self::Netns { .. }
            | Self::Unavailable { .. }
            | Self::NoBackend(_)
            | Self::Subscribe(_)
            | Self::Recheck(_)
            | Self::Agent(_)
            | Self::Filter(_)
            | Self::Wait(_)
            | Self::Ended(_) => true,
        }
    }
}

/// The same error once more.
pub(crate) fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
