//! A line as a JSON object.

use std::time::SystemTime;

use ifmon::{Actor, Origin};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::line::{Line, Value};

impl Line<'_> {
    /// The object with its line feed.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        /// Most lines fit: none is copied as it grows.
        const ROOM: usize = 512;
        let mut line = Vec::with_capacity(ROOM);
        if serde_json::to_writer(&mut line, self).is_err() {
            line.clear();
        }
        line.push(b'\n');
        line
    }
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_none(),
            Self::Time(time) => serializer.collect_str(&timestamp(*time)),
            Self::Word(word) => serializer.serialize_str(word),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            // What is not UTF-8 becomes U+FFFD.
            Self::Name(name) => serializer.collect_str(name),
            Self::Kind(kind) => serializer.collect_str(kind),
            Self::Pattern(pattern) => serializer.collect_str(pattern),
            Self::NetnsName(name) => serializer.collect_str(&name.display()),
            Self::By(actor, origin) => By::of(actor, origin).serialize(serializer),
            Self::Peer(peer) => peer.serialize(serializer),
        }
    }
}

/// Who did it.
#[derive(Debug, Serialize)]
pub(super) struct By<'a> {
    pid: Option<u32>,
    comm: Option<&'a str>,
    uid: Option<u32>,
    cgroup: Option<u64>,
    kthread: Option<bool>,
    #[serde(flatten)]
    origin: &'a Origin,
}

impl<'a> By<'a> {
    pub(super) fn of(actor: &'a Actor, origin: &'a Origin) -> Self {
        Self {
            pid: actor.pid,
            comm: actor.comm.as_deref(),
            uid: actor.uid,
            cgroup: actor.cgroup,
            kthread: actor.kthread,
            origin,
        }
    }
}

/// RFC 3339 in UTC, to the microsecond.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    format!("{time:.6}")
}
