//! The last messages of one stream, numbered, for as many followers as hold it.
//!
//! One producer, many followers. A follower that is slower than the producer holds it back: what
//! it has not read yet is not overwritten. Without followers the oldest messages make room, so
//! that a process never waits for a browser that has gone; who comes back asks for what came
//! after a number and is told what is lost.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::extract::ws::Utf8Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::ending::Ending;

/// The most bytes that wait; a single message may be larger.
pub(super) const MAX_BYTES: usize = 128 << 10;
/// The most followers of one stream.
pub(super) const MAX_FOLLOWERS: usize = 16;

/// The ring. Cheap to clone; clones are one ring.
#[derive(Debug, Clone)]
pub(super) struct Ring(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    grown: Notify,
    shrunk: Notify,
    /// How long a follower that does not read may hold the producer back; then it is cut off.
    patience: Duration,
    followers: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    messages: VecDeque<(u64, Utf8Bytes)>,
    bytes: usize,
    /// The number of the next message; the first is 1.
    next: u64,
    /// What each follower reads next.
    places: BTreeMap<u64, u64>,
    last_key: u64,
    closed: Option<Ending>,
}

/// One reader. Its place is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Follower {
    ring: Ring,
    key: u64,
}

/// What a follower reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A message and its number.
    Message(u64, Utf8Bytes),
    /// These were overwritten: first and last number.
    Lost(u64, u64),
    /// Nothing follows; again and again.
    End(Ending),
}

// === impl Ring ===

impl Ring {
    /// An empty ring. A follower that holds the producer back for this long is cut off.
    pub(super) fn new(patience: Duration) -> Self {
        let state = State {
            messages: VecDeque::new(),
            bytes: 0,
            next: 1,
            places: BTreeMap::new(),
            last_key: 0,
            closed: None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            grown: Notify::new(),
            shrunk: Notify::new(),
            patience,
            followers: watch::Sender::new(0),
        }))
    }

    /// The number of the next message.
    pub(super) fn next(&self) -> u64 {
        self.0.state.lock().next
    }

    /// Adds a message when the followers have made room for it. Only one producer calls it.
    pub(super) async fn push(&self, message: Utf8Bytes) {
        loop {
            let shrunk = self.0.shrunk.notified();
            if self.0.state.lock().push(&message) {
                break;
            }
            if timeout(self.0.patience, shrunk).await.is_err() {
                self.cut_off_slowest();
            }
        }
        self.0.grown.notify_waiters();
    }

    /// Takes the place of the followers that are furthest behind: their next step is the end.
    fn cut_off_slowest(&self) {
        let mut state = self.0.state.lock();
        let slowest = state.places.values().min().copied();
        state.places.retain(|_, place| Some(*place) != slowest);
        self.0.followers.send_replace(state.places.len());
    }

    /// Adds a last message, whatever there is room for, and ends the ring. The first end counts.
    pub(super) fn close(&self, message: Option<Utf8Bytes>, ending: Ending) {
        {
            let mut state = self.0.state.lock();
            if state.closed.is_some() {
                return;
            }
            if let Some(message) = message {
                state.append(message);
            }
            state.closed = Some(ending);
        }
        self.0.grown.notify_waiters();
        self.0.shrunk.notify_waiters();
    }

    /// A reader of what came after this number; of what is to come when there is none. None when
    /// the ring has no place left.
    pub(super) fn follow(&self, after: Option<u64>) -> Option<Follower> {
        let mut state = self.0.state.lock();
        if state.places.len() >= MAX_FOLLOWERS {
            return None;
        }
        state.last_key += 1;
        let key = state.last_key;
        let place = after.map_or(state.next, |after| after.saturating_add(1).min(state.next));
        state.places.insert(key, place);
        self.0.followers.send_replace(state.places.len());
        drop(state);
        Some(Follower { ring: self.clone(), key })
    }

    /// Ends the ring if nobody reads it; who comes now still gets what it has. False: somebody reads.
    pub(super) fn close_unfollowed(&self, ending: Ending) -> bool {
        let mut state = self.0.state.lock();
        let unfollowed = state.places.is_empty();
        if unfollowed {
            state.closed.get_or_insert(ending);
        }
        drop(state);
        self.0.grown.notify_waiters();
        unfollowed
    }

    /// Resolves when nobody has read for so long.
    pub(super) async fn abandoned(&self, patience: Duration) {
        let mut followers = self.0.followers.subscribe();
        loop {
            // The sender is in the ring itself.
            let _ = followers.wait_for(|count| *count == 0).await;
            tokio::select! {
                () = sleep(patience) => return,
                _ = followers.changed() => {}
            }
        }
    }
}

// === impl State ===

impl State {
    /// False: a follower still needs what would have to make room.
    fn push(&mut self, message: &Utf8Bytes) -> bool {
        let needed = self.places.values().min().copied().unwrap_or(u64::MAX);
        while self.bytes + message.len() > MAX_BYTES {
            match self.messages.front() {
                Some((number, _)) if *number >= needed && self.closed.is_none() => return false,
                Some(_) => self.forget_oldest(),
                None => break,
            }
        }
        self.append(message.clone());
        true
    }

    fn append(&mut self, message: Utf8Bytes) {
        self.bytes += message.len();
        self.messages.push_back((self.next, message));
        self.next += 1;
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.messages.pop_front() {
            self.bytes -= oldest.len();
        }
    }

