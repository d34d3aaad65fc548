//! Streams for browsers: processes, terminals and file events of a sandbox, as JSON messages over
//! WebSocket, and over server-sent events where nothing has to be said back.
//!
//! ```text
//!   envd stream --> Source --> pump (one task a stream) --> Ring --> Follower --> WebSocket, SSE
//! ```
//! - A stream outlives its connections: who was cut off comes back with `?after=SEQ` and gets what
//!   the ring still has, and is told what is lost. The process itself belongs to envd.
//! - The pump owns the stream. It ends when the process does, with the sandbox's run, with the
//!   server, or when nobody has followed for [`Bounds::abandoned`]; the entry goes
//!   [`Bounds::retained`] after that, or at once when a new stream needs its place.
//! - Everything is bounded: streams, followers of each, bytes of each, connections. A browser that
//!   does not read holds its process back, and is cut off after a while.
//! - Why a connection ends is told: [`Ending`].

mod access;
mod bounds;
mod ending;
mod events;
mod lanes;
mod message;
mod places;
pub(crate) mod processes;
mod ring;
mod socket;
mod source;
pub(crate) mod terminal;
pub(crate) mod ticket;
pub(crate) mod watch;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub use self::bounds::Bounds;
pub(crate) use self::message::{ClientMessage, StreamMessage};
use self::{
    ending::Ending,
    message::Refusal,
    places::{Place, Places},
    ring::Ring,
    source::Source,
    ticket::Tickets,
};
use crate::{hold::Hold, id::SandboxId, runtime::registry::EnvdClient};

/// Every stream of this server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    places: Arc<Places>,
    connections: Arc<Semaphore>,
    tickets: Tickets,
    closing: CancellationToken,
    /// Numbers streams; the first is random, so that an earlier server's are not taken for ours.
    next: AtomicU64,
}

/// How much of its bounds a server uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Streams, ended ones that can still be read included.
    pub streams: usize,
    /// Connections that follow them.
    pub connections: usize,
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

/// One connection to a stream: its share of the bound on those, and its place among the server's.
#[derive(Debug)]
struct Connection {
    bounds: Bounds,
    closing: CancellationToken,
    hold: Option<Hold>,
    /// Whether other requests may be under way on the same connection.
    shared: bool,
    _share: OwnedSemaphorePermit,
}

// === impl Streams ===

impl Streams {
    /// No streams yet.
    pub fn new(entropy: &dyn crate::id::Entropy) -> Self {
        Self::with(entropy, Bounds::default())
    }

    /// No streams yet, within these bounds.
    pub fn with(entropy: &dyn crate::id::Entropy, bounds: Bounds) -> Self {
        let mut first = [0; 8];
        entropy.fill(&mut first);
        Self {
            inner: Arc::new(Inner {
                bounds,
                places: Arc::new(Places::new(bounds.streams, bounds.streams_of_sandbox)),
                connections: Arc::new(Semaphore::new(bounds.connections)),
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

    /// How much is in use now.
    pub fn usage(&self) -> Usage {
        Usage {
            streams: self.inner.places.taken(),
            connections: self.inner.bounds.connections - self.inner.connections.available_permits(),
        }
    }

    fn tickets(&self) -> &Tickets {
        &self.inner.tickets
    }

    /// A share of the bound on connections; held for as long as one lasts.
    fn connection(&self, hold: Option<Hold>, shared: bool) -> Result<Connection, Refusal> {
        let share = Arc::clone(&self.inner.connections)
            .try_acquire_owned()
            .map_err(|_| Refusal::new("resource_exhausted", "too many open streams on this server"))?;
        Ok(Connection {
            bounds: self.inner.bounds,
            closing: self.inner.closing.clone(),
            hold,
            shared,
            _share: share,
        })
    }

    /// A stream by the name that its `attached` message told.
    fn named(&self, sandbox: SandboxId, name: &str) -> Option<Arc<Stream>> {
        let number = u64::from_str_radix(name, 16).ok()?;
        self.inner.places.get(number).filter(|stream| stream.sandbox == sandbox)
    }

    /// The newest stream of a process.
    fn of_process(&self, envd: &EnvdClient, pid: u32) -> Option<Arc<Stream>> {
        let (sandbox, generation) = (envd.target().id, envd.target().generation);
        self.inner.places.newest(|stream| {
            stream.sandbox == sandbox && stream.generation == generation && stream.pid == Some(pid)
        })
    }

    /// A place for one more stream of the sandbox. One that nobody follows makes room for it.
    async fn place(&self, sandbox: SandboxId) -> Result<Place, Refusal> {
        self.inner.places.take(sandbox).await
    }

    /// Begins a stream; its pump runs from now on.
    fn begin(
        &self,
        envd: &EnvdClient,
        pid: Option<u32>,
        pty: bool,
        source: Source,
        mut place: Place,
    ) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            number: self.inner.next.fetch_add(1, Ordering::Relaxed),
            sandbox: envd.target().id,
            generation: envd.target().generation,
            pid,
            pty,
            ring: Ring::new(self.inner.bounds.unread),
            stop: CancellationToken::new(),
        });
        place.fill(&stream);
        let (ended, inner) = (envd.target().ended.clone(), Arc::clone(&self.inner));
        let pumped = Arc::clone(&stream);
        tokio::spawn(async move {
            let ending = tokio::select! {
                () = pumped.stop.cancelled() => Ending::Abandoned,
                () = inner.closing.cancelled() => Ending::Stopping,
                () = pump(&pumped, source, &ended, inner.bounds) => Ending::Abandoned,
            };
            // What the pump said first counts.
            pumped.ring.close(None, ending);
            drop(place);
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

// === impl Connection ===

impl Connection {
    /// Ends a connection whose client does not read. One that has other requests under way stays.
    fn cut(&self) {
        if let Some(hold) = self.hold.as_ref().filter(|_| !self.shared) {
            hold.cut();
        }
    }
}

/// Fills the ring until the source ends or nobody is interested, and keeps the end for a while.
async fn pump(stream: &Stream, mut source: Source, ended: &CancellationToken, bounds: Bounds) {
    let pumping = async {
        loop {
            let (message, last) = source.next(stream.ring.next()).await;
            if let Some(ending) = last {
                return (message.text(), ending);
            }
            stream.ring.push(message.text()).await;
        }
    };
    let (last, ending) = tokio::select! {
        biased;
        last = pumping => last,
        // The source tells it too, unless a follower that does not read holds it back.
        () = ended.cancelled() => {
            let gone = Refusal::new("not_found", "the sandbox has ended");
            (gone.message(Some(stream.ring.next())).text(), Ending::SandboxEnded)
        }
        () = stream.ring.abandoned(bounds.abandoned) => return,
    };
    drop(source);
    stream.ring.close(Some(last), ending);
    tokio::select! {
        () = ended.cancelled() => {}
        () = sleep(bounds.retained) => {}
    }
}
