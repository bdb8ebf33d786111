//! A line as a JSON object.

use std::{
    io::{self, Write},
    time::SystemTime,
};

use ifmon::{Actor, Origin};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::ser::Formatter;

use super::line::{Line, Value};

impl Line<'_> {
    /// The object with its line feed.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        /// Most lines fit: none is copied as it grows.
        const ROOM: usize = 512;
        let mut line = Vec::with_capacity(ROOM);
        write(&mut line, self);
        line.push(b'\n');
        line
    }
}

/// Writes an object, in which there is nothing that a terminal could obey.
pub(crate) fn write(to: &mut Vec<u8>, object: &impl Serialize) {
    let start = to.len();
    if object
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut *to, Escaping,
        ))
        .is_err()
    {
        to.truncate(start);
    }
}

/// Escapes the control characters that JSON itself lets through: U+007F to U+009F.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Nearly all have nothing to escape, and to look at bytes costs less than at characters.
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, control)) = rest.char_indices().find(|(_, char)| char.is_control()) {
            let (before, from) = rest.split_at(at);
            write!(writer, "{before}\\u{:04x}", u32::from(control))?;
            rest = &from[control.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::write;

    /// Of C0, C1 and DEL, which a terminal would obey, in names and in what others call themselves.
    #[test]
    fn no_control_character_is_written_as_it_is() {
        let control: String = ('\0'..='\u{9f}').filter(|char| char.is_control()).collect();
        let text = format!("a{control}\u{a0}\u{fc}\u{1f600}");
        let mut said = Vec::new();
        write(&mut said, &serde_json::json!({ "comm": text }));
        let said = String::from_utf8(said).expect("text");
        assert!(!said.contains(char::is_control), "{said}");
        let read: serde_json::Value = serde_json::from_str(&said).expect("an object");
        assert_eq!(read["comm"], text);
    }
}
