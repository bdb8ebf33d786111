//! What is said to the agent and what it says: varlink, JSON objects that end with NUL
//! (`io.ifmon.varlink`).

use std::{collections::BTreeSet, time::SystemTime};

use serde::Deserialize;
use serde_json::json;

use crate::{Actor, InterfaceName, NetnsId};

/// No message of the agent is longer.
const MESSAGE: usize = 64 << 10;

/// Something that the agent says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AgentMessage {
    Event(AgentEvent),
    /// All that happened before it was asked for was said.
    Synced,
    /// Why it does not do what was asked.
    Refused(String),
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentEvent {
    pub(super) name: InterfaceName,
    pub(super) time: SystemTime,
    pub(super) by: Option<Actor>,
    pub(super) what: AgentVerdict,
}

/// What happened. An index is that of the device that the event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AgentVerdict {
    Watching(Option<u32>),
    Deleted,
    Renamed(InterfaceName),
    Moved {
        netns: Option<NetnsId>,
        ifindex: Option<u32>,
    },
    /// Another device has the name.
    Another(u32),
    /// The device has the name again.
    Returned(u32),
    Resynced {
        lost: Option<u64>,
        changed: bool,
        ifindex: Option<u32>,
    },
}

/// The call that watches these names.
pub(super) fn watch(names: &BTreeSet<InterfaceName>) -> Vec<u8> {
    let interfaces: Vec<String> = names.iter().map(ToString::to_string).collect();
    message(&json!({
        "method": "io.ifmon.Watch",
        "parameters": { "interfaces": interfaces },
        "more": true,
    }))
}

/// The call that asks for an [`AgentMessage::Synced`].
pub(super) fn sync() -> Vec<u8> {
    message(&json!({ "method": "io.ifmon.Sync", "oneway": true }))
}

fn message(object: &serde_json::Value) -> Vec<u8> {
    let mut bytes = object.to_string().into_bytes();
    bytes.push(0);
    bytes
}

/// What was received and is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Input(Vec<u8>);

impl Input {
    /// Takes more, and gives what is whole, up to what no agent says: that is an error.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (Vec<AgentMessage>, Result<(), String>) {
        let Self(input) = self;
        input.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(end) = input.iter().position(|&byte| byte == 0) {
            let whole: Vec<u8> = input.drain(..=end).collect();
            match parse(whole.get(..end).unwrap_or_default()) {
                Ok(message) => messages.extend(message),
                Err(why) => return (messages, Err(why)),
            }
        }
        let result = if input.len() > MESSAGE {
            Err("it sends a message without an end".to_owned())
        } else {
            Ok(())
        };
        (messages, result)
    }
}

/// Takes a message apart. An event that a later agent may tell, and that is not known here, is
/// none.
fn parse(message: &[u8]) -> Result<Option<AgentMessage>, String> {
    #[derive(Deserialize)]
    struct Reply {
        error: Option<String>,
        #[serde(default)]
        parameters: serde_json::Value,
    }
    let not_understood =
        |error: serde_json::Error| format!("its answer is not understood ({error})");
    let Reply { error, parameters } = serde_json::from_slice(message).map_err(not_understood)?;
    if let Some(error) = error {
        let why = ["reason", "what", "parameter"]
            .iter()
            .find_map(|field| parameters.get(field)?.as_str());
        return Ok(Some(AgentMessage::Refused(match why {
            Some(why) => format!("{error}: {why}"),
            None => error,
        })));
    }
    let event: Event = serde_json::from_value(parameters).map_err(not_understood)?;
    Ok(event.told())
}

#[derive(Deserialize)]
struct Event {
    time: String,
    event: String,
    interface: String,
    ifindex: Option<u32>,
    by: Option<By>,
    to: Option<String>,
    to_netns: Option<u32>,
    to_ifindex: Option<u32>,
    lost: Option<u64>,
    changed: Option<bool>,
}

#[derive(Deserialize)]
struct By {
    pid: Option<u32>,
    comm: Option<String>,
    uid: Option<u32>,
    cgroup: Option<u64>,
    kthread: Option<bool>,
}

