//! What is asked, and what is made of the answers; what many of them do is for the simulator.

use std::time::Duration;

use super::*;
use crate::Identity;

const NETNS: NetnsId = NetnsId(1);

fn name() -> InterfaceName {
    InterfaceName::new("wg0").expect("a valid name")
}

fn device(ifindex: u32, inode: u64) -> Option<Identity> {
    Some(Identity::of_ifindex(ifindex).with_inode(inode))
}

/// Does all that there is to do. Each question about the name finds the next of the holders, and the
/// last one from then on.
fn run(
    subscription: &mut Subscription,
    messages: &[LinkMessage],
    holders: &[Option<Identity>],
) -> Vec<Signal> {
    let now = Now {
        instant: Instant::now(),
        wall: SystemTime::UNIX_EPOCH,
        boot: Duration::ZERO,
    };
    let mut messages = messages.iter();
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
            Next::Joined(result) => {
                assert!(result.is_ok(), "{result:?}");
                continue;
            }
            Next::Rest(None) => return signals,
            next => panic!("{next:?}"),
        };
        let mut holder = || {
            holder = holders.next().unwrap_or(holder);
            holder
        };
        let reply = match request {
            Request::Open(_) | Request::Close(_) | Request::Filter(..) => Reply::Done(Ok(())),
            Request::Read(_) => Reply::Read(Ok(match messages.next() {
                Some(message) => Received::Message(Some(*message)),
                None => Received::Nothing,
            })),
            Request::Ask(_, question) => Reply::Answer(match question {
                Question::IndexOf(_) => Answer::Index(Ok(holder().map(|found| found.ifindex))),
                Question::InodeOf(_) => Answer::Inode(holder().and_then(|found| found.inode)),
                Question::IdentityOf(_) => Answer::Identity(holder()),
                Question::NameOf(_) => Answer::Name(Ok(None)),
                Question::Barrier => Answer::Waited(true),
                question => Answer::unknown(question),
            }),
        };
        subscription.answer(&now, reply);
    }
}

/// It had the name for a moment between two times that the other one had it: what is read of a name
/// in two questions can be of two devices.
#[test]
fn a_device_that_is_back_is_not_taken_for_the_one_that_follows_it() {
    let back = device(16, 15);
    let other = device(18, 17);
    let mut subscription = Subscription::new(NETNS, true);
    subscription.join(vec![Wanted {
        name: name(),
        inode: false,
    }]);
    run(&mut subscription, &[], &[back]);
    let first = subscription.table.holder(name());
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
