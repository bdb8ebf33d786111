//! Gives back what was needed for the start.

/// Has the allocator give pages back to the kernel on which nothing is in use.
///
/// The arguments are parsed into small blocks, more of them than are kept for the watches, and the
/// C library keeps what is freed below a block in use. After the start ifmon mostly sleeps, and
/// allocates next to nothing.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
