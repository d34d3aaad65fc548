//! What paused sandboxes do when the host is short of memory.
//!
//! ```text
//!   every 2 s: short? --> the longest paused first: reclaim, once each --still short, and wanted--> one to its disk
//! ```
//! Running sandboxes are never touched. The host's own figure is asked again after each step; a
//! sandbox that was given up frees its memory before its driver answers.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Registry, handles::Handles};
use crate::{
    id::SandboxId,
    runtime::driver::{Command, Relief},
};

/// Between two looks at the host.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one sandbox is waited for.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// Tells whether the host is short of memory.
pub trait Pressure: Send + Sync {
    /// Bytes that are missing until it is not; zero: it is not.
    fn shortage(&self) -> u64;
}

/// What paused sandboxes give when the host is short of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PausedPolicy {
    /// What they can without losing anything.
    #[default]
    Keep,
    /// Their processes too, the longest paused first: then their disk alone is kept.
    Disk,
}

// === impl Registry ===

impl Registry {
    /// Looks after the host's memory, for as long as the registry is there.
    pub fn watch_pressure(&self, source: Arc<dyn Pressure>, policy: PausedPolicy) {
        let handles = Arc::downgrade(&self.inner.handles);
        let stop = self.inner.refusing.clone();
        tokio::spawn(async move { stop.run_until_cancelled(watch(handles, source, policy)).await });
    }
}

async fn watch(handles: Weak<Handles>, source: Arc<dyn Pressure>, policy: PausedPolicy) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if source.shortage() == 0 {
            continue;
        }
        let Some(paused) = handles.upgrade().map(|handles| handles.frozen()) else { return };
        relieve(&handles, &*source, &paused, policy).await;
    }
}

/// `paused`: the longest paused first.
async fn relieve(handles: &Weak<Handles>, source: &dyn Pressure, paused: &[SandboxId], policy: PausedPolicy) {
    let steps: &[bool] = if policy == PausedPolicy::Disk { &[false, true] } else { &[false] };
    for to_disk in steps {
        for id in paused {
            if source.shortage() == 0 {
                return;
            }
            let Some(handle) = handles.upgrade().and_then(|handles| handles.any(*id)) else { continue };
            let (reply, answer) = oneshot::channel();
            if handle.commands.send(Command::Relieve { to_disk: *to_disk, reply }).await.is_err() {
                continue;
            }
            if let Ok(Ok(Relief::Reclaimed(_) | Relief::GivenUp)) = timeout(ANSWER_BOUND, answer).await {
                tracing::debug!(sandbox.id = %id, to_disk, shortage.bytes = source.shortage(), "memory came back");
            }
        }
    }
}
