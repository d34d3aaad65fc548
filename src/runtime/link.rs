//! The link contract: byte streams between the gateway and one machine's guest.
//!
//! A link belongs to one machine (one run generation). It has no state that must be closed: each
//! stream is its own, and all of them end with the machine.

use std::{fmt, io, sync::Arc};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::wire::link::Nonce;

/// A stream of bytes, both ways, with half-close (`shutdown` ends one direction only).
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// An open stream.
pub type LinkStream = Box<dyn ByteStream>;

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nothing in the machine listens on that port.
    #[error("port {port} is not open in the machine")]
    PortClosed {
        /// The port.
        port: u16,
    },
    /// The machine is gone or its guest does not answer.
    #[error("the guest cannot be reached: {0}")]
    Unreachable(#[source] Arc<io::Error>),
    /// The guest answered something that is not the handshake.
    #[error("the guest broke the handshake: {0}")]
    Handshake(#[from] crate::wire::link::Malformed),
}

/// The way into one machine.
#[async_trait]
pub trait GuestLink: Send + Sync + fmt::Debug {
    /// Opens a stream to a TCP port in the machine. Cancel-safe: a dropped future leaves nothing.
    async fn open(&self, port: u16) -> Result<LinkStream, LinkError>;

    /// Opens the control stream of a new attachment and returns it with the agreed protocol
    /// generation. The guest drops what an earlier attachment left.
    async fn open_control(&self, nonce: Nonce) -> Result<(LinkStream, u32), LinkError>;
}

// === impl LinkError ===

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(Arc::new(error))
    }
}
