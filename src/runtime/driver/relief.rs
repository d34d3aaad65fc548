//! A paused sandbox gives memory back when the host is short of it.
//!
//! ```text
//!   reclaim (once a pause): caches go, the rest to swap where there is some; it is as it was before
//!   to disk:                the frozen machine ends with its disk kept, as after a disk-only pause
//! ```
//! A running sandbox never does either. Whoever wants it meanwhile waits.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Driver, Next, Retry,
    rest::{Frozen, Resting},
};
use crate::runtime::{engine::EngineError, queue::Stage, registry::LifeError, traces::Happening};

/// How long a reclaim is waited for.
const RECLAIM_BOUND: Duration = Duration::from_secs(10);

/// What a paused sandbox gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Relief {
    /// Nothing: it has nothing, or has given what it could.
    Nothing,
    /// So many bytes, and it is as it was.
    Reclaimed(u64),
    /// Its processes and all of its memory.
    GivenUp,
}

impl Driver {
    /// Gives back what can be had; `to_disk`: all of it.
    pub(super) async fn relieve(&mut self, mut resting: Resting, to_disk: bool) -> (Next, Relief) {
        let Some(frozen) = resting.memory.take() else { return (Next::Rest(resting), Relief::Nothing) };
        let reclaims = !std::mem::replace(&mut resting.reclaimed, true);
        if reclaims && !to_disk {
            let (frozen, relief) = self.reclaim(frozen).await;
            resting.memory = Some(frozen);
            return (Next::Rest(resting), relief);
        }
        if !to_disk {
            resting.memory = Some(frozen);
            return (Next::Rest(resting), Relief::Nothing);
        }
        let cancel = CancellationToken::new();
        match self.during(Stage::Pausing, &cancel, frozen.machine.shelve()).await {
            Ok(()) | Err(EngineError::Gone) => {}
            Err(error) => {
                tracing::error!(sandbox.id = %self.id, %error, "the memory of a paused sandbox was not given up");
                resting.memory = Some(frozen);
                self.answer_pausers(|id| Err(LifeError::Paused(id)));
                return (Next::Rest(resting), Relief::Nothing);
            }
        }
        drop(frozen);
        self.seat.rest(false);
        self.world.traces.event(self.id, Happening::MemoryGivenUp);
        tracing::warn!(sandbox.id = %self.id, "the host is short of memory: paused sandbox {} keeps its disk only", self.id);
        let text =
            "the host was short of memory: the processes of the paused sandbox ended, its disk is kept";
        resting.logs.note("warn", text, self.world.clock.now());
        resting.record.machine = None;
        let mut retry = Retry::default();
        while let Err(error) = self.world.store.put_sandbox(resting.record.clone()).await {
            tracing::error!(sandbox.id = %self.id, %error, "a memory that was given up was not recorded");
            if !retry.pause(&self.world.closing).await {
                // The next gateway finds no machine and the disk.
                return (Next::LetGo, Relief::GivenUp);
            }
        }
        self.show_rest(&resting, Stage::Paused);
        self.answer_pausers(|id| Err(LifeError::Paused(id)));
        (Next::Rest(resting), Relief::GivenUp)
    }

    async fn reclaim(&mut self, frozen: Frozen) -> (Frozen, Relief) {
        let cancel = CancellationToken::new();
        let reclaiming = timeout(RECLAIM_BOUND, frozen.machine.reclaim());
        let reclaimed = self.during(Stage::Pausing, &cancel, reclaiming).await;
        self.answer_pausers(|id| Err(LifeError::Paused(id)));
        let relief = match reclaimed {
            Ok(Ok(bytes)) if bytes > 0 => {
                self.world.traces.event(self.id, Happening::MemoryReclaimed);
                tracing::info!(sandbox.id = %self.id, memory.bytes = bytes, "paused sandbox {} gave memory back", self.id);
                Relief::Reclaimed(bytes)
            }
            Ok(Ok(_)) => Relief::Nothing,
            Ok(Err(error)) => {
                tracing::debug!(sandbox.id = %self.id, %error, "no memory was reclaimed");
                Relief::Nothing
            }
            Err(_) => {
                tracing::warn!(sandbox.id = %self.id, "memory was still being reclaimed after {RECLAIM_BOUND:?}");
                Relief::Nothing
            }
        };
        (frozen, relief)
    }
}
