//! What is asked, and what is made of the answers; what many of them do is for the simulator.

use super::*;
use crate::{Identity, machine::LinkTable, tracker::Device};

const NETNS: NetnsId = NetnsId(1);

fn name() -> InterfaceName {
    InterfaceName::new("wg0").expect("a valid name")
}

fn device(ifindex: u32, inode: u64) -> Option<Identity> {
    Some(Identity::of_ifindex(ifindex).with_inode(inode))
}

fn watch(subscription: &mut Subscription, holder: Option<Identity>) -> Option<Device> {
    subscription.join(vec![Wanted {
        name: name(),
        inode: false,
    }]);
    run(subscription, &[], &[holder]);
    subscription.table.holder(name())
}

/// Does all that there is to do. Each question about the name finds the next of the holders, and the
/// last one from then on.
fn run(
    subscription: &mut Subscription,
    messages: &[LinkMessage],
    holders: &[Option<Identity>],
) -> Vec<Signal> {
    let messages: Vec<_> = messages
        .iter()
        .map(|message| Received::Message(Some(*message)))
        .collect();
    let (signals, next) = run_at(Instant::now(), subscription, &messages, holders, 0);
    assert!(matches!(next, Next::Rest(None)), "{next:?}");
    signals
}

/// The same with all that can be received, at this time, and where the inode cannot be read so many
/// times; also what it came to in the end.
fn run_at(
    instant: Instant,
    subscription: &mut Subscription,
    received: &[Received],
    holders: &[Option<Identity>],
    mut failures: u32,
) -> (Vec<Signal>, Next) {
    let now = Now::at(instant);
    let mut received = received.iter();
    let mut holders = holders.iter().copied();
    let mut holder = None;
    let mut signals = Vec::new();
    subscription.ready();
    loop {
        let request = match subscription.next(&now) {
            Next::Request(request) | Next::Background(request) => request,
            Next::Signal(signal) => {
                signals.push(signal);
                continue;
            }
            Next::Joined(Ok(_)) => continue,
            next => return (signals, next),
        };
        let mut holder = || {
            holder = holders.next().unwrap_or(holder);
            holder
        };
        let reply = match request {
            Request::Open(_)
            | Request::Unsubscribe(_)
            | Request::Close(_)
            | Request::Filter(..) => Reply::Done(Ok(())),
            Request::Read(_) => Reply::Read(Ok(*received.next().unwrap_or(&Received::Nothing))),
            Request::Ask(_, question) => Reply::Answer(match question {
                Question::IndexOf(_) => Answer::Index(Ok(holder().map(|found| found.ifindex))),
                Question::InodeOf(_) if failures > 0 => {
                    failures -= 1;
                    Answer::Inode(Err(io::ErrorKind::OutOfMemory.into()))
                }
                Question::InodeOf(_) => Answer::Inode(Ok(holder().and_then(|found| found.inode))),
                Question::IdentityOf(_) => Answer::Identity(Ok(holder())),
                Question::NameOf(ifindex) => {
                    let found = holder().map(link).filter(|(index, _)| *index == ifindex);
                    Answer::Name(Ok(found.map(|(_, named)| named)))
                }
                Question::Table => Answer::Table(Ok(LinkTable {
                    links: holder().map(link).into_iter().collect(),
                    is_interrupted: false,
                })),
                Question::Barrier => Answer::Waited(true),
                question => Answer::unknown(question),
            }),
        };
        subscription.answer(&now, reply);
    }
}

fn link(device: Identity) -> (u32, Named) {
    let named = Named {
        name: name(),
        kind: None,
    };
    (device.ifindex, named)
}

/// It had the name for a moment between two times that the other one had it: what is read of a name
/// in two questions can be of two devices.
#[test]
fn a_device_that_is_back_is_not_taken_for_the_one_that_follows_it() {
    let back = device(16, 15);
    let other = device(18, 17);
    let mut subscription = Subscription::new(NETNS, true);
    let first = watch(&mut subscription, back);
    assert_eq!(first.map(|device| device.ifindex), Some(16));
    let gone = LinkMessage::Deleted {
        ifindex: 16,
        name: name(),
        kind: None,
        moved: Some(Moved {
            nsid: 0,
            ifindex: None,
        }),
    };
    run(&mut subscription, &[gone], &[None]);
    let new = LinkMessage::New {
        ifindex: 18,
        name: name(),
        kind: None,
    };
    let signals = run(&mut subscription, &[new], &[back, other]);
    let Some(Signal::Change {
        change: Change::Took { device, .. },
        ..
    }) = signals.first()
    else {
        panic!("{signals:?}");
    };
    assert_eq!(device.ifindex, 18);
    assert_ne!(Some(device.id), first.map(|first| first.id));
}

