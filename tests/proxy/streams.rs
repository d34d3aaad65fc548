//! Bodies stream both ways as they come, by HTTP/1.1 and h2c, in bounded memory.

use bytes::Bytes;
use firkin::runtime::fake::Service;
use futures_util::stream;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

use super::rig::{Rig, host, read_head, read_until, within};

type Outgoing = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A body that sends what a channel brings.
fn channel_body() -> (mpsc::Sender<Bytes>, Outgoing) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn a_response_comes_chunk_by_chunk() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    for port in [8000, 49_999] {
        let (go, gone) = oneshot::channel::<()>();
        let gone = std::sync::Mutex::new(Some(gone));
        rig.listen(port, move |mut stream| {
            let gone = gone.lock().unwrap().take();
            async move {
                read_head(&mut stream).await;
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
                stream.write_all(head).await.unwrap();
                stream.flush().await.unwrap();
                gone.unwrap().await.unwrap();
                stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        let mut socket = rig.connect().await;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(port, id));
        socket.write_all(request.as_bytes()).await.unwrap();
        let first = read_until(&mut socket, "first").await;
        assert!(!first.contains("second"));
        go.send(()).unwrap();
        read_until(&mut socket, "0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn request_and_response_stream_at_the_same_time() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let mut socket = rig.connect().await;
    let request =
        format!("POST /echo HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", host(8000, id));
    socket.write_all(request.as_bytes()).await.unwrap();
    for word in ["one", "two", "six"] {
        socket.write_all(format!("3\r\n{word}\r\n").as_bytes()).await.unwrap();
        read_until(&mut socket, word).await;
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut socket, "0\r\n\r\n").await;
}

#[tokio::test]
async fn h2c_streams_both_ways_on_the_same_port() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let io = TokioIo::new(rig.connect().await);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (sender, body) = channel_body();
    let request = Request::builder()
        .method("POST")
        .uri(format!("http://{}/echo", host(8000, id)))
        .version(Version::HTTP_2)
        .body(body)
        .unwrap();
    let answering = tokio::spawn(client.send_request(request));
    sender.send(Bytes::from_static(b"ping")).await.unwrap();
    let mut answer = within(answering).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    for _ in 0..3 {
        let frame = within(answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "ping");
        sender.send(Bytes::from_static(b"ping")).await.unwrap();
    }
    drop(sender);
    let frame = within(answer.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "ping");
    assert!(within(answer.frame()).await.is_none_or(|frame| frame.is_ok()));

    // Many streams share the connection, and HTTP/2's split cookies arrive as one.
    let asked = (0..100).map(|_| {
        let request = Request::builder()
            .uri(format!("http://{}/", host(8000, id)))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Empty::new().boxed_unsync())
            .unwrap();
        client.send_request(request)
    });
    for answer in within(futures_util::future::join_all(asked)).await {
        let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
        let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let headers = told["headers"].as_array().unwrap();
        assert!(headers.iter().any(|pair| pair[0] == "cookie" && pair[1] == "a=1; b=2"), "{told}");
        assert!(headers.iter().any(|pair| pair[0] == "host" && pair[1] == host(8000, id).as_str()), "{told}");
    }
}

#[tokio::test]
async fn a_large_body_needs_little_memory() {
    const LENGTH: usize = 100 << 20;
    let rig = Rig::start().await;
    rig.engine.listen(8000, Service::Http);
    let id = rig.sandbox().await;
    let socket = rig.connect().await;
    let (mut reader, mut writer) = socket.into_split();
    let request =
        format!("POST /echo HTTP/1.1\r\nHost: {}\r\nContent-Length: {LENGTH}\r\n\r\n", host(8000, id));
    let before = resident();
    let writing = tokio::spawn(async move {
        writer.write_all(request.as_bytes()).await.unwrap();
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..LENGTH / block.len() {
            writer.write_all(&block).await.unwrap();
        }
        // Kept open: a client that closes its direction is taken for one that has left.
        writer
    });
    // A reader that does not read at first: what is in between must not pile up.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!writing.is_finished(), "the sender is held back");
    let mut most = resident();
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    tokio::time::timeout(std::time::Duration::from_mins(2), async {
        while received < LENGTH {
            let count = reader.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended after {received} bytes");
            received += count;
            most = most.max(resident());
        }
    })
    .await
    .unwrap();
    assert!(most.saturating_sub(before) < 48 << 20, "grew by {} MiB", (most - before) >> 20);
}

/// Resident bytes of this process.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_guest_at_once() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    for answered in [false, true] {
        let (tell, mut told) = mpsc::unbounded_channel();
        for port in [8000, 49_999] {
            let tell = tell.clone();
            rig.listen(port, move |mut stream| {
                let tell = tell.clone();
                async move {
                    read_head(&mut stream).await;
                    if answered {
                        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
                        stream.write_all(head).await.unwrap();
                        stream.flush().await.unwrap();
                    }
                    let _ = tell.send("asked");
                    let mut byte = [0];
                    let _ = stream.read(&mut byte).await;
                    let _ = tell.send("gone");
                }
            });
            let mut socket = rig.connect().await;
            let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(port, id));
            socket.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(within(told.recv()).await, Some("asked"));
            if answered {
                read_until(&mut socket, "first").await;
            }
            drop(socket);
            assert_eq!(within(told.recv()).await, Some("gone"), "port {port}, answered {answered}");
        }
    }
}
