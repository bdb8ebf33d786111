//! What is made of records while the program may have missed something; what many of them do is for
//! the simulator.

use ifmon_ebpf::{
    DeviceState,
    flag::{LEFT_NAME, TOOK_NAME},
};

use super::*;
use crate::{Identity, machine::Wanted};

const NETNS: NetnsId = NetnsId(1);

fn wire(name: &str, ifindex: u32) -> Place {
    let name = InterfaceName::new(name).expect("a valid name");
    Place {
        name: Name::from_bytes(name.padded()),
        netns: NETNS.0,
        ifindex,
    }
}

/// The device was renamed from the watched name to another one.
fn left(id: u64, ifindex: u32, from_count: u64, from_epoch: u32) -> Record {
    Record {
        id,
        from: wire("wg0", ifindex),
        to: wire("other", ifindex),
        from_count,
        from_epoch,
        flags: LEFT_NAME,
        ..Record::default()
    }
}

fn took(id: u64, ifindex: u32, to_count: u64, to_epoch: u32) -> Record {
    Record {
        id,
        to: wire("wg0", ifindex),
        to_count,
        to_epoch,
        flags: TOOK_NAME,
        ..Record::default()
    }
}

/// The kernel's side of one watch.
#[derive(Default)]
struct Side {
    records: VecDeque<Record>,
    /// There was a message that the program was not shown, before the last record.
    has_error: bool,
    /// Devices for which there was no room.
    refused: u64,
    /// What is remembered, and what was removed of that.
    devices: Vec<(u64, DeviceState)>,
    removed: Vec<u64>,
    /// Index and inode of the holder.
    holder: (u32, u64),
    state: NameState,
    /// The epoch of the namespace that was inserted last.
    namespace: Option<u32>,
    /// Of the last command.
    outcome: Option<Outcome>,
    /// Why it does not go on.
    error: Option<Error>,
}

impl Side {
    /// There are records, and all that is told is who was found to have the name: its index.
    fn found(&mut self, core: &mut Bpf) -> Option<u32> {
        core.ready(Source::Ring);
        let signals = self.run(core);
        let [Signal::Resync { observed, .. }] = &signals[..] else {
            panic!("{signals:?}");
        };
        observed.holder.map(|device| device.ifindex)
    }

    /// Does all that there is to do.
    fn run(&mut self, core: &mut Bpf) -> Vec<Signal> {
        let now = Now::at(Instant::now());
        let mut signals = Vec::new();
        loop {
            let request = match core.poll(&now) {
                Step::Request(request) | Step::Background(request) => request,
                Step::Signal(signal) => {
                    signals.push(signal);
                    continue;
                }
                Step::Done(outcome) => {
                    self.outcome = Some(outcome);
                    continue;
                }
                Step::Wait(None) => return signals,
                Step::Failed(error) => {
                    self.error = Some(error);
                    return signals;
                }
                step @ Step::Wait(_) => panic!("{step:?}"),
            };
            let reply = match request {
                Request::Record => Reply::Record(self.records.pop_front()),
                Request::Overflowed(_) => {
                    let is_due = self.records.is_empty();
                    Reply::Overflowed(Ok(is_due && std::mem::take(&mut self.has_error)))
                }
                Request::Counters => Reply::Counters(Ok(KernelCounters {
                    refused: self.refused,
                    ..KernelCounters::default()
                })),
                Request::Devices => Reply::Devices(Ok(self.devices.clone())),
                Request::InsertDevices(devices) => {
                    let state = |place| DeviceState {
                        place,
                        ..DeviceState::default()
                    };
                    let devices = devices.into_iter();
                    self.devices
                        .extend(devices.map(|(id, place)| (id, state(place))));
                    Reply::Done(Ok(()))
                }
                Request::RemoveDevice(id) => {
                    self.devices.retain(|(other, _)| *other != id);
                    self.removed.push(id);
                    Reply::Done(Ok(()))
                }
                Request::Link(_) => Reply::Link(Ok(None)),
                Request::Namespace(_) => Reply::Namespace(Ok(self.namespace)),
                Request::InsertNamespace(_, epoch) => {
                    self.namespace = Some(epoch);
                    Reply::Done(Ok(()))
                }
                Request::InsertLink(..) => Reply::Inserted(Ok(true)),
                Request::InsertNames(names) => {
                    self.state = names[0].1;
                    Reply::Done(Ok(()))
                }
                Request::Name(_) => Reply::Name(Ok(Some(self.state))),
                Request::Ask(_, question) => Reply::Answer(match question {
                    Question::IndexOf(_) => Answer::Index(Ok(Some(self.holder.0))),
                    Question::IdentityOf(_) => {
                        let (ifindex, inode) = self.holder;
                        let found = Identity::of_ifindex(ifindex).with_inode(inode);
                        Answer::Identity(Ok(Some(found)))
                    }
                    Question::Barrier => Answer::Waited(true),
                    question => Answer::unknown(question),
                }),
                _ => Reply::Done(Ok(())),
            };
            core.answer(&now, reply);
        }
    }
}

fn wg0() -> InterfaceName {
    InterfaceName::new("wg0").expect("a valid name")
}

fn watch(core: &mut Bpf, side: &mut Side, netns: NetnsId) {
    core.command(Command::Watch {
        netns,
        wanted: vec![Wanted {
            name: wg0(),
            inode: true,
        }],
    });
    side.run(core);
}

