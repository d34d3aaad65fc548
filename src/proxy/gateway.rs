//! One listener for everything: accepts connections, speaks HTTP/1.1 and HTTP/2 on them, plain or
//! in TLS, and gives
//! each request to the sandbox stack or to the control plane's routes.
//!
//! ```text
//!  accept --permit--> connection (task) --request--> Gateway::handle --host--> stack | routes
//!                         |                              |
//!                         `-- ends: client, idle, drain  `-- 101: the tunnel outlives the connection
//! ```
//! Every connection holds a permit until it and the tunnels made from it are gone, so their number
//! is bounded; at the bound the listener waits. On shutdown the listener closes, connections finish
//! the requests they have begun, and after [`Settings::drain`] whatever is left is cut.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    host::{Destination, Hosts},
    patience::{Activity, InFlight, Patient},
    rescue,
    resolve::{Lookup, ResolveLayer, Wake},
    stack::{Stack, stack},
    target::Inbound,
    tls::{Acceptor, Opened},
};
use crate::{hold::Hold, id::SandboxId, runtime::registry::Registry};

/// The bytes of all headers of one request.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// One read of an HTTP/1 connection: long enough that a large body takes few turns. A head that does
/// not fit is refused by the library, a shorter one that is too long by us.
const READ_BYTES: usize = 256 * 1024;
/// The fields of one request.
const MAX_HEADERS: usize = 128;
/// The largest HTTP/2 frame from a client. Older SDKs copy what is left of a body once a frame, so
/// that a large upload in frames of 16 KiB takes minutes; the flow-control window bounds our memory.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// A silent client is asked by its kernel, not by HTTP/2 pings: an SDK that is between two
/// requests, or does not read its output just now, answers no ping and is alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// How long the listener rests when the kernel has no descriptor left to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The domain in answers, `host[:port]`; sandboxes are `{port}-{id}.` below it.
    pub domain: String,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Duration,
    /// Between two requests of a connection; must exceed 620 s, which load balancers rely on.
    pub idle_timeout: Duration,
    /// How long begun requests may go on after shutdown was asked for.
    pub drain: Duration,
    /// Connections at the same time; tunnels count.
    pub max_connections: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub max_streams: u32,
    /// Requests at the same time to one sandbox; none: no limit (the contract's default).
    pub sandbox_connections: Option<u32>,
    /// Speaks TLS with clients that begin with it; none: plain only.
    pub tls: Option<Acceptor>,
}

/// The one service of every connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hosts: Hosts,
    stack: Stack,
    routes: Router,
    settings: Settings,
}

/// One connection: its share of the bound, and what its requests tell its socket.
#[derive(Debug, Clone)]
struct Connection {
    gateway: Gateway,
    peer: SocketAddr,
    activity: Arc<Activity>,
    hold: Hold,
}

/// A response that is in flight until it has been sent or dropped.
#[derive(Debug)]
struct Watched {
    body: Body,
    _in_flight: InFlight,
}

// === impl Settings ===

impl Settings {
    /// The contract's and our own defaults for a server of this domain.
    pub fn new(domain: impl Into<String>) -> Self {
        Self {
            domain: domain.into(),
            head_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(650),
            drain: Duration::from_secs(8),
            max_connections: 16_384,
            max_streams: 256,
            sandbox_connections: None,
            tls: None,
        }
    }
}

// === impl Gateway ===

impl Gateway {
    /// A gateway to the registry's sandboxes, with these routes on every base host.
    pub fn new(registry: Registry, routes: Router, settings: Settings) -> Self {
        let waking = registry.clone();
        let find: Lookup = Arc::new(move |id: &SandboxId| registry.target(id));
        let wake: Wake = Arc::new(move |id, knock| {
            let registry = waking.clone();
            Box::pin(async move { registry.wake(id, knock).await })
        });
        Self::with(ResolveLayer::new(find, Some(wake)), routes, settings)
    }

    /// A gateway to whatever sandboxes this look-up finds; none is ever woken.
    pub fn with_lookup(lookup: Lookup, routes: Router, settings: Settings) -> Self {
        Self::with(ResolveLayer::new(lookup, None), routes, settings)
    }

