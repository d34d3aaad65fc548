//! Time, injected: one trait for the host's clocks, so that tests hold them still.
//!
//! Deadlines and the starts that they are counted from are *steady* times: they read like times of
//! the wall clock, and are such until somebody sets it. Then they go on evenly, so that no sandbox
//! ends early or late for that; what is shown of them is moved by as much as the wall clock was.

use jiff::{SignedDuration, Timestamp};

/// The host's clocks.
pub trait Clock: Send + Sync {
    /// Now, as the host believes it to be.
    fn now(&self) -> Timestamp;

    /// Now, by the clock that does not jump. Without another clock: the wall clock.
    fn steady(&self) -> Timestamp {
        self.now()
    }

    /// By how much the wall clock is ahead of the steady one.
    fn shift(&self) -> SignedDuration {
        SignedDuration::ZERO
    }

    /// A steady time as the wall clock has it.
    fn shown(&self, steady: Timestamp) -> Timestamp {
        steady.checked_add(self.shift()).unwrap_or(steady)
    }

    /// A time of the wall clock as a steady one.
    fn steadied(&self, shown: Timestamp) -> Timestamp {
        shown.checked_sub(self.shift()).unwrap_or(shown)
    }
}

/// The host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

// === impl SystemClock ===

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
        Timestamp::now()
    }
}
