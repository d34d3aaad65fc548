//! Header fields and framings that must not cross, or must not be understood in two ways.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{Answer, DOMAIN, Rig, host, read_head, within};

#[tokio::test]
async fn what_speaks_of_one_connection_stays_on_it() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let answer = rig
        .get(
            &host(8000, id),
            "/",
            &[
                "Connection: X-Private",
                "X-Private: 1",
                "Keep-Alive: timeout=5",
                "Proxy-Connection: keep-alive",
                "Proxy-Authorization: Basic x",
                "TE: trailers, gzip",
                "Forwarded: for=1.2.3.4",
                "X-Forwarded-For: 1.2.3.4",
                "X-Forwarded-Host: evil",
                "X-Forwarded-Anything: evil",
                "X-Public: 1",
                "X-Access-Token: guest business",
            ],
        )
        .await;
    assert_eq!(answer.told("x-public"), ["1"]);
    assert_eq!(answer.told("x-access-token"), ["guest business"]);
    assert_eq!(answer.told("te"), ["trailers"]);
    assert_eq!(answer.told("connection"), ["close"]);
    for field in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-anything",
    ] {
        assert!(answer.told(field).is_empty(), "{field}");
    }
}

#[tokio::test]
async fn the_host_is_untouched_or_masked() {
    let rig = Rig::start().await;
    rig.tell(8000);
    rig.tell(49_983);
    let id = rig.sandbox().await;
    let name = host(8000, id);
    assert_eq!(rig.get(&name, "/", &[]).await.told("host"), std::slice::from_ref(&name));
    rig.change(id, |target| target.mask_request_host = Some("localhost:${PORT}".into()));
    let answer = rig.get(&name, "/", &["X-Forwarded-Host: evil"]).await;
    assert_eq!(answer.told("host"), ["localhost:8000"]);
    assert_eq!(answer.told("x-forwarded-host"), [name]);
    let name = host(49_983, id);
    assert_eq!(rig.get(&name, "/", &[]).await.told("host"), [name]);
    rig.change(id, |target| target.mask_request_host = Some("bad\nhost".into()));
    assert_eq!(rig.get(&host(8000, id), "/", &[]).await.status, 400);
}

#[tokio::test]
async fn h2c_is_not_passed_on_and_guest_services_change_no_protocol() {
    let rig = Rig::start().await;
    for port in [8000, 49_983, 49_999] {
        rig.tell(port);
    }
    let id = rig.sandbox().await;
    for (port, protocol) in
        [(8000, "h2c"), (8000, "websocket, h2c"), (49_983, "websocket"), (49_999, "websocket")]
    {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
            host(port, id)
        );
        let mut socket = rig.connect().await;
        socket.write_all(request.as_bytes()).await.unwrap();
        let text = super::rig::read_until(&mut socket, "}").await;
        let answer = Answer::read(&text);
        assert_eq!(answer.status, 200, "{port} {protocol}");
        assert!(answer.told("upgrade").is_empty() && answer.told("http2-settings").is_empty());
    }
}

/// Sends bytes to a server in a machine that tells everything it got in its first connections.
async fn seen_by_guest(rig: &Rig, request: &str) -> (String, Vec<String>) {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    rig.listen(8000, move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut read = read_head(&mut stream).await;
            let mut buffer = [0; 4096];
            let wait = std::time::Duration::from_millis(200);
            while let Ok(Ok(count @ 1..)) = tokio::time::timeout(wait, stream.read(&mut buffer)).await {
                read.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            let _ = tell.send(read);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            let _ = stream.flush().await;
        }
    });
    let mut socket = rig.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), socket.read_to_end(&mut answer)).await;
    let mut seen = Vec::new();
    while let Ok(text) = told.try_recv() {
        seen.push(text);
    }
    (String::from_utf8_lossy(&answer).into_owned(), seen)
}

