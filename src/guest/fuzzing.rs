//! Properties of what the guest reads: RPC requests and messages, the link's and the control
//! stream's bytes, signed queries and paths.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use std::{collections::BTreeMap, path::Path, sync::LazyLock};

use axum::{
    Router,
    body::Body,
    extract::Query,
    http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header},
};
use buffa::Message;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tower::ServiceExt as _;

use super::{
    accept, control as control_stream, paths,
    process::Processes,
    serve,
    signature::{Operation, SignatureError, Signed},
    state::Guest,
    transfer::FilesQuery,
    users::User,
};
use crate::wire::{
    control::{FromGuest, Init, ToGuest},
    rpc::{filesystem, process},
};

/// Text that an answer may have besides what it quotes of the request.
const ANSWER: usize = 64 << 10;

fn guest() -> Guest {
    let guest = Guest::default();
    guest.introduce(Init {
        sandbox_id: "i0123456789abcdefghij".parse().unwrap(),
        template_id: "base".to_owned(),
        env_vars: BTreeMap::new(),
        access_token: None,
        default_user: "root".to_owned(),
        default_workdir: None,
        now_unix_ns: 0,
        disk_bytes: 0,
        entropy: String::new(),
        freshness: None,
    });
    guest
}

/// `Method` and header fields a line each, an empty line, the body: all of envd's layers, the RPC
/// library and the process service read it. No process can be started, so it has no effect.
pub(crate) async fn envelopes(data: &[u8]) {
    static ENVD: LazyLock<Router> = LazyLock::new(|| serve::router(guest(), Processes::without_spawner()));
    let Some(request) = rpc_request(data) else { return };
    let streams = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/connect+"));
    let response = ENVD.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = collected(response).await;
    assert!(!status.is_informational() && !status.is_redirection());
    assert_ne!(status, StatusCode::BAD_GATEWAY);
    // Errors quote what they refuse, JSON escapes up to six times as long, gzip's bodies too.
    assert!(body.len() <= ANSWER + 2048 * data.len(), "an answer of {} bytes", body.len());
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let plain = !headers.contains_key(header::CONTENT_ENCODING);
    if streams && status == StatusCode::OK && kind.starts_with(b"application/connect+") {
        envelope_sequence(&body);
    } else if status.is_client_error() && kind == b"application/json" && plain {
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(error.get("code").is_some(), "{error}");
    }
}

/// Whole envelopes, the last of which and only the last is the end.
fn envelope_sequence(mut body: &[u8]) {
    let mut ended = false;
    while !body.is_empty() {
        assert!(!ended, "nothing follows the end");
        let (head, rest) = body.split_first_chunk::<5>().unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (message, rest) = rest.split_at(length);
        ended = head[0] & 2 != 0;
        if ended && head[0] & 1 == 0 {
            serde_json::from_slice::<serde_json::Value>(message).unwrap();
        }
        body = rest;
    }
    assert!(ended, "a stream has an end");
}

fn rpc_request(data: &[u8]) -> Option<Request<Body>> {
    let end = data.windows(2).position(|pair| pair == b"\n\n")?;
    let (head, body) = (std::str::from_utf8(&data[..end]).ok()?, &data[end + 2..]);
    let mut lines = head.split('\n');
    let name: String = lines.next()?.chars().filter(char::is_ascii_alphanumeric).collect();
    // In two pieces: an envelope may be cut anywhere.
    let (first, second) = body.split_at(body.len() / 2);
    let pieces = [first, second].map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
    let mut request = Request::new(Body::from_stream(stream::iter(pieces)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("/process.Process/{name}").parse().ok()?;
    for line in lines.take(32) {
        let (name, value) = line.split_once(':')?;
        let name: HeaderName = name.parse().ok()?;
        request.headers_mut().append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    Some(request)
}

async fn collected(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// The first byte chooses the type, the rest is its JSON or its protobuf.
pub(crate) fn message(data: &[u8]) {
    const TYPES: [fn(&[u8]); 17] = [
        both::<process::StartRequest>,
        both::<process::ConnectRequest>,
        both::<process::UpdateRequest>,
        both::<process::StreamInputRequest>,
        both::<process::SendInputRequest>,
        both::<process::SendSignalRequest>,
        both::<process::CloseStdinRequest>,
        both::<process::ListRequest>,
        both::<filesystem::MoveRequest>,
        both::<filesystem::MakeDirRequest>,
        both::<filesystem::RemoveRequest>,
        both::<filesystem::StatRequest>,
        both::<filesystem::ListDirRequest>,
        both::<filesystem::WatchDirRequest>,
        both::<filesystem::CreateWatcherRequest>,
        both::<filesystem::GetWatcherEventsRequest>,
        both::<filesystem::RemoveWatcherRequest>,
    ];
    let Some((kind, rest)) = data.split_first() else { return };
    // Letters from `a`, so that a corpus can be written by hand.
    TYPES[usize::from(kind.wrapping_sub(b'a')) % TYPES.len()](rest);
}

fn both<M: Message + Serialize + DeserializeOwned + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<M>(data) {
        round::<M>(&message);
    }
    if let Ok(message) = M::decode_from_slice(data) {
        let bytes = message.encode_to_vec();
        assert_eq!(M::decode_from_slice(&bytes).unwrap(), message);
        round::<M>(&message);
    }
}

/// A message survives either form and says the same in both. Fields that it does not know have
/// no JSON, so JSON is what is compared.
fn round<M: Message + Serialize + DeserializeOwned + std::fmt::Debug>(message: &M) {
    let json = serde_json::to_value(message).unwrap();
    let again: M = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), json);
    let decoded = M::decode_from_slice(&again.encode_to_vec()).unwrap();
    assert_eq!(decoded, again);
}

/// The line as the guest reads it from a socket; what follows it is still there.
pub(crate) async fn line(data: &[u8]) -> Option<Vec<u8>> {
    // What a socket holds without a reader.
    let data = &data[..data.len().min(64 << 10)];
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(data).await.unwrap();
    drop(theirs);
    let line = accept::read_line(&mut ours).await.ok()?;
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).await.unwrap();
    assert_eq!([line.as_slice(), b"\n", &rest].concat(), data);
    Some(line)
}

