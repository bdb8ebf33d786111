//! What a line tells beside what the library says of an event: who was behind it, and how a watch
//! ended.

use std::{ffi::OsString, time::SystemTime};

use ifmon::{BackendKind, Event, Field, Netns, Origin, Origins, Pattern, Peer};

use crate::cli::{mine::Mine, watches::WatchKey};

/// Why the watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Signal,
    Once,
    Timeout,
    Error,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Once => "once",
            Self::Timeout => "timeout",
            Self::Error => "error",
        }
    }
}

/// The last line of a watch.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) time: SystemTime,
    pub(crate) watch: WatchKey,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) ifindex: Option<u32>,
    pub(crate) backend: BackendKind,
    pub(crate) reason: Reason,
    pub(crate) seen: Option<u64>,
    pub(crate) delivered: u64,
    pub(crate) lost: Option<u64>,
}

/// What is found out about an event for whoever reads of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventFacts {
    pub(crate) origin: Origin,
    /// By `--mine`, it is the engine's own doing.
    pub(crate) own: bool,
    /// What `ip netns` calls the namespace that a device went to.
    pub(crate) to_netns_name: Option<OsString>,
    /// The other end of a pair.
    pub(crate) peer: Option<Peer>,
}

impl EventFacts {
    pub(crate) fn of(event: &Event, origins: &mut Origins, mine: &[Mine]) -> Self {
        let to_netns = event
            .kind
            .fields()
            .into_iter()
            .find_map(|(_, field)| match field {
                Field::Netns(netns) => netns,
                Field::Name(_) | Field::Number(_) | Field::Flag(_) => None,
            });
        let origin = event
            .by
            .as_ref()
            .map(|actor| origins.of(actor))
            .unwrap_or_default();
        let own = origin
            .cgroup_path
            .as_deref()
            .is_some_and(|cgroup| mine.iter().any(|mine| mine.owns(cgroup)));
        let name = |netns| Netns::names().find(|&(_, id)| id == netns);
        Self {
            origin,
            own,
            to_netns_name: to_netns.and_then(name).map(|(name, _)| name),
            peer: None,
        }
    }

    /// Is the interface no longer the one that its user set up? What the engine does itself is no
    /// reason.
    pub(crate) fn calls_for_restart(&self, event: &Event) -> bool {
        event.should_restart() && !self.own
    }
}
