//! How long a connection may do nothing: a socket that watches its own idle time.
//!
//! ```text
//!   idle --first byte--> head --request complete--> busy --last response ended--> idle
//! ```
//! `head` is short (a slow sender of headers holds a connection, not a request), `idle` is longer
//! than any load balancer's (contract/sandbox 7: over 620 s), `busy` has no limit: a stream may
//! last for ever. hyper's own header timeout also runs while a kept-alive connection is idle,
//! which is why it is not used. HTTP/2 is in `head` only before its first request: later bytes
//! may be settings or a client's own pings.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What the requests of a connection tell its socket.
#[derive(Debug, Default)]
pub(super) struct Activity {
    in_flight: AtomicUsize,
    multiplexed: AtomicBool,
    reader: AtomicWaker,
}

/// One request in flight: from its head until its response has ended.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

/// A socket that ends itself when it has waited too long for a request.
#[derive(Debug)]
pub(super) struct Patient<S> {
    socket: S,
    activity: Arc<Activity>,
    phase: Phase,
    timer: Pin<Box<Sleep>>,
    head: Duration,
    idle: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Busy,
}

// === impl Activity ===

impl Activity {
    pub(super) fn begin(self: &Arc<Self>, multiplexed: bool) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if multiplexed {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        InFlight(Arc::clone(self))
    }

    /// The connection has become something else (101): it waits for no request any more.
    pub(super) fn forever(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            // hyper may already wait for the next head: the idle time begins now, not at its first byte.
            self.0.reader.wake();
        }
    }
}

// === impl Patient ===

impl<S> Patient<S> {
    pub(super) fn new(socket: S, activity: Arc<Activity>, head: Duration, idle: Duration) -> Self {
        Self { socket, activity, phase: Phase::Idle, timer: Box::pin(sleep(idle)), head, idle }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        match phase {
            Phase::Idle => self.timer.as_mut().reset(Instant::now() + self.idle),
            Phase::Head => self.timer.as_mut().reset(Instant::now() + self.head),
            Phase::Busy => {}
        }
    }

    fn look(&mut self) {
        match (self.activity.busy(), self.phase) {
            (true, Phase::Idle | Phase::Head) => self.enter(Phase::Busy),
            (false, Phase::Busy) => self.enter(Phase::Idle),
            _ => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.activity.reader.register(cx.waker());
        this.look();
        let before = buffer.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buffer) {
            Poll::Pending if this.phase != Phase::Busy && this.timer.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no request within the time allowed",
                )))
            }
            Poll::Ready(Ok(()))
                if this.phase == Phase::Idle
                    && buffer.filled().len() > before
                    && !this.activity.multiplexed.load(Ordering::Relaxed) =>
            {
                this.enter(Phase::Head);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
