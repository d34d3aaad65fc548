//! Why nothing follows: a WebSocket's close code and reason. Server-sent events, which have no close
//! frame, tell both in a last message.

use std::borrow::Cow;

use axum::extract::ws::{CloseFrame, Message, close_code};

use super::message::{Refusal, StreamMessage};

/// The most bytes of a close frame's reason (RFC 6455, 5.5: 125 with the code).
const MAX_REASON: usize = 123;

/// Why nothing follows. Codes from 4000 are ours, and part of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// What was followed has ended by itself, and said so.
    Over,
    /// The server stops; its processes go on.
    Stopping,
    /// The stream did not begin.
    Refused(Refusal),
    /// envd ended the stream for this reason.
    Broken(Refusal),
    /// The sandbox was killed, paused, or has ended.
    SandboxEnded,
    /// The client took nothing for too long.
    TooSlow,
    /// The client said nothing for too long, not even that it is there.
    Silent,
    /// Nobody followed, for long or when a new stream needed the place.
    Abandoned,
}

// === impl Ending ===

impl Ending {
    /// For programs.
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Over => close_code::NORMAL,
            Self::Stopping => close_code::AWAY,
            Self::Refused(_) => close_code::POLICY,
            Self::Broken(_) => close_code::ERROR,
            Self::SandboxEnded => 4000,
            Self::TooSlow => 4001,
            Self::Silent => 4002,
            Self::Abandoned => 4003,
        }
    }

    /// For people; fits a close frame.
    pub(super) fn reason(&self) -> String {
        let reason: Cow<'static, str> = match self {
            Self::Over => "the stream has ended".into(),
            Self::Stopping => "the server is stopping".into(),
            Self::Refused(refusal) | Self::Broken(refusal) => {
                format!("{}: {}", refusal.code, refusal.message).into()
            }
            Self::SandboxEnded => "the sandbox has ended".into(),
            Self::TooSlow => "the client did not read for too long".into(),
            Self::Silent => "the client did not answer to pings".into(),
            Self::Abandoned => "nobody had followed the stream".into(),
        };
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason[..end].to_owned()
    }

    /// As a close frame.
    pub(super) fn frame(&self) -> Message {
        Message::Close(Some(CloseFrame { code: self.code(), reason: self.reason().into() }))
    }

    /// As the last of the server-sent events.
    pub(super) fn event(&self) -> StreamMessage {
        StreamMessage::Closed { code: self.code(), reason: self.reason() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_always_fits_its_frame() {
        for length in 0..200 {
            let refusal = Refusal::new("not_found", "ä".repeat(length));
            let reason = Ending::Refused(refusal).reason();
            assert!(reason.len() <= MAX_REASON && reason.starts_with("not_found: "), "{reason}");
            assert!(length < 60 || reason.len() >= MAX_REASON - 1);
        }
    }
}