    fn with(resolve: ResolveLayer, routes: Router, settings: Settings) -> Self {
        let hosts = Hosts::new(&settings.domain);
        let stack = stack(resolve, settings.sandbox_connections);
        Self { inner: Arc::new(Inner { hosts, stack, routes, settings }) }
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            // Ports are reached by their host names; a general forward proxy is none of our trade.
            return rescue::plain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported");
        }
        let (parts, body) = request.into_parts();
        if header_bytes(&parts) > MAX_HEADER_BYTES {
            return rescue::plain(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the request's headers are too large",
            );
        }
        let destination = self.inner.hosts.destination(&parts);
        let request = Request::from_parts(parts, Body::new(body));
        let answered = match destination {
            Ok(Destination::Routes) => self.inner.routes.clone().oneshot(request).await,
            Ok(Destination::Sandbox(address)) => {
                self.inner.stack.clone().oneshot(Inbound { address, request }).await
            }
            Err(error) => Ok(rescue::nobody(&request, error)),
        };
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// About the bytes of a head in HTTP/1.
fn header_bytes(parts: &http::request::Parts) -> usize {
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + ": \r\n".len() + value.len());
    target + fields.sum::<usize>()
}

/// Serves connections until `shutdown` fires and the last request has ended, at most
/// [`Settings::drain`] later. Returns when no connection is left.
pub async fn serve(listener: TcpListener, gateway: Gateway, shutdown: CancellationToken) {
    let settings = &gateway.inner.settings;
    let permits = Arc::new(Semaphore::new(settings.max_connections));
    let server = Arc::new(server(settings));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((socket, peer, permit)) = accepted else { continue };
        let connection = Connection {
            gateway: gateway.clone(),
            peer,
            activity: Arc::new(Activity::default()),
            hold: Hold::new(cut.child_token(), (permit, connections.token())),
        };
        let (server, shutdown, cut) = (Arc::clone(&server), shutdown.clone(), connection.hold.is_cut());
        connections.spawn(async move {
            tokio::select! {
                () = converse(&server, socket, connection, &shutdown) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(settings.drain, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

/// A client whose machine is gone without a word ends the connection after a minute.
fn notice_death(socket: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    sockopt::set_socket_keepalive(socket, true)
}

/// Waits for a free place and then for a client; none where the client or the kernel failed.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, peer)) => {
            // Small frames (WebSocket, events) must not wait for an acknowledgement.
            let _ = socket.set_nodelay(true);
            let _ = notice_death(&socket);
            Some((socket, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// One connection from its first byte to its last.
async fn converse(
    server: &auto::Builder<TokioExecutor>,
    socket: TcpStream,
    connection: Connection,
    shutdown: &CancellationToken,
) {
    let settings = &connection.gateway.inner.settings;
    let Some(acceptor) = &settings.tls else { return talk(server, socket, connection, shutdown).await };
    let opened = tokio::select! {
        opened = acceptor.open(socket, settings.head_timeout, settings.idle_timeout) => opened,
        // No request was begun.
        () = shutdown.cancelled() => return,
    };
    match opened {
        Ok(Opened::Plain(socket)) => talk(server, socket, connection, shutdown).await,
        Ok(Opened::Tls(socket)) => talk(server, socket, connection, shutdown).await,
        Err(error) => tracing::debug!(%error, "a connection ended before it said anything"),
    }
}

/// HTTP on a connection, as long as it goes on.
async fn talk<S>(
    server: &auto::Builder<TokioExecutor>,
    socket: S,
    connection: Connection,
    shutdown: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = &connection.gateway.inner.settings;
    let (head, idle) = (settings.head_timeout, settings.idle_timeout);
    let socket = Patient::new(socket, Arc::clone(&connection.activity), head, idle);
    let conversation = server.serve_connection_with_upgrades(TokioIo::new(socket), connection);
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = shutdown.cancelled() => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        // Clients that hang up are everyday life, and their bytes do not belong in a log.
        tracing::debug!(%error, "a connection ended early");
    }
}

fn server(settings: &Settings) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_buf_size(READ_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    server
}

// === impl Connection ===

impl hyper::service::Service<Request<Incoming>> for Connection {
    type Response = Response<Watched>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let connection = self.clone();
        let in_flight = self.activity.begin(request.version() == Version::HTTP_2);
        request.extensions_mut().insert(ConnectInfo(connection.peer));
        request.extensions_mut().insert(connection.hold.clone());
        Box::pin(async move {
            let response = connection.gateway.handle(request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                connection.activity.forever();
            }
            Ok(response.map(|body| Watched { body, _in_flight: in_flight }))
        })
    }
}

// === impl Watched ===

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
