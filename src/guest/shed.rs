//! How much free memory the guest keeps, and when it gives it back: a frozen machine holds on to
//! what its guest has.
#![expect(unsafe_code, reason = "malloc_trim and mallopt are the C library's")]

/// Blocks of a file come from memory that is kept, and not from the kernel page by page.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: i32 = 1 << 20;
/// Free memory that is kept for what comes next.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 2 << 20;
/// Each arena keeps as much; two are enough for the runtime and its helpers.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;

/// Says what to keep. Called once, before there are other threads.
pub(crate) fn keep() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, MAPPED_FROM), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_ARENA_MAX, ARENAS)]
    {
        // SAFETY: numbers only; no other thread allocates yet. A refusal leaves the defaults.
        unsafe {
            libc::mallopt(setting, value);
        }
    }
}

/// Returns whole free pages of the allocator to the kernel. Takes less than a millisecond.
pub(crate) fn shed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
