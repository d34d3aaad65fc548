//! The way into one machine: its guest's socket, and the machine's own loopback for user ports.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use async_trait::async_trait;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{client::WardenClient, sockets::Sockets};
use crate::{
    id::SandboxId,
    runtime::link::{GuestLink, LinkError, LinkStream},
    sandbox::{CODE_INTERPRETER_PORT, ENVD_PORT},
    wire::link::{Answer, GENERATION, HANDSHAKE_TIMEOUT, Hello, MAX_LINE, Malformed, Nonce, SEND_BUFFER},
};

/// The guest's own ports go through its socket; every other one is dialled in the machine's
/// network namespace, so that those bytes are copied by the kernel alone.
pub(super) struct NamespaceLink {
    socket: String,
    run: Arc<OwnedFd>,
    sockets: Sockets,
}

// === impl NamespaceLink ===

impl NamespaceLink {
    pub(super) fn new(sandbox: SandboxId, socket: String, run: Arc<OwnedFd>, client: &WardenClient) -> Self {
        Self { socket, run, sockets: Sockets::new(sandbox, client) }
    }

    async fn shake(&self, hello: Hello) -> Result<(UnixStream, Answer), LinkError> {
        let shaken = async {
            // By descriptor: the directory's own path may be longer than a socket's address.
            let path = format!("/proc/self/fd/{}/{}", self.run.as_raw_fd(), self.socket);
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(hello.encode().as_bytes()).await?;
            let line = read_line(&mut stream).await?;
            Ok((stream, Answer::parse(&line)?))
        };
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer to the handshake");
        tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await.map_err(|_| late())?
    }

    async fn open_guest(&self, port: u16) -> Result<LinkStream, LinkError> {
        match self.shake(Hello::Connect { port }).await? {
            (stream, Answer::Ok) => {
                // As much as the kernel allows; less is slower and no failure.
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
                Ok(Box::new(stream))
            }
            (_, Answer::Err(_)) => Err(LinkError::PortClosed { port }),
            (_, Answer::OkControl { .. }) => Err(Malformed::UNEXPECTED.into()),
        }
    }

    /// Servers bind to `127.0.0.1`, to `::1`, or to both.
    async fn open_user(&self, port: u16) -> Result<LinkStream, LinkError> {
        for v6 in [false, true] {
            let socket = self.sockets.take(v6).await?;
            let address = if v6 {
                SocketAddr::from((Ipv6Addr::LOCALHOST, port))
            } else {
                SocketAddr::from((Ipv4Addr::LOCALHOST, port))
            };
            match socket.connect(address).await {
                Ok(stream) => {
                    // Interactive traffic: small writes must not wait for each other.
                    stream.set_nodelay(true)?;
                    return Ok(Box::new(stream));
                }
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(LinkError::PortClosed { port })
    }
}

#[async_trait]
impl GuestLink for NamespaceLink {
    async fn open(&self, port: u16) -> Result<LinkStream, LinkError> {
        match port {
            ENVD_PORT | CODE_INTERPRETER_PORT => self.open_guest(port).await,
            _ => self.open_user(port).await,
        }
    }

    async fn open_control(&self, nonce: Nonce) -> Result<(LinkStream, u32), LinkError> {
        let hello = Hello::Control { generation: GENERATION, nonce };
        match self.shake(hello).await? {
            (stream, Answer::OkControl { generation }) if (1..=GENERATION).contains(&generation) => {
                Ok((Box::new(stream), generation))
            }
            _ => Err(Malformed::UNEXPECTED.into()),
        }
    }
}

impl fmt::Debug for NamespaceLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("NamespaceLink").field(&self.socket).finish()
    }
}

/// Nobody listens there; the host may also have no `IPv6` at all.
fn is_closed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::AddrNotAvailable | ErrorKind::NetworkUnreachable
    )
}

/// Reads up to the newline and not a byte further: what follows belongs to the stream's user.
pub(in crate::runtime) async fn read_line(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Vec<u8>, LinkError> {
    let mut line = Vec::with_capacity(16);
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            _ if line.len() + 1 >= MAX_LINE => return Err(Malformed::UNEXPECTED.into()),
            byte => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_to_its_end_and_no_further() {
        let mut bytes: &[u8] = b"OK 1\nrest";
        assert_eq!(read_line(&mut bytes).await.unwrap(), b"OK 1");
        assert_eq!(bytes, b"rest");
        let mut endless: &[u8] = &[b'x'; 4096];
        assert!(matches!(read_line(&mut endless).await, Err(LinkError::Handshake(_))));
    }
}