/// `wg0` is watched, which a device has.
fn watched(hook: Hook) -> (Bpf, Side) {
    let mut core = Bpf::new(hook, 4);
    let mut side = Side {
        holder: (2, 100),
        ..Side::default()
    };
    watch(&mut core, &mut side, NETNS);
    (core, side)
}

/// The maps are wrong about who has a name then.
#[test]
fn what_found_no_room_is_a_loss() {
    for hook in [Hook::Socket, Hook::Function] {
        let (mut core, mut side) = watched(hook);
        side.refused = 1;
        side.holder = (3, 200);
        core.ready(Source::Ring);
        let signals = side.run(&mut core);
        let found = signals.iter().find_map(|signal| match signal {
            Signal::Resync { observed, .. } => observed.holder,
            _ => None,
        });
        match hook {
            Hook::Socket => assert_eq!(found.map(|device| device.ifindex), Some(3)),
            Hook::Function => assert!(side.error.is_some(), "{signals:?}"),
        }
    }
}

/// A device that had a name stays in the maps when the name is not watched any more.
#[test]
fn a_watch_waits_until_room_was_made_for_it() {
    const ROOM: usize = 8;
    let mut core = Bpf::new(Hook::Socket, ROOM);
    let mut side = Side {
        holder: (2, 100),
        ..Side::default()
    };
    let wanted = |at: usize| Wanted {
        name: InterfaceName::new(format!("wg{at}")).expect("a valid name"),
        inode: true,
    };
    core.command(Command::Watch {
        netns: NETNS,
        wanted: (0..ROOM).map(wanted).collect(),
    });
    side.run(&mut core);
    core.command(Command::Unwatch(Watch {
        netns: NETNS,
        name: wg0(),
    }));
    side.run(&mut core);
    assert_eq!(side.devices.len(), ROOM);
    core.command(Command::Watch {
        netns: NETNS,
        wanted: vec![wanted(ROOM)],
    });
    side.run(&mut core);
    let outcome = side.outcome.expect("an answer");
    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
}

/// That they are deleted is not heard.
#[test]
fn devices_of_a_namespace_that_was_left_are_forgotten() {
    const LEFT: NetnsId = NetnsId(2);
    let (mut core, mut side) = watched(Hook::Socket);
    watch(&mut core, &mut side, LEFT);
    let device = |netns: NetnsId| DeviceState {
        place: Place {
            netns: netns.0,
            ..wire("wg0", 2)
        },
        ..DeviceState::default()
    };
    side.devices = vec![(10, device(NETNS)), (11, device(LEFT))];
    core.command(Command::Unwatch(Watch {
        netns: LEFT,
        name: wg0(),
    }));
    side.run(&mut core);
    assert_eq!(side.removed, [11]);
}

/// That something was missed is said once, and what is read of a name after that can be of another
/// device than the one that the program was shown last.
#[test]
fn an_inode_is_that_of_the_device_that_the_program_was_shown() {
    let (mut core, mut side) = watched(Hook::Socket);
    let NameState { id, epoch, .. } = side.state;
    side.records = VecDeque::from([
        left(id, 2, 1, epoch),
        took(10, 3, 2, epoch),
        left(10, 3, 3, epoch),
        took(11, 4, 4, epoch),
    ]);
    side.state = NameState {
        opened: 4,
        id: 11,
        ifindex: 4,
        epoch,
        closed: 4,
    };
    // That one went and another one came was not shown to the program.
    side.has_error = true;
    side.holder = (5, 300);
    core.ready(Source::Ring);
    let signals = side.run(&mut core);
    let told = signals.iter().rev().find_map(|signal| match signal {
        Signal::Change {
            change: Change::Took { device, .. },
            ..
        } => Some(*device),
        _ => None,
    });
    let found = signals.iter().find_map(|signal| match signal {
        Signal::Resync { observed, .. } => observed.holder,
        _ => None,
    });
    assert_eq!(told.map(|device| device.ifindex), Some(4), "{signals:?}");
    assert_eq!(found.map(|device| device.ifindex), Some(5), "{signals:?}");
    assert_ne!(told.map(|device| device.id), found.map(|device| device.id));
}

/// It lost the name before that, and the next one with the name was not shown to the program either.
#[test]
fn a_device_that_is_gone_may_not_have_been_the_last_one_with_the_name() {
    let (mut core, mut side) = watched(Hook::Socket);
    let NameState { id, epoch, .. } = side.state;
    side.records = VecDeque::from([left(id, 2, 1, epoch)]);
    side.has_error = true;
    side.holder = (5, 300);
    assert_eq!(side.found(&mut core), Some(5));
}

/// That its holder before lost it is what was missed, and who has it by now is found out.
#[test]
fn that_a_name_was_taken_is_not_told_while_it_is_found_out_what_was_missed() {
    let (mut core, mut side) = watched(Hook::Socket);
    let now = Now::at(Instant::now());
    core.ready(Source::Socket(NETNS));
    let step = core.poll(&now);
    let Step::Request(Request::Overflowed(NETNS)) = step else {
        panic!("{step:?}");
    };
    core.answer(&now, Reply::Overflowed(Ok(true)));
    side.records = VecDeque::from([took(7, 5, 1, side.state.epoch)]);
    side.holder = (5, 300);
    assert_eq!(side.found(&mut core), Some(5));
}
