//! A watcher's queue of events, bounded in number and, over all watchers together, in bytes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::wire::rpc::filesystem::EntryInfo;

/// The most events that wait in one mailbox: four times the kernel's own queue.
const MAX_EVENTS: usize = 65_536;
/// The most bytes that wait in all mailboxes together.
const MAX_BYTES: usize = 32 << 20;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made here, or moved here.
    Create,
    /// Contents changed.
    Write,
    /// Deleted.
    Remove,
    /// Moved away.
    Rename,
    /// Mode, owner, times, attributes or links changed.
    Chmod,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Relative to the watched directory; "." is the directory itself.
    pub(crate) name: String,
    /// What happened.
    pub(crate) kind: Kind,
    /// The entry as it was found afterwards, if asked for and still there.
    pub(crate) entry: Option<Box<EntryInfo>>,
}

/// Why a watcher has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The kernel dropped events.
    #[error("watcher error: fsnotify: queue or buffer overflow")]
    KernelOverflow,
    /// The client did not fetch its events.
    #[error("watcher error: too many unread events")]
    Unread,
    /// The directory's file system is gone.
    #[error("watcher error: file system was unmounted")]
    Unmounted,
    /// A new directory could not be added.
    #[error("watcher error: no watch left for a new directory")]
    NoWatch,
}

/// Bytes that wait in the mailboxes of one guest.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// Filled by the pump, emptied by one reader.
#[derive(Debug)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    arrived: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    bytes: usize,
    failure: Option<Failure>,
}

// === impl Event ===

impl Event {
    /// About what it holds, in bytes.
    fn weight(&self) -> usize {
        let entry = self.entry.as_ref().map_or(0, |entry| {
            let texts =
                entry.name.len() + entry.path.len() + entry.symlink_target.as_ref().map_or(0, String::len);
            let metadata =
                entry.metadata.iter().map(|(key, value)| key.len() + value.len() + 64).sum::<usize>();
            size_of::<EntryInfo>() + texts + metadata + 64
        });
        size_of::<Self>() + self.name.len() + entry
    }
}

// === impl Budget ===

impl Budget {
    /// Takes `bytes` if they are there.
    fn take(&self, bytes: usize) -> bool {
        let grow = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= MAX_BYTES);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Mailbox ===

impl Mailbox {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { inner: Mutex::default(), arrived: Notify::new(), budget }
    }

    /// Adds an event; a full mailbox fails instead of losing one quietly.
    pub(super) fn push(&self, event: Event) -> Result<(), Failure> {
        let weight = event.weight();
        let mut inner = self.lock();
        if let Some(failure) = inner.failure {
            return Err(failure);
        }
        if inner.events.len() >= MAX_EVENTS || !self.budget.take(weight) {
            inner.failure = Some(Failure::Unread);
            drop(inner);
            self.arrived.notify_one();
            return Err(Failure::Unread);
        }
        inner.bytes += weight;
        inner.events.push_back(event);
        drop(inner);
        self.arrived.notify_one();
        Ok(())
    }

    /// Ends the watcher; what is queued is still delivered to a stream.
    pub(super) fn fail(&self, failure: Failure) {
        self.lock().failure.get_or_insert(failure);
        self.arrived.notify_one();
    }

    /// The next event, or why there will be none. Only one reader at a time.
    pub(crate) async fn next(&self) -> Result<Event, Failure> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.arrived.notified().await;
        }
    }

    fn try_next(&self) -> Option<Result<Event, Failure>> {
        let mut inner = self.lock();
        let Some(event) = inner.events.pop_front() else { return inner.failure.map(Err) };
        let weight = event.weight();
        inner.bytes -= weight;
        self.budget.give_back(weight);
        Some(Ok(event))
    }

    /// Takes all events, or the failure; a failure stays.
    pub(super) fn drain(&self) -> Result<Vec<Event>, Failure> {
        let mut inner = self.lock();
        self.budget.give_back(std::mem::take(&mut inner.bytes));
        let events = std::mem::take(&mut inner.events);
        inner.failure.map_or_else(|| Ok(events.into()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.budget.give_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        Event { name: name.to_owned(), kind: Kind::Create, entry: None }
    }

    #[tokio::test]
    async fn overflow_is_sticky_and_bytes_come_back() {
        let budget = Arc::new(Budget::default());
        let mailbox = Mailbox::new(Arc::clone(&budget));
        for _ in 0..MAX_EVENTS {
            mailbox.push(event("a")).unwrap();
        }
        assert_eq!(mailbox.push(event("b")), Err(Failure::Unread));
        assert_eq!(mailbox.next().await.unwrap(), event("a"), "a stream still gets what was queued");
        assert_eq!(mailbox.drain(), Err(Failure::Unread));
        assert_eq!(mailbox.drain(), Err(Failure::Unread));
        assert_eq!(mailbox.next().await, Err(Failure::Unread));
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_mailboxes_share_one_budget() {
        let budget = Arc::new(Budget::default());
        let (first, second) = (Mailbox::new(Arc::clone(&budget)), Mailbox::new(Arc::clone(&budget)));
        let long = "n".repeat(1 << 20);
        while first.push(event(&long)).is_ok() {}
        assert_eq!(second.push(event(&long)), Err(Failure::Unread));
        drop(first);
        let third = Mailbox::new(budget);
        assert_eq!(third.push(event(&long)), Ok(()));
    }
}
