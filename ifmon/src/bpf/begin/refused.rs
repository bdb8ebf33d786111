//! What becomes of devices that move while a watch of theirs is refused or looked up; how watches
//! begin is for the simulator.

use std::{collections::HashMap, time::Instant};

use super::*;
use crate::{
    NetnsId,
    machine::{Command, Machine as _, Now, Step},
};

const NETNS: NetnsId = NetnsId(1);
const OTHER: NetnsId = NetnsId(2);
const IFINDEX: u32 = 2;
const HERE: Link = Link {
    netns: NETNS.0,
    ifindex: IFINDEX,
};
/// Where in memory the device is.
const ADDRESS: u64 = 0xffff_8880_0000_1000;

/// The maps as far as devices are concerned.
#[derive(Default)]
struct Maps {
    links: HashMap<Link, u64>,
    devices: HashMap<u64, DeviceState>,
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
            Request::Device(id) => Reply::Device(Ok(self.devices.get(&id).copied())),
            Request::InsertDevices(devices) => {
                for (id, place) in devices {
                    self.insert(id, place);
                }
                Reply::Done(Ok(()))
            }
            Request::RemoveDevice(id) => {
                self.devices.remove(&id);
                Reply::Done(Ok(()))
            }
            // The holder of the name cannot be told.
            Request::InsertNames(names) if names.iter().any(|(_, state)| state.ifindex != 0) => {
                Reply::Done(Err(io::ErrorKind::OutOfMemory.into()))
            }
            _ => Reply::Done(Ok(())),
        }
    }

    fn insert(&mut self, id: u64, place: Place) {
        let device = DeviceState {
            place,
            ..DeviceState::default()
        };
        self.devices.insert(id, device);
    }

    /// The first half of what a tracing program does when the device goes to another namespace.
    fn leave(&mut self) {
        let id = self.links.remove(&HERE).expect("it was entered");
        self.links.insert(Link::between(ADDRESS), id);
    }

    /// The second half.
    fn arrive(&mut self) {
        let id = self.links.remove(&Link::between(ADDRESS));
        let device = id.and_then(|id| self.devices.get_mut(&id));
        let device = device.expect("it is on its way");
        device.place.netns = OTHER.0;
        device.opened += 1;
        device.closed += 1;
        self.links
            .extend(id.map(|id| (Link::of(&device.place), id)));
    }

    /// A watch that is refused in the end. `before` sees each request before it is answered.
    fn watch(&mut self, mut before: impl FnMut(&mut Self, &Request)) {
        let now = Now::at(Instant::now());
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
                    before(self, &request);
                    let reply = self.answer(request);
                    core.answer(&now, reply);
                }
                Step::Done(outcome) => break outcome,
                step => panic!("{step:?}"),
            }
        };
        assert!(matches!(outcome, Outcome::Watched(Err(_))), "{outcome:?}");
    }
}

fn called(name: &str) -> Place {
    let name = InterfaceName::new(name).expect("a valid name");
    Place {
        name: Name::from_bytes(name.padded()),
        netns: NETNS.0,
        ifindex: IFINDEX,
    }
}

/// Else nobody would know it any more when it arrives, and its end would not be told of to who
/// watches the name that it has there.
#[test]
fn a_device_that_moves_while_its_watch_is_refused_stays_known() {
    let mut maps = Maps::default();
    maps.watch(|maps, request| {
        if let Request::RemoveName(_) = request {
            maps.leave();
        }
    });
    let id = maps.links[&Link::between(ADDRESS)];
    assert!(maps.devices.contains_key(&id));
}

/// It had another name by the time that it was entered, and is gone when it is to be entered again.
#[test]
fn a_device_that_moves_while_what_is_known_of_it_is_out_of_date_stays_known() {
    let id = USERSPACE_ID | 100;
    let mut maps = Maps::default();
    maps.links.insert(HERE, id);
    maps.insert(id, called("other"));
    maps.watch(|maps, request| {
        if *request == Request::RemoveLink(HERE) {
            maps.leave();
            maps.arrive();
        }
    });
    let there = maps.devices.get(&id);
    assert!(there.is_some_and(|device| device.place.netns == OTHER.0));
}

/// What the program has written is ahead of what was looked up, time and again.
#[test]
fn a_device_that_is_renamed_again_and_again_stays_known() {
    let id = 100;
    let mut maps = Maps::default();
    maps.links.insert(HERE, id);
    maps.insert(id, called("other"));
    let mut waits = 0;
    maps.watch(|maps, request| {
        assert_ne!(*request, Request::RemoveLink(HERE), "after {waits} waits");
        if let Request::Ask(_, Question::Barrier) = request {
            waits += 1;
            if waits == 2 * WAITS {
                maps.insert(id, called("wg0"));
            }
        }
    });
    assert!(maps.devices.contains_key(&id));
}
