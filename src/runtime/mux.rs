//! Many byte streams over one, for machines whose link is a single channel (virtio-serial).
//!
//! ```text
//!  Mux (handle) --open--> driver task --- yamux frames ---> the peer's driver task --> accept()
//!      drop: the connection closes, all its streams break
//! ```
//! The driver task owns the connection and ends with it. Each stream has its own flow control
//! (256 KiB and more, within [`CONNECTION_WINDOW`] for all), so that a reader who stops stalls
//! only himself, and its own half-close. Bounds: [`MAX_STREAMS`] open streams, [`BACKLOG`]
//! streams that wait to be accepted; what is more is refused, and never ends the connection.
//! When the connection is cut or the peer drops a stream it has not ended, reads end with an
//! error: a truncated body must not look whole.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

/// Streams that one side may have open at the same time.
pub const MAX_STREAMS: usize = 1024;
/// Streams of the peer that wait to be accepted.
pub const BACKLOG: usize = 128;
/// What all receive windows of one connection may hold together, in bytes.
pub const CONNECTION_WINDOW: usize = 1 << 30;

/// Which side of the connection this is; the two must differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens streams: the gateway.
    Dialler,
    /// Accepts them: the guest.
    Listener,
}

/// One end of a muxed connection.
pub struct Mux {
    opens: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    accepted: Mutex<mpsc::Receiver<MuxStream>>,
    permits: Arc<Semaphore>,
    broken: Arc<AtomicBool>,
}

/// One stream of a [`Mux`].
pub struct MuxStream {
    stream: Compat<yamux::Stream>,
    broken: Arc<AtomicBool>,
    /// This side has ended its direction: a reset can then no longer be told from an end.
    shut: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The transport, watched: it notes its end before the streams hear of it.
struct Watched<T> {
    transport: T,
    broken: Arc<AtomicBool>,
}

// === impl Mux ===

impl Mux {
    /// Takes a transport over. The driver task runs until the transport or this handle ends.
    pub fn new<T>(transport: T, side: Side) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut config = yamux::Config::default();
        // The own limit is lower than yamux's, which forgets ended streams late and answers
        // one stream too many by ending the connection.
        config
            .set_max_connection_receive_window(Some(CONNECTION_WINDOW))
            .set_max_num_streams(2 * MAX_STREAMS);
        let broken = Arc::new(AtomicBool::new(false));
        let watched = Watched { transport, broken: Arc::clone(&broken) };
        let mode = match side {
            Side::Dialler => yamux::Mode::Client,
            Side::Listener => yamux::Mode::Server,
        };
        let connection = yamux::Connection::new(watched.compat(), config, mode);
        let (opens, open_requests) = mpsc::channel(BACKLOG);
        let (accepting, accepted) = mpsc::channel(BACKLOG);
        tokio::spawn(drive(connection, open_requests, accepting, Arc::clone(&broken)));
        Self { opens, accepted: Mutex::new(accepted), permits: Arc::new(Semaphore::new(MAX_STREAMS)), broken }
    }

    /// Opens a stream. Fails at once when the connection is gone or has all its streams.
    pub async fn open(&self) -> io::Result<MuxStream> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("all {MAX_STREAMS} streams of the link are in use"),
            )
        })?;
        let (reply, opened) = oneshot::channel();
        self.opens.send(reply).await.map_err(|_| gone())?;
        let stream = opened.await.map_err(|_| gone())?;
        Ok(MuxStream {
            stream: stream.compat(),
            broken: Arc::clone(&self.broken),
            shut: false,
            _permit: Some(permit),
        })
    }

    /// The next stream that the peer opened; none when the connection has ended.
    pub async fn accept(&self) -> Option<MuxStream> {
        self.accepted.lock().await.recv().await
    }

    /// True when the connection is gone: nothing opens any more.
    pub fn is_gone(&self) -> bool {
        self.opens.is_closed()
    }
}

impl fmt::Debug for Mux {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Mux")
            .field("gone", &self.is_gone())
            .field("free_streams", &self.permits.available_permits())
            .finish_non_exhaustive()
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the link's connection is gone")
}

