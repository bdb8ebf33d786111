//! A kernel's description of its types.

#![no_main]

use ifmon::kernel::btf::{Bits, FuncIds, Layout, Offsets, fuzz_btf};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    // Most input is refused, and has to be. What is not refused is what BPF programs will read through.
    let Ok(layout) = fuzz_btf(file) else {
        return;
    };
    check(&layout);
    // All of it was read from some place in the file, so that a shorter file cannot say anything else.
    if let Ok(shorter) = fuzz_btf(&file[..file.len() - 1]) {
        assert_eq!(shorter, layout, "a part says something else than the whole");
    }
});

/// What the reader promises of every file. That offsets are small is not among it: a struct may have 4 GiB.
fn check(layout: &Layout) {
    let Layout {
        offsets:
            Offsets {
                dev_name,
                dev_ifindex,
                dev_net,
                dev_reg_state,
                net_inum,
                task_flags,
                notifier_info_dev,
            },
        // Any numbers are as good as the kernel's own.
        events: _,
        funcs: FuncIds { rtnetlink_event },
    } = *layout;

    within_a_struct(dev_name, 16);
    for (offset, size) in [
        (dev_ifindex, 4),
        (dev_net, 8),
        (net_inum, 4),
        (task_flags, 4),
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
