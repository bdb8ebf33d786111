//! What a line has to say.

use anyhow::{Result, ensure};
use ifmon::BackendKind;
use serde_json::{Value, json};

use crate::{
    backend::{self, WHO, follows_moves},
    links::WORKER,
};

/// Who made a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    /// This process.
    Us,
    /// A kernel thread, for somebody.
    Kernel,
}

/// An expected line: the event and the fields that tell what happened.
#[derive(Clone, Debug)]
pub struct Want {
    event: &'static str,
    fields: Vec<(&'static str, Value)>,
    /// Where the device went, which netlink cannot always know.
    destination: Vec<(&'static str, Value)>,
    by: Actor,
    /// What has to be told of the actor beside that.
    origin: Vec<(&'static str, Value)>,
    /// It was found by reading the state.
    recovered: bool,
}

/// The watch is live; the index is that of the interface, if there is one.
pub fn watching(ifindex: Option<u32>) -> Want {
    Want::new("watching", json!(ifindex))
}

/// The watch of a pattern is live, and so many match.
pub fn matching(matches: u32) -> Want {
    Want::new("watching", Value::Null)
        .with("interface", Value::Null)
        .with("matches", json!(matches))
}

/// The device was unregistered.
pub fn deleted(ifindex: u32) -> Want {
    Want::new("deleted", json!(ifindex))
}

/// The device has another name.
pub fn renamed(ifindex: u32, to: &str) -> Want {
    Want::new("renamed", json!(ifindex)).with("to", json!(to))
}

/// The device is in another namespace, where it has this index.
pub fn moved(ifindex: u32, to_netns: u32, to_ifindex: u32) -> Want {
    let mut want = Want::new("moved", json!(ifindex));
    want.destination = vec![
        ("to_netns", json!(to_netns)),
        ("to_ifindex", json!(to_ifindex)),
    ];
    want
}

/// The name exists for the first time.
pub fn appeared(ifindex: u32) -> Want {
    Want::new("appeared", json!(ifindex))
}

/// The name exists again, on another device.
pub fn recreated(ifindex: u32, old_ifindex: u32) -> Want {
    Want::new("recreated", json!(ifindex)).with("old_ifindex", json!(old_ifindex))
}

/// The name exists again, on the device that had it before.
pub fn returned(ifindex: u32) -> Want {
    Want::new("returned", json!(ifindex))
}

impl Want {
    fn new(event: &'static str, ifindex: Value) -> Self {
        Self {
            event,
            fields: vec![("ifindex", ifindex)],
            destination: Vec::new(),
            by: Actor::Us,
            origin: Vec::new(),
            recovered: false,
        }
    }

    fn with(mut self, field: &'static str, value: Value) -> Self {
        self.fields.push((field, value));
        self
    }

    /// Of a pattern: what the device is called, or was until now.
    pub fn of(self, name: &str) -> Self {
        self.with("interface", json!(name))
    }

    /// Of a pattern: the kind of the device.
    pub fn kind(self, kind: &str) -> Self {
        self.with("kind", json!(kind))
    }

    /// A kernel thread made the change, not this process.
    pub fn by_the_kernel(mut self) -> Self {
        self.by = Actor::Kernel;
        self
    }

    /// Where the actor comes from is told, as far as this field says it.
    pub fn from(mut self, field: &'static str, value: Value) -> Self {
        self.origin.push((field, value));
        self
    }

    /// Of a pair: where the other end is; null where there is none.
    pub fn with_peer(self, peer: Value) -> Self {
        self.with("peer", peer)
    }

    /// It was found by reading the state, so that nobody knows who did it.
    pub fn recovered(mut self) -> Self {
        self.recovered = true;
        self
    }

    /// It was the engine's own doing.
    pub fn own(self) -> Self {
        self.with("own", json!(true))
    }

    /// The namespace of the watch has this name.
    pub fn in_named(self, name: &str) -> Self {
        self.with("netns_name", json!(name))
    }

    /// The namespace of the watch has no name.
    pub fn in_unnamed(self) -> Self {
        self.with("netns_name", Value::Null)
    }

    /// The namespace that the device went to has this name, by which netlink finds it, too.
    pub fn to_named(mut self, name: &str) -> Self {
        self.fields.append(&mut self.destination);
        self.with("to_netns_name", json!(name))
    }

    /// Does the line say this?
    pub fn check(&self, line: &Value, backend: BackendKind) -> Result<()> {
        let Self {
            event,
            fields,
            destination,
            by,
            origin,
            recovered,
        } = self;
        ensure!(line["event"] == *event, "wanted {self}, got {line}");
        for (field, value) in fields {
            ensure!(line[field] == *value, "wanted {self}, got {line}");
        }
        for (field, value) in destination {
            let unknown = !follows_moves(backend) && line[field].is_null();
            ensure!(
                unknown || line[field] == *value,
                "wanted {self}, got {line}"
            );
        }
        ensure!(
            line.get("recovered").is_some() == *recovered,
            "wanted {self}, got {line}"
        );
        if *event == "watching" || *recovered {
            ensure!(line.get("by").is_none(), "nobody can know by whom: {line}");
            return Ok(());
        }
        let known = backend::who(backend)?;
        ensure!(
            line.get("by").is_some() != known.is_empty(),
            "{backend} knows of who did it {known:?}: {line}"
        );
        let actor = &line["by"];
        for part in WHO {
            let told = &actor[part];
            if !known.contains(part) {
                ensure!(told.is_null(), "{part} cannot be known here: {line}");
                continue;
            }
            let is_right = match (by, part) {
                (Actor::Us, "pid") => *told == std::process::id(),
                (Actor::Us, "comm") => *told == WORKER,
                (Actor::Us, "uid") => *told == rustix::process::getuid().as_raw(),
                (Actor::Us | Actor::Kernel, "kthread") => *told == (*by == Actor::Kernel),
                // Any worker of the kernel, and any group.
                _ => !told.is_null(),
            };
            ensure!(is_right, "{by:?} did it, and {part} is wrong: {line}");
        }
        for (field, value) in origin {
            ensure!(
                actor[field] == *value,
                "wanted {field}={value} of who did it, got {line}"
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.event)?;
        for (field, value) in self.fields.iter().chain(&self.destination) {
            write!(f, " {field}={value}")?;
        }
        if self.recovered {
            f.write_str(", recovered")?;
        }
        Ok(())
    }
}
