//! What is made of records while the program may have missed something; what many of them do is for
//! the simulator.

use ifmon_ebpf::flag::{LEFT_NAME, TOOK_NAME};

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
    has_error: bool,
    /// Index and inode of the holder.
    holder: (u32, u64),
    state: NameState,
}

impl Side {
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
                Step::Done(_) => continue,
                Step::Wait(None) => return signals,
                step => panic!("{step:?}"),
            };
            let reply = match request {
                Request::Record => Reply::Record(self.records.pop_front()),
                Request::Overflowed(_) => {
                    Reply::Overflowed(Ok(std::mem::take(&mut self.has_error)))
                }
                Request::Counters => Reply::Counters(Ok(KernelCounters::default())),
                Request::Devices => Reply::Devices(Ok(Vec::new())),
                Request::Link(_) => Reply::Link(Ok(None)),
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

/// That something was missed is said once, and what is read of a name after that can be of another
/// device than the one that the program was shown last.
#[test]
fn an_inode_is_that_of_the_device_that_the_program_was_shown() {
    let mut core = Bpf::new(Hook::Socket, 4);
    let mut side = Side {
        holder: (2, 100),
        ..Side::default()
    };
    core.command(Command::Watch {
        netns: NETNS,
        wanted: vec![Wanted {
            name: InterfaceName::new("wg0").expect("a valid name"),
            inode: true,
        }],
    });
    side.run(&mut core);
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
