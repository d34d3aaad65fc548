//! How much of the host's disk stays free, whatever is asked for. Pure.

use super::Refused;
use crate::runtime::engine::{DiskSpace, EngineError};

/// A floor is never above this share of the disk, in percent: small disks serve too.
const RESTORE_PERCENT: u64 = 5;
const WARM_PERCENT: u64 = 10;

/// Free bytes below which no disk is written for something new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floors {
    /// For creates, resumes from disk and snapshots.
    pub restore: u64,
    /// For warm machines.
    pub warm: u64,
}

/// What a floor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for it.
    Restore,
    /// Nobody does yet.
    Warm,
}

// === impl Floors ===

impl Floors {
    /// The floor of a disk of this size, in bytes.
    pub fn of(self, purpose: Purpose, total: u64) -> u64 {
        match purpose {
            Purpose::Restore => self.restore.min(total / 100 * RESTORE_PERCENT),
            Purpose::Warm => self.warm.min(total / 100 * WARM_PERCENT),
        }
    }

    /// Refuses what the disk has no room for. A disk that does not tell has none.
    pub fn check(self, purpose: Purpose, space: Result<DiskSpace, EngineError>) -> Result<(), Refused> {
        match space {
            Ok(DiskSpace { total, free }) => {
                let floor = self.of(purpose, total);
                if free < floor { Err(Refused::Disk { free, floor }) } else { Ok(()) }
            }
            Err(error) => {
                tracing::error!(%error, "the free space of the data directory is not known");
                Err(Refused::DiskUnknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_floor_is_what_was_configured_or_a_share_of_a_small_disk() {
        let floors = Floors { restore: 10 * GIB, warm: 20 * GIB };
        let free = |purpose, total, free| floors.check(purpose, Ok(DiskSpace { total, free }));
        assert_eq!(free(Purpose::Restore, 1000 * GIB, 10 * GIB), Ok(()));
        let refused = free(Purpose::Restore, 1000 * GIB, 10 * GIB - 1);
        assert_eq!(refused, Err(Refused::Disk { free: 10 * GIB - 1, floor: 10 * GIB }));
        assert!(free(Purpose::Warm, 1000 * GIB, 19 * GIB).is_err());
        assert_eq!(free(Purpose::Restore, 20 * GIB, GIB), Ok(()));
        assert!(free(Purpose::Restore, 20 * GIB, GIB / 2).is_err());
        assert!(free(Purpose::Warm, 20 * GIB, GIB).is_err());
        assert_eq!(Floors::default().check(Purpose::Warm, Ok(DiskSpace { total: 1, free: 0 })), Ok(()));
    }

    #[test]
    fn a_disk_that_does_not_tell_has_no_room() {
        let error = EngineError::Host { step: "measure", reason: "no".to_owned() };
        assert_eq!(Floors::default().check(Purpose::Restore, Err(error)), Err(Refused::DiskUnknown));
    }
}
