//! What a line tells beside what the library says of an event: who was behind it, and how a watch ended.

use std::time::SystemTime;

use ifmon::{BackendKind, Event, EventKind, InterfaceName, NetnsId};

use super::origin::{Origin, Origins};

/// Why the watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Signal,
    Once,
    Error,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Once => "once",
            Self::Error => "error",
        }
    }
}

/// The last line of a watch.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) time: SystemTime,
    pub(crate) interface: InterfaceName,
    pub(crate) netns: NetnsId,
    pub(crate) ifindex: Option<u32>,
    pub(crate) backend: BackendKind,
    pub(crate) reason: Reason,
    pub(crate) seen: Option<u64>,
    pub(crate) delivered: u64,
    pub(crate) lost: Option<u64>,
}

/// What is found out about an event for whoever reads of it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) origin: Origin,
    /// What `ip netns` calls the namespace that a device went to.
    pub(crate) to_netns_name: Option<String>,
}

impl Known {
    pub(crate) fn of(event: &Event, origins: &mut Origins) -> Self {
        let to_netns_name = match event.kind {
            EventKind::Moved { to_netns, .. } => to_netns.and_then(NetnsId::name),
            _ => None,
        };
        Self {
            origin: event
                .by
                .as_ref()
                .map(|actor| origins.of(actor))
                .unwrap_or_default(),
            to_netns_name,
        }
    }
}
