//! Connections into a machine: opened through its link, spoken to in HTTP/1.1.
//!
//! A connection is driven by one task, which ends with the sandbox's run or when the connection's
//! owner drops it: nothing of a request outlives the client that asked for it. One that serves a single
//! request without a body, as most do on user ports, is driven by whoever waits for its answer: what
//! arrives then wakes one task and not two.

use std::{
    fmt,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response, header::UPGRADE};
use http_body::Body as _;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{task::AbortHandle, time};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    error::{Cause, ProxyError},
    https::Https,
    pool::{Key, Pool},
    target::is_guest_service,
};
use crate::runtime::{
    link::{LinkError, LinkStream},
    registry::Target,
};

/// Waits before the second to the fifth try of a user port: what was just started may not
/// listen yet (contract/sandbox 7).
const RETRY_AFTER: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];
/// How long one try may take. A link within one host that takes longer leads nowhere.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broken connection may be the first sign of the sandbox's end.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// The fields of one response.
const MAX_HEADERS: usize = 128;

/// Opens connections, and keeps those to the guest's own services for a while.
#[derive(Debug, Clone, Default)]
pub(super) struct Connector {
    pool: Arc<Pool>,
    https: Https,
}

/// An open connection to a port of one run of a sandbox. Dropping it closes it.
#[derive(Debug)]
pub(super) struct GuestConnection {
    sender: http1::SendRequest<Body>,
    driver: Driver,
}

/// A connection in use.
#[derive(Debug)]
pub(super) enum Lease {
    /// Driven by a task; goes back to the pool only by [`Lease::finish`].
    Driven(GuestConnection, Option<(Key, Arc<Pool>)>),
    /// Driven by [`Lease::drive`]: nothing arrives while nobody asks.
    Passive(Passive),
}

