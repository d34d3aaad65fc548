//! Time as the sandbox lives it: it stands still while the machine is frozen.
//!
//! The kernel's monotonic clock runs on while a machine is frozen, so a process with a minute to
//! live would be killed at the thaw of an hour's pause. Limits of user processes are therefore kept
//! in this clock. It stops when the gateway announces the freeze and runs again when it tells of
//! the thaw, so that nothing strikes between the two.

use std::{sync::LazyLock, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The machine has one time for all.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::default);

/// A clock that can be stopped.
#[derive(Debug)]
struct Clock(watch::Sender<State>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// For how long it has been stopped, all times together.
    stopped_for: Duration,
    /// Since when it is stopped.
    stopped_at: Option<Instant>,
}

/// Now.
pub(crate) fn now() -> Instant {
    CLOCK.now()
}

/// Waits until it is this late; for as long as the machine is frozen it is not.
pub(crate) async fn until(deadline: Instant) {
    CLOCK.until(deadline).await;
}

/// As [`until`]; without a deadline it never is.
pub(crate) async fn expiry(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The machine is about to be frozen.
pub(crate) fn freeze() {
    CLOCK.stop();
}

/// The machine is not, or no longer, frozen.
pub(crate) fn thaw() {
    CLOCK.go_on();
}

// === impl Clock ===

impl Default for Clock {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Clock {
    fn now(&self) -> Instant {
        self.0.borrow().now()
    }

    fn stop(&self) {
        self.0.send_if_modified(|state| {
            let runs = state.stopped_at.is_none();
            state.stopped_at.get_or_insert_with(Instant::now);
            runs
        });
    }

    fn go_on(&self) {
        self.0.send_if_modified(|state| {
            let stopped = state.stopped_at.take();
            state.stopped_for += stopped.map_or(Duration::ZERO, |at| at.elapsed());
            stopped.is_some()
        });
    }

    async fn until(&self, deadline: Instant) {
        let mut state = self.0.subscribe();
        loop {
            let State { stopped_for, stopped_at } = *state.borrow_and_update();
            let struck = async {
                match stopped_at {
                    None => sleep_until(deadline + stopped_for).await,
                    Some(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                // A thaw that is heard at the same time comes first.
                biased;
                // The sender lives in `self`.
                _ = state.changed() => {}
                () = struck => return,
            }
        }
    }
}

// === impl State ===

impl State {
    fn now(&self) -> Instant {
        let now = self.stopped_at.unwrap_or_else(Instant::now);
        now.checked_sub(self.stopped_for).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn what_is_frozen_does_not_grow_older() {
        let clock = Clock::default();
        let born = clock.now();
        advance(MINUTE).await;
        clock.stop();
        advance(60 * MINUTE).await;
        clock.stop();
        assert_eq!(clock.now() - born, MINUTE);
        clock.go_on();
        clock.go_on();
        advance(MINUTE).await;
        assert_eq!(clock.now() - born, 2 * MINUTE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_strikes_after_so_much_of_its_own_time() {
        let clock = Clock::default();
        let limit = clock.now() + MINUTE;
        let mut waiting = std::pin::pin!(clock.until(limit));
        timeout(MINUTE / 2, &mut waiting).await.unwrap_err();
        clock.stop();
        timeout(60 * MINUTE, &mut waiting).await.unwrap_err();
        clock.go_on();
        timeout(MINUTE / 4, &mut waiting).await.unwrap_err();
        timeout(MINUTE / 2, &mut waiting).await.unwrap();
    }
}
