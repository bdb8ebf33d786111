//! What a line has to say.

use anyhow::{Result, ensure};
use ifmon::BackendKind;
use serde_json::{Value, json};

use crate::links::WORKER;

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
    /// Fields that netlink cannot always know.
    known_to_bpf: Vec<(&'static str, Value)>,
    by: Actor,
}

/// The watch is live; the index is that of the interface, if there is one.
pub fn watching(ifindex: Option<u32>) -> Want {
    Want::new("watching", json!(ifindex))
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
    want.known_to_bpf = vec![
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
            known_to_bpf: Vec::new(),
            by: Actor::Us,
        }
    }

    fn with(mut self, field: &'static str, value: Value) -> Self {
        self.fields.push((field, value));
        self
    }

    /// A kernel thread made the change, not this process.
    pub fn by_the_kernel(mut self) -> Self {
        self.by = Actor::Kernel;
        self
    }

    /// The namespace that the device went to has this name, by which netlink finds it, too.
    pub fn to_named(mut self, name: &str) -> Self {
        self.fields.append(&mut self.known_to_bpf);
        self.with("to_netns_name", json!(name))
    }

    /// Does the line say this?
    pub fn check(&self, line: &Value, backend: BackendKind) -> Result<()> {
        let Self {
            event,
            fields,
            known_to_bpf,
            by,
        } = self;
        let bpf = is_bpf(backend);
        ensure!(line["event"] == *event, "wanted {self}, got {line}");
        for (field, value) in fields {
            ensure!(line[field] == *value, "wanted {self}, got {line}");
        }
        for (field, value) in known_to_bpf {
            let unknown = !bpf && line[field].is_null();
            ensure!(
                unknown || line[field] == *value,
                "wanted {self}, got {line}"
            );
        }
        if *event == "watching" {
            return Ok(());
        }
        if !bpf {
            ensure!(line.get("by").is_none(), "netlink cannot know who: {line}");
            return Ok(());
        }
        let actor = &line["by"];
        match by {
            Actor::Us => ensure!(
                actor["kthread"] == false
                    && actor["pid"] == std::process::id()
                    && actor["comm"] == WORKER
                    && actor["uid"] == rustix::process::getuid().as_raw(),
                "this process did it, as {WORKER}: {line}"
            ),
            Actor::Kernel => ensure!(actor["kthread"] == true, "a kernel thread did it: {line}"),
        }
        Ok(())
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.event)?;
        for (field, value) in self.fields.iter().chain(&self.known_to_bpf) {
            write!(f, " {field}={value}")?;
        }
        Ok(())
    }
}

/// Does this backend run in the kernel, where it sees who makes a change?
pub fn is_bpf(backend: BackendKind) -> bool {
    matches!(backend, BackendKind::Fentry | BackendKind::Kprobe)
}
