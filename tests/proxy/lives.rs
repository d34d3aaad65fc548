//! Connections in time: kept, dropped, counted, cut with their sandbox, drained with their server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use firkin::id::SandboxId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{Answer, Rig, host, read_head, read_until, within};

/// Counts the connections that a port gets; each answers so many requests and is then closed.
fn count_connections(rig: &Rig, port: u16, requests: usize) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    rig.listen(port, move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            for _ in 0..requests {
                read_head(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = stream.flush().await;
            }
        }
    });
    count
}

async fn ask(rig: &Rig, id: SandboxId, port: u16) {
    assert_eq!(rig.get(&host(port, id), "/", &[]).await.status, 200);
    // The connection is on the shelf as soon as the answer has left; the client may see it before.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test]
async fn only_guest_services_are_pooled_and_only_within_one_run() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let user = count_connections(&rig, 8000, usize::MAX);
    let interpreter = count_connections(&rig, 49_999, usize::MAX);
    for _ in 0..3 {
        ask(&rig, id, 8000).await;
        ask(&rig, id, 49_999).await;
    }
    assert_eq!(user.load(Ordering::SeqCst), 3);
    assert_eq!(interpreter.load(Ordering::SeqCst), 1);
    // A new run whose predecessor's token did not even fire yet.
    rig.change(id, |target| target.generation = 2);
    ask(&rig, id, 49_999).await;
    assert_eq!(interpreter.load(Ordering::SeqCst), 2);
    let other = rig.sandbox().await;
    ask(&rig, other, 49_999).await;
    assert_eq!(interpreter.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_stale_pooled_connection_costs_nothing() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let count = count_connections(&rig, 49_999, 1);
    for _ in 0..5 {
        ask(&rig, id, 49_999).await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_request_is_never_sent_twice() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    rig.listen(49_999, move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            read_head(&mut stream).await;
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = stream.flush().await;
                read_head(&mut stream).await;
                counted.fetch_add(1, Ordering::SeqCst);
            }
            // Closed without an answer.
        }
    });
    ask(&rig, id, 49_999).await;
    let answer = rig.get(&host(49_999, id), "/", &[]).await;
    assert_eq!((answer.status, requests.load(Ordering::SeqCst)), (502, 2), "{answer:?}");
}

#[tokio::test]
async fn a_kill_cuts_streams_and_is_told_as_not_found() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        let head = read_head(&mut stream).await;
        if head.contains("/stream") {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            stream.write_all(head).await.unwrap();
            stream.flush().await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let mut streaming = rig.connect().await;
    let request = format!("GET /stream HTTP/1.1\r\nHost: {}\r\n\r\n", host(8000, id));
    streaming.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut streaming, "first").await;
    let mut waiting = rig.connect().await;
    let request = format!("GET /wait HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host(8000, id));
    waiting.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;

    let begin = Instant::now();
    rig.kill(id);
    let mut rest = Vec::new();
    let _ = within(streaming.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"), "a cut stream does not look complete");
    let mut answer = String::new();
    within(waiting.read_to_string(&mut answer)).await.unwrap();
    let answer = Answer::read(&answer);
    assert_eq!((answer.status, answer.json()["message"].as_str()), (502, Some("The sandbox was not found")));
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_machine_that_dies_before_the_registry_knows_is_not_found_either() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    });
    let name = host(8000, id);
    let asking = rig.get(&name, "/", &[]);
    let dying = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.engine.exit(id);
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.kill(id);
    };
    let (answer, ()) = tokio::join!(asking, dying);
    assert_eq!((answer.status, answer.json()["message"].as_str()), (502, Some("The sandbox was not found")));
}

