//! Events as lines for a person.

use std::{fmt::Write as _, time::SystemTime};

use anstyle::{AnsiColor, Style};
use ifmon::{Actor, Event, EventKind, InterfaceName, NetnsId};

use super::{
    detail::{Known, Stopped},
    origin::{Container, Origin},
};

/// Writes lines; knows which namespace needs no mention.
#[derive(Debug)]
pub(crate) struct Writer {
    own: Option<NetnsId>,
    color: bool,
}

impl Writer {
    pub(crate) fn new(own: Option<NetnsId>, color: bool) -> Self {
        Self { own, color }
    }

    pub(crate) fn event(&self, event: &Event, known: &Known) -> Vec<u8> {
        let mut text = match &event.kind {
            EventKind::Watching {
                ifindex: Some(ifindex),
            } => format!("ifindex {ifindex}, by {}", event.backend),
            EventKind::Watching { ifindex: None } => {
                format!("does not exist yet, by {}", event.backend)
            }
            EventKind::Deleted { ifindex }
            | EventKind::Appeared { ifindex }
            | EventKind::Returned { ifindex } => format!("ifindex {ifindex}"),
            EventKind::Renamed { ifindex, to } => {
                format!("ifindex {ifindex} is now {}", printable(to))
            }
            EventKind::Moved {
                ifindex,
                to_netns,
                to_ifindex,
            } => {
                let mut text = format!("ifindex {ifindex} went to ");
                match to_netns {
                    Some(netns) => {
                        text.push_str(&self.describe(*netns, known.to_netns_name.as_deref()));
                    }
                    None => text.push_str("another network namespace"),
                }
                if let Some(ifindex) = to_ifindex {
                    let _ = write!(text, ", ifindex {ifindex} there");
                }
                text
            }
            EventKind::Recreated {
                ifindex,
                old_ifindex,
            } => format!("ifindex {ifindex}, another device than the one before ({old_ifindex})"),
            EventKind::Resynced { lost, changed, .. } => {
                let lost = match lost {
                    Some(1) => "1 event was".to_owned(),
                    Some(lost) => format!("{lost} events were"),
                    None => "some events were".to_owned(),
                };
                let found = if *changed { "changed" } else { "unchanged" };
                format!("{lost} lost, the state was read again and is {found}")
            }
            _ => String::new(),
        };
        if event.recovered {
            text.push_str(", found by reading the state again");
        }
        if let Some(actor) = &event.by {
            let _ = write!(text, ", {}", who(actor, &known.origin));
        }
        let style = match &event.kind {
            kind if kind.should_restart() => AnsiColor::Red.on_default().bold(),
            EventKind::Appeared { .. } | EventKind::Returned { .. } => {
                AnsiColor::Green.on_default().bold()
            }
            EventKind::Resynced { .. } => AnsiColor::Yellow.on_default().bold(),
            _ => Style::new().bold(),
        };
        self.line(
            event.time,
            event.interface,
            event.netns,
            (event.kind.as_str(), style),
            &text,
        )
    }

    pub(crate) fn stopped(&self, stopped: &Stopped) -> Vec<u8> {
        let mut text = format!("{}, {} events", stopped.reason.as_str(), stopped.delivered);
        if let Some(seen) = stopped.seen {
            let _ = write!(text, " out of {seen} changes of all interfaces");
        }
        match stopped.lost {
            Some(0) => text.push_str(", none lost"),
            Some(lost) => {
                let _ = write!(text, ", {lost} lost and made good");
            }
            None => text.push_str(", some lost and made good"),
        }
        self.line(
            stopped.time,
            stopped.interface,
            stopped.netns,
            ("stopped", Style::new().bold()),
            &text,
        )
    }

    fn line(
        &self,
        time: SystemTime,
        interface: InterfaceName,
        netns: NetnsId,
        (event, style): (&str, Style),
        text: &str,
    ) -> Vec<u8> {
        let time = jiff::Timestamp::try_from(time).unwrap_or_default();
        let mut name = printable(&interface);
        if self.own.is_some_and(|own| own != netns) {
            name = format!("{name} in {}", self.netns(netns));
        }
        let style = if self.color { style } else { Style::new() };
        let dim = if self.color {
            Style::new().dimmed()
        } else {
            Style::new()
        };
        let separator = if text.is_empty() { "" } else { ": " };
        format!("{dim}{time:.6}{dim:#} {name} {style}{event}{style:#}{separator}{text}\n")
            .into_bytes()
    }

    fn netns(&self, netns: NetnsId) -> String {
        self.describe(netns, netns.name().as_deref())
    }

    fn describe(&self, netns: NetnsId, name: Option<&str>) -> String {
        match name {
            Some(name) => format!("namespace {name}"),
            None if self.own == Some(netns) => "the namespace of ifmon".to_owned(),
            None => format!("namespace {netns}"),
        }
    }
}

/// A name may hold any byte: control characters must not reach a terminal.
fn printable(name: &impl ToString) -> String {
    let mut text = String::new();
    for character in name.to_string().chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

fn who(actor: &Actor, origin: &Origin) -> String {
    let comm = printable(&actor.comm);
    if actor.kthread {
        return format!("by the kernel ({comm}) for somebody");
    }
    format!(
        "by {comm} (pid {}, uid {}){}",
        actor.pid,
        actor.uid,
        whence(origin)
    )
}

/// The nearest that is known of where somebody comes from. Docker's habit of twelve digits of an id is everybody's.
fn whence(origin: &Origin) -> String {
    let Origin {
        cgroup_path: _,
        container,
        unit,
    } = origin;
    if let Some(Container { runtime, id }) = container {
        let runtime = runtime.map_or_else(String::new, |runtime| format!("{runtime} "));
        let id: String = id.chars().take(12).collect();
        return format!(" in {runtime}container {}", printable(&id));
    }
    unit.as_ref()
        .map_or_else(String::new, |unit| format!(" in {}", printable(unit)))
}
