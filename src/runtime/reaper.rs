//! All deadlines, one timer: tells the sandbox whose time has come.
//!
//! Deadlines are times of the steady clock and survive a restart; the timer stands still while the
//! host sleeps. So that this is noticed, it never sleeps longer than [`RECHECK`] while there is a
//! deadline, and sleeps for good while there is none. The reaper decides nothing: it says "look
//! at your deadline", and the driver looks.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use super::queue::later;
use crate::{clock::Clock, id::SandboxId};

/// The longest sleep while there are deadlines: how late it may be noticed that the host slept.
pub(super) const RECHECK: Duration = Duration::from_secs(2);
/// When a sandbox is asked again whose queue was full.
const AGAIN: Duration = Duration::from_secs(1);

/// The deadlines, and their waker.
#[derive(Default)]
pub(super) struct Reaper {
    deadlines: Mutex<Deadlines>,
    changed: Notify,
}

#[derive(Default)]
struct Deadlines {
    order: BTreeSet<(Timestamp, SandboxId)>,
    of: HashMap<SandboxId, Timestamp>,
}

// === impl Reaper ===

impl Reaper {
    /// Sets or moves a deadline.
    pub(super) fn set(&self, sandbox: SandboxId, deadline: Timestamp) {
        let first = {
            let mut deadlines = self.deadlines.lock();
            deadlines.set(sandbox, deadline);
            deadlines.order.first().is_some_and(|(_, first)| *first == sandbox)
        };
        if first {
            self.changed.notify_one();
        }
    }

    /// Forgets a deadline.
    pub(super) fn remove(&self, sandbox: SandboxId) {
        self.deadlines.lock().remove(sandbox);
    }

    /// Runs for as long as it is polled. `expire` says whether the sandbox could be told.
    pub(super) async fn run(self: Arc<Self>, clock: Arc<dyn Clock>, expire: impl Fn(SandboxId) -> bool) {
        loop {
            let now = clock.steady();
            let due = self.deadlines.lock().take_due(now);
            for sandbox in due {
                if !expire(sandbox) {
                    self.deadlines.lock().set(sandbox, later(now, AGAIN));
                }
            }
            let next = self.deadlines.lock().order.first().map(|(deadline, _)| *deadline);
            match next {
                None => self.changed.notified().await,
                Some(next) => {
                    let wait = Duration::try_from(next.duration_since(clock.steady())).unwrap_or_default();
                    tokio::select! {
                        () = sleep(wait.min(RECHECK)) => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }
}

// === impl Deadlines ===

impl Deadlines {
    fn set(&mut self, sandbox: SandboxId, deadline: Timestamp) {
        self.remove(sandbox);
        self.of.insert(sandbox, deadline);
        self.order.insert((deadline, sandbox));
    }

    fn remove(&mut self, sandbox: SandboxId) {
        if let Some(deadline) = self.of.remove(&sandbox) {
            self.order.remove(&(deadline, sandbox));
        }
    }

    fn take_due(&mut self, now: Timestamp) -> Vec<SandboxId> {
        let mut due = Vec::new();
        while let Some((deadline, sandbox)) = self.order.first().copied() {
            if deadline > now {
                break;
            }
            self.remove(sandbox);
            due.push(sandbox);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use tokio::time::timeout;

    use super::*;
    use crate::{id::OsEntropy, runtime::fake::HeldClock};

    fn start(clock: &Arc<HeldClock>) -> (Arc<Reaper>, tokio::sync::mpsc::UnboundedReceiver<SandboxId>) {
        let reaper = Arc::new(Reaper::default());
        let (told, hears) = tokio::sync::mpsc::unbounded_channel();
        let clock: Arc<dyn Clock> = Arc::<HeldClock>::clone(clock);
        tokio::spawn(Arc::clone(&reaper).run(clock, move |id| told.send(id).is_ok()));
        (reaper, hears)
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_clock_is_noticed_within_the_recheck() {
        let clock = Arc::new(HeldClock::default());
        let (reaper, mut hears) = start(&clock);
        let id = SandboxId::generate(&OsEntropy);
        reaper.set(id, later(clock.now(), Duration::from_hours(1)));
        timeout(Duration::from_mins(1), hears.recv()).await.unwrap_err();
        clock.jump(SignedDuration::from_hours(1));
        assert_eq!(timeout(RECHECK * 2, hears.recv()).await.unwrap(), Some(id));
    }

    #[tokio::test(start_paused = true)]
    async fn setting_the_wall_clock_moves_no_deadline() {
        let clock = Arc::new(HeldClock::default());
        let (reaper, mut hears) = start(&clock);
        let id = SandboxId::generate(&OsEntropy);
        reaper.set(id, later(clock.steady(), Duration::from_mins(1)));
        clock.set_wall(SignedDuration::from_hours(24));
        timeout(RECHECK * 4, hears.recv()).await.unwrap_err();
        clock.set_wall(SignedDuration::from_hours(-48));
        clock.jump(SignedDuration::from_mins(1));
        assert_eq!(timeout(RECHECK * 2, hears.recv()).await.unwrap(), Some(id));
    }

    #[tokio::test(start_paused = true)]
    async fn moved_and_removed_deadlines_do_not_strike() {
        let clock = Arc::new(HeldClock::default());
        let (reaper, mut hears) = start(&clock);
        let [first, moved, removed] = [(); 3].map(|()| SandboxId::generate(&OsEntropy));
        let soon = later(clock.now(), Duration::from_secs(5));
        for id in [first, moved, removed] {
            reaper.set(id, soon);
        }
        reaper.set(moved, later(clock.now(), Duration::from_secs(50)));
        reaper.remove(removed);
        clock.jump(SignedDuration::from_secs(5));
        assert_eq!(timeout(RECHECK * 2, hears.recv()).await.unwrap(), Some(first));
        timeout(RECHECK * 2, hears.recv()).await.unwrap_err();
        clock.jump(SignedDuration::from_secs(45));
        assert_eq!(timeout(RECHECK * 2, hears.recv()).await.unwrap(), Some(moved));
    }
}
