//! What is taken back when a watch is refused; how watches begin is for the simulator.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use super::*;
use crate::{
    NetnsId,
    machine::{Command, Machine as _, Now, Step},
};

const NETNS: NetnsId = NetnsId(1);
const IFINDEX: u32 = 2;
/// Where in memory the device is.
const ADDRESS: u64 = 0xffff_8880_0000_1000;

/// The maps as far as devices are concerned.
#[derive(Default)]
struct Maps {
    links: HashMap<Link, u64>,
    devices: HashMap<u64, WirePlace>,
}

impl Maps {
    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Record => Reply::Record(None),
            Request::Counters => Reply::Counters(Ok(ifmon_ebpf::Counters::default())),
            Request::Ask(_, Question::IndexOf(_)) => {
                Reply::Answer(Answer::Index(Ok(Some(IFINDEX))))
            }
            Request::Ask(_, Question::Barrier) => Reply::Answer(Answer::Waited(true)),
            Request::Link(link) => Reply::Link(Ok(self.links.get(&link).copied())),
            Request::InsertLink(link, id) => {
                Reply::Inserted(Ok(self.links.insert(link, id).is_none()))
            }
            Request::RemoveLink(link) => {
                self.links.remove(&link);
                Reply::Done(Ok(()))
            }
            Request::Device(id) => {
                let place = self.devices.get(&id).copied();
                Reply::Device(Ok(place.map(|place| ifmon_ebpf::DeviceState {
                    place,
                    ..ifmon_ebpf::DeviceState::default()
                })))
            }
            Request::InsertDevice(id, place) => {
                self.devices.insert(id, place);
                Reply::Done(Ok(()))
            }
            Request::RemoveDevice(id) => {
                self.devices.remove(&id);
                Reply::Done(Ok(()))
            }
            // The holder of the name cannot be told.
            Request::InsertName(_, NameState { ifindex, .. }) if ifindex != 0 => {
                Reply::Done(Err(io::ErrorKind::OutOfMemory.into()))
            }
            _ => Reply::Done(Ok(())),
        }
    }

    /// The first half of what a tracing program does when the device goes to another namespace.
    fn leave(&mut self) {
        let here = Link {
            netns: NETNS.0,
            ifindex: IFINDEX,
        };
        let id = self.links.remove(&here).expect("it was entered");
        self.links.insert(Link::between(ADDRESS), id);
    }
}

/// Else nobody would know it any more when it arrives, and its end would not be told of to who
/// watches the name that it has there.
#[test]
fn a_device_that_moves_while_its_watch_is_refused_stays_known() {
    let now = Now {
        instant: Instant::now(),
        wall: SystemTime::UNIX_EPOCH,
        boot: Duration::ZERO,
    };
    let mut maps = Maps::default();
    let mut core = Bpf::new(Hook::Function, 4);
    core.command(Command::Watch {
        netns: NETNS,
        wanted: vec![Wanted {
            name: InterfaceName::new("wg0").expect("a valid name"),
            inode: false,
        }],
    });
    let outcome = loop {
        match core.poll(&now) {
            Step::Request(request) => {
                if let Request::RemoveName(_) = request {
                    maps.leave();
                }
                let reply = maps.answer(request);
                core.answer(&now, reply);
            }
            Step::Done(outcome) => break outcome,
            step => panic!("{step:?}"),
        }
    };
    assert!(matches!(outcome, Outcome::Watched(Err(_))), "{outcome:?}");
    let id = maps.links[&Link::between(ADDRESS)];
    assert!(maps.devices.contains_key(&id));
}
