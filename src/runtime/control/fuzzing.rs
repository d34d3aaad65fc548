//! Properties of the control stream's reader: bounded, in order, and at an end where it is garbled.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use tokio::io::{AsyncWriteExt as _, duplex};

use super::{ControlError, Ears, LogRing, Session};
use crate::{
    runtime::logs::{MAX_BYTES, MAX_LINES},
    wire::control::{FromGuest, MAX_MESSAGE},
};

/// Bytes on the way.
const PIPE: usize = 64 << 10;

/// What a guest may send, in two pieces.
pub(crate) async fn conversation(data: &[u8]) {
    let data = &data[..data.len().min(PIPE)];
    let (ours, mut theirs) = duplex(PIPE);
    let mut session = Session::new(Box::new(ours));
    let logs = std::sync::Arc::new(LogRing::default());
    let ears = Ears::new(std::sync::Arc::clone(&logs));
    let write = async {
        let (first, second) = data.split_at(data.len() / 2);
        theirs.write_all(first).await.ok();
        tokio::task::yield_now().await;
        theirs.write_all(second).await.ok();
        drop(theirs);
    };
    let read = async {
        let mut heard = Vec::new();
        loop {
            match session.hear(&ears).await {
                Ok(message) => heard.push(message),
                Err(error) => break (heard, error),
            }
        }
    };
    // All fits the pipe: the writer does not wait for a reader that has given up.
    let ((heard, end), ()) = tokio::join!(read, write);
    let (frames, wanted_end) = model(data);
    assert_eq!(heard.len(), frames.len());
    for (got, want) in heard.iter().zip(&frames) {
        match (got, want) {
            (Some((seq, outcome)), FromGuest::Done { seq: wanted, error }) => {
                assert_eq!((seq, outcome.is_err()), (wanted, error.is_some()));
            }
            (None, FromGuest::Log { .. } | FromGuest::Freshness { .. }) => {}
            _ => panic!("{got:?} for {want:?}"),
        }
    }
    let how = match &end {
        ControlError::Ended => End::Whole,
        ControlError::Garbled => End::Garbled,
        ControlError::Broken(error) if error.kind() == std::io::ErrorKind::InvalidData => End::TooLong,
        ControlError::Broken(_) => End::Cut,
        other => panic!("{other}"),
    };
    assert_eq!(how, wanted_end, "{end}");
    let lines = logs.lines();
    assert!(lines.len() <= MAX_LINES);
    let bytes: usize =
        lines.iter().map(|line| line.message.len() + line.logger.len() + line.level.len()).sum();
    assert!(bytes <= MAX_BYTES);
    for message in frames {
        let json = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<FromGuest>(&json).unwrap(), message);
    }
}

/// How a stream ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// After a frame.
    Whole,
    /// In a frame.
    Cut,
    /// Before a frame that is longer than a message may be.
    TooLong,
    /// With a frame that is no message.
    Garbled,
}

/// The messages up to the end, read the plain way.
fn model(mut data: &[u8]) -> (Vec<FromGuest>, End) {
    let mut messages = Vec::new();
    loop {
        let Some((length, rest)) = data.split_first_chunk() else {
            return (messages, if data.is_empty() { End::Whole } else { End::Cut });
        };
        let length = u32::from_be_bytes(*length);
        if length > MAX_MESSAGE {
            return (messages, End::TooLong);
        }
        if rest.len() < length as usize {
            return (messages, End::Cut);
        }
        let (frame, rest) = rest.split_at(length as usize);
        match serde_json::from_slice(frame) {
            Ok(message) => messages.push(message),
            Err(_) => return (messages, End::Garbled),
        }
        data = rest;
    }
}