/// It was made while messages were lost, with the index of the one before.
#[test]
fn a_device_whose_inode_cannot_be_read_does_not_pass_for_the_one_before() {
    let mut subscription = Subscription::new(NETNS, true);
    let first = watch(&mut subscription, device(7, 1));
    let other = [device(7, 2)];
    let overflow = [Received::Overflow];
    let (signals, next) = run_at(Instant::now(), &mut subscription, &overflow, &other, 1);
    assert!(signals.is_empty(), "{signals:?}");
    let Next::Rest(Some(at)) = next else {
        panic!("{next:?}");
    };
    let (signals, next) = run_at(at, &mut subscription, &[], &other, 0);
    assert!(matches!(next, Next::Rest(None)), "{next:?}");
    let [Signal::Resync { observed, .. }] = &signals[..] else {
        panic!("{signals:?}");
    };
    let holder = observed.holder;
    assert_eq!(holder.map(|device| device.ifindex), Some(7));
    assert_ne!(holder, first);
}

/// Else whoever has its index after a loss would pass for it.
#[test]
fn no_watch_begins_with_a_device_whose_inode_cannot_be_read() {
    let mut subscription = Subscription::new(NETNS, true);
    subscription.join(vec![Wanted {
        name: name(),
        inode: false,
    }]);
    let (signals, next) = run_at(Instant::now(), &mut subscription, &[], &[device(7, 1)], 1);
    assert!(signals.is_empty(), "{signals:?}");
    assert!(
        matches!(next, Next::Joined(Err(Error::Recheck(_)))),
        "{next:?}"
    );
    assert!(subscription.is_idle());
}

/// What is read of patterns before it does not count as a success.
#[test]
fn the_inode_of_a_device_that_matches_is_asked_for_so_often_and_no_more() {
    let mut subscription = Subscription::new(NETNS, true);
    let pattern = Pattern::new("*").expect("a pattern");
    subscription.join_patterns(vec![pattern]);
    let mut instant = Instant::now();
    let mut waits = (1..).map_while(retry::wait_after);
    loop {
        let found = [device(7, 1)];
        let (_, next) = run_at(instant, &mut subscription, &[], &found, u32::MAX);
        let wait = waits.next();
        match next {
            Next::Rest(Some(at)) => assert_eq!(Some(at - instant), wait),
            Next::Failed(error) => {
                assert!(wait.is_none(), "{error}");
                return;
            }
            next => panic!("{next:?}"),
        }
        instant += wait.unwrap_or_default();
    }
}

/// While names are read again after a loss, one device can hold two of them as far as is known. It
/// was called otherwise for a moment, which was read of the first: that is out of date.
#[test]
fn where_a_device_went_is_out_of_date_with_the_next_message_about_it() {
    let [first, second, third] =
        ["wg0", "wg1", "wg2"].map(|name| InterfaceName::new(name).expect("a valid name"));
    let mut table = DeviceTable::new(NETNS);
    table.add([first, second].into_iter());
    let is_its = Lookup {
        found: Some(22),
        inode: NonZeroU64::new(21),
        away: None,
    };
    for name in [first, second] {
        table.begin_lookup(name);
        table.enter(name, &is_its);
    }
    let look = Look {
        name: first,
        lost: true,
        holder: table.begin_lookup(first),
        lookup: Lookup::default(),
        is_sure: false,
    };
    let step = look.answered(LookStep::Index, Answer::Index(Ok(None)), &mut table);
    assert!(
        matches!(step, Ok((_, Some(LookStep::Name(22))))),
        "{step:?}"
    );
    for name in [third, second] {
        table.message(&LinkMessage::New {
            ifindex: 22,
            name,
            kind: None,
        });
    }
    assert!(!table.is_clean(first));
}
