//! Time, injected: one trait for the wall clock, so that tests hold it still.

use jiff::Timestamp;

/// The wall clock. Deadlines that survive a restart are wall-clock times; waiting for them is
/// the business of the runtime's timers.
pub trait Clock: Send + Sync {
    /// Now, as the host believes it to be.
    fn now(&self) -> Timestamp;
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
