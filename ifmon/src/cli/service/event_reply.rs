//! An event on its way to clients: made into a reply once, whoever is told it.

use std::{cell::OnceCell, ffi::OsString, rc::Rc};

use ifmon::{Event, EventKind};

use super::call::reply;
use crate::cli::output::{facts::EventFacts, line::Line};

/// How much a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// What happened.
    Plain,
    /// Also who did it, and what the host calls its namespaces.
    Full,
}

/// An event, and what is known beside it.
#[derive(Debug)]
pub(crate) struct EventReply {
    pub(crate) event: Event,
    facts: EventFacts,
    netns_name: Option<Rc<OsString>>,
    plain: OnceCell<Rc<[u8]>>,
    full: OnceCell<Rc<[u8]>>,
}

impl EventReply {
    pub(crate) fn new(event: Event, facts: EventFacts, netns_name: Option<Rc<OsString>>) -> Self {
        Self {
            event,
            facts,
            netns_name,
            plain: OnceCell::new(),
            full: OnceCell::new(),
        }
    }

    /// The same as another verdict, for a client that was told something else before.
    pub(crate) fn with_kind(self: &Rc<Self>, kind: EventKind) -> Rc<Self> {
        if kind == self.event.kind {
            return Rc::clone(self);
        }
        let mut event = self.event.clone();
        event.kind = kind;
        Rc::new(Self::new(
            event,
            self.facts.clone(),
            self.netns_name.clone(),
        ))
    }

    /// The reply to a call of `Watch`, with its NUL.
    pub(crate) fn reply(&self, trust: Trust) -> &Rc<[u8]> {
        match trust {
            Trust::Full => self.full.get_or_init(|| {
                let name = self.netns_name.as_ref().map(|name| name.as_os_str());
                reply(&Line::event(&self.event, &self.facts, name), true)
            }),
            Trust::Plain => self.plain.get_or_init(|| {
                let mut event = self.event.clone();
                event.by = None;
                reply(&Line::event(&event, &EventFacts::default(), None), true)
            }),
        }
    }
}
