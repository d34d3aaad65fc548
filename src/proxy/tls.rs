//! TLS on the one listener: told from plain HTTP by the first byte, then a handshake.
//!
//! ```text
//!  accepted --first byte 0x16--> handshake --h2, http/1.1--> conversation
//!      |  `--any other byte-----------------------------------^
//!      `-- no byte within the idle time, no handshake within the time for a head: the end
//! ```
//! A TLS record that begins a conversation has type 22; no HTTP request begins with that byte
//! (RFC 8446 5.1, RFC 9112 3). The byte is looked at, not taken.

use std::{fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// The type of the record that a `ClientHello` comes in.
const HANDSHAKE: u8 = 22;

/// The certificate that new connections get; those that exist keep theirs.
pub struct Certificates {
    current: ArcSwap<CertifiedKey>,
}

/// Shakes hands with clients that speak TLS. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
}

/// A connection whose first byte has been seen.
pub(super) enum Opened {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Certificates ===

impl Certificates {
    /// Begins with this one.
    pub fn new(first: CertifiedKey) -> Self {
        Self { current: ArcSwap::from_pointee(first) }
    }

    /// Goes on with this one.
    pub fn replace(&self, next: CertifiedKey) {
        self.current.store(Arc::new(next));
    }

    /// What new connections get now.
    pub fn shown(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Whatever name the client asks for: it must be able to see, and to say, what does not fit.
        Some(self.shown())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificates").finish_non_exhaustive()
    }
}

// === impl Acceptor ===

impl Acceptor {
    /// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1 inside; fails only where this build has no ciphers.
    pub fn new(certificates: Arc<Certificates>) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Waits at most `idle` for the first byte, and at most `head` from there to the handshake's end.
    pub(super) async fn open(&self, socket: TcpStream, head: Duration, idle: Duration) -> io::Result<Opened> {
        let mut first = [0];
        let seen = timeout(idle, socket.peek(&mut first)).await??;
        if seen == 0 || first[0] != HANDSHAKE {
            return Ok(Opened::Plain(socket));
        }
        let stream = timeout(head, self.tls.accept(socket)).await??;
        Ok(Opened::Tls(Box::new(stream)))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Acceptor").finish_non_exhaustive()
    }
}
