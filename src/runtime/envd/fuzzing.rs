//! Properties of the gateway as a client of envd: a hostile guest's stream is read message by
//! message as far as it is one, and no further.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::{CallError, Connection, END, EndOfStream, MAX_MESSAGE, Messages, read};
use crate::{
    runtime::{
        link::{GuestLink, LinkError, LinkStream},
        registry::Target,
    },
    wire::link::{Malformed, Nonce},
};

/// Bytes on the way: more than a run has.
const PIPE: usize = 256 << 10;

/// A guest that answers any request with the same bytes.
#[derive(Debug)]
struct Canned(Vec<u8>);

#[async_trait]
impl GuestLink for Canned {
    async fn open(&self, _: u16) -> Result<LinkStream, LinkError> {
        let (ours, theirs) = duplex(PIPE);
        tokio::spawn(reply(theirs, self.0.clone()));
        Ok(Box::new(ours))
    }

    async fn open_control(&self, _: Nonce) -> Result<(LinkStream, u32), LinkError> {
        Err(Malformed::UNEXPECTED.into())
    }
}

async fn reply(mut stream: DuplexStream, bytes: Vec<u8>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
    }
    // A client that has hung up wants no more.
    let _ = stream.write_all(&bytes).await;
}

/// `s`: the envelopes of a stream. `u`: the body of a refusal. `h`: an HTTP response, whole.
pub(crate) async fn answers(data: &[u8]) {
    let Some((kind, rest)) = data[..data.len().min(PIPE / 2)].split_first() else { return };
    let head: &[u8] = match kind {
        b's' => b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\n\r\n",
        b'u' => b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n\r\n",
        _ => b"",
    };
    let target = Target {
        id: "i0123456789abcdefghij".parse().unwrap(),
        generation: 1,
        link: Arc::new(Canned([head, rest].concat())),
        traffic_access_token: None,
        mask_request_host: None,
        https_ports: Arc::from([]),
        ended: CancellationToken::new(),
    };
    let client = super::EnvdClient::new(target.clone(), None);
    let mut connection = Connection::open(&target).await.unwrap();
    let request = client.request("process.Process/Connect", "application/connect+json", "{}".into()).unwrap();
    let Ok(response) = connection.sender.send_request(request).await else {
        return assert!(!matches!(kind, b's' | b'u'), "a good head is read");
    };
    if *kind == b's' {
        let body = response.into_body();
        let mut messages =
            Messages { target, body, buffer: bytes::BytesMut::new(), over: false, _connection: connection };
        stream(&mut messages, rest).await;
    } else {
        let status = response.status();
        match read(response).await {
            Ok(_) => assert!(status.is_success()),
            // More words than there were bytes nobody has.
            Err(CallError::Refused { code, message }) => assert!(code.len() + message.len() <= rest.len()),
            Err(_) => {}
        }
    }
}

async fn stream(messages: &mut Messages, data: &[u8]) {
    let mut wanted = model(data).into_iter();
    loop {
        let got = messages.read::<Value>().await;
        assert!(
            messages.buffer.len() <= MAX_MESSAGE + 5 + super::READ_AHEAD,
            "no more is held than read ahead"
        );
        let Some(want) = wanted.next() else { panic!("{got:?} after the end") };
        match (&got, want) {
            (Ok(Some(got)), Step::Message(message)) => assert_eq!(*got, message),
            (Ok(None), Step::End) => {
                let again = messages.read::<Value>().await;
                return assert!(matches!(again, Ok(None)), "over is over");
            }
            (Err(CallError::Refused { .. }), Step::Refused) | (Err(CallError::Broken(_)), Step::Broken) => {
                return;
            }
            (Err(CallError::Broken(reason)), Step::TooLong) => {
                return assert!(reason.starts_with("a message of "), "not waited for: {reason}");
            }
            (got, want) => panic!("{got:?} instead of {want:?}"),
        }
    }
}

/// What reading gives.
#[derive(Debug)]
enum Step {
    Message(Value),
    End,
    Refused,
    TooLong,
    Broken,
}

/// The same, read the plain way.
fn model(mut data: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let last = match data.split_first_chunk::<5>() {
            None => Step::Broken,
            Some((head, rest)) => {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                match rest.split_at_checked(length) {
                    _ if length > MAX_MESSAGE => Step::TooLong,
                    Some((message, rest)) if head[0] & END == 0 => {
                        if let Ok(value) = serde_json::from_slice(message) {
                            steps.push(Step::Message(value));
                            data = rest;
                            continue;
                        }
                        Step::Broken
                    }
                    Some((message, _)) => match serde_json::from_slice::<EndOfStream>(message) {
                        Ok(EndOfStream { error: None }) => Step::End,
                        Ok(_) => Step::Refused,
                        Err(_) => Step::Broken,
                    },
                    None => Step::Broken,
                }
            }
        };
        steps.push(last);
        return steps;
    }
}
