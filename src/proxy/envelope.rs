//! The end of an RPC stream whose sandbox went away in the middle of it.
//!
//! A Connect stream says how it ended in its last envelope. One that breaks off says nothing, and
//! its client knows only that bytes are missing. Between two envelopes there is room to say it:
//! `unavailable`. In the middle of an envelope, and in bodies of other kinds, an end of ours would hide
//! what is missing: those break off.
//!
//! SDKs look whether the sandbox is gone when a stream breaks off, in every version. Upon `unavailable`
//! only the newest Python ones do; the others take it for a timeout. So nothing is said to SDKs, nor to
//! the command line that is made of them.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use http_body::Body;
use serde_json::json;

use crate::id::SandboxId;

/// What kinds of content are streams of envelopes.
const STREAMS: &str = "application/connect+";
/// Flags, and the length of what follows.
const PREFIX: usize = 5;
/// The flag of the last envelope.
const LAST: u8 = 0b10;

/// How clients begin to name themselves that look for the sandbox when a stream breaks off: the SDKs, the
/// library by which the newer Python ones call, and browsers, which do not let them say so.
const BREAKS_OFF: [&str; 4] = ["e2b-js-sdk/", "e2b-python-sdk/", "connectrpc/", "Mozilla/"];

/// How far a stream of envelopes has come.
#[derive(Debug, Default)]
pub(super) struct Envelopes {
    prefix: [u8; PREFIX],
    /// How much of the prefix has passed.
    had: usize,
    /// How many bytes of the envelope are still to come.
    left: u32,
    /// The last envelope has begun.
    last: bool,
}

/// How a stream that breaks off can end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// It had said its end.
    Said,
    /// With these bytes.
    Say(Bytes),
    /// Not at all.
    Torn,
}

// === impl Envelopes ===

impl Envelopes {
    /// Of a response whose body is a stream of envelopes, readable here and of no length.
    pub(super) fn of<B: Body>(response: &Response<B>) -> Option<Self> {
        let readable = response.status() == StatusCode::OK
            && is_stream(response.headers())
            && !response.headers().contains_key(CONTENT_ENCODING);
        (readable && response.body().size_hint().exact().is_none()).then(Self::default)
    }

    /// These bytes have passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.left);
                self.left -= length;
                bytes = &bytes[length as usize..];
                continue;
            }
            let length = bytes.len().min(PREFIX - self.had);
            self.prefix[self.had..self.had + length].copy_from_slice(&bytes[..length]);
            self.had += length;
            bytes = &bytes[length..];
            if self.had == PREFIX {
                let [flags, length @ ..] = self.prefix;
                self.last |= flags & LAST != 0;
                (self.had, self.left) = (0, u32::from_be_bytes(length));
            }
        }
    }

    /// What is to be said when the connection to this sandbox has broken off.
    pub(super) fn close(&self, id: SandboxId) -> Close {
        if self.had > 0 || self.left > 0 {
            return Close::Torn;
        }
        if self.last {
            return Close::Said;
        }
        // SDKs know this text (contract/sandbox 2.4).
        let message = format!("the connection to sandbox {id} ended before the stream completed");
        let words = json!({ "error": { "code": "unavailable", "message": message } }).to_string();
        let Ok(length) = u32::try_from(words.len()) else { return Close::Torn };
        let mut envelope = BytesMut::with_capacity(PREFIX + words.len());
        envelope.put_u8(LAST);
        envelope.put_u32(length);
        envelope.put_slice(words.as_bytes());
        Close::Say(envelope.freeze())
    }
}

/// Whether whoever sent these is told `unavailable`, instead of finding the stream broken off.
pub(super) fn is_understood_by(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map_or(&b""[..], |agent| agent.as_bytes());
    !BREAKS_OFF.iter().any(|name| agent.starts_with(name.as_bytes()))
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(STREAMS.as_bytes()))
}

#[cfg(test)]
mod tests {
    use axum::body::Body as Any;

    use super::*;

    fn id() -> SandboxId {
        "i0123456789abcdefghij".parse().unwrap()
    }

    fn envelope(flags: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[flags][..], &length, body].concat()
    }

    #[test]
    fn an_end_is_said_between_envelopes_and_only_once() {
        let (one, empty) = (envelope(0, b"{\"event\":{}}"), envelope(0, b""));
        let stream = [&one[..], &empty, &one, &envelope(LAST, b"{}")].concat();
        let ends = [0, one.len(), one.len() + empty.len(), 2 * one.len() + empty.len()];
        for step in [1, 2, 3, 7, stream.len()] {
            for length in 0..=stream.len() {
                let mut envelopes = Envelopes::default();
                stream[..length].chunks(step).for_each(|bytes| envelopes.pass(bytes));
                match envelopes.close(id()) {
                    Close::Say(_) => assert!(ends.contains(&length), "{length}"),
                    Close::Said => assert_eq!(length, stream.len()),
                    Close::Torn => assert!(!ends.contains(&length) && length < stream.len(), "{length}"),
                }
            }
        }
    }

    #[test]
    fn the_end_names_the_sandbox() {
        let Close::Say(bytes) = Envelopes::default().close(id()) else { panic!() };
        let words = &bytes[PREFIX..];
        assert_eq!(bytes[0], LAST);
        assert_eq!(bytes[1..PREFIX], u32::try_from(words.len()).unwrap().to_be_bytes());
        let said: serde_json::Value = serde_json::from_slice(words).unwrap();
        assert_eq!(said["error"]["code"], "unavailable");
        let message = "the connection to sandbox i0123456789abcdefghij ended before the stream completed";
        assert_eq!(said["error"]["message"], message);
    }

    #[test]
    fn who_looks_for_the_sandbox_when_a_stream_breaks_off_is_not_told() {
        let told = |agent: &'static str| {
            is_understood_by(&HeaderMap::from_iter([(USER_AGENT, http::HeaderValue::from_static(agent))]))
        };
        assert!(
            !told("e2b-js-sdk/2.51.0") && !told("e2b-js-sdk/2.49.0 e2b-cli/2.19.0") && !told("Mozilla/5.0")
        );
        assert!(!told("e2b-python-sdk/2.30.0 some-integration/1") && !told("connectrpc/0.11.1"));
        assert!(told("connect-go/1.18.1") && told("curl/8.0") && is_understood_by(&HeaderMap::new()));
    }

    #[test]
    fn other_bodies_are_not_told_an_end() {
        let response = |status: u16, kind: &str, encoding: Option<&str>, body: Any| {
            let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
            if let Some(encoding) = encoding {
                response = response.header(CONTENT_ENCODING, encoding);
            }
            Envelopes::of(&response.body(body).unwrap()).is_some()
        };
        let open = || Any::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        for kind in ["application/connect+json", "application/connect+proto", "application/connect+json; a=b"]
        {
            assert!(response(200, kind, None, open()), "{kind}");
            assert!(!response(502, kind, None, open()));
            assert!(!response(200, kind, Some("gzip"), open()));
            assert!(!response(200, kind, None, Any::from("{}")));
        }
        for kind in ["application/json", "application/grpc-web+proto", "text/event-stream", "text/plain", ""]
        {
            assert!(!response(200, kind, None, open()), "{kind}");
        }
    }
}
