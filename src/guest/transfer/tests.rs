//! The rules of contract/sandbox 5.1 to 5.4, each refusal beside its allowed twin.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::guest::{
    entry::metadata,
    signature::{Operation, Signed},
    testing::{self, LIMIT},
};

/// A user that every Linux has, besides root.
const NOBODY: u32 = 65534;
const OCTETS: &[(&str, &str)] = &[("content-type", "application/octet-stream")];

struct Rig {
    app: Router,
    dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Rig {
    fn new() -> Self {
        Self { app: testing::app(None), dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).unwrap();
        let exchange = async {
            let response: Response<Body> = self.app.clone().oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { status: head.status, headers: head.headers, body }
        };
        tokio::time::timeout(LIMIT, exchange).await.unwrap()
    }

    async fn get(&self, name: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, &files(&self.path(name), "root"), headers, Body::empty()).await
    }

    async fn put(&self, name: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.send(Method::POST, &files(&self.path(name), "nobody"), headers, body).await
    }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The message of envd's error body.
    #[track_caller]
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        assert_eq!(self.body.last(), Some(&b'\n'));
        let body = self.json();
        assert_eq!(body["code"], status);
        body["message"].as_str().unwrap().to_owned()
    }
}

fn files(path: &str, user: &str) -> String {
    format!("/files?path={}&username={user}", utf8_percent_encode(path, NON_ALPHANUMERIC))
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    GzDecoder::new(body).read_to_end(&mut text).unwrap();
    text
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn a_raw_upload_makes_file_and_parents_for_the_user() {
    let rig = Rig::new();
    let answer = rig.put("new/dir/a b.txt", OCTETS, "hello").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    let path = rig.path("new/dir/a b.txt");
    assert_eq!(answer.json(), json!([{ "name": "a b.txt", "path": path, "type": "file" }]));
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid()), (0o644, NOBODY));
    for name in ["new", "new/dir"] {
        let found = fs::metadata(rig.path(name)).unwrap();
        assert_eq!((found.mode() & 0o777, found.uid()), (0o755, NOBODY));
    }
    assert_eq!(fs::metadata(rig.dir.path()).unwrap().uid(), 0, "existing parents are left alone");
}

#[tokio::test]
async fn an_existing_file_keeps_its_mode_and_changes_hands() {
    let rig = Rig::new();
    fs::write(rig.path("f"), "a long text").unwrap();
    fs::set_permissions(rig.path("f"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("f", rig.path("link")).unwrap();
    assert_eq!(rig.put("link", OCTETS, "new").await.status, StatusCode::OK);
    let found = fs::metadata(rig.path("f")).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid(), found.len()), (0o755, NOBODY, 3));
    assert!(fs::symlink_metadata(rig.path("link")).unwrap().is_symlink());
}

#[tokio::test]
async fn large_bodies_pass_both_ways_in_pieces() {
    let rig = Rig::new();
    let contents = pattern(3 * super::block::SIZE + 12_345);
    let pieces: Vec<_> =
        contents.chunks(7_000).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(rig.put("big", OCTETS, body).await.status, StatusCode::OK);
    assert!(fs::read(rig.path("big")).unwrap() == contents);
    let plain = rig.get("big", &[]).await;
    assert_eq!(plain.header("content-length"), contents.len().to_string());
    assert!(plain.body == contents);
    let packed = rig.get("big", &[("accept-encoding", "gzip, deflate")]).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(gunzip(&packed.body) == contents);
    assert_eq!(
        rig.put("again", &[OCTETS[0], ("content-encoding", "gzip")], packed.body).await.status,
        StatusCode::OK
    );
    assert!(fs::read(rig.path("again")).unwrap() == contents);
}

