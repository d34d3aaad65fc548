//! The size of the machine's disk and how much of it is used: told by the host, which alone can count.
//!
//! Where the kernel does not keep the disk within its size, envd at least writes no more to it: what
//! it writes counts at once, and every count of the host takes the place of the sum so far.

use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// How full the disk is.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Bytes; 0: not known, not limited.
    size: AtomicU64,
    used: AtomicU64,
}

// === impl Disk ===

impl Disk {
    /// The size is this from now on, in bytes.
    pub(crate) fn resize(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// So much is used, in bytes.
    pub(crate) fn tell(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// Used and all bytes, if there is a size.
    pub(crate) fn known(&self) -> Option<(u64, u64)> {
        let size = self.size.load(Ordering::Relaxed);
        (size > 0).then(|| (self.used.load(Ordering::Relaxed), size))
    }

    /// Whether so many bytes more have room.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.known().is_none_or(|(used, size)| used.saturating_add(bytes) <= size)
    }

    /// Counts what is about to be written. False: there is no room for it, and nothing was counted.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let Some((_, size)) = self.known() else { return true };
        let add = |used: u64| used.checked_add(bytes).filter(|used| *used <= size);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Whether a file is on the disk: what is in memory does not count.
    pub(crate) fn holds(file: &File) -> bool {
        fstatfs(file).map_or(true, |stat| stat.filesystem_type() != TMPFS_MAGIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_until_the_host_counts_anew() {
        let disk = Disk::default();
        assert!(disk.take(u64::MAX) && disk.known().is_none(), "no size is known");
        disk.resize(100);
        assert!(disk.take(60) && !disk.take(41) && disk.take(40), "{disk:?}");
        assert!(!disk.has_room(1) && disk.has_room(0));
        assert_eq!(disk.known(), Some((100, 100)));
        disk.tell(30);
        assert!(disk.has_room(70) && !disk.has_room(71));
        disk.tell(150);
        assert!(!disk.take(0) && !disk.has_room(0), "it is over its size");
    }
}
