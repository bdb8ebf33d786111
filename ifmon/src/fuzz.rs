//! For fuzzing (`cargo xtask fuzz`): a way to what is private and reads bytes from outside.

use std::iter::zip;

use crate::netlink::message::{HEADER, LinkMessage, Message, messages as read};

/// Reads a datagram in all the ways in which ifmon reads one.
///
/// # Panics
/// When what is read is not what the rest of ifmon takes for granted.
pub fn messages(datagram: &[u8]) {
    let mut count = 0;
    for message in read(datagram) {
        count += 1;
        check(&message);
    }
    assert!(count * HEADER <= datagram.len(), "a message was read twice");

    // A datagram that was cut short says less and nothing else.
    let shorter = || read(&datagram[..datagram.len().saturating_sub(1)]);
    assert!(shorter().count() <= count);
    for (part, whole) in zip(shorter(), read(datagram)) {
        assert_eq!(part.body, whole.body);
        assert_eq!(part.link(), whole.link());
    }
}

fn check(message: &Message<'_>) {
    let (ifindex, name) = match message.link() {
        Some(LinkMessage::New { ifindex, name }) => (ifindex, name),
        Some(LinkMessage::Deleted {
            ifindex,
            name,
            moved,
        }) => {
            assert_ne!(moved.and_then(|moved| moved.ifindex), Some(0));
            (ifindex, name)
        }
        None => {
            // Of no use without a link message, and asked for none the less.
            let _ = message.address();
            assert!(message.nsid().is_none_or(|nsid| nsid >= 0));
            assert!(message.nsid().is_none() || message.error().is_none());
            return;
        }
    };
    assert!(i32::try_from(ifindex).is_ok_and(|ifindex| ifindex > 0));
    assert!((1..16).contains(&name.as_bytes().len()));
    assert!(message.address().len() <= message.body.len());
    assert_eq!((message.nsid(), message.error()), (None, None));
}
