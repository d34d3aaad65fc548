//! A wall clock that stands still until it is moved.

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::clock::Clock;

/// Time by hand.
#[derive(Debug)]
pub struct HeldClock(Mutex<Timestamp>);

// === impl HeldClock ===

impl HeldClock {
    /// Stands at this time.
    pub fn at(now: Timestamp) -> Self {
        Self(Mutex::new(now))
    }

    /// Jumps, forwards or back.
    pub fn jump(&self, by: SignedDuration) {
        let mut now = self.0.lock();
        *now += by;
    }
}

impl Default for HeldClock {
    fn default() -> Self {
        Self::at(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365 * 56))
    }
}

impl Clock for HeldClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}
