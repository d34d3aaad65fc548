//! The places of streams: how many there are, of all and of each sandbox, counted in one step.
//!
//! A place is taken before envd is asked for a stream and is free when its pump has ended. At a bound
//! the oldest stream that nobody follows is told to end, and gives its place back at once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::{Stream, ending::Ending, message::Refusal};
use crate::id::SandboxId;

/// How long a stream that was told to end may take for it.
const EVICTION: Duration = Duration::from_secs(1);

/// Every stream by its number, and how many places are taken.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    most_of_sandbox: usize,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    streams: BTreeMap<u64, Arc<Stream>>,
    taken: usize,
    /// Only sandboxes that have a place.
    of_sandbox: HashMap<SandboxId, usize>,
}

/// One place. Free again when it is dropped, with the stream that filled it.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    sandbox: SandboxId,
    stream: Option<u64>,
}

// === impl Places ===

impl Places {
    pub(super) fn new(most: usize, most_of_sandbox: usize) -> Self {
        Self { most, most_of_sandbox, table: Mutex::default(), freed: Notify::new() }
    }

    pub(super) fn taken(&self) -> usize {
        self.table.lock().taken
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Stream>> {
        self.table.lock().streams.get(&number).cloned()
    }

    /// The newest stream that is like this.
    pub(super) fn newest(&self, like: impl Fn(&Stream) -> bool) -> Option<Arc<Stream>> {
        self.table.lock().streams.values().rev().find(|stream| like(stream)).cloned()
    }

    /// A place of this sandbox; waits shortly for one that nobody needs.
    pub(super) async fn take(self: &Arc<Self>, sandbox: SandboxId) -> Result<Place, Refusal> {
        let taking = async {
            loop {
                let freed = self.freed.notified();
                if let Some(place) = self.try_take(sandbox)? {
                    return Ok(place);
                }
                freed.await;
            }
        };
        timeout(EVICTION, taking)
            .await
            .unwrap_or_else(|_| Err(Refusal::new("resource_exhausted", "no stream made room in time")))
    }

    /// A place; none when one will soon be free.
    fn try_take(self: &Arc<Self>, sandbox: SandboxId) -> Result<Option<Place>, Refusal> {
        let mut table = self.table.lock();
        let of_sandbox = table.of_sandbox.get(&sandbox).copied().unwrap_or(0);
        let crowded = of_sandbox >= self.most_of_sandbox;
        if !crowded && table.taken < self.most {
            table.taken += 1;
            *table.of_sandbox.entry(sandbox).or_default() += 1;
            return Ok(Some(Place { places: Arc::clone(self), sandbox, stream: None }));
        }
        let mut candidates = table.streams.values().filter(|stream| !crowded || stream.sandbox == sandbox);
        // One that ends already is waited for; one that somebody follows is left alone.
        let ends = candidates.any(|stream| {
            stream.stop.is_cancelled() || {
                let idle = stream.ring.close_unfollowed(Ending::Abandoned);
                if idle {
                    stream.stop.cancel();
                }
                idle
            }
        });
        let what = if crowded { "of this sandbox" } else { "on this server" };
        if ends {
            Ok(None)
        } else {
            Err(Refusal::new("resource_exhausted", format!("too many open streams {what}")))
        }
    }
}

// === impl Place ===

impl Place {
    /// Lets the stream be found.
    pub(super) fn fill(&mut self, stream: &Arc<Stream>) {
        self.stream = Some(stream.number);
        self.places.table.lock().streams.insert(stream.number, Arc::clone(stream));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut table = self.places.table.lock();
            if let Some(number) = self.stream {
                table.streams.remove(&number);
            }
            table.taken -= 1;
            if let Some(count) = table.of_sandbox.get_mut(&self.sandbox) {
                *count -= 1;
                if *count == 0 {
                    table.of_sandbox.remove(&self.sandbox);
                }
            }
        }
        self.places.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{id::OsEntropy, routes::streams::ring::Ring};

    fn stream(number: u64, sandbox: SandboxId) -> Arc<Stream> {
        Arc::new(Stream {
            number,
            sandbox,
            generation: 1,
            pid: None,
            pty: false,
            ring: Ring::new(Duration::from_secs(1)),
            stop: CancellationToken::new(),
        })
    }

    /// A place with a stream in it, whose pump gives it back when it is told to.
    async fn filled(places: &Arc<Places>, number: u64, sandbox: SandboxId) -> Arc<Stream> {
        let mut place = places.take(sandbox).await.unwrap();
        let stream = stream(number, sandbox);
        place.fill(&stream);
        let stop = stream.stop.clone();
        tokio::spawn(async move {
            stop.cancelled().await;
            drop(place);
        });
        stream
    }

    #[tokio::test]
    async fn many_at_once_get_no_more_places_than_there_are() {
        let places = Arc::new(Places::new(6, 4));
        let (one, two) = (SandboxId::generate(&OsEntropy), SandboxId::generate(&OsEntropy));
        let all = futures_util::future::join_all((0..20).map(|_| places.take(one))).await;
        let taken: Vec<_> = all.into_iter().filter_map(Result::ok).collect();
        assert_eq!((taken.len(), places.taken()), (4, 4), "places without a stream count");
        let rest = futures_util::future::join_all((0..20).map(|_| places.take(two))).await;
        assert_eq!(rest.iter().filter(|place| place.is_ok()).count(), 2);
        drop((taken, rest));
        assert_eq!(places.taken(), 0);
        assert!(places.table.lock().of_sandbox.is_empty());
    }

    #[tokio::test]
    async fn the_oldest_that_nobody_follows_makes_room_and_no_other() {
        let places = Arc::new(Places::new(8, 3));
        let (ours, other) = (SandboxId::generate(&OsEntropy), SandboxId::generate(&OsEntropy));
        let foreign = filled(&places, 1, other).await;
        let followed = filled(&places, 2, ours).await;
        let reader = followed.ring.follow(None).unwrap();
        let (idle, newer) = (filled(&places, 3, ours).await, filled(&places, 4, ours).await);
        let _fresh = filled(&places, 5, ours).await;
        assert!(idle.stop.is_cancelled());
        assert!(places.get(3).is_none());
        for kept in [&foreign, &followed, &newer] {
            assert!(!kept.stop.is_cancelled(), "{}", kept.number);
        }
        let _more = filled(&places, 6, ours).await;
        let _most = filled(&places, 7, ours).await;
        assert_eq!(places.newest(|stream| stream.sandbox == ours).unwrap().number, 7);
        assert!(places.get(2).is_some());
        drop(reader);
    }

    #[tokio::test]
    async fn where_all_are_followed_there_is_no_room() {
        let places = Arc::new(Places::new(8, 2));
        let ours = SandboxId::generate(&OsEntropy);
        let streams = [filled(&places, 1, ours).await, filled(&places, 2, ours).await];
        let followers = streams.each_ref().map(|stream| stream.ring.follow(None).unwrap());
        let refusal = places.take(ours).await.unwrap_err();
        assert_eq!((refusal.code.as_str(), places.taken()), ("resource_exhausted", 2));
        drop(followers);
        assert!(places.take(ours).await.is_ok());
    }
}