/// A connection for one request, and what ends it.
pub(super) struct Passive {
    /// None: it has said all it had to.
    connection: Option<Box<http1::Connection<TokioIo<LinkStream>, Body>>>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

#[derive(Debug)]
struct Driver(AbortHandle);

// === impl Connector ===

impl Connector {
    /// Sends the request and returns the head of its response with the connection that the body
    /// comes from. A request is sent once; only one that a stale connection never took is sent
    /// again, on a fresh one.
    pub(super) async fn send(
        &self,
        target: &Target,
        port: u16,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), ProxyError> {
        let home = is_guest_service(port)
            .then(|| (Key { id: target.id, generation: target.generation, port }, Arc::clone(&self.pool)));
        while let Some(mut connection) = home.as_ref().and_then(|(key, pool)| pool.take(key)) {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease::Driven(connection, home))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(target, error.into_error()).await),
                },
            }
        }
        let mut stream = open(target, port).await?;
        // The guest's own services stay what they are, whatever a create lists.
        if home.is_none() && target.https_ports.contains(&port) {
            stream = self.shake(target, stream).await?;
        }
        if home.is_none() && request.body().is_end_stream() && !request.headers().contains_key(UPGRADE) {
            return Passive::send(stream, target, request).await;
        }
        let mut connection = GuestConnection::new(stream, target.ended.clone()).await?;
        match connection.sender.send_request(request).await {
            Ok(response) => Ok((response, Lease::Driven(connection, home))),
            Err(error) => Err(broken(target, error).await),
        }
    }

    /// Goes on in TLS. Whoever listens and does not speak it is as good as a closed port.
    async fn shake(&self, target: &Target, stream: LinkStream) -> Result<LinkStream, ProxyError> {
        let shaken = tokio::select! {
            biased;
            () = target.ended.cancelled() => return Err(ProxyError::NotFound),
            shaken = time::timeout(OPEN_TIMEOUT, self.https.wrap(stream)) => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(broken(target, error).await),
            Err(_) => Err(ProxyError::closed(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

/// Opens a stream; a closed user port is tried again for about a second.
async fn open(target: &Target, port: u16) -> Result<LinkStream, ProxyError> {
    let waits: &[Duration] = if is_guest_service(port) { &[] } else { &RETRY_AFTER };
    let mut waits = waits.iter();
    loop {
        let opened = tokio::select! {
            biased;
            () = target.ended.cancelled() => return Err(ProxyError::NotFound),
            opened = time::timeout(OPEN_TIMEOUT, target.link.open(port)) => opened,
        };
        match (opened, waits.next()) {
            (Ok(Ok(stream)), _) => return Ok(stream),
            (Ok(Err(LinkError::PortClosed { .. })), Some(wait)) => tokio::select! {
                () = target.ended.cancelled() => return Err(ProxyError::NotFound),
                () = time::sleep(*wait) => {}
            },
            (Ok(Err(error)), _) => return Err(broken(target, error).await),
            (Err(_), _) => return Err(ProxyError::closed(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

/// Tells a sandbox that has ended from a port that does not answer.
async fn broken(target: &Target, cause: impl Into<Cause>) -> ProxyError {
    // The bytes stop before the registry hears of the machine's end.
    let ended = match cause.into() {
        cause if is_closed_port(&cause) => Err(cause),
        cause => time::timeout(LAST_WORDS, target.ended.cancelled()).await.map_err(|_| cause),
    };
    match ended {
        Ok(()) => ProxyError::NotFound,
        Err(_) if target.ended.is_cancelled() => ProxyError::NotFound,
        Err(cause) => ProxyError::closed(cause),
    }
}

fn is_closed_port(cause: &Cause) -> bool {
    matches!(cause.downcast_ref(), Some(LinkError::PortClosed { .. }))
}

// === impl GuestConnection ===

impl GuestConnection {
    /// Speaks over this stream until the run ends.
    pub(super) async fn new(stream: LinkStream, ended: CancellationToken) -> Result<Self, ProxyError> {
        let (sender, connection) = handshake(stream).await?;
        let driver = tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                // Its error reaches whoever waits for the response.
                _ = connection.with_upgrades() => {}
            }
        });
        Ok(Self { sender, driver: Driver(driver.abort_handle()) })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.driver.0.is_finished()
    }
}

async fn handshake(
    stream: LinkStream,
) -> Result<(http1::SendRequest<Body>, http1::Connection<TokioIo<LinkStream>, Body>), ProxyError> {
    let mut builder = http1::Builder::new();
    // Servers and programs inside that read the head as text know fields by their usual spelling.
    builder
        .max_headers(MAX_HEADERS)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ProxyError::closed)
}

// === impl Lease ===

impl Lease {
    /// The response has ended: the connection may serve another request, if its port is such.
    pub(super) fn finish(self) {
        if let Self::Driven(connection, Some((key, pool))) = self {
            pool.put(key, connection);
        }
    }

    /// Lets come what has arrived, if it is not driven by a task; the response's body then tells what
    /// became of it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Self::Passive(passive) = self {
            passive.drive(cx);
        }
    }
}

// === impl Passive ===

impl Passive {
    async fn send(
        stream: LinkStream,
        target: &Target,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Lease), ProxyError> {
        let (mut sender, connection) = handshake(stream).await?;
        let ended = Box::pin(target.ended.clone().cancelled_owned());
        let mut passive = Self { connection: Some(Box::new(connection)), ended };
        let mut response = std::pin::pin!(sender.send_request(request));
        let answered = poll_fn(|cx| {
            passive.drive(cx);
            response.as_mut().poll(cx)
        });
        match answered.await {
            Ok(response) => Ok((response, Lease::Passive(passive))),
            Err(error) => Err(broken(target, error).await),
        }
    }

    /// Reads and writes as far as the stream lets it.
    fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        // Its error reaches whoever waits for the response.
        let over = Pin::new(&mut **connection).poll(cx).is_ready();
        if over || self.ended.as_mut().poll(cx) == Poll::Ready(()) {
            self.connection = None;
        }
    }
}

impl fmt::Debug for Passive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Passive").field("over", &self.connection.is_none()).finish_non_exhaustive()
    }
}

// === impl Driver ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