impl Event {
    fn told(self) -> Option<AgentMessage> {
        let Self {
            time,
            event,
            interface,
            ifindex,
            by,
            to,
            to_netns,
            to_ifindex,
            lost,
            changed,
        } = self;
        let what = match event.as_str() {
            "synced" => return Some(AgentMessage::Synced),
            "watching" => AgentVerdict::Watching(ifindex),
            "deleted" => AgentVerdict::Deleted,
            "renamed" => AgentVerdict::Renamed(name(to?)?),
            "moved" => AgentVerdict::Moved {
                netns: to_netns.map(NetnsId),
                ifindex: to_ifindex,
            },
            "appeared" | "recreated" => AgentVerdict::Another(ifindex?),
            "returned" => AgentVerdict::Returned(ifindex?),
            "resynced" => AgentVerdict::Resynced {
                lost,
                changed: changed?,
                ifindex,
            },
            _ => return None,
        };
        Some(AgentMessage::Event(AgentEvent {
            name: InterfaceName::new(interface).ok()?,
            time: time.parse::<jiff::Timestamp>().ok()?.into(),
            by: by.map(
                |By {
                     pid,
                     comm,
                     uid,
                     cgroup,
                     kthread,
                 }| Actor {
                    pid,
                    comm,
                    uid,
                    cgroup,
                    kthread,
                },
            ),
            what,
        }))
    }
}

/// The new name of a device. One that is not UTF-8 comes with U+FFFD, which can make it too long.
fn name(mut text: String) -> Option<InterfaceName> {
    loop {
        match InterfaceName::new(&text) {
            Ok(name) => return Some(name),
            Err(_) => text.pop()?,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wg0() -> InterfaceName {
        InterfaceName::new("wg0").expect("a good name")
    }

    #[test]
    fn calls_are_objects_that_end_with_nul() {
        assert_eq!(
            watch(&BTreeSet::from([wg0()])),
            b"{\"method\":\"io.ifmon.Watch\",\"more\":true,\"parameters\":{\"interfaces\":[\"wg0\"]}}\0"
        );
        assert_eq!(sync(), b"{\"method\":\"io.ifmon.Sync\",\"oneway\":true}\0");
    }

    #[test]
    fn replies_are_taken_apart_wherever_they_are_cut() {
        let said = concat!(
            r#"{"parameters":{"time":"1970-01-01T00:00:01Z","event":"renamed","interface":"wg0","netns":1,"#,
            r#""ifindex":7,"restart":true,"backend":"fentry","to":"wg1","#,
            r#""by":{"pid":4,"comm":"ip","uid":0,"cgroup":null,"kthread":false,"unit":"a.service"}},"continues":true}"#,
            "\0",
            r#"{"parameters":{"time":"1970-01-01T00:00:01Z","event":"of-later","interface":"wg0"}}"#,
            "\0",
            r#"{"error":"io.ifmon.TooMany","parameters":{"what":"clients"}}"#,
            "\0",
        )
        .as_bytes();
        let expected = [
            AgentMessage::Event(AgentEvent {
                name: wg0(),
                time: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1),
                by: Some(Actor {
                    pid: Some(4),
                    comm: Some("ip".to_owned()),
                    uid: Some(0),
                    cgroup: None,
                    kthread: Some(false),
                }),
                what: AgentVerdict::Renamed(InterfaceName::new("wg1").expect("a good name")),
            }),
            AgentMessage::Refused("io.ifmon.TooMany: clients".to_owned()),
        ];
        for cut in 0..said.len() {
            let (first, rest) = said.split_at(cut);
            let mut input = Input::default();
            let (mut messages, first) = input.take(first);
            let (others, rest) = input.take(rest);
            messages.extend(others);
            assert_eq!((first, rest), (Ok(()), Ok(())), "well said");
            assert_eq!(messages, expected, "cut at {cut}");
            // What comes before something that no agent says was said.
            let (messages, result) = Input::default().take(&[said, b"{}\0"].concat());
            assert!(result.is_err());
            assert_eq!(messages, expected);
        }
    }

    #[test]
    fn what_no_agent_says_is_an_error() {
        for said in [&b"HTTP/1.1 400\0"[..], b"{}\0", b"{\"parameters\":[]}\0"] {
            assert!(Input::default().take(said).1.is_err());
        }
        assert!(Input::default().take(&[b' '; MESSAGE + 1]).1.is_err());
        assert!(Input::default().take(&[b' '; MESSAGE]).1.is_ok());
    }
}
