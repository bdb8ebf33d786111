//! Clients of the agent that are not of the library: they read what they are told, line by line,
//! stop reading now and then, and call again with what they know when the agent was away.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{
    host::{self, Host, SPACES, Spot},
    oracle::{Follower, Means},
    serving::{WireId, Wires},
    shrink::Decisions,
    tell,
};
use crate::{EventKind, Identity, InterfaceName, NetnsId};

/// A process that asks the agent, and keeps its namespace alive.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) space: usize,
    means: Means,
    /// The names that it asks for, each with the device that it takes to be the holder.
    names: BTreeMap<InterfaceName, Option<u32>>,
    wire: Option<WireId>,
    /// What it has not sent of its call.
    unsent: Vec<u8>,
    /// In which state it had called.
    at: usize,
    is_reading: bool,
    input: Vec<u8>,
    followers: BTreeMap<InterfaceName, Follower>,
    /// How many events it was told since that was asked.
    heard: u64,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client by {:?}", self.wire)
    }
}

impl Client {
    pub(crate) fn new(decisions: &mut Decisions, host: &Host, means: Means) -> Option<Self> {
        let space = decisions.index(SPACES);
        if !host.is_open(space) {
            return None;
        }
        let names = (0..=decisions.below(3)).map(|_| {
            let name = host::name(decisions.below(host::WATCHED));
            let any = host.now.devices().nth(decisions.index(4));
            let ifindex = any.map_or(2, |device| device.ifindex);
            (name, decisions.chance(4).then_some(ifindex))
        });
        Some(Self {
            space,
            means,
            names: names.collect(),
            wire: None,
            unsent: Vec::new(),
            at: 0,
            is_reading: true,
            input: Vec::new(),
            followers: BTreeMap::new(),
            heard: 0,
        })
    }

    pub(crate) const fn is_away(&self) -> bool {
        self.wire.is_none()
    }

    /// Connects, and is about to say what it wants.
    pub(crate) fn call(&mut self, wire: WireId) {
        let expect = |(name, ifindex): (&InterfaceName, &Option<u32>)| {
            Some((name.to_string(), (*ifindex)?.into()))
        };
        let call = json!({
            "method": "io.ifmon.Watch",
            "more": true,
            "parameters": {
                "interfaces": self.names.keys().map(ToString::to_string).collect::<Vec<_>>(),
                "expect": self.names.iter().filter_map(expect).collect::<serde_json::Map<_, _>>(),
            },
        });
        // Who has not watched anything yet can ask for more.
        let list = json!({ "method": "io.ifmon.List" });
        self.unsent = format!("{list}\0{call}\0").into_bytes();
        self.wire = Some(wire);
        tell(|| format!("  {self}: {call}"));
    }

    pub(crate) fn hang_up(self, wires: &mut Wires) {
        if let Some(wire) = self.wire.and_then(|wire| wires.get_mut(&wire)) {
            wire.is_hung_up = true;
        }
    }

    /// Does something; says how much it was told by now.
    pub(crate) fn turn(
        &mut self,
        decisions: &mut Decisions,
        host: &Host,
        wires: &mut Wires,
    ) -> u64 {
        match decisions.below(20) {
            0..12 => {
                let count = 1 + decisions.index(600);
                self.send(count, host, wires);
                self.read(count, host, wires);
            }
            12..15 => {
                self.send(usize::MAX, host, wires);
                self.read(usize::MAX, host, wires);
            }
            15..17 => self.is_reading = false,
            17.. => self.is_reading = true,
        }
        std::mem::take(&mut self.heard)
    }

    /// Does all that there is to do; false when that was nothing.
    pub(crate) fn rest(&mut self, host: &Host, wires: &mut Wires) -> bool {
        let has_sent = self.send(usize::MAX, host, wires);
        self.read(usize::MAX, host, wires) || has_sent
    }

    fn send(&mut self, count: usize, host: &Host, wires: &mut Wires) -> bool {
        let Some(wire) = self.wire.and_then(|wire| wires.get_mut(&wire)) else {
            return false;
        };
        if self.unsent.is_empty() {
            return false;
        }
        let count = count.min(self.unsent.len());
        wire.to_agent.extend(self.unsent.drain(..count));
        self.at = host.settled();
        true
    }

