//! Whether this host is short of memory, by what its kernel says is available.
//!
//! Not by pressure stall information: a sandbox that thrashes at its own limit stalls, and the
//! host has memory all the same.

use std::{fs, path::PathBuf};

use crate::runtime::registry::Pressure;

/// The kernel's figures.
const MEMINFO: &str = "/proc/meminfo";

/// Available memory against a reserve.
#[derive(Debug, Clone)]
pub(super) struct HostMemory {
    meminfo: PathBuf,
    reserve_bytes: u64,
}

// === impl HostMemory ===

impl HostMemory {
    /// The host is short of memory when less than this is available.
    pub(super) fn new(reserve_bytes: u64) -> Self {
        Self { meminfo: MEMINFO.into(), reserve_bytes }
    }
}

impl Pressure for HostMemory {
    fn shortage(&self) -> u64 {
        let text = fs::read_to_string(&self.meminfo).unwrap_or_default();
        // A host that does not say is not short.
        available(&text).map_or(0, |available| self.reserve_bytes.saturating_sub(available))
    }
}

/// `MemAvailable`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_the_reserve_less_what_is_available() {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = dir.path().join("meminfo");
        let host = HostMemory { meminfo: meminfo.clone(), reserve_bytes: 1 << 20 };
        assert_eq!(host.shortage(), 0, "nothing is known");
        fs::write(&meminfo, "MemTotal:  9000 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n").unwrap();
        assert_eq!(host.shortage(), 24 * 1024);
        fs::write(&meminfo, "MemAvailable:    1024 kB\n").unwrap();
        assert_eq!(host.shortage(), 0);
        assert!(HostMemory::new(u64::MAX).shortage() > 0, "this host says what it has");
    }
}
