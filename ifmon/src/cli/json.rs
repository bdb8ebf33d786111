//! Events as JSON objects, and as the environment of a hook.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    time::SystemTime,
};

use ifmon::{Actor, BackendKind, Event, EventKind, InterfaceName, NetnsId};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    detail::{Known, Stopped},
    origin::Origin,
};

/// One line of output. Every line begins with the same fields; a null field of a kind stays, since it says "unknown".
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    #[serde(serialize_with = "timestamp")]
    time: SystemTime,
    event: &'static str,
    #[serde(serialize_with = "lossy")]
    interface: InterfaceName,
    #[serde(serialize_with = "number")]
    netns: NetnsId,
    ifindex: Option<u32>,
    restart: bool,
    #[serde(serialize_with = "word")]
    backend: BackendKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<By<'a>>,
    #[serde(flatten)]
    details: Details<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    recovered: bool,
}

#[derive(Debug, Serialize)]
struct By<'a> {
    pid: u32,
    comm: &'a str,
    uid: u32,
    cgroup: u64,
    kthread: bool,
    #[serde(flatten)]
    origin: &'a Origin,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Details<'a> {
    None {},
    Renamed {
        #[serde(serialize_with = "lossy")]
        to: InterfaceName,
    },
    Moved {
        to_netns: Option<u32>,
        to_ifindex: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        to_netns_name: Option<&'a str>,
    },
    Recreated {
        old_ifindex: u32,
    },
    Resynced {
        lost: Option<u64>,
        changed: bool,
    },
    Stopped {
        reason: &'static str,
        seen: Option<u64>,
        delivered: u64,
        lost: Option<u64>,
    },
}

impl<'a> Line<'a> {
    pub(crate) fn event(event: &'a Event, known: &'a Known) -> Self {
        Self {
            time: event.time,
            event: event.kind.as_str(),
            interface: event.interface,
            netns: event.netns,
            ifindex: event.kind.ifindex(),
            restart: event.should_restart(),
            backend: event.backend,
            by: event.by.as_ref().map(|actor| By::of(actor, &known.origin)),
            details: match event.kind {
                EventKind::Renamed { to, .. } => Details::Renamed { to },
                EventKind::Moved {
                    to_netns,
                    to_ifindex,
                    ..
                } => Details::Moved {
                    to_netns: to_netns.map(|NetnsId(inum)| inum),
                    to_ifindex,
                    to_netns_name: known.to_netns_name.as_deref(),
                },
                EventKind::Recreated { old_ifindex, .. } => Details::Recreated { old_ifindex },
                EventKind::Resynced { lost, changed, .. } => Details::Resynced { lost, changed },
                _ => Details::None {},
            },
            recovered: event.recovered,
        }
    }

    pub(crate) fn stopped(stopped: &Stopped) -> Self {
        Self {
            time: stopped.time,
            event: "stopped",
            interface: stopped.interface,
            netns: stopped.netns,
            ifindex: stopped.ifindex,
            restart: false,
            backend: stopped.backend,
            by: None,
            details: Details::Stopped {
                reason: stopped.reason.as_str(),
                seen: stopped.seen,
                delivered: stopped.delivered,
                lost: stopped.lost,
            },
            recovered: false,
        }
    }

    /// The object with its line feed.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// The same as variables: `IFMON_` and the field in capitals, `IFMON_BY_PID` and so on for who did it. What is null
    /// is empty; what is not there is not set. The name of the interface is given byte for byte.
    pub(crate) fn to_environment(&self) -> Vec<(String, OsString)> {
        let mut variables = Vec::new();
        if let Ok(Value::Object(fields)) = serde_json::to_value(self) {
            flatten("IFMON", &fields, &mut variables);
        }
        for (name, value) in &mut variables {
            if name == "IFMON_INTERFACE" {
                *value = OsStr::from_bytes(self.interface.as_bytes()).to_owned();
            }
        }
        variables
    }
}

fn flatten(prefix: &str, fields: &Map<String, Value>, variables: &mut Vec<(String, OsString)>) {
    for (name, value) in fields {
        let name = format!("{prefix}_{}", name.to_uppercase());
        match value {
            Value::Object(fields) => flatten(&name, fields, variables),
            Value::Null => variables.push((name, OsString::new())),
            Value::String(value) => variables.push((name, value.into())),
            other => variables.push((name, other.to_string().into())),
        }
    }
}

impl<'a> By<'a> {
    fn of(actor: &'a Actor, origin: &'a Origin) -> Self {
        Self {
            pid: actor.pid,
            comm: &actor.comm,
            uid: actor.uid,
            cgroup: actor.cgroup,
            kthread: actor.kthread,
            origin,
        }
    }
}

/// RFC 3339 in UTC, to the microsecond.
fn timestamp<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::try_from(*time).unwrap_or_default();
    serializer.collect_str(&format_args!("{time:.6}"))
}

fn lossy<S: Serializer>(name: &InterfaceName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

fn number<S: Serializer>(netns: &NetnsId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(netns.0)
}

fn word<S: Serializer>(backend: &BackendKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(backend.as_str())
}
