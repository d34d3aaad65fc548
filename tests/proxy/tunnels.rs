//! Upgrades: WebSocket and anything else, with half-close, until either end or the sandbox goes.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::{accept_async, client_async, tungstenite::Message};

use super::rig::{Rig, host, read_head, read_until, within};

fn upgrade(name: &str) -> String {
    format!(
        "GET /raw HTTP/1.1\r\nHost: {name}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: bytes/1\r\n\r\n"
    )
}

#[tokio::test]
async fn a_websocket_carries_both_ways_until_it_is_closed() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |stream| async move {
        let mut socket = accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let url = format!("ws://{}/chat", host(8000, id));
    let (mut socket, answer) = within(client_async(url, rig.connect().await)).await.unwrap();
    assert_eq!(answer.status(), 101);
    for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(within(socket.next()).await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    assert!(
        within(socket.next()).await.is_some_and(|message| message.is_ok_and(|message| message.is_close()))
    );
    assert!(within(socket.next()).await.is_none_or(|message| message.is_err()));
}

#[tokio::test]
async fn bytes_behind_the_heads_are_not_lost_and_each_side_closes_in_its_time() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: bytes/1"), "{head}");
        let early =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes/1\r\n\r\nearly";
        stream.write_all(early).await.unwrap();
        stream.flush().await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        // The other direction has ended; ours has not.
        stream.write_all(format!("got {all}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut socket = rig.connect().await;
    socket.write_all(format!("{}pipelined", upgrade(&host(8000, id))).as_bytes()).await.unwrap();
    let head = read_until(&mut socket, "early").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: bytes/1"), "{head}");
    socket.write_all(b" and later").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = String::new();
    within(socket.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "got pipelined and later");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        stream.flush().await.unwrap();
    });
    let mut socket = rig.connect().await;
    socket.write_all(upgrade(&host(8000, id)).as_bytes()).await.unwrap();
    let answer = read_until(&mut socket, "\r\n\r\nno").await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
}

#[tokio::test]
async fn a_protocol_that_nobody_asked_for_is_502() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
            .await;
        let _ = stream.flush().await;
        std::future::pending::<()>().await;
    });
    assert_eq!(rig.get(&host(8000, id), "/", &[]).await.status, 502);
}

#[tokio::test]
async fn tunnels_end_with_the_sandbox_and_with_the_server() {
    let rig = Rig::with(|settings| settings.drain = std::time::Duration::from_millis(300)).await;
    rig.tell(8000);
    let (one, other) = (rig.sandbox().await, rig.sandbox().await);
    let mut sockets = Vec::new();
    for id in [one, other] {
        let mut socket = rig.connect().await;
        socket.write_all(upgrade(&host(8000, id)).as_bytes()).await.unwrap();
        read_until(&mut socket, "\r\n\r\n").await;
        socket.write_all(b"ping").await.unwrap();
        read_until(&mut socket, "ping").await;
        sockets.push(socket);
    }
    rig.kill(one);
    assert!(matches!(within(sockets[0].read(&mut [0; 8])).await, Ok(0) | Err(_)));
    sockets[1].write_all(b"pong").await.unwrap();
    read_until(&mut sockets[1], "pong").await;
    rig.shutdown.cancel();
    assert!(matches!(within(sockets[1].read(&mut [0; 8])).await, Ok(0) | Err(_)));
    within(rig.serving).await.unwrap();
}
