//! Clocks that stand still until they are moved.

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::clock::Clock;

/// Time by hand.
#[derive(Debug)]
pub struct HeldClock {
    steady: Mutex<Timestamp>,
    shift: Mutex<SignedDuration>,
}

// === impl HeldClock ===

impl HeldClock {
    /// Stands at this time.
    pub fn at(now: Timestamp) -> Self {
        Self { steady: Mutex::new(now), shift: Mutex::new(SignedDuration::ZERO) }
    }

    /// Time passes, forwards or back, on all clocks.
    pub fn jump(&self, by: SignedDuration) {
        *self.steady.lock() += by;
    }

    /// Somebody sets the wall clock.
    pub fn set_wall(&self, by: SignedDuration) {
        *self.shift.lock() += by;
    }
}

impl Default for HeldClock {
    fn default() -> Self {
        Self::at(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 56))
    }
}

impl Clock for HeldClock {
    fn now(&self) -> Timestamp {
        self.shown(self.steady())
    }

    fn steady(&self) -> Timestamp {
        *self.steady.lock()
    }

    fn shift(&self) -> SignedDuration {
        *self.shift.lock()
    }
}
