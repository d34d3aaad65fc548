//! The transport under a fake machine's mux: a pipe that can be cut, at once or after so many bytes.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const PIPE: usize = 64 * 1024;

/// Cuts a wire, from outside.
#[derive(Debug, Clone)]
pub(super) struct Shears {
    cut: CancellationToken,
    budget: Arc<AtomicU64>,
}

/// One end of the pipe.
pub(super) struct Wire {
    pipe: DuplexStream,
    shears: Shears,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Two ends and what cuts between them.
pub(super) fn wire() -> (Wire, Wire, Shears) {
    let (near, far) = duplex(PIPE);
    let shears = Shears { cut: CancellationToken::new(), budget: Arc::new(AtomicU64::new(u64::MAX)) };
    (Wire::new(near, &shears), Wire::new(far, &shears), shears)
}

// === impl Shears ===

impl Shears {
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    pub(super) fn cut_after(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::Release);
    }

    fn spend(&self, bytes: usize) {
        let bytes = bytes as u64;
        let spent = self.budget.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| match left {
            u64::MAX => None,
            left => Some(left.saturating_sub(bytes)),
        });
        if spent.is_ok_and(|before| before <= bytes) {
            self.cut();
        }
    }
}

// === impl Wire ===

impl Wire {
    fn new(pipe: DuplexStream, shears: &Shears) -> Self {
        Self { pipe, shears: shears.clone(), cut: Box::pin(shears.cut.clone().cancelled_owned()) }
    }

    fn is_cut(&mut self, context: &mut Context<'_>) -> bool {
        self.shears.cut.is_cancelled() || self.cut.as_mut().poll(context).is_ready()
    }
}

fn was_cut<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the wire was cut")))
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_cut(context) {
            return was_cut();
        }
        Pin::new(&mut this.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_cut(context) {
            return was_cut();
        }
        let written = Pin::new(&mut this.pipe).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            this.shears.spend(written);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_cut(context) {
            return was_cut();
        }
        Pin::new(&mut this.pipe).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(context)
    }
}
