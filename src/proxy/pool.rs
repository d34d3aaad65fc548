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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::id::OsEntropy;

    async fn connection(ended: &CancellationToken) -> (GuestConnection, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let connection = GuestConnection::new(Box::new(ours), ended.clone()).await.unwrap();
        // Its driver has begun to wait for requests.
        tokio::task::yield_now().await;
        (connection, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn connections_wait_for_their_own_key_and_not_for_long() {
        let (pool, ended) = (Arc::<Pool>::default(), CancellationToken::new());
        let key = Key { id: SandboxId::generate(&OsEntropy), generation: 1, port: 49_983 };
        let (connection, mut guest) = connection(&ended).await;
        pool.put(key, connection);
        for other in [
            Key { generation: 2, ..key },
            Key { port: 49_999, ..key },
            Key { id: SandboxId::generate(&OsEntropy), ..key },
        ] {
            assert!(pool.take(&other).is_none());
        }
        sleep(IDLE / 2).await;
        let again = pool.take(&key).unwrap();
        assert!(pool.take(&key).is_none());
        pool.put(key, again);
        sleep(IDLE * 2).await;
        assert!(pool.take(&key).is_none());
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0, "the guest's end is closed");
        assert!(pool.shelves.lock().idle.is_empty() && !pool.shelves.lock().swept);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_with_its_run_is_not_given_out() {
        let (pool, ended) = (Arc::<Pool>::default(), CancellationToken::new());
        let key = Key { id: SandboxId::generate(&OsEntropy), generation: 1, port: 49_983 };
        let (first, mut guest) = connection(&ended).await;
        pool.put(key, first);
        assert!(pool.take(&key).is_some_and(|connection| connection.is_ready()));
        let (second, _guest) = connection(&ended).await;
        pool.put(key, second);
        ended.cancel();
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        tokio::task::yield_now().await;
        assert!(pool.take(&key).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_service_keeps_so_many_and_no_more() {
        let (pool, ended) = (Arc::<Pool>::default(), CancellationToken::new());
        let key = Key { id: SandboxId::generate(&OsEntropy), generation: 1, port: 49_983 };
        let mut guests = Vec::new();
        for _ in 0..MOST + 3 {
            let (connection, guest) = connection(&ended).await;
            pool.put(key, connection);
            guests.push(guest);
        }
        let mut taken = Vec::new();
        while let Some(connection) = pool.take(&key) {
            taken.push(connection);
        }
        assert_eq!(taken.len(), MOST);
    }
}
