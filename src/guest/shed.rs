//! Gives memory back that is free but kept: a frozen machine holds on to what its guest has.
#![expect(unsafe_code, reason = "malloc_trim is the C library's")]

/// Returns whole free pages of the allocator to the kernel. Takes less than a millisecond.
pub(crate) fn shed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
