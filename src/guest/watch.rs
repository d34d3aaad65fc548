//! Directory watches: one inotify instance for the whole guest.
//!
//! A *watcher* is one client's interest in a directory, perhaps with all below it. It owns a
//! mailbox and, for each directory it covers, a *place*: the kernel's watch descriptor and the
//! directory's name relative to the watched one. Kernel watches are shared: two watchers of one
//! directory are two places on one descriptor, and the descriptor is given back with its last place.
//!
//! ```text
//! subscribe ──▶ places registered ──▶ pump: kernel queue ─▶ mailboxes ──▶ stream | poll
//!                                          │ overflow, unmount, full mailbox
//!                                          ▼
//!                          failed: sticky, its kernel watches given back
//! ```
//!
//! Owner: [`Watches`], behind one lock that is only taken off the async thread (never across an
//! await). A task waits for the instance to become readable and pumps; a poll pumps first as
//! well, so that it sees everything that happened before it. Dropping a [`Subscription`] removes
//! its watcher. A lost event is never silent: it fails the watchers that it may have concerned.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::io::unix::AsyncFd;

use self::{
    kernel::Kernel,
    mailbox::{Budget, Mailbox},
};
use crate::guest::users::Users;

mod kernel;
pub(crate) mod mailbox;
mod network;
mod readable;
mod tree;

pub(crate) use network::is_network_mount;

/// The most watchers at a time. Polling ones never expire, so their number needs an end.
const MAX_WATCHERS: usize = 4096;

/// What a watcher wants.
#[derive(Debug, Clone)]
pub(crate) struct Interests {
    /// The directory, as resolved from the request.
    pub(crate) root: PathBuf,
    /// Also everything below.
    pub(crate) recursive: bool,
    /// Describe the entry in creations, writes and attribute changes.
    pub(crate) entries: bool,
}

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The kernel has no watch, or no instance, left, or the directory went away.
    #[error("error adding path {} to watcher: {}", path.display(), crate::guest::failure::text(source))]
    Add {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Too many watchers at a time.
    #[error("too many watchers: at most {MAX_WATCHERS} at a time, remove some with RemoveWatcher")]
    TooMany,
}

/// All watchers of the guest.
pub(crate) struct Watches {
    users: Arc<Users>,
    budget: Arc<Budget>,
    /// None until the first watcher, and again when the last one is gone.
    hub: Mutex<Option<Hub>>,
}

/// One inotify instance and those who listen to it.
struct Hub {
    kernel: Kernel,
    watchers: HashMap<u64, Watcher>,
    next_id: u64,
    /// Ends the task that waits for events.
    pump: tokio::task::AbortHandle,
}

/// One client's interest.
struct Watcher {
    interests: Interests,
    mailbox: Arc<Mailbox>,
    places: tree::Places,
}

/// A live watcher; dropping it ends the watch.
pub(crate) struct Subscription {
    watches: Arc<Watches>,
    id: u64,
    /// Where its events arrive.
    pub(crate) mailbox: Arc<Mailbox>,
}

// === impl Watches ===

impl Watches {
    /// No watcher yet, and nothing held.
    pub(crate) fn new(users: Arc<Users>) -> Arc<Self> {
        Arc::new(Self { users, budget: Arc::new(Budget::default()), hub: Mutex::new(None) })
    }

    /// Starts a watch. Blocking; needs the runtime's context for the task that waits for events.
    pub(crate) fn subscribe(self: &Arc<Self>, interests: Interests) -> Result<Subscription, WatchError> {
        let mut guard = self.lock();
        if guard.is_none() {
            *guard =
                Some(self.open().map_err(|source| WatchError::Add { path: interests.root.clone(), source })?);
        }
        let Some(hub) = guard.as_mut() else { return Err(WatchError::TooMany) };
        if hub.watchers.len() >= MAX_WATCHERS {
            return Err(WatchError::TooMany);
        }
        let id = hub.next_id;
        hub.next_id += 1;
        let mailbox = Arc::new(Mailbox::new(Arc::clone(&self.budget)));
        let watcher = Watcher { interests, mailbox: Arc::clone(&mailbox), places: tree::Places::default() };
        hub.watchers.insert(id, watcher);
        if let Err((path, source)) = tree::cover_all(hub, id) {
            Self::forget(&mut guard, id);
            return Err(WatchError::Add { path, source });
        }
        Ok(Subscription { watches: Arc::clone(self), id, mailbox })
    }

    /// Moves what the kernel has queued into the mailboxes. Blocking.
    pub(crate) fn pump(&self) {
        let mut guard = self.lock();
        let Some(hub) = guard.as_mut() else { return };
        let failed = tree::pump(hub, &self.users);
        for id in failed {
            Self::forget(&mut guard, id);
        }
    }

    /// Gives back a watcher's kernel watches, and the instance with the last watcher.
    fn forget(guard: &mut MutexGuard<'_, Option<Hub>>, id: u64) {
        let Some(hub) = guard.as_mut() else { return };
        if let Some(mut watcher) = hub.watchers.remove(&id) {
            watcher.places.release(&mut hub.kernel, id, Path::new(""));
        }
        if hub.watchers.is_empty() {
            hub.pump.abort();
            **guard = None;
        }
    }

    fn open(self: &Arc<Self>) -> io::Result<Hub> {
        let kernel = Kernel::open()?;
        let readable = readable::watched(kernel.descriptor())?;
        let pump = tokio::spawn(pump_when_readable(Arc::downgrade(self), readable)).abort_handle();
        Ok(Hub { kernel, watchers: HashMap::new(), next_id: 1, pump })
    }

    /// A poisoned lock is only a panic's trace: every change of the hub leaves it consistent.
    fn lock(&self) -> MutexGuard<'_, Option<Hub>> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pumps each time the instance has events, until the watches are gone.
async fn pump_when_readable(watches: Weak<Watches>, readable: AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = readable.readable().await else { return };
        // Cleared first: what arrives while pumping makes it ready again.
        ready.clear_ready();
        let Some(watches) = watches.upgrade() else { return };
        if tokio::task::spawn_blocking(move || watches.pump()).await.is_err() {
            return;
        }
    }
}

// === impl Subscription ===

impl Subscription {
    /// Everything that happened up to now, in order; the failure once there is one. Blocking.
    pub(crate) fn poll(&self) -> Result<Vec<mailbox::Event>, mailbox::Failure> {
        self.watches.pump();
        self.mailbox.drain()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let (watches, id) = (Arc::clone(&self.watches), self.id);
        let forget = move || Watches::forget(&mut watches.lock(), id);
        match tokio::runtime::Handle::try_current() {
            // Many watches take a while to give back: not on the async thread.
            Ok(runtime) => drop(runtime.spawn_blocking(forget)),
            Err(_) => forget(),
        }
    }
}

#[cfg(test)]
mod tests;
