//! Events as lines for a person.

use std::{fmt::Write as _, time::SystemTime};

use anstyle::{AnsiColor, Style};
use ifmon::{Actor, Container, Event, EventKind, InterfaceName, NetnsId, Origin, Pattern, Peer};

use super::{
    facts::{EventFacts, Stopped},
    json::timestamp,
    stderr::printable,
};
use crate::cli::{namespaces::Namespaces, watches::WatchKey};

/// Writes lines.
#[derive(Debug)]
pub(crate) struct Writer {
    color: bool,
    /// Lines begin with their time.
    has_time: bool,
}

impl Writer {
    pub(crate) const fn new(color: bool, has_time: bool) -> Self {
        Self { color, has_time }
    }

    pub(crate) fn event(
        &self,
        event: &Event,
        facts: &EventFacts,
        namespaces: &Namespaces,
    ) -> Vec<u8> {
        let describe = |netns| namespaces.describe(netns, facts.to_netns_name.as_deref());
        let mut text = match (&event.kind, event.matches) {
            (EventKind::Watching { .. }, Some(matches)) => matching(matches),
            (kind, Some(matches)) => format!("{}; {}", kind.describe(describe), matching(matches)),
            (kind, None) => printable(&kind.describe(describe)),
        };
        if let EventKind::Watching { .. } = event.kind {
            let _ = write!(text, ", by {}", event.backend);
        }
        if let Some(kind) = event.link_kind {
            let _ = write!(text, ", kind {}", printable(&kind.to_string()));
        }
        if let Some(peer) = &facts.peer {
            let _ = write!(text, ", {}", other_end(peer, event.netns, namespaces));
        }
        if event.recovered {
            text.push_str(", found by reading the state again");
        }
        if let Some(actor) = &event.by {
            let _ = write!(text, ", {}", who(actor, &facts.origin));
        }
        if facts.own {
            text.push_str(", the engine itself");
        }
        let style = if facts.calls_for_restart(event) {
            AnsiColor::Red.on_default()
        } else if let EventKind::Resynced { .. } = event.kind {
            AnsiColor::Yellow.on_default()
        } else if let EventKind::Watching { .. } = event.kind {
            Style::new()
        } else {
            AnsiColor::Green.on_default()
        };
        self.line(
            event.time,
            &place(
                (event.netns, event.interface),
                event.pattern.as_ref(),
                namespaces,
            ),
            (event.kind.as_str(), style.bold()),
            &text,
        )
    }

    pub(crate) fn stopped(&self, stopped: &Stopped, namespaces: &Namespaces) -> Vec<u8> {
        let counted = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let events = counted(stopped.delivered, "event");
        let mut text = format!("{}, {events}", stopped.reason.as_str());
        if let Some(seen) = stopped.seen {
            let changes = counted(seen, "change");
            let _ = write!(text, " out of {changes} of all interfaces");
        }
        let _ = write!(text, ", {}", losses(stopped.lost));
        self.line(
            stopped.time,
            &place(stopped.watch, stopped.pattern.as_ref(), namespaces),
            ("stopped", Style::new().bold()),
            &text,
        )
    }

    fn line(
        &self,
        time: SystemTime,
        place: &str,
        (event, style): (&str, Style),
        text: &str,
    ) -> Vec<u8> {
        let style = if self.color { style } else { Style::new() };
        let dim = if self.color {
            Style::new().dimmed()
        } else {
            Style::new()
        };
        let time = if self.has_time {
            format!("{dim}{}{dim:#} ", timestamp(time))
        } else {
            String::new()
        };
        let separator = if text.is_empty() { "" } else { ": " };
        format!("{time}{place} {style}{event}{style:#}{separator}{text}\n").into_bytes()
    }
}

/// The interface, and its namespace where that is not the one of ifmon.
fn place(
    (netns, interface): WatchKey,
    pattern: Option<&Pattern>,
    namespaces: &Namespaces,
) -> String {
    let interface = match pattern {
        None => printable(&interface.to_string()),
        Some(pattern) if interface == InterfaceName::NONE => printable(&pattern.to_string()),
        Some(pattern) => printable(&format!("{interface} ({pattern})")),
    };
    interface + &namespaces.whereabouts(netns)
}

