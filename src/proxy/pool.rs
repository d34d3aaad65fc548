//! Idle connections to the guest's own services.
//!
//! Kept for a few seconds, keyed by sandbox, run generation and port: what belongs to an earlier
//! run is never found again. A sweeper task exists only while something is idle.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::connect::GuestConnection;
use crate::id::SandboxId;

/// How long a connection may wait for its next request; the guest waits far longer.
const IDLE: Duration = Duration::from_secs(5);
/// How many may wait for one service.
const MOST: usize = 16;

/// Which connections are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) id: SandboxId,
    pub(super) generation: u64,
    pub(super) port: u16,
}

/// The idle connections of all sandboxes.
#[derive(Debug, Default)]
pub(super) struct Pool {
    shelves: Mutex<Shelves>,
}

#[derive(Debug, Default)]
struct Shelves {
    idle: HashMap<Key, Vec<(Instant, GuestConnection)>>,
    swept: bool,
}

// === impl Pool ===

impl Pool {
    /// The connection that was used last, if one is ready.
    pub(super) fn take(&self, key: &Key) -> Option<GuestConnection> {
        let mut shelves = self.shelves.lock();
        let waiting = shelves.idle.get_mut(key)?;
        let mut found = None;
        while let Some((_, connection)) = waiting.pop() {
            if connection.is_ready() {
                found = Some(connection);
                break;
            }
        }
        if waiting.is_empty() {
            shelves.idle.remove(key);
        }
        found
    }

    /// Keeps a connection whose response has ended.
    pub(super) fn put(self: &Arc<Self>, key: Key, connection: GuestConnection) {
        let mut shelves = self.shelves.lock();
        let waiting = shelves.idle.entry(key).or_default();
        if waiting.len() < MOST {
            waiting.push((Instant::now(), connection));
        }
        if !shelves.swept {
            shelves.swept = true;
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Drops what has waited too long; false when nothing is left.
    fn drop_old(&self) -> bool {
        let mut shelves = self.shelves.lock();
        let now = Instant::now();
        shelves.idle.retain(|_, waiting| {
            waiting.retain(|(since, connection)| {
                now.saturating_duration_since(*since) < IDLE && !connection.is_closed()
            });
            !waiting.is_empty()
        });
        shelves.swept = !shelves.idle.is_empty();
        shelves.swept
    }
}

async fn sweep(pool: Weak<Pool>) {
    loop {
        sleep(IDLE / 5).await;
        if !pool.upgrade().is_some_and(|pool| pool.drop_old()) {
            return;
        }
    }
}
