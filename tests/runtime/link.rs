//! The gateway's half of the handshake against guests that do not keep to it.

use std::time::{Duration, Instant};

use firkin::{
    runtime::link::{LinkError, connect_control, connect_port, read_line},
    wire::link::{HANDSHAKE_TIMEOUT, MAX_LINE, Nonce},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

/// A guest that answers every line with this.
fn guest(answer: &'static [u8]) -> DuplexStream {
    let (near, mut far) = duplex(4096);
    tokio::spawn(async move {
        let _ = read_line(&mut far).await;
        let _ = far.write_all(answer).await;
        let mut rest = Vec::new();
        let _ = far.read_to_end(&mut rest).await;
    });
    near
}

#[tokio::test]
async fn answers_are_understood_and_what_follows_is_left_alone() {
    let mut stream = connect_port(guest(b"OK\nSSH-2.0"), 22).await.unwrap();
    let mut banner = [0; 7];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0");
    let closed = connect_port(guest(b"ERR closed\n"), 22).await;
    assert!(matches!(closed, Err(LinkError::PortClosed { port: 22 })));
    let (_, generation) = connect_control(guest(b"OK 1\n"), Nonce([1; 16])).await.unwrap();
    assert_eq!(generation, 1);
}

#[tokio::test]
async fn guests_that_break_the_handshake_are_refused() {
    for answer in [b"HTTP/1.1 200 OK\n".as_slice(), b"OK 1\n", &[b'x'; MAX_LINE + 1], b"\xff\n"] {
        let refused = connect_port(guest(answer), 22).await;
        assert!(matches!(refused, Err(LinkError::Handshake(_))), "{answer:?}");
    }
    for answer in [b"OK\n".as_slice(), b"OK 2\n", b"OK 0\n", b"OK 01\n"] {
        let refused = connect_control(guest(answer), Nonce([1; 16])).await;
        assert!(matches!(refused, Err(LinkError::Handshake(_))), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_is_given_up() {
    let (near, _far) = duplex(4096);
    let began = (tokio::time::Instant::now(), Instant::now());
    let refused = connect_port(near, 22).await;
    assert!(matches!(refused, Err(LinkError::Unreachable(_))));
    assert!(began.0.elapsed() >= HANDSHAKE_TIMEOUT);
    assert!(began.1.elapsed() < Duration::from_secs(5), "in paused time");
}
