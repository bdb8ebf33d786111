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
