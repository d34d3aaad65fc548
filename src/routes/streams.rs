//! Streams for browsers: processes, terminals and file events of a sandbox, as JSON messages over
//! WebSocket, and over server-sent events where nothing has to be said back.
//!
//! ```text
//!   envd stream --> Source --> pump (one task a stream) --> Ring --> Follower --> WebSocket, SSE
//! ```
//! - A stream outlives its connections: who was cut off comes back with `?after=SEQ` and gets what
//!   the ring still has, and is told what is lost. The process itself belongs to envd.
//! - The pump owns the stream. It ends when the process does, with the sandbox's run, with the
//!   server, or when nobody has followed for [`ABANDONED`]; the entry goes [`RETAINED`] after that,
//!   or at once when a new stream needs its place.
//! - Everything is bounded: streams, followers of each, bytes of each, connections. A browser that
//!   does not read holds its process back, and is cut off after a while (`socket`).

mod access;
mod events;
mod message;
pub(crate) mod processes;
mod ring;
mod socket;
mod source;
pub(crate) mod terminal;
pub(crate) mod ticket;
pub(crate) mod watch;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::message::{ClientMessage, StreamMessage};
use self::{message::Refusal, ring::Ring, source::Source, ticket::Tickets};
use crate::{id::SandboxId, runtime::registry::EnvdClient};

/// The most streams of this server, and so 64 MiB of their messages.
const MAX_STREAMS: usize = 512;
/// The most streams of one sandbox.
const MAX_OF_SANDBOX: usize = 32;
/// The most connections that follow streams.
const MAX_CONNECTIONS: usize = 1024;
/// How long a stream that nobody follows goes on.
const ABANDONED: Duration = Duration::from_mins(5);
/// How long the end of a stream can be read.
const RETAINED: Duration = Duration::from_secs(30);

/// Every stream of this server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    streams: Mutex<HashMap<u64, Arc<Stream>>>,
    places: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    tickets: Tickets,
    closing: CancellationToken,
    /// Numbers streams; the first is random, so that an earlier server's are not taken for ours.
    next: AtomicU64,
}

/// One stream.
#[derive(Debug)]
struct Stream {
    number: u64,
    sandbox: SandboxId,
    generation: u64,
    pid: Option<u32>,
    /// Whether input goes to a terminal.
    pty: bool,
    ring: Ring,
    stop: CancellationToken,
}

// === impl Streams ===

impl Streams {
    /// No streams yet.
    pub fn new(entropy: &dyn crate::id::Entropy) -> Self {
        let mut first = [0; 8];
        entropy.fill(&mut first);
        Self {
            inner: Arc::new(Inner {
                streams: Mutex::default(),
                places: Arc::new(Semaphore::new(MAX_STREAMS)),
                connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                tickets: Tickets::default(),
                closing: CancellationToken::new(),
                next: AtomicU64::new(u64::from_le_bytes(first) >> 1),
            }),
        }
    }

    /// Ends every stream and its connections: the server stops.
    pub fn close(&self) {
        self.inner.closing.cancel();
    }

    fn tickets(&self) -> &Tickets {
        &self.inner.tickets
    }

    /// A share of the bound on connections; held for as long as one lasts.
    fn connection(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.inner.connections)
            .try_acquire_owned()
            .map_err(|_| Refusal::new("resource_exhausted", "too many open streams on this server"))
    }

    /// A stream by the name that its `attached` message told.
    fn named(&self, sandbox: SandboxId, name: &str) -> Option<Arc<Stream>> {
        let number = u64::from_str_radix(name, 16).ok()?;
        self.inner.streams.lock().get(&number).filter(|stream| stream.sandbox == sandbox).cloned()
    }

    /// The newest stream of a process.
    fn of_process(&self, envd: &EnvdClient, pid: u32) -> Option<Arc<Stream>> {
        let (sandbox, generation) = (envd.target().id, envd.target().generation);
        let streams = self.inner.streams.lock();
        let same = streams.values().filter(|stream| {
            stream.sandbox == sandbox && stream.generation == generation && stream.pid == Some(pid)
        });
        same.max_by_key(|stream| stream.number).cloned()
    }

    /// A place for one more stream of the sandbox. One that nobody follows makes room for it.
    async fn place(&self, sandbox: SandboxId) -> Result<OwnedSemaphorePermit, Refusal> {
        let crowded = {
            let streams = self.inner.streams.lock();
            let own = streams.values().filter(|stream| stream.sandbox == sandbox);
            let full = own.clone().count() >= MAX_OF_SANDBOX;
            full.then(|| {
                let oldest =
                    own.filter(|stream| !stream.ring.is_followed()).min_by_key(|stream| stream.number);
                oldest.cloned()
            })
        };
        match crowded {
            Some(None) => {
                return Err(Refusal::new("resource_exhausted", "too many open streams of this sandbox"));
            }
            Some(Some(idle)) => idle.stop.cancel(),
            None => {}
        }
        if self.inner.places.available_permits() == 0 {
            let idle = {
                let streams = self.inner.streams.lock();
                let idle = streams.values().filter(|stream| !stream.ring.is_followed());
                idle.min_by_key(|stream| stream.number).cloned()
            };
            let Some(idle) = idle else {
                return Err(Refusal::new("resource_exhausted", "too many open streams on this server"));
            };
            idle.stop.cancel();
        }
        // What was told to stop gives its place back at once.
        let place =
            tokio::time::timeout(Duration::from_secs(1), Arc::clone(&self.inner.places).acquire_owned());
        match place.await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Refusal::new("resource_exhausted", "too many open streams on this server")),
        }
    }

    /// Begins a stream; its pump runs from now on.
    fn begin(
        &self,
        envd: &EnvdClient,
        pid: Option<u32>,
        pty: bool,
        source: Source,
        place: OwnedSemaphorePermit,
    ) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            number: self.inner.next.fetch_add(1, Ordering::Relaxed),
            sandbox: envd.target().id,
            generation: envd.target().generation,
            pid,
            pty,
            ring: Ring::default(),
            stop: CancellationToken::new(),
        });
        self.inner.streams.lock().insert(stream.number, Arc::clone(&stream));
        let (ended, inner) = (envd.target().ended.clone(), Arc::clone(&self.inner));
        let pumped = Arc::clone(&stream);
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = pumped.stop.cancelled() => {}
                () = inner.closing.cancelled() => {}
                () = pump(&pumped, source, &ended) => {}
            }
            pumped.ring.close(None);
            inner.streams.lock().remove(&pumped.number);
        });
        stream
    }
}

// === impl Stream ===

impl Stream {
    /// What a client names it by when it comes back.
    fn name(&self) -> String {
        format!("{:016x}", self.number)
    }
}

/// Fills the ring until the source ends or nobody is interested, and keeps the end for a while.
async fn pump(stream: &Stream, mut source: Source, ended: &CancellationToken) {
    let pumping = async {
        loop {
            let (message, last) = source.next(stream.ring.next()).await;
            if last {
                return Some(message.text());
            }
            stream.ring.push(message.text()).await;
        }
    };
    let last = tokio::select! {
        biased;
        last = pumping => last,
        // The source tells it too, unless a follower that does not read holds it back.
        () = ended.cancelled() => {
            let gone = Refusal::new("not_found", "the sandbox has ended");
            Some(gone.message(Some(stream.ring.next())).text())
        }
        () = stream.ring.abandoned(ABANDONED) => None,
    };
    let keep = last.is_some();
    drop(source);
    stream.ring.close(last);
    if keep {
        tokio::select! {
            () = ended.cancelled() => {}
            () = sleep(RETAINED) => {}
        }
    }
}
