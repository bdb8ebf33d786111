//! What is left to be done when a watch has begun; how it begins is for the simulator.

use std::time::Instant;

use super::*;
use crate::{
    Identity,
    machine::{Command, Machine as _, Now, Step as MachineStep},
    retry,
};

/// The index and the id of who has the name in the end, given by the program.
const HOLDER: (u32, u64) = (8, 5);

/// A kernel in which another device has the name by the time that it was looked up.
#[derive(Default)]
struct Kernel {
    /// How often the name was looked up.
    looks: u32,
    /// How often the inode of the second one cannot be read.
    failures: u32,
    /// In sysfs there is who has the name next, of which the program was not shown anything yet.
    is_ahead: bool,
    epoch: u32,
}

impl Kernel {
    fn reply(&mut self, request: Request) -> Reply {
        match request {
            Request::Record => Reply::Record(None),
            Request::Counters => Reply::Counters(Ok(ifmon_ebpf::Counters {
                seen: self.looks.into(),
                ..ifmon_ebpf::Counters::default()
            })),
            Request::Devices => Reply::Devices(Ok(Vec::new())),
            Request::Link(_) => Reply::Link(Ok(None)),
            Request::InsertLink(..) => Reply::Inserted(Ok(true)),
            Request::Overflowed(_) => Reply::Overflowed(Ok(false)),
            Request::Namespace(_) => Reply::Namespace(Ok(Some(1))),
            Request::InsertNames(names) => {
                self.epoch = names[0].1.epoch;
                Reply::Done(Ok(()))
            }
            Request::Name(_) => Reply::Name(Ok(Some(NameState {
                opened: 1,
                id: HOLDER.1,
                ifindex: HOLDER.0,
                epoch: self.epoch,
                closed: 1,
            }))),
            Request::Ask(_, Question::IndexOf(_)) => {
                self.looks += 1;
                let ifindex = if self.looks == 1 { 7 } else { HOLDER.0 };
                Reply::Answer(Answer::Index(Ok(Some(ifindex))))
            }
            Request::Ask(_, Question::IdentityOf(_)) => {
                Reply::Answer(Answer::Identity(if self.looks > 1 && self.failures > 0 {
                    self.failures -= 1;
                    Err(io::ErrorKind::OutOfMemory.into())
                } else {
                    let ifindex = match (self.looks, self.is_ahead) {
                        (1, _) => 7,
                        (_, false) => HOLDER.0,
                        (_, true) => 9,
                    };
                    Ok(Some(
                        Identity::of_ifindex(ifindex).with_inode(self.looks.into()),
                    ))
                }))
            }
            Request::Ask(_, Question::Barrier) => Reply::Answer(Answer::Waited(true)),
            Request::Enter(_) | Request::InsertNamespace(..) | Request::InsertDevices(_) => {
                Reply::Done(Ok(()))
            }
            request => panic!("{request:?}"),
        }
    }

    /// Does all that there is to do at this time; what it comes to in the end.
    fn run(&mut self, instant: Instant, core: &mut Bpf) -> MachineStep<Request> {
        let now = Now::at(instant);
        loop {
            match core.poll(&now) {
                MachineStep::Request(request) | MachineStep::Background(request) => {
                    core.answer(&now, self.reply(request));
                }
                MachineStep::Done(outcome) => {
                    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
                }
                step => return step,
            }
        }
    }
}

fn watching() -> Bpf {
    let mut core = Bpf::new(Hook::Socket, 10);
    core.command(Command::Watch {
        netns: NetnsId(1),
        wanted: vec![Wanted {
            name: InterfaceName::new("wg0").expect("a valid name"),
            inode: false,
        }],
    });
    core
}

/// What was read is the inode of who had the name before.
#[test]
fn the_inode_of_who_took_the_name_while_the_watch_began_is_read_afterwards() {
    let mut core = watching();
    let step = Kernel::default().run(Instant::now(), &mut core);
    assert!(matches!(step, MachineStep::Wait(None)), "{step:?}");
    assert!(core.identities.knows(HOLDER.1));
}