/// A control message as the guest takes it.
pub(crate) fn control(data: &[u8]) {
    // The corpus has whole frames: without its length the first one is a message.
    let frame = data.get(4..).unwrap_or_default();
    if let Ok(message) = serde_json::from_slice::<ToGuest>(frame) {
        let json = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<ToGuest>(&json).unwrap(), message);
        if matches!(message, ToGuest::Init { .. }) {
            // Its answer writes to the kernel's generator: once is enough for every test.
            return;
        }
    }
    let value: Option<serde_json::Value> = serde_json::from_slice(frame).ok();
    let answer = control_stream::answer(&guest(), frame);
    if let Some(FromGuest::Done { seq, .. }) = answer {
        let named = value.and_then(|value| value.get("seq")?.as_u64());
        assert!(named.is_none_or(|named| named == seq), "the answer is to the request");
    }
}

/// Path, user, expiration, token, a signature, a time: a line each.
pub(crate) fn signed_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (path, username, expiration, token, given) = (next(), next(), next(), next(), next());
    let (expiration, now) = (expiration.parse::<i64>().ok(), next().parse::<i64>().unwrap_or_default());
    for operation in [Operation::Read, Operation::Write] {
        let signed = Signed { path, operation, username, expiration };
        signatures(&signed, token, given, now);
    }
    query(path, username, expiration, given);
    resolved(path);
    for line in text.split('\n') {
        if let Ok(uri) = format!("/files?{line}").parse::<Uri>() {
            let _ = files_query(&uri);
        }
    }
}

/// Only the one signature is taken, and only in its time.
fn signatures(signed: &Signed<'_>, token: &str, given: &str, now: i64) {
    let right = signed.sign(token);
    let in_time = signed.expiration.is_none_or(|expiration| expiration >= now);
    let timely = if in_time { Ok(()) } else { Err(SignatureError::Expired) };
    assert_eq!(signed.check(Some(token), None, Some(&right), now), timely);
    let verdict = if given == right { timely } else { Err(SignatureError::Invalid) };
    assert_eq!(signed.check(Some(token), None, Some(given), now), verdict);
    for at in [0, 3, right.len() / 2, right.len() - 1] {
        let mut bent = right.clone().into_bytes();
        bent[at] ^= 1;
        let bent = String::from_utf8(bent).unwrap();
        assert_eq!(signed.check(Some(token), None, Some(&bent), now), Err(SignatureError::Invalid));
    }
    for longer in [format!("{right}="), format!("{right}\0"), right[..right.len() - 1].to_owned()] {
        assert_eq!(signed.check(Some(token), None, Some(&longer), now), Err(SignatureError::Invalid));
    }
    let header = if given == token { Ok(()) } else { Err(SignatureError::WrongToken) };
    assert_eq!(signed.check(Some(token), Some(given.as_bytes()), Some(&right), now), header);
    let other = format!("{token}x");
    assert_eq!(signed.check(Some(&other), None, Some(&right), now), Err(SignatureError::Invalid));
    assert_eq!(signed.check(Some(token), None, None, now), Err(SignatureError::Missing));
}

fn files_query(uri: &Uri) -> Option<FilesQuery> {
    let Query(pairs) = Query::try_from_uri(uri).ok()?;
    FilesQuery::parse(pairs).ok()
}

/// A query reads as it was written.
fn query(path: &str, username: &str, expiration: Option<i64>, signature: &str) {
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let until = expiration.map(|seconds| format!("&signature_expiration={seconds}")).unwrap_or_default();
    let written = format!(
        "/files?path={}&username={}&signature={}{until}",
        escaped(path),
        escaped(username),
        escaped(signature)
    );
    // What is longer is no URI.
    let Ok(uri) = written.parse::<Uri>() else { return };
    let read = files_query(&uri).unwrap();
    assert_eq!(read.path.as_deref(), Some(path));
    assert_eq!(read.username.as_deref(), Some(username));
    assert_eq!(read.signature.as_deref(), Some(signature));
    assert_eq!(read.signature_expiration, expiration);
}

/// Every path becomes an absolute one; what is not absolute already also becomes a clean one.
fn resolved(path: &str) {
    let user = User {
        name: "user".to_owned(),
        uid: 1000,
        gid: 1000,
        home: "/home/user".into(),
        shell: String::new(),
        groups: Vec::new(),
    };
    let Ok(found) = paths::resolve(path, &user, Some("/work")) else {
        assert!(path.starts_with('~') && !path.starts_with("~/"));
        return;
    };
    assert!(found.is_absolute());
    let text = found.to_str().unwrap();
    if path.starts_with('/') {
        assert_eq!(text, path, "an absolute path is taken as it is");
    } else {
        let parts: Vec<&str> = text.split('/').skip(1).collect();
        assert!(text == "/" || parts.iter().all(|part| !matches!(*part, "" | "." | "..")), "{text}");
    }
    // Once resolved it stays, also when it is taken for a relative one from the root.
    assert_eq!(paths::resolve(text, &user, None).unwrap(), found);
    let rooted = User { home: "/".into(), ..user };
    let relative = text.trim_start_matches('/');
    if !path.starts_with('/') && !relative.is_empty() && !relative.starts_with('~') {
        assert_eq!(paths::resolve(relative, &rooted, None).unwrap(), Path::new(text));
    }
}
