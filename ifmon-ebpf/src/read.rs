//! Reads the kernel's memory.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str};
use ifmon_ebpf::Name;

/// An integer at an offset of a structure.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails on a fault; any bits are a valid integer.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}

/// The text to which the last of these pointers leads, as [`Record::kind`](ifmon_ebpf::Record::kind)
/// has it; zeros where one of them leads nowhere.
///
/// Without a branch, of which each would be another way for the verifier: what cannot be read is
/// zero, and so is what it points to.
#[cfg(feature = "patterns")]
#[inline(always)]
pub(crate) fn read_text(mut base: u64, offsets: [u32; 2]) -> Name {
    use aya_ebpf::helpers::generated;
    use core::mem::MaybeUninit;
    for offset in offsets {
        let mut pointer = MaybeUninit::<u64>::uninit();
        let from = base.wrapping_add(u64::from(offset)) as *const _;
        // SAFETY: the helper checks the address, and writes as many bytes as it is told, also when it
        // fails.
        base = unsafe {
            let to = pointer.as_mut_ptr().cast();
            generated::bpf_probe_read_kernel(to, size_of::<u64>() as u32, from);
            pointer.assume_init()
        };
    }
    // A byte more than a name has, so that the last one is not always a NUL.
    let mut text = [0_u64; 3];
    // SAFETY: the destination has the 17 bytes that are said, and the helper checks the source.
    unsafe {
        let size = size_of::<Name>() as u32 + 1;
        bpf_probe_read_kernel_str((&raw mut text).cast(), size, base as *const _);
    }
    let [first, second, _] = text;
    Name([first, second])
}

/// A name up to its NUL. What follows may be left over from a longer one, so it is not read.
#[inline(always)]
pub(crate) fn read_name(base: u64, offset: u32) -> Option<Name> {
    let mut name = Name([0; 2]);
    // SAFETY: the destination has the 16 bytes that are said, and the helper checks the source.
    let length = unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut name).cast(),
            size_of::<Name>() as u32,
            base.wrapping_add(u64::from(offset)) as *const _,
        )
    };
    (length > 0).then_some(name)
}