#[test]
fn the_inode_of_who_has_the_name_next_is_not_that_of_the_holder() {
    let mut core = watching();
    let mut kernel = Kernel {
        is_ahead: true,
        ..Kernel::default()
    };
    let step = kernel.run(Instant::now(), &mut core);
    assert!(matches!(step, MachineStep::Wait(None)), "{step:?}");
    assert!(!core.identities.knows(HOLDER.1));
}

#[test]
fn an_inode_that_cannot_be_read_is_asked_for_again_later() {
    let mut core = watching();
    let mut kernel = Kernel {
        failures: 1,
        ..Kernel::default()
    };
    let step = kernel.run(Instant::now(), &mut core);
    let MachineStep::Wait(Some(at)) = step else {
        panic!("{step:?}");
    };
    assert!(!core.identities.knows(HOLDER.1));
    let step = kernel.run(at, &mut core);
    assert!(matches!(step, MachineStep::Wait(None)), "{step:?}");
    assert!(core.identities.knows(HOLDER.1));
}

#[test]
fn an_inode_that_can_never_be_read_is_asked_for_so_often_and_no_more() {
    let mut core = watching();
    let mut kernel = Kernel {
        failures: u32::MAX,
        ..Kernel::default()
    };
    let mut instant = Instant::now();
    for wait in (1..).map_while(retry::wait_after) {
        let step = kernel.run(instant, &mut core);
        instant += wait;
        assert!(
            matches!(step, MachineStep::Wait(Some(at)) if at == instant),
            "{step:?}"
        );
    }
    let step = kernel.run(instant, &mut core);
    assert!(matches!(step, MachineStep::Failed(_)), "{step:?}");
}

/// A device that is shown while it is being set up, which fails: it goes, and nobody is told. Something
/// else happens meanwhile.
#[test]
fn who_is_gone_when_changes_that_had_begun_are_over_does_not_have_the_name() {
    let mut core = watching();
    let now = Now::at(Instant::now());
    let (mut looks, mut seen) = (0, 0);
    let (mut name, mut device) = (None, None);
    let holders = loop {
        let request = match core.poll(&now) {
            MachineStep::Request(request) | MachineStep::Background(request) => request,
            MachineStep::Done(Outcome::Watched(holders)) => break holders,
            step => panic!("{step:?}"),
        };
        let reply = match request {
            Request::Record => Reply::Record(None),
            Request::Overflowed(_) => Reply::Overflowed(Ok(false)),
            Request::Counters => {
                seen += 1;
                Reply::Counters(Ok(ifmon_ebpf::Counters {
                    seen,
                    ..ifmon_ebpf::Counters::default()
                }))
            }
            Request::Devices => Reply::Devices(Ok(Vec::new())),
            Request::InsertNames(names) => {
                name = names.first().map(|(_, state)| *state);
                Reply::Done(Ok(()))
            }
            Request::Name(_) => Reply::Name(Ok(name)),
            Request::Link(_) => Reply::Link(Ok(device)),
            Request::InsertLink(_, id) => {
                device = Some(id);
                Reply::Inserted(Ok(true))
            }
            Request::Ask(_, Question::Barrier) => Reply::Answer(Answer::Waited(true)),
            Request::Ask(_, Question::IndexOf(_)) => {
                looks += 1;
                Reply::Answer(Answer::Index(Ok((looks <= 2).then_some(7))))
            }
            Request::Ask(_, Question::IdentityOf(_)) => Reply::Answer(Answer::Identity(Ok(None))),
            _ => Reply::Done(Ok(())),
        };
        core.answer(&now, reply);
    };
    let holders = holders.expect("it begins");
    assert!(matches!(holders[..], [None]), "{holders:?}");
}