fn matching(matches: u32) -> String {
    match matches {
        1 => "1 interface matches".to_owned(),
        matches => format!("{matches} interfaces match"),
    }
}

fn who(actor: &Actor, origin: &Origin) -> String {
    let comm = actor.comm.as_deref().map(printable);
    if actor.kthread == Some(true) {
        let comm = comm.map_or_else(String::new, |comm| format!(" ({comm})"));
        return format!("by the kernel{comm} for somebody");
    }
    let ids: Vec<String> = [("pid", actor.pid), ("uid", actor.uid)]
        .into_iter()
        .filter_map(|(name, id)| Some(format!("{name} {}", id?)))
        .collect();
    let mut who = format!("by {}", comm.as_deref().unwrap_or("somebody"));
    if !ids.is_empty() {
        let _ = write!(who, " ({})", ids.join(", "));
    }
    who + &whence(origin)
}

/// The nearest that is known of where the other end of a pair is.
fn other_end(peer: &Peer, netns: NetnsId, namespaces: &Namespaces) -> String {
    let Peer { ifindex, .. } = peer;
    let place = match (&peer.container, peer.netns) {
        (Some(Container { runtime, id, .. }), _) => container(*runtime, id),
        (None, Some(there)) if there == netns => return format!("peer is ifindex {ifindex}"),
        (None, Some(there)) => namespaces.describe(there, peer.netns_name.as_deref()),
        (None, None) => "another network namespace".to_owned(),
    };
    format!("peer is ifindex {ifindex} in {place}")
}

/// How much was lost on the way; `None` where not all was counted.
pub(crate) fn losses(lost: Option<u64>) -> String {
    match lost {
        Some(0) => "none lost".to_owned(),
        Some(lost) => format!("{lost} lost and made good"),
        None => "some lost and made good".to_owned(),
    }
}

/// Names a container. Docker's habit of twelve digits of an id is everybody's; a name is not cut.
pub(crate) fn container(runtime: Option<&str>, id: &str) -> String {
    let runtime = runtime.map_or_else(String::new, |runtime| format!("{runtime} "));
    let digits = id.get(..12).filter(|_| id.len() == 64);
    format!("{runtime}container {}", printable(digits.unwrap_or(id)))
}

/// The nearest that is known of where somebody comes from.
fn whence(origin: &Origin) -> String {
    let Origin {
        container, unit, ..
    } = origin;
    if let Some(Container { runtime, id, .. }) = container {
        return format!(" in {}", self::container(*runtime, id));
    }
    unit.as_ref()
        .map_or_else(String::new, |unit| format!(" in {}", printable(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_cut_and_names_are_not() {
        let id = "0123456789abcdef".repeat(4);
        for (path, said) in [
            ("/", ""),
            ("/system.slice/ssh.service", " in ssh.service"),
            (
                "/lxc.payload.a-container-of-mine/init.scope",
                " in lxc container a-container-of-mine",
            ),
            (
                &format!("/system.slice/docker-{id}.scope"),
                " in docker container 0123456789ab",
            ),
            (
                &format!("/kubepods/pod1/{id}"),
                " in container 0123456789ab",
            ),
        ] {
            assert_eq!(whence(&Origin::from_cgroup_path(path)), said);
        }
    }

    #[test]
    fn of_a_peer_the_nearest_that_is_known_is_told() {
        let (here, there) = (NetnsId(1), NetnsId(2));
        let container = Origin::from_cgroup_path("/lxc.payload.web").container;
        assert!(container.is_some());
        for (netns, netns_name, container, said) in [
            (Some(here), None, None, "peer is ifindex 8"),
            (Some(here), Some("web"), None, "peer is ifindex 8"),
            (
                None,
                None,
                None,
                "peer is ifindex 8 in another network namespace",
            ),
            (Some(there), None, None, "peer is ifindex 8 in namespace 2"),
            (
                Some(there),
                Some("a\nb"),
                None,
                "peer is ifindex 8 in namespace a\\nb",
            ),
            (
                Some(there),
                Some("a"),
                container,
                "peer is ifindex 8 in lxc container web",
            ),
        ] {
            let mut peer = Peer::default();
            (peer.ifindex, peer.netns, peer.container) = (8, netns, container);
            peer.netns_name = netns_name.map(Into::into);
            assert_eq!(other_end(&peer, here, &Namespaces::new()), said);
        }
    }
}
