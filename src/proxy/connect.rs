//! Connections into a machine: opened through its link, spoken to in HTTP/1.1.
//!
//! A connection is driven by one task, which ends with the sandbox's run or when the connection's
//! owner drops it: nothing of a request outlives the client that asked for it.

use std::{io, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{task::AbortHandle, time};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Cause, ProxyError},
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
}

/// An open connection to a port of one run of a sandbox. Dropping it closes it.
#[derive(Debug)]
pub(super) struct GuestConnection {
    sender: http1::SendRequest<Body>,
    driver: Driver,
}

/// A connection in use; goes back to the pool only by [`Lease::finish`].
#[derive(Debug)]
pub(super) struct Lease {
    connection: GuestConnection,
    home: Option<(Key, Arc<Pool>)>,
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
                Ok(response) => return Ok((response, Lease { connection, home })),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(target, error.into_error()).await),
                },
            }
        }
        let mut connection = open(target, port).await?;
        match connection.sender.send_request(request).await {
            Ok(response) => Ok((response, Lease { connection, home })),
            Err(error) => Err(broken(target, error).await),
        }
    }
}

/// Opens a connection; a closed user port is tried again for about a second.
async fn open(target: &Target, port: u16) -> Result<GuestConnection, ProxyError> {
    let waits: &[Duration] = if is_guest_service(port) { &[] } else { &RETRY_AFTER };
    let mut waits = waits.iter();
    loop {
        let opened = tokio::select! {
            biased;
            () = target.ended.cancelled() => return Err(ProxyError::NotFound),
            opened = time::timeout(OPEN_TIMEOUT, target.link.open(port)) => opened,
        };
        match (opened, waits.next()) {
            (Ok(Ok(stream)), _) => return GuestConnection::new(stream, target.ended.clone()).await,
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
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ProxyError::closed)?;
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

// === impl Lease ===

impl Lease {
    /// The response has ended: the connection may serve another request, if its port is such.
    pub(super) fn finish(self) {
        if let Some((key, pool)) = self.home {
            pool.put(key, self.connection);
        }
    }
}

// === impl Driver ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