#[tokio::test]
async fn a_slow_head_is_cut_and_an_idle_connection_is_kept() {
    let rig = Rig::with(|settings| settings.head_timeout = Duration::from_millis(300)).await;
    let mut idle = rig.connect().await;
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut slow = rig.connect().await;
    let trickle = tokio::spawn(async move {
        let begin = Instant::now();
        for byte in request.as_bytes().chunks(1) {
            if slow.write_all(byte).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut answer = String::new();
        let _ = slow.read_to_string(&mut answer).await;
        (answer, begin.elapsed())
    });
    // Idle before the first request, and between two: longer than a head may take.
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        idle.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut idle, "the routes").await;
    }
    let (answer, took) = within(trickle).await.unwrap();
    assert!(!answer.contains("200 OK"), "{answer}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_slow_http2_preface_is_cut_too() {
    let rig = Rig::with(|settings| settings.head_timeout = Duration::from_millis(300)).await;
    let mut socket = rig.connect().await;
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
    assert!(matches!(within(socket.read(&mut [0; 64])).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn an_answer_may_take_longer_than_any_head() {
    let rig = Rig::with(|settings| {
        settings.head_timeout = Duration::from_millis(100);
        settings.idle_timeout = Duration::from_millis(200);
    })
    .await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        stream.write_all(head).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        stream.flush().await.unwrap();
    });
    let mut socket = rig.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(8000, id));
    socket.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut socket, "0\r\n\r\n").await;
    // And then nothing: idle for too long.
    let begin = Instant::now();
    assert!(matches!(within(socket.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_thousand_idle_connections_are_no_burden() {
    // Both ends of every connection are in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).unwrap();
    let rig = Rig::start().await;
    let mut held = Vec::new();
    for _ in 0..1_000 {
        held.push(rig.connect().await);
    }
    let begin = Instant::now();
    assert_eq!(rig.get("localhost", "/health", &[]).await.status, 200);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_given_back() {
    let rig = Rig::with(|settings| settings.max_connections = 2).await;
    let (first, second) = (rig.connect().await, rig.connect().await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let third = rig.get("localhost", "/health", &[]);
    let mut third = std::pin::pin!(third);
    assert!(tokio::time::timeout(Duration::from_millis(300), third.as_mut()).await.is_err());
    drop(first);
    assert_eq!(within(third).await.status, 200);
    drop(second);
}

#[tokio::test]
async fn shutdown_lets_begun_requests_end_and_no_others() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    rig.listen(8000, move |mut stream| {
        let gone = gone.lock().unwrap().take();
        async move {
            read_head(&mut stream).await;
            let _ = gone.unwrap().await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
            let _ = stream.flush().await;
        }
    });
    let mut idle = rig.connect().await;
    let mut busy = rig.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(8000, id));
    busy.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.shutdown.cancel();
    assert!(matches!(within(idle.read(&mut [0; 8])).await, Ok(0) | Err(_)));
    assert!(tokio::net::TcpStream::connect(rig.address).await.is_err(), "nobody listens any more");
    go.send(()).unwrap();
    read_until(&mut busy, "done").await;
    within(rig.serving).await.unwrap();
}

/// The types of the HTTP/2 frames that lie in these bytes.
fn frame_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, rest @ ..] = bytes {
        types.push(*kind);
        // What is left of the head, then the payload.
        bytes = &rest[5 + usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap()..];
    }
    types
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_reads_nothing_for_minutes_is_neither_asked_nor_dropped() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let rig = Rig::start().await;
    let mut socket = rig.connect().await;
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // GET http://x/health in literals of HPACK, on stream 1.
    let mut request = vec![0x82, 0x86, 0x04, 7];
    request.extend_from_slice(b"/health\x01\x01x");
    let length = u8::try_from(request.len()).unwrap();
    socket.write_all(&[0, 0, length, 1, 5, 0, 0, 0, 1]).await.unwrap();
    socket.write_all(&request).await.unwrap();
    tokio::time::sleep(Duration::from_mins(10)).await;
    let mut bytes = vec![0; 4096];
    let length = socket.read(&mut bytes).await.unwrap();
    let types = frame_types(&bytes[..length]);
    assert!(types.contains(&SETTINGS) && types.contains(&1), "{types:?}");
    assert!(!types.contains(&PING) && !types.contains(&GOAWAY), "{types:?}");
    // Still a conversation: the client's ping is answered.
    socket.write_all(&[0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).await.unwrap();
    let length = socket.read(&mut bytes).await.unwrap();
    assert_eq!(frame_types(&bytes[..length]), [PING]);
}
