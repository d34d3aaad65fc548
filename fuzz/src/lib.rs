//! Runs a target and holds what it may allocate against the size of its input.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes that any input may take: runtimes, buffers of a fixed size, and the longest message that
/// a length in four bytes may announce before its bytes are there.
const FIXED: usize = 24 << 20;
/// Bytes that each byte of input may take besides. gzip makes up to 1032 out of one, and the RPC
/// library holds a message's text and its fields at a time.
const FACTOR: usize = 4096;

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist for a moment.
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
}

fn grown(size: usize) {
    let live = LIVE.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(live, Relaxed);
}

/// Runs a target; panics when it held more than its input accounts for.
pub fn bounded(target: fn(&[u8]), data: &[u8]) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    target(data);
    let taken = PEAK.load(Relaxed).saturating_sub(before);
    let allowed = FIXED + FACTOR * data.len();
    assert!(taken <= allowed, "{} bytes of input took {taken} of memory, {allowed} are allowed", data.len());
}