#[tokio::test]
async fn a_body_is_framed_in_one_way_only() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let name = host(8000, id);
    let honest = format!("POST / HTTP/1.1\r\nHost: {name}\r\nContent-Length: 5\r\n\r\nhello");
    let (answer, seen) = seen_by_guest(&rig, &honest).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(seen.len() == 1 && seen[0].ends_with("\r\n\r\nhello"), "{seen:?}");
    assert!(seen[0].contains("\r\nContent-Length: 5\r\n"), "names are in their usual case: {seen:?}");

    // Chunks win over a length; the connection is not trusted with a second request.
    let inner = format!("GET /smuggled HTTP/1.1\r\nHost: {name}\r\n\r\n");
    for order in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let request = format!("POST / HTTP/1.1\r\nHost: {name}\r\n{order}\r\n\r\n0\r\n\r\n{inner}");
        let (answer, seen) = seen_by_guest(&rig, &request).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(seen.len() <= 1, "{seen:?}");
        for text in seen {
            let text = text.to_ascii_lowercase();
            assert!(!text.contains("smuggled"), "{text}");
            assert!(!(text.contains("content-length") && text.contains("transfer-encoding")), "{text}");
        }
    }

    for fields in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 6",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "X-Folded: a\r\n b",
        "X Space: a",
        "X-Space : a",
        "X-Null: a\0b",
        ": empty",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: {name}\r\n{fields}\r\n\r\nhello!");
        let (answer, seen) = seen_by_guest(&rig, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields:?}: {answer}");
        assert!(seen.is_empty(), "{fields:?}: {seen:?}");
    }
}

#[tokio::test]
async fn a_guest_cannot_frame_an_answer_in_two_ways() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    rig.listen(8000, |mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: x-inner\r\n\
                  X-Inner: 1\r\nX-Outer: 1\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsecond",
            )
            .await;
        let _ = stream.flush().await;
    });
    let text =
        rig.raw(format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host(8000, id))).await;
    let answer = Answer::read(&text.to_ascii_lowercase());
    assert!(!answer.head.contains("content-length") && !answer.head.contains("x-inner"), "{text}");
    assert!(answer.head.contains("x-outer") && answer.body.contains("hello"), "{text}");
    assert!(!text.contains("second"), "{text}");
}

#[tokio::test]
async fn line_ends_do_not_come_through_http2() {
    let rig = Rig::start().await;
    let id = rig.sandbox().await;
    let name = host(8000, id);
    for (value, passes) in [("harmless", true), ("a\r\nx-smuggled: 1", false), ("a\nx-smuggled: 1", false)] {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        rig.listen(8000, move |mut stream| {
            let tell = tell.clone();
            async move {
                let _ = tell.send(read_head(&mut stream).await);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = stream.flush().await;
            }
        });
        let mut socket = rig.connect().await;
        socket.write_all(&http2_request(&name, value)).await.unwrap();
        // A stream that is refused is reset; one that passes has its head read by the guest.
        let wait = std::time::Duration::from_millis(if passes { 5_000 } else { 500 });
        let seen = tokio::time::timeout(wait, told.recv()).await;
        assert_eq!(matches!(&seen, Ok(Some(head)) if head.contains("X-Test: harmless")), passes, "{seen:?}");
        assert!(passes || seen.is_err(), "{seen:?}");
    }
}

/// Preface, empty settings and one request whose `x-test` has any bytes, HPACK without Huffman.
fn http2_request(authority: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84];
    for (name, value) in [(":authority", authority), ("x-test", value)] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 0x5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes
}

#[tokio::test]
async fn a_second_host_an_authority_and_connect_are_refused() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let name = host(8000, id);
    let absolute = format!("GET http://{name}/x HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let answer = Answer::read(&rig.raw(absolute).await);
    assert_eq!((answer.status, answer.json()["uri"].as_str()), (200, Some("/x")));
    for request in [
        format!("GET / HTTP/1.1\r\nHost: {name}\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        format!("GET http://localhost/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"),
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: x:y@{name}\r\nConnection: close\r\n\r\n"),
    ] {
        assert_eq!(Answer::read(&rig.raw(&request).await).status, 400, "{request}");
    }
    let connect = format!("CONNECT {DOMAIN}:80 HTTP/1.1\r\nHost: {DOMAIN}:80\r\nConnection: close\r\n\r\n");
    assert_eq!(Answer::read(&rig.raw(connect).await).status, 405);
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let rig = Rig::start().await;
    rig.tell(8000);
    let id = rig.sandbox().await;
    let name = host(8000, id);
    let fits = format!("X-Long: {}", "a".repeat(16_000));
    assert_eq!(rig.get(&name, "/", &[&fits]).await.status, 200);
    let long = format!("X-Long: {}", "a".repeat(80_000));
    assert_eq!(rig.get(&name, "/", &[&long]).await.status, 431);
    let mut socket = rig.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nX-Long: {}\r\n\r\n", "a".repeat(300_000));
    // The server closes before it has read everything.
    let _ = socket.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(socket.read_to_end(&mut answer)).await;
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(rig.get(&name, "/", &many).await.status, 431);
}