#[tokio::test]
async fn refused_uploads() {
    let rig = Rig::new();
    let root = |query: &str| format!("/files?username=root{query}");
    assert_eq!(rig.put("ok", OCTETS, "x").await.status, StatusCode::OK);

    let text = rig.send(Method::POST, &root(""), OCTETS, "x").await.problem(400);
    assert_eq!(text, "path query parameter is required for raw body upload");
    let text = rig.put("", OCTETS, "x").await.problem(400);
    assert_eq!(text, format!("path is a directory: {}", rig.path("")));
    let text = rig.put("ok/below", OCTETS, "x").await.problem(500);
    assert_eq!(text, format!("error ensuring directories: path is a file: {}", rig.path("ok")));
    let text = rig.send(Method::POST, &root("&path=~other/x"), OCTETS, "x").await.problem(400);
    assert!(text.starts_with("error resolving path: "), "{text}");
    let target = files(&rig.path("x"), "no-such-user");
    let text = rig.send(Method::POST, &target, OCTETS, "x").await.problem(401);
    assert!(text.starts_with("error looking up user 'no-such-user': "), "{text}");
    let text = rig.put("x", &[("content-type", "text/plain")], "x").await.problem(400);
    assert!(text.starts_with("unsupported content type: text/plain"), "{text}");
    rig.put("x", &[], "x").await.problem(400);
    let text = rig.put("x", &[OCTETS[0], ("content-encoding", "br")], "x").await.problem(400);
    assert!(text.contains("unsupported Content-Encoding: br"), "{text}");
    let text = rig.put("x", &[OCTETS[0], ("content-encoding", "gzip")], "plain").await.problem(400);
    assert!(text.starts_with("error decompressing request body: failed to create gzip reader: "), "{text}");
    assert!(fs::metadata(rig.path("x")).is_err());
    assert_eq!(
        rig.put("x", &[OCTETS[0], ("content-encoding", "identity")], "x").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_full_disk_is_507() {
    let rig = Rig::new();
    let target = |path: &str| files(path, "root");
    let headers = &[OCTETS[0], ("content-length", "5")];
    assert_eq!(rig.send(Method::POST, &target("/dev/null"), headers, "12345").await.status, StatusCode::OK);
    let text = rig.send(Method::POST, &target("/dev/full"), headers, "12345").await.problem(507);
    assert_eq!(text, "attempted to write 5 bytes: not enough disk space available");
    let text = rig.send(Method::POST, &target("/dev/full"), OCTETS, "12345").await.problem(507);
    assert_eq!(text, "not enough disk space available");
}

#[tokio::test]
async fn a_disk_that_nothing_else_keeps_within_its_size_is_507_too() {
    let guest = testing::guest(None);
    guest.disk().resize(1000);
    let app = crate::guest::serve::router(guest.clone(), crate::guest::process::Processes::without_spawner());
    // In the build's own directory: /tmp may be in memory, which does not count.
    let dir = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
    let rig = Rig { app, dir };
    let put = async |name: &str, length: usize| {
        let text = length.to_string();
        rig.put(name, &[OCTETS[0], ("content-length", &text)], vec![b'x'; length]).await
    };
    assert_eq!(put("kept", 600).await.status, StatusCode::OK);
    let text = put("new", 401).await.problem(507);
    assert_eq!(text, "attempted to write 401 bytes: not enough disk space available");
    assert!(fs::metadata(rig.path("new")).is_err(), "nothing was touched");
    // Without a length it shows while it is written.
    let headers = [OCTETS[0]];
    rig.put("long", &headers, vec![b'x'; 401]).await.problem(507);
    assert_eq!(put("fits", 400).await.status, StatusCode::OK);
    rig.put("one more", &headers, "x").await.problem(507);
    guest.disk().tell(0);
    assert_eq!(put("again", 1000).await.status, StatusCode::OK, "the host has counted anew");
    let compose = serde_json::json!({"source_paths": [rig.path("kept")], "destination": rig.path("all"), "username": "root"});
    let target = "/files/compose";
    let composed = async || {
        rig.send(Method::POST, target, &[("content-type", "application/json")], compose.to_string()).await
    };
    composed().await.problem(507);
    assert!(fs::metadata(rig.path("kept")).is_ok() && fs::metadata(rig.path("all")).is_err());
    guest.disk().tell(100);
    assert_eq!(composed().await.status, StatusCode::OK);
}

#[tokio::test]
async fn metadata_is_replaced_as_a_whole() {
    let rig = Rig::new();
    let headers = [OCTETS[0], ("X-Metadata-Author", "me"), ("x-metadata-b", "2")];
    let answer = rig.put("f", &headers, "x").await;
    assert_eq!(answer.json()[0]["metadata"], json!({ "author": "me", "b": "2" }));
    let read = || metadata::read(std::path::Path::new(&rig.path("f")));
    assert_eq!(read().len(), 2);
    rig.put("f", &[OCTETS[0], ("x-metadata-b", "3")], "x").await;
    assert_eq!(read().into_iter().collect::<Vec<_>>(), [("b".to_owned(), "3".to_owned())]);
    let text = rig.put("f", &[OCTETS[0], ("x-metadata-b", "\u{e9}")], "x").await.problem(400);
    assert!(text.starts_with("invalid metadata: "), "{text}");
    rig.put("f", OCTETS, "x").await;
    assert!(read().is_empty());
}

fn form(parts: &[(&str, &str, &str)]) -> String {
    let mut text = String::new();
    for (field, name, contents) in parts {
        let _ = write!(
            text,
            "--XyZ\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{contents}\r\n"
        );
    }
    text + "--XyZ--\r\n"
}

#[tokio::test]
async fn a_form_carries_files_with_their_directories() {
    let rig = Rig::new();
    let headers = &[("content-type", "multipart/form-data; boundary=XyZ")];
    let (first, second) = (rig.path("d/e/one"), rig.path("\u{fc}/two"));
    let body = form(&[("file", &first, "1"), ("other", "/never", "no"), ("file", &second, "22")]);
    let answer = rig.send(Method::POST, "/files?username=root", headers, body.clone()).await;
    assert_eq!(
        answer.json(),
        json!([
            { "name": "one", "path": first, "type": "file" },
            { "name": "two", "path": second, "type": "file" }
        ])
    );
    assert_eq!(
        (fs::read_to_string(&first).unwrap(), fs::read_to_string(&second).unwrap()),
        ("1".into(), "22".into())
    );

    let single = rig.put("by-query", headers, form(&[("file", "ignored", "x")])).await;
    assert_eq!(single.json()[0]["path"], rig.path("by-query"));
    let packed = &[headers[0], ("content-encoding", "gzip")];
    assert_eq!(
        rig.put("packed", packed, gzip(form(&[("file", "i", "x")]).as_bytes())).await.status,
        StatusCode::OK
    );
    assert_eq!(fs::read_to_string(rig.path("packed")).unwrap(), "x");

    let twice = form(&[("file", &first, "first"), ("file", &first, "second")]);
    let text = rig.send(Method::POST, "/files?username=root", headers, twice).await.problem(400);
    assert!(text.starts_with("you cannot upload multiple files to the same path"), "{text}");
    assert_eq!(fs::read_to_string(&first).unwrap(), "first");
    let none = rig.send(Method::POST, "/files?username=root", headers, form(&[("other", "f", "")])).await;
    assert_eq!(&none.body[..], b"[]");
    let no_boundary = &[("content-type", "multipart/form-data")];
    rig.send(Method::POST, "/files?username=root", no_boundary, body).await.problem(500);
    let cut = &form(&[("file", &first, "cut")])[..60];
    rig.send(Method::POST, "/files?username=root", headers, cut.to_owned()).await.problem(500);
}

#[tokio::test]
async fn a_large_form_is_not_gathered() {
    let rig = Rig::new();
    let contents = "x".repeat(2 << 20);
    let body = form(&[("file", "i", &contents)]);
    let pieces: Vec<_> = body
        .as_bytes()
        .chunks(60_000)
        .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
        .collect();
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let answer = rig.put("big", &[("content-type", "multipart/form-data; boundary=XyZ")], body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(fs::read_to_string(rig.path("big")).unwrap() == contents);
}

#[tokio::test]
async fn a_plain_download_is_gos_serve_content() {
    let rig = Rig::new();
    fs::write(rig.path("\u{e9} page"), "<html>  0123456789").unwrap();
    let whole = rig.get("\u{e9} page", &[]).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.header("vary"), "Accept-Encoding");
    assert_eq!(whole.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(whole.header("content-disposition"), "inline; filename*=utf-8''%C3%A9%20page");
    assert_eq!((whole.header("content-length"), whole.header("accept-ranges")), ("18", "bytes"));
    let modified = whole.header("last-modified").to_owned();

    let part = rig.get("\u{e9} page", &[("range", "bytes=8-11"), ("accept-encoding", "gzip")]).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &b"0123"[..]));
    assert_eq!(part.header("content-range"), "bytes 8-11/18");
    let parts = rig.get("\u{e9} page", &[("range", "bytes=8-9,-1")]).await;
    assert_eq!(parts.status.as_u16(), 206);
    assert!(parts.header("content-type").starts_with("multipart/byteranges; boundary="));
    assert_eq!(parts.header("content-length"), parts.body.len().to_string());
    let text = String::from_utf8_lossy(&parts.body);
    assert!(
        text.contains(
            "Content-Range: bytes 8-9/18\r\nContent-Type: text/html; charset=utf-8\r\n\r\n01\r\n--"
        ),
        "{text}"
    );
    assert!(text.contains("bytes 17-17/18"));
    let outside = rig.get("\u{e9} page", &[("range", "bytes=18-")]).await;
    assert_eq!((outside.status.as_u16(), outside.header("content-range")), (416, "bytes */18"));
    let fresh = rig.get("\u{e9} page", &[("if-modified-since", &modified)]).await;
    assert_eq!((fresh.status.as_u16(), fresh.body.len()), (304, 0));
    let unmet = rig.get("\u{e9} page", &[("if-match", "\"tag\"")]).await;
    assert_eq!(unmet.status.as_u16(), 412);
}

#[tokio::test]
async fn downloads_without_size_or_contents() {
    let rig = Rig::new();
    fs::write(rig.path("empty.json"), "").unwrap();
    let empty = rig.get("empty.json", &[]).await;
    assert_eq!((empty.header("content-length"), empty.header("content-type")), ("0", "application/json"));
    let packed = rig.get("empty.json", &[("accept-encoding", "gzip")]).await;
    assert_eq!(gunzip(&packed.body), b"");
    for headers in [&[][..], &[("accept-encoding", "gzip")]] {
        let target = files("/proc/sys/kernel/random/boot_id", "root");
        let answer = rig.send(Method::GET, &target, headers, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::OK);
        let body = if headers.is_empty() { answer.body.to_vec() } else { gunzip(&answer.body) };
        assert_eq!(body.len(), 37);
    }
}

#[tokio::test]
async fn refused_downloads() {
    let rig = Rig::new();
    fs::write(rig.path("f"), "x").unwrap();
    assert_eq!(rig.get("f", &[]).await.status, StatusCode::OK);
    let text = rig.get("none<&>", &[]).await;
    assert!(String::from_utf8_lossy(&text.body).contains("none\\u003c\\u0026\\u003e"));
    assert_eq!(text.problem(404), format!("path '{}' does not exist", rig.path("none<&>")));
    assert_eq!(rig.get("", &[]).await.problem(400), format!("path '{}' is a directory", rig.path("")));
    rig.get("f/x", &[]).await.problem(500);
    nix::unistd::mkfifo(rig.path("pipe").as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    rig.get("pipe", &[]).await.problem(400);
    let text = rig.get("f", &[("accept-encoding", "identity;q=0, br")]).await.problem(406);
    assert_eq!(text, "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]");
    rig.get("f", &[("accept-encoding", "identity;q=0, gzip"), ("range", "bytes=0-")]).await.problem(406);
    rig.send(Method::GET, &files("/f", "no-such-user"), &[], Body::empty()).await.problem(401);
    rig.send(Method::GET, "/files?path=~other&username=root", &[], Body::empty()).await.problem(400);
    let bad = rig.send(Method::GET, "/files?path=/f&signature_expiration=soon", &[], Body::empty()).await;
    assert_eq!((bad.status.as_u16(), bad.header("content-type")), (400, "text/plain; charset=utf-8"));
    for method in [Method::HEAD, Method::DELETE] {
        let answer = rig.send(method, &files(&rig.path("f"), "root"), &[], Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn a_token_or_a_signature_opens_files() {
    let mut rig = Rig::new();
    rig.app = testing::app(Some("tok"));
    fs::write(rig.path("f"), "x").unwrap();
    let path = rig.path("f");
    let signed = |operation, expiration: Option<i64>| {
        let signature = Signed { path: &path, operation, username: "root", expiration }.sign("tok");
        let mut target = format!(
            "{}&signature={}",
            files(&path, "root"),
            utf8_percent_encode(&signature, NON_ALPHANUMERIC)
        );
        if let Some(expiration) = expiration {
            let _ = write!(target, "&signature_expiration={expiration}");
        }
        target
    };
    let get = async |target: &str, token: Option<&str>| {
        let header = token.map(|token| ("x-access-token", token));
        rig.send(Method::GET, target, header.as_slice(), Body::empty()).await
    };
    let plain = files(&path, "root");
    assert_eq!(get(&plain, Some("tok")).await.status, StatusCode::OK);
    let text = get(&signed(Operation::Read, None), Some("bad")).await.problem(401);
    assert_eq!(text, "access token present in header but does not match");
    assert_eq!(get(&plain, None).await.problem(401), "missing signature query parameter");
    assert_eq!(get(&signed(Operation::Read, None), None).await.status, StatusCode::OK);
    assert_eq!(get(&signed(Operation::Read, Some(4_000_000_000)), None).await.status, StatusCode::OK);
    assert_eq!(
        get(&signed(Operation::Read, Some(1_000_000_000)), None).await.problem(401),
        "signature is already expired"
    );
    assert_eq!(get(&signed(Operation::Write, None), None).await.problem(401), "invalid signature");
    let written = rig.send(Method::POST, &signed(Operation::Write, None), OCTETS, "y").await;
    assert_eq!(written.status, StatusCode::OK);
    rig.send(Method::POST, &signed(Operation::Read, None), OCTETS, "y").await.problem(401);
}

#[tokio::test]
async fn composing_puts_sources_together_and_takes_them() {
    let rig = Rig::new();
    let compose = async |message: Value| {
        let headers = &[("content-type", "application/json")];
        rig.send(Method::POST, "/files/compose", headers, message.to_string()).await
    };
    fs::write(rig.path("a"), "one ").unwrap();
    fs::write(rig.path("b"), "two").unwrap();
    let (a, b, out) = (rig.path("a"), rig.path("b"), rig.path("new/out"));
    for message in [
        json!({ "source_paths": [], "destination": out }),
        json!({ "source_paths": [a], "destination": "" }),
        json!({ "source_paths": [a, b], "destination": a }),
        json!({ "source_paths": [rig.path("")], "destination": out }),
        json!("text"),
    ] {
        compose(message).await.problem(400);
    }
    let text = compose(json!({ "source_paths": [a, rig.path("c")], "destination": out })).await.problem(404);
    assert_eq!(text, format!("source file not found: {}", rig.path("c")));
    compose(json!({ "source_paths": [a], "destination": out, "username": "no-such-user" }))
        .await
        .problem(401);

    let good = json!({ "source_paths": [a, b], "destination": out, "username": "nobody" });
    let answer = compose(good).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), json!({ "name": "out", "path": out, "type": "file" }));
    assert_eq!(fs::read_to_string(&out).unwrap(), "one two");
    assert_eq!(fs::metadata(&out).unwrap().uid(), NOBODY);
    assert!(fs::metadata(&a).is_err() && fs::metadata(&b).is_err());
    assert_eq!(fs::read_dir(rig.path("new")).unwrap().count(), 1);
}