    /// The next step of a follower.
    fn take(&mut self, key: u64) -> Poll<Step> {
        // One that was cut off has no place.
        let Some(place) = self.places.get_mut(&key) else {
            return Poll::Ready(Step::End(Ending::TooSlow));
        };
        if *place >= self.next {
            return self.closed.clone().map_or(Poll::Pending, |ending| Poll::Ready(Step::End(ending)));
        }
        let oldest = self.messages.front().map_or(self.next, |(number, _)| *number);
        if *place < oldest {
            let lost = Step::Lost(*place, oldest - 1);
            *place = oldest;
            return Poll::Ready(lost);
        }
        let index = usize::try_from(*place - oldest).ok();
        let found = index.and_then(|index| self.messages.get(index));
        let Some((number, message)) = found else { return Poll::Pending };
        *place += 1;
        Poll::Ready(Step::Message(*number, message.clone()))
    }
}

// === impl Follower ===

impl Follower {
    /// The next step. Cancel-safe.
    pub(super) async fn next(&mut self) -> Step {
        loop {
            let grown = self.ring.0.grown.notified();
            let taken = self.ring.0.state.lock().take(self.key);
            if let Poll::Ready(step) = taken {
                self.ring.0.shrunk.notify_waiters();
                return step;
            }
            grown.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        {
            let mut state = self.ring.0.state.lock();
            state.places.remove(&self.key);
            self.ring.0.followers.send_replace(state.places.len());
        }
        self.ring.0.shrunk.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const QUARTER: usize = MAX_BYTES / 4;
    const PATIENCE: Duration = Duration::from_secs(30);

    fn message(number: u8) -> Utf8Bytes {
        String::from_utf8(vec![b'a' + number; QUARTER]).unwrap().into()
    }

    async fn number(follower: &mut Follower) -> u64 {
        match follower.next().await {
            Step::Message(number, _) => number,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_comes_back_gets_what_came_after_and_is_told_what_is_lost() {
        let ring = Ring::new(PATIENCE);
        for number in 0..6 {
            ring.push(message(number)).await;
        }
        let mut back = ring.follow(Some(4)).unwrap();
        assert_eq!((number(&mut back).await, number(&mut back).await), (5, 6));
        let mut late = ring.follow(Some(0)).unwrap();
        assert_eq!(late.next().await, Step::Lost(1, 2));
        assert_eq!(number(&mut late).await, 3);
        let mut fresh = ring.follow(None).unwrap();
        ring.close(Some("end".into()), Ending::Over);
        ring.close(Some("too late".into()), Ending::Stopping);
        assert_eq!(number(&mut fresh).await, 7);
        assert_eq!(fresh.next().await, Step::End(Ending::Over));
        assert_eq!(ring.follow(Some(900)).unwrap().next().await, Step::End(Ending::Over));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_does_not_read_holds_the_producer_back() {
        let ring = Ring::new(PATIENCE);
        let mut slow = ring.follow(None).unwrap();
        for number in 0..4 {
            ring.push(message(number)).await;
        }
        let second = Duration::from_secs(1);
        assert!(timeout(second, ring.push(message(4))).await.is_err(), "the ring is full");
        assert_eq!(number(&mut slow).await, 1);
        assert!(timeout(second, ring.push(message(4))).await.is_ok());
        assert!(timeout(second, ring.push(message(5))).await.is_err());
        drop(slow);
        assert!(timeout(second, ring.push(message(5))).await.is_ok(), "nobody needs the oldest now");
        assert!(ring.0.state.lock().bytes <= MAX_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_never_reads_is_cut_off_and_the_producer_goes_on() {
        let ring = Ring::new(PATIENCE);
        let mut stuck = ring.follow(None).unwrap();
        for number in 0..4 {
            ring.push(message(number)).await;
        }
        let mut reading = ring.follow(Some(2)).unwrap();
        assert!(timeout(PATIENCE * 2, ring.push(message(4))).await.is_ok());
        assert_eq!(stuck.next().await, Step::End(Ending::TooSlow), "the one that never read is cut off");
        assert_eq!(number(&mut reading).await, 3, "the other keeps its place");
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_bounded_and_free_again() {
        let ring = Ring::new(PATIENCE);
        let places: Vec<_> = (0..MAX_FOLLOWERS).map(|_| ring.follow(None).unwrap()).collect();
        assert!(ring.follow(None).is_none());
        let minute = Duration::from_mins(1);
        assert!(timeout(2 * minute, ring.abandoned(minute)).await.is_err());
        drop(places);
        assert!(ring.follow(None).is_some());
        assert!(timeout(2 * minute, ring.abandoned(minute)).await.is_ok());
    }

    #[tokio::test]
    async fn only_a_ring_that_nobody_reads_makes_room_for_another() {
        let ring = Ring::new(PATIENCE);
        let reading = ring.follow(None).unwrap();
        assert!(!ring.close_unfollowed(Ending::Abandoned));
        drop(reading);
        ring.push("kept".into()).await;
        assert!(ring.close_unfollowed(Ending::Abandoned));
        let mut late = ring.follow(Some(0)).unwrap();
        assert_eq!(number(&mut late).await, 1);
        assert_eq!(late.next().await, Step::End(Ending::Abandoned));
    }
}
