//! Watch requests: what may be watched, the stream with its keepalives, and watchers that are
//! polled by id.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use connectrpc::ConnectError;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::HeaderMap;
use tokio::time::Instant;

use super::{FilesystemError, FilesystemService};
use crate::{
    guest::{
        awake,
        failure::{self, is_missing},
        rpc,
        watch::{
            Interests, Subscription, WatchError, is_network_mount,
            mailbox::{Event, Kind},
        },
    },
    id::Entropy,
    wire::rpc::filesystem::{
        EventType, FilesystemEvent, WatchDirResponse,
        watch_dir_response::{self, KeepAlive, StartEvent},
    },
};

/// The interval of keepalives when the client names none.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// What a client wants to watch.
pub(super) struct Wish {
    pub(super) path: PathBuf,
    pub(super) recursive: bool,
    pub(super) entries: bool,
    /// Also where the kernel does not see every change.
    pub(super) network: bool,
}

/// Watchers without a stream. They live until they are removed; any client may use any.
#[derive(Default)]
pub(super) struct PollingWatchers(Mutex<HashMap<String, Arc<Subscription>>>);

// === impl FilesystemService ===

impl FilesystemService {
    /// Starts a watch, or says why the path cannot be watched.
    pub(super) async fn subscribe(&self, wish: Wish) -> Result<Subscription, ConnectError> {
        let watches = Arc::clone(&self.watches);
        let subscribed = self.run(move |_| {
            wish.check()?;
            let Wish { path: root, recursive, entries, .. } = wish;
            watches.subscribe(Interests { root, recursive, entries }).map_err(|error| match error {
                WatchError::TooMany => FilesystemError::TooMany(error.to_string()),
                WatchError::Add { .. } => FilesystemError::Internal(error.to_string()),
            })
        });
        subscribed.await
    }
}

// === impl Wish ===

impl Wish {
    fn check(&self) -> Result<(), FilesystemError> {
        let path = self.path.display();
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(FilesystemError::Invalid(format!("path {path} not a directory"))),
            Err(error) => {
                let text = failure::describe("stat", &self.path, &error);
                return Err(if is_missing(&error) {
                    FilesystemError::NotFound(format!("path {path} not found: {text}"))
                } else {
                    FilesystemError::Internal(format!("error statting path {path}: {text}"))
                });
            }
        }
        let network = !self.network
            && is_network_mount(&self.path).map_err(|error| {
                FilesystemError::Internal(format!("error checking mount status: {error}"))
            })?;
        if network {
            return Err(FilesystemError::Invalid(format!("cannot watch path on network filesystem: {path}")));
        }
        Ok(())
    }
}

/// The client's interval of keepalives, in whole seconds.
pub(super) fn keepalive(headers: &HeaderMap) -> Duration {
    headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|&seconds| seconds > 0)
        .map_or(KEEPALIVE, Duration::from_secs)
}

/// `start`, then events as they come and keepalives when none does. Ends with the watcher, or at
/// the client's deadline, by the clock of [`awake`].
pub(super) fn stream(
    subscription: Subscription,
    keepalive: Duration,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send {
    let start = response(watch_dir_response::Event::Start(Box::<StartEvent>::default()));
    let events = stream::unfold(Some(subscription), move |subscription| async move {
        let subscription = subscription?;
        let told = tokio::select! {
            biased;
            () = awake::expiry(deadline) => {
                return Some((Err(rpc::expired()), None));
            }
            told = tokio::time::timeout(keepalive, subscription.mailbox.next()) => told,
        };
        match told {
            Ok(Ok(event)) => {
                let event = watch_dir_response::Event::Filesystem(Box::new(message(event)));
                Some((Ok(response(event)), Some(subscription)))
            }
            Ok(Err(failure)) => Some((Err(ConnectError::internal(failure.to_string())), None)),
            Err(_elapsed) => {
                let event = watch_dir_response::Event::Keepalive(Box::<KeepAlive>::default());
                Some((Ok(response(event)), Some(subscription)))
            }
        }
    });
    stream::iter([Ok(start)]).chain(events)
}

fn response(event: watch_dir_response::Event) -> WatchDirResponse {
    WatchDirResponse { event: Some(event), ..Default::default() }
}

/// An event as it is sent.
pub(super) fn message(event: Event) -> FilesystemEvent {
    let kind = match event.kind {
        Kind::Create => EventType::EVENT_TYPE_CREATE,
        Kind::Write => EventType::EVENT_TYPE_WRITE,
        Kind::Remove => EventType::EVENT_TYPE_REMOVE,
        Kind::Rename => EventType::EVENT_TYPE_RENAME,
        Kind::Chmod => EventType::EVENT_TYPE_CHMOD,
    };
    FilesystemEvent {
        name: event.name,
        r#type: kind.into(),
        entry: event.entry.map(|entry| *entry).into(),
        ..Default::default()
    }
}

// === impl PollingWatchers ===

impl PollingWatchers {
    /// Keeps a watcher; the answer is its id, `w` and 20 characters.
    pub(super) fn add(&self, subscription: Subscription, entropy: &dyn Entropy) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut random = [0; 20];
        entropy.fill(&mut random);
        let letters = random.iter().map(|byte| char::from(LETTERS[usize::from(byte & 31)]));
        let id: String = std::iter::once('w').chain(letters).collect();
        self.lock().insert(id.clone(), Arc::new(subscription));
        id
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<Subscription>, ConnectError> {
        self.lock().get(id).cloned().ok_or_else(|| unknown(id))
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.lock().remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Subscription>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}
