//! The size of the machine's disk and how much of it is used: told by the host, which alone can count.
//!
//! Where the kernel does not keep the disk within its size, envd at least writes no more to it: what
//! it writes counts at once, until the host has counted. The host says only what has changed: when it
//! has said nothing for longer than it takes to count, what it said last is so.

use std::{
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// The host counts every minute at least, and says so within seconds.
const COUNTED: Duration = Duration::from_secs(70);

/// How full the disk is.
#[derive(Debug, Default)]
pub(crate) struct Disk(Mutex<Use>);

#[derive(Debug, Default)]
struct Use {
    /// Bytes; 0: not known, not limited.
    size: u64,
    /// As the host counted, in bytes.
    told: u64,
    /// Written since then, in bytes, and when last.
    taken: u64,
    last: Option<Instant>,
}

// === impl Disk ===

impl Disk {
    fn now(&self) -> MutexGuard<'_, Use> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        present.forget(Instant::now());
        present
    }

    /// The size is this from now on, in bytes.
    pub(crate) fn resize(&self, size: u64) {
        self.now().size = size;
    }

    /// So much is used, in bytes.
    pub(crate) fn tell(&self, used: u64) {
        let mut present = self.now();
        (present.told, present.taken, present.last) = (used, 0, None);
    }

    /// Used and all bytes, if there is a size.
    pub(crate) fn known(&self) -> Option<(u64, u64)> {
        let present = self.now();
        (present.size > 0).then(|| (present.used(), present.size))
    }

    /// Whether so many bytes more have room.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.now().has_room(bytes)
    }

    /// Counts what is about to be written. False: there is no room for it, and nothing was counted.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let mut present = self.now();
        let room = present.has_room(bytes);
        if room && present.size > 0 {
            present.taken = present.taken.saturating_add(bytes);
            present.last = Some(Instant::now());
        }
        room
    }

    /// Whether a file is on the disk: what is in memory does not count.
    pub(crate) fn holds(file: &File) -> bool {
        fstatfs(file).map_or(true, |stat| stat.filesystem_type() != TMPFS_MAGIC)
    }
}

// === impl Use ===

impl Use {
    fn used(&self) -> u64 {
        self.told.saturating_add(self.taken)
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.size == 0 || self.used().saturating_add(bytes) <= self.size
    }

    /// Gives up what the host must have counted.
    fn forget(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > COUNTED) {
            (self.taken, self.last) = (0, None);
        }
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

    #[test]
    fn what_the_host_must_have_counted_is_given_up() {
        let disk = Disk::default();
        disk.resize(100);
        disk.tell(10);
        assert!(disk.take(90) && !disk.has_room(1));
        let now = Instant::now();
        disk.0.lock().unwrap().forget(now + COUNTED / 2);
        assert!(!disk.has_room(1), "a count may be on its way");
        disk.0.lock().unwrap().forget(now + COUNTED * 2);
        assert_eq!(disk.known(), Some((10, 100)));
    }
}