/// Owns the connection: makes the streams that are asked for, hands out those that come.
async fn drive<T: AsyncRead + AsyncWrite + Send + Unpin>(
    mut connection: yamux::Connection<Compat<Watched<T>>>,
    mut opens: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    accepting: mpsc::Sender<MuxStream>,
    broken: Arc<AtomicBool>,
) {
    let mut asked: Option<oneshot::Sender<yamux::Stream>> = None;
    poll_fn(|context| {
        loop {
            if asked.is_none() {
                match opens.poll_recv(context) {
                    Poll::Ready(Some(reply)) => asked = Some(reply),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if asked.is_some() {
                match connection.poll_new_outbound(context) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(reply) = asked.take() {
                            // A caller that has gone drops the stream, which resets it.
                            let _ = reply.send(stream);
                        }
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            match ready!(connection.poll_next_inbound(context)) {
                Some(Ok(stream)) => {
                    let stream = MuxStream {
                        stream: stream.compat(),
                        broken: Arc::clone(&broken),
                        shut: false,
                        _permit: None,
                    };
                    // A full backlog drops the stream: the peer sees a reset, the others go on.
                    let _ = accepting.try_send(stream);
                }
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    })
    .await;
    broken.store(true, Ordering::Release);
}

// === impl MuxStream ===

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if room > 0 && buffer.filled().len() == before {
            if this.broken.load(Ordering::Acquire) {
                return Poll::Ready(Err(gone()));
            }
            // The peer's end alone closes half of the stream: both halves closed is a reset.
            if !this.shut && this.stream.get_ref().is_closed() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "reset by the peer")));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.get_ref().fmt(formatter)
    }
}

// === impl Watched ===

impl<T> Watched<T> {
    fn note<R>(&self, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if matches!(result, Poll::Ready(Err(_))) {
            self.broken.store(true, Ordering::Release);
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let result = Pin::new(&mut this.transport).poll_read(context, buffer);
        if room > 0 && buffer.filled().len() == before && matches!(result, Poll::Ready(Ok(()))) {
            this.broken.store(true, Ordering::Release);
        }
        this.note(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_write(context, bytes);
        this.note(result)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_flush(context);
        this.note(result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_shutdown(context);
        this.note(result)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn pair() -> (Mux, Arc<Mux>) {
        let (near, far): (DuplexStream, DuplexStream) = duplex(64 * 1024);
        (Mux::new(near, Side::Dialler), Arc::new(Mux::new(far, Side::Listener)))
    }

    /// Answers each stream with what it reads, once it has read to the end.
    fn echo_at_end(far: &Arc<Mux>) {
        let far = Arc::clone(far);
        tokio::spawn(async move {
            while let Some(mut stream) = far.accept().await {
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    if stream.read_to_end(&mut all).await.is_ok() {
                        let _ = stream.write_all(&all).await;
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
    }

    #[tokio::test]
    async fn half_close_ends_one_direction_only() {
        let (near, far) = pair();
        echo_at_end(&far);
        let mut stream = near.open().await.unwrap();
        stream.write_all(b"to the end").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"to the end");
    }

    #[tokio::test]
    async fn a_stalled_reader_stalls_only_himself() {
        let (near, far) = pair();
        let mut stalled = near.open().await.unwrap();
        stalled.write_all(b"x").await.unwrap();
        let _never_read = timeout(LONG, far.accept()).await.unwrap().unwrap();
        let chunk = vec![0_u8; 64 * 1024];
        let mut sent = 0_usize;
        while let Ok(written) = timeout(Duration::from_millis(200), stalled.write_all(&chunk)).await {
            written.unwrap();
            sent += chunk.len();
            assert!(sent < 64 << 20, "no flow control");
        }
        echo_at_end(&far);
        let mut other = near.open().await.unwrap();
        other.write_all(b"free").await.unwrap();
        other.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(LONG, other.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"free");
    }

    #[tokio::test]
    async fn a_cut_is_an_error_and_not_an_end() {
        let (near, far) = pair();
        let mut stream = near.open().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let accepted = timeout(LONG, far.accept()).await.unwrap().unwrap();
        drop(far);
        let mut buffer = Vec::new();
        timeout(LONG, stream.read_to_end(&mut buffer)).await.unwrap().unwrap_err();
        drop(accepted);
        while !near.is_gone() {
            tokio::task::yield_now().await;
        }
        near.open().await.unwrap_err();
    }

    #[tokio::test]
    async fn one_stream_too_many_is_refused_and_the_others_go_on() {
        let (near, far) = pair();
        let accepted = Arc::clone(&far);
        let keeper = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(mut stream) = accepted.accept().await {
                let byte = stream.read_u8().await.unwrap();
                stream.write_u8(byte).await.unwrap();
                kept.push(stream);
            }
        });
        let mut open = Vec::new();
        for _ in 0..MAX_STREAMS {
            let mut stream = near.open().await.unwrap();
            stream.write_u8(7).await.unwrap();
            assert_eq!(timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), 7);
            open.push(stream);
        }
        assert_eq!(near.open().await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        open.pop();
        let mut again = near.open().await.unwrap();
        again.write_u8(9).await.unwrap();
        assert_eq!(timeout(LONG, again.read_u8()).await.unwrap().unwrap(), 9);
        keeper.abort();
    }

    #[tokio::test]
    async fn a_peer_that_speaks_no_mux_loses_the_connection() {
        let (near, mut far) = duplex(64 * 1024);
        let near = Mux::new(near, Side::Dialler);
        let mut stream = near.open().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        far.write_all(&[0xff; 4096]).await.unwrap();
        timeout(LONG, stream.read_u8()).await.unwrap().unwrap_err();
        let gone = async {
            while near.open().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_backlog_resets_the_stream_and_no_other() {
        let (near, far) = pair();
        let mut streams = Vec::new();
        for _ in 0..BACKLOG + 8 {
            let mut stream = near.open().await.unwrap();
            stream.write_u8(1).await.unwrap();
            streams.push(stream);
        }
        let last = streams.last_mut().unwrap();
        let reset = timeout(LONG, last.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        let mut first = timeout(LONG, far.accept()).await.unwrap().unwrap();
        first.write_u8(2).await.unwrap();
        assert_eq!(timeout(LONG, streams[0].read_u8()).await.unwrap().unwrap(), 2);
    }
}
