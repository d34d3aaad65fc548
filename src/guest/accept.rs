//! The guest's end of the link: streams come in, say what they want, and get it.
//!
//! `CONNECT 49983` is envd itself; every other port is dialled on the machine's loopback, IPv4
//! first. A stream that does not say what it wants in time, or says it wrongly, is closed. The
//! number of streams is bounded; further ones wait in the socket's backlog.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{Router, response::Response};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use nix::sys::socket::{MsgFlags, recv};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, copy_bidirectional_with_sizes},
    net::{TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tower::ServiceExt;

use crate::{
    guest::{control::Attachment, joined::Joined, state::Guest},
    sandbox::ENVD_PORT,
    wire::link::{Answer, GENERATION, HANDSHAKE_TIMEOUT, Hello, MAX_LINE, SEND_BUFFER},
};

/// Streams at a time; a command that runs has one, and its pipes.
const MAX_STREAMS: usize = 2048;
/// Bytes on the way in each direction of a dialled port.
const SPLICE_BYTES: usize = 32 << 10;

/// Accepts for as long as the machine lives.
pub(crate) async fn run(listener: UnixListener, guest: Guest, envd: Router) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(MAX_STREAMS));
    let attachment = Attachment::default();
    loop {
        let Ok(seat) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_passing(&error) => {
                // Out of descriptors: give those that end a chance to be seen.
                tokio::task::yield_now().await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let (guest, envd, attachment) = (guest.clone(), envd.clone(), attachment.clone());
        tokio::spawn(async move {
            let _seat = seat;
            // A broken stream is its peer's business.
            let _ = serve(stream, guest, envd, attachment).await;
        });
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

async fn serve(mut stream: UnixStream, guest: Guest, envd: Router, attachment: Attachment) -> io::Result<()> {
    let hello = match timeout(HANDSHAKE_TIMEOUT, read_line(&mut stream)).await {
        Ok(line) => Hello::parse(&line?),
        Err(_) => return say(&mut stream, &Answer::Err("no handshake in time".to_owned())).await,
    };
    match hello {
        Err(malformed) => say(&mut stream, &Answer::Err(malformed.to_string())).await,
        Ok(Hello::Control { generation, nonce }) => {
            let generation = generation.min(GENERATION);
            say(&mut stream, &Answer::OkControl { generation }).await?;
            attachment.replace(guest, nonce, stream);
            Ok(())
        }
        Ok(Hello::Connect { port: ENVD_PORT }) => {
            say(&mut stream, &Answer::Ok).await?;
            serve_envd(stream, envd).await;
            Ok(())
        }
        Ok(Hello::Connect { port }) => match dial(port).await {
            Ok(mut upstream) => {
                say(&mut stream, &Answer::Ok).await?;
                copy_bidirectional_with_sizes(&mut stream, &mut upstream, SPLICE_BYTES, SPLICE_BYTES).await?;
                Ok(())
            }
            Err(error) => say(&mut stream, &Answer::Err(format!("port {port}: {error}"))).await,
        },
    }
}

/// HTTP/1.1 with keep-alive and without a clock: the gateway decides how long a stream idles.
async fn serve_envd(stream: UnixStream, envd: Router) {
    // As much as the kernel allows; less is slower and no failure.
    let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
    let envd =
        ServiceExt::<Request<Incoming>>::map_response(envd, |response: Response| response.map(Joined::new));
    let connection = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(envd));
    // The peer hung up, or spoke no HTTP.
    let _ = connection.await;
}

async fn dial(port: u16) -> io::Result<TcpStream> {
    let stream = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => stream,
        Err(_) => TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await?,
    };
    // Bytes pass as they come; the ends decide about batching.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(answer.encode().as_bytes()).await
}

/// One line and not a byte more, without its newline: what follows belongs to the port.
pub(super) async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_LINE);
    loop {
        let mut glance = [0; MAX_LINE];
        let seen = stream
            .async_io(Interest::READABLE, || {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&*stream);
                recv(fd, &mut glance[..MAX_LINE - line.len()], MsgFlags::MSG_PEEK).map_err(io::Error::from)
            })
            .await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = glance[..seen].iter().position(|byte| *byte == b'\n');
        let mut taken = vec![0; end.map_or(seen, |end| end + 1)];
        stream.read_exact(&mut taken).await?;
        line.extend_from_slice(&taken);
        if end.is_some() {
            line.pop();
            return Ok(line);
        }
        if line.len() == MAX_LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_line_is_read_and_nothing_after_it() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"CONN").await.unwrap();
        let reader = tokio::spawn(async move { (read_line(&mut ours).await.unwrap(), ours) });
        tokio::task::yield_now().await;
        theirs.write_all(b"ECT 80\nGET /").await.unwrap();
        let (line, mut ours) = reader.await.unwrap();
        assert_eq!(line, b"CONNECT 80");
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"GET /");
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[b'x'; MAX_LINE + 1]).await.unwrap();
        assert_eq!(read_line(&mut ours).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
