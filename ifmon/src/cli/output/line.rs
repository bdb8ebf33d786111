//! What a line says: made once, and written as text, as JSON, or as the environment of a hook.

use std::{ffi::OsStr, time::SystemTime};

use ifmon::{
    Actor, BackendKind, Event, Field, InterfaceName, LinkKind, NetnsId, Origin, Pattern, Peer,
};

use super::facts::{EventFacts, Stopped};
use crate::cli::watches::WatchKey;

/// The fields of one line, in order. A value that is unknown stays, as null.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(super) fields: Vec<(&'static str, Value<'a>)>,
}

/// A value of a field.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Unknown,
    Time(SystemTime),
    Word(&'a str),
    Number(u64),
    Flag(bool),
    /// Names need not be UTF-8.
    Name(InterfaceName),
    Kind(LinkKind),
    Pattern(&'a Pattern),
    NetnsName(&'a OsStr),
    By(&'a Actor, &'a Origin),
    Peer(&'a Peer),
}

impl From<Option<u64>> for Value<'_> {
    fn from(number: Option<u64>) -> Self {
        number.map_or(Self::Unknown, Self::Number)
    }
}

impl From<Option<u32>> for Value<'_> {
    fn from(number: Option<u32>) -> Self {
        number.map(u64::from).into()
    }
}

impl From<InterfaceName> for Value<'_> {
    fn from(name: InterfaceName) -> Self {
        if name == InterfaceName::NONE {
            Self::Unknown
        } else {
            Self::Name(name)
        }
    }
}

impl From<Field> for Value<'_> {
    fn from(field: Field) -> Self {
        match field {
            Field::Name(name) => Self::Name(name),
            Field::Netns(netns) => netns.map(|NetnsId(inum)| inum).into(),
            Field::Number(number) => number.into(),
            Field::Flag(flag) => Self::Flag(flag),
        }
    }
}

impl<'a> Line<'a> {
    pub(crate) fn event(
        event: &'a Event,
        facts: &'a EventFacts,
        netns_name: Option<&'a OsStr>,
    ) -> Self {
        let mut line = Self::begin(
            event.time,
            event.kind.as_str(),
            ((event.netns, event.interface), event.pattern.as_ref()),
            netns_name,
            event.kind.ifindex(),
            facts.calls_for_restart(event),
            event.backend,
        );
        if let Some(actor) = &event.by {
            line.add("by", Value::By(actor, &facts.origin));
        }
        if let Some(matches) = event.matches {
            line.add("matches", Value::Number(matches.into()));
        }
        if let Some(kind) = event.link_kind {
            line.add("kind", Value::Kind(kind));
        }
        for (name, field) in event.kind.fields() {
            line.add(name, field.into());
        }
        if let Some(name) = &facts.to_netns_name {
            line.add("to_netns_name", Value::NetnsName(name));
        }
        if let Some(peer) = &facts.peer {
            line.add("peer", Value::Peer(peer));
        }
        if facts.own {
            line.add("own", Value::Flag(true));
        }
        if event.recovered {
            line.add("recovered", Value::Flag(true));
        }
        line
    }

    pub(crate) fn stopped(stopped: &'a Stopped, netns_name: Option<&'a OsStr>) -> Self {
        let Stopped {
            time,
            watch,
            ref pattern,
            ifindex,
            backend,
            reason,
            seen,
            delivered,
            lost,
        } = *stopped;
        let watch = (watch, pattern.as_ref());
        let mut line = Self::begin(time, "stopped", watch, netns_name, ifindex, false, backend);
        line.add("reason", Value::Word(reason.as_str()));
        line.add("seen", seen.into());
        line.add("delivered", Value::Number(delivered));
        line.add("lost", lost.into());
        line
    }

    /// The fields that every line begins with.
    fn begin(
        time: SystemTime,
        event: &'static str,
        ((NetnsId(netns), interface), pattern): (WatchKey, Option<&'a Pattern>),
        netns_name: Option<&'a OsStr>,
        ifindex: Option<u32>,
        restart: bool,
        backend: BackendKind,
    ) -> Self {
        let mut line = Self {
            fields: vec![
                ("time", Value::Time(time)),
                ("event", Value::Word(event)),
                ("interface", interface.into()),
            ],
        };
        if let Some(pattern) = pattern {
            line.add("pattern", Value::Pattern(pattern));
        }
        let netns = (NetnsId(netns) != NetnsId::ALL || pattern.is_none()).then_some(netns);
        line.add("netns", netns.into());
        if let Some(name) = netns_name {
            line.add("netns_name", Value::NetnsName(name));
        }
        line.add("ifindex", ifindex.into());
        line.add("restart", Value::Flag(restart));
        line.add("backend", Value::Word(backend.as_str()));
        line
    }

    fn add(&mut self, name: &'static str, value: Value<'a>) {
        self.fields.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use ifmon::EventKind;

    use super::*;
    use crate::cli::{output::facts::Reason, watches::tests::event};

    #[test]
    fn what_is_said_of_all_namespaces_is_said_of_none_of_them() {
        let pattern = Pattern::new("wg*").expect("a good pattern");
        let json = |line: Line<'_>| String::from_utf8(line.to_json()).expect("text");
        for (netns, told) in [
            (NetnsId::ALL, r#""pattern":"wg*","netns":null,"#),
            (NetnsId(7), r#""pattern":"wg*","netns":7,"#),
        ] {
            let event = event(netns, &pattern, EventKind::Watching { ifindex: None });
            let said = json(Line::event(&event, &EventFacts::default(), None));
            assert!(said.contains(told), "{said}");
            let stopped = Stopped {
                time: SystemTime::UNIX_EPOCH,
                watch: (netns, InterfaceName::NONE),
                pattern: Some(pattern.clone()),
                ifindex: None,
                backend: BackendKind::Fentry,
                reason: Reason::Signal,
                seen: None,
                delivered: 1,
                lost: None,
            };
            let said = json(Line::stopped(&stopped, None));
            assert!(said.contains(told), "{said}");
        }
    }
}
