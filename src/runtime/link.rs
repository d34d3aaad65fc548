//! The link contract: byte streams between the gateway and one machine's guest.
//!
//! A link belongs to one machine (one run generation). It has no state that must be closed: each
//! stream is its own, and all of them end with the machine.

use std::{fmt, io, sync::Arc};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::wire::link::{Answer, GENERATION, HANDSHAKE_TIMEOUT, Hello, MAX_LINE, Malformed, Nonce};

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

/// The gateway's half of the handshake on a fresh stream: asks for a port, waits for the answer.
/// Every refusal of a guest that answers at all means that nothing listens there.
pub async fn connect_port<S: ByteStream>(mut stream: S, port: u16) -> Result<S, LinkError> {
    match ask(&mut stream, &Hello::Connect { port }).await? {
        Answer::Ok => Ok(stream),
        Answer::Err(_) => Err(LinkError::PortClosed { port }),
        Answer::OkControl { .. } => Err(Malformed::new("control answer to CONNECT").into()),
    }
}

/// The gateway's half of the handshake on a fresh stream: begins an attachment. Returns the
/// stream and the agreed protocol generation.
pub async fn connect_control<S: ByteStream>(mut stream: S, nonce: Nonce) -> Result<(S, u32), LinkError> {
    match ask(&mut stream, &Hello::Control { generation: GENERATION, nonce }).await? {
        Answer::OkControl { generation } if (1..=GENERATION).contains(&generation) => {
            Ok((stream, generation))
        }
        Answer::Err(reason) => Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason).into()),
        Answer::Ok | Answer::OkControl { .. } => Err(Malformed::new("generation").into()),
    }
}

/// Reads one handshake line, without its newline and without a byte of what follows it.
pub async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, LinkError> {
    let mut line = Vec::with_capacity(MAX_LINE);
    loop {
        // One byte at a time: what follows the line belongs to somebody else.
        let byte = stream.read_u8().await?;
        match byte {
            b'\n' => return Ok(line),
            _ if line.len() + 1 == MAX_LINE => return Err(Malformed::new("line too long").into()),
            _ => line.push(byte),
        }
    }
}

async fn ask<S: ByteStream>(stream: &mut S, hello: &Hello) -> Result<Answer, LinkError> {
    let exchange = async {
        stream.write_all(hello.encode().as_bytes()).await?;
        stream.flush().await?;
        let line = read_line(stream).await?;
        Ok(Answer::parse(&line)?)
    };
    timeout(HANDSHAKE_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

// === impl LinkError ===

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(Arc::new(error))
    }
}
