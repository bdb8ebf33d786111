//! For fuzzing (`cargo xtask fuzz`) and measuring: a way to what is private and reads bytes from
//! outside. Not a part of the library's interface.

use std::iter::zip;

use crate::{
    Unavailable,
    bpf::btf::{Bits, FuncIds, KindOffsets, Layout, Offsets, VMLINUX, fuzz_btf, read_layout},
    netlink::message::{HEADER, LinkMessage, Message, messages as read},
};

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
        Some(LinkMessage::New { ifindex, name, .. }) => (ifindex, name),
        Some(LinkMessage::Deleted {
            ifindex,
            name,
            moved,
            ..
        }) => {
            assert_ne!(moved.and_then(|moved| moved.ifindex), Some(0));
            (ifindex, name)
        }
        None => {
            // Of no use without a link message, and asked for none the less.
            let _ = message.address();
            assert_eq!(message.other_end(), None);
            assert!(message.nsid().is_none_or(|nsid| nsid >= 0));
            assert!(message.nsid().is_none() || message.error().is_none());
            return;
        }
    };
    assert!(i32::try_from(ifindex).is_ok_and(|ifindex| ifindex > 0));
    assert!((1..16).contains(&name.as_bytes().len()));
    let kind = message.link().and_then(|link| link.kind());
    assert!(kind.is_none_or(|kind| (1..16).contains(&kind.as_bytes().len())));
    assert!(message.address().len() <= message.body.len());
    assert_eq!((message.nsid(), message.error()), (None, None));
    assert!(message.other_end().is_none_or(|other| other.ifindex > 0));
}

pub use ifmon_ebpf::HOOK;

/// Reads the running kernel's BTF, as far as the BPF programs need it, and says which of its types the
/// hooked function is.
///
/// # Errors
/// Why that cannot be done.
pub fn read_btf() -> Result<Option<u32>, Unavailable> {
    read_layout(VMLINUX)
        .map(|layout| layout.funcs.rtnetlink_event)
        .map_err(|error| Unavailable::Btf(Box::new(error)))
}

/// Reads a file of BTF.
///
/// # Panics
/// When what is read is not what the rest of ifmon takes for granted.
pub fn btf(file: &[u8]) {
    // Most input is refused, and has to be. What is not refused is what BPF programs will read
    // through.
    let Ok(layout) = fuzz_btf(file) else {
        return;
    };
    check_layout(&layout);
    // All of it was read from some place in the file, so that a shorter file cannot say anything
    // else.
    if let Ok(shorter) = fuzz_btf(&file[..file.len() - 1]) {
        assert_eq!(shorter, layout, "a part says something else than the whole");
    }
}

/// What the reader promises of every file. That offsets are small is not among it: a struct may
/// have 4 GiB.
fn check_layout(layout: &Layout) {
    let Layout {
        offsets:
            Offsets {
                dev_name,
                dev_ifindex,
                dev_net,
                dev_reg_state,
                net_inum,
                kind,
                task_flags,
                task_tgid,
                notifier_info_dev,
            },
        // Any numbers are as good as the kernel's own.
        events: _,
        funcs: FuncIds { rtnetlink_event },
    } = *layout;

    within_a_struct(dev_name, 16);
    let KindOffsets {
        dev_link_ops,
        link_ops_kind,
    } = kind.unwrap_or(KindOffsets {
        dev_link_ops: 0,
        link_ops_kind: 0,
    });
    for (offset, size) in [
        (dev_ifindex, 4),
        (dev_net, 8),
        (net_inum, 4),
        (dev_link_ops, 8),
        (link_ops_kind, 8),
        (task_flags, 4),
        (task_tgid.unwrap_or_default(), 4),
        (notifier_info_dev, 8),
    ] {
        within_a_struct(offset, size);
        assert!(offset.is_multiple_of(size), "{layout:?}");
    }

    let Bits {
        offset,
        size,
        shift,
        mask,
    } = dev_reg_state;
    within_a_struct(offset, size);
    assert!(matches!(size, 1 | 2 | 4), "{layout:?}");
    assert!(offset.is_multiple_of(size), "{layout:?}");
    // The lowest bits, at least one of them, and all within what is loaded.
    assert!(mask.trailing_ones() == mask.count_ones() && mask != 0);
    assert!(shift + mask.count_ones() <= 8 * size, "{layout:?}");

    // 0 stands for `void`.
    assert_ne!(rtnetlink_event, Some(0));
}

/// The size of a struct has 32 bits.
fn within_a_struct(offset: u32, size: u32) {
    assert!(offset.checked_add(size).is_some(), "{offset} + {size}");
}