    fn read(&mut self, count: usize, host: &Host, wires: &mut Wires) -> bool {
        let Some(id) = self.wire.filter(|_| self.is_reading) else {
            return false;
        };
        let wire = wires.get_mut(&id).expect("it was connected");
        let count = count.min(wire.to_client.len());
        self.input.extend(wire.to_client.drain(..count));
        let is_over = wire.has_ended && wire.to_client.is_empty();
        let mut is_refused = false;
        while let Some(end) = self.input.iter().position(|&byte| byte == 0) {
            let message: Vec<u8> = self.input.drain(..=end).collect();
            let message = message.strip_suffix(&[0]).expect("it ends with NUL");
            let message: Value = serde_json::from_slice(message).expect("it is JSON");
            tell(|| format!("  {self}: reads {message}"));
            is_refused |= message.get("error").is_some();
            if let Some(event) = message["parameters"]["event"].as_str() {
                self.hear(event, &message["parameters"], host);
            }
        }
        if is_over || is_refused {
            tell(|| format!("  {self}: is alone"));
            wires.get_mut(&id).expect("it was connected").is_hung_up = true;
            self.wire = None;
            self.input.clear();
            self.unsent.clear();
            for (name, follower) in std::mem::take(&mut self.followers) {
                self.names.insert(name, follower.known());
            }
            return true;
        }
        count > 0
    }

    fn hear(&mut self, event: &str, said: &Value, host: &Host) {
        let name = said["interface"].as_str().expect("it has a name");
        let name: InterfaceName = name.parse().expect("a good name");
        assert_eq!(said["netns"], host::netns(self.space).0);
        self.heard += 1;
        let kind = kind(event, said);
        let recovered = said["recovered"] == true;
        if let EventKind::Watching { ifindex } = kind {
            let spot = Spot {
                space: self.space,
                era: host.now.eras[self.space],
                name,
            };
            let window = (self.at, host.at());
            let expected = self.names.get(&name).expect("it asked for that");
            let expected = expected.map(Identity::of_ifindex);
            let means = self.means;
            let begun = Follower::begin(spot, means, host, window, ifindex, expected);
            let begun = begun
                .unwrap_or_else(|| panic!("{kind:?} of {spot:?} was never true in {window:?}"));
            let before = self.followers.insert(name, begun);
            assert!(before.is_none(), "it begins once");
            return;
        }
        let follower = self.followers.get_mut(&name);
        let follower = follower.unwrap_or_else(|| panic!("{kind:?} of {name}, not watched"));
        follower.take(&kind, recovered, host);
    }

    /// All is at rest. Who does not read may do so from now on.
    pub(crate) fn check_rest(&mut self, host: &Host, wakes: bool) {
        if !self.is_reading {
            self.is_reading = wakes;
            return;
        }
        assert!(self.names.keys().eq(self.followers.keys()), "{self:?}");
        for follower in self.followers.values_mut() {
            follower.rest(host, None);
        }
    }
}

/// What a line says.
fn kind(event: &str, said: &Value) -> EventKind {
    let number = |field: &str| said[field].as_u64();
    let index = |field: &str| Some(number(field)? as u32);
    let ifindex = index("ifindex");
    let some = || ifindex.expect("it has an index");
    match event {
        "watching" => EventKind::Watching { ifindex },
        "deleted" => EventKind::Deleted { ifindex: some() },
        "renamed" => EventKind::Renamed {
            ifindex: some(),
            to: said["to"]
                .as_str()
                .expect("it has a name")
                .parse()
                .expect("a good one"),
        },
        "moved" => EventKind::Moved {
            ifindex: some(),
            to_netns: index("to_netns").map(NetnsId),
            to_ifindex: index("to_ifindex"),
        },
        "appeared" => EventKind::Appeared { ifindex: some() },
        "recreated" => EventKind::Recreated {
            ifindex: some(),
            old_ifindex: index("old_ifindex").expect("it has another index"),
        },
        "returned" => EventKind::Returned { ifindex: some() },
        "resynced" => EventKind::Resynced {
            lost: number("lost"),
            changed: said["changed"] == true,
            ifindex,
        },
        event => panic!("{event}"),
    }
}
