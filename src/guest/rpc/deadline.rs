//! `Connect-Timeout-Ms`, read before the RPC library does (contract/sandbox 2.3 and 3).
//!
//! The library ignores a value that is no number and ends a stream's start by its own clock and
//! words, and cuts a watch without an end frame. Here: no number is the client's error, 0 is no
//! limit, and the time is taken away from the library: server streams are given it, with Start also
//! the process, and every other call is dropped when it is over.

use std::time::Duration;

use axum::{extract::Request, middleware::Next, response::Response};
use connectrpc::{ConnectError, RequestContext};
use tokio::time::Instant;

use crate::guest::{awake, serve::rpc_error};

const HEADER: &str = "connect-timeout-ms";
const MAX_DIGITS: usize = 10;
const STREAMS: [&str; 3] =
    ["/process.Process/Start", "/process.Process/Connect", "/filesystem.Filesystem/WatchDir"];

/// When a stream's time is over, by the clock of [`awake`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamDeadline(Instant);

// === impl StreamDeadline ===

impl StreamDeadline {
    /// The one that the request carries, if it does.
    pub(crate) fn of(ctx: &RequestContext) -> Option<Instant> {
        ctx.extensions().get::<Self>().map(|deadline| deadline.0)
    }
}

/// Checks the header and takes it over where it is ours.
pub(crate) async fn moderate(mut request: Request, next: Next) -> Response {
    let Some(value) = request.headers().get(HEADER) else { return next.run(request).await };
    let Some(limit) = parse(value.as_bytes()) else {
        let text = format!("protocol error: invalid timeout {value:?}: want milliseconds, at most 10 digits");
        return rpc_error(request.headers(), &ConnectError::invalid_argument(text));
    };
    request.headers_mut().remove(HEADER);
    if limit.is_zero() {
        return next.run(request).await;
    }
    let deadline = awake::now() + limit;
    if STREAMS.contains(&request.uri().path()) {
        request.extensions_mut().insert(StreamDeadline(deadline));
        return next.run(request).await;
    }
    let headers = request.headers().clone();
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = awake::until(deadline) => rpc_error(&headers, &expired()),
    }
}

/// The error of a call or stream whose time is over.
pub(crate) fn expired() -> ConnectError {
    ConnectError::deadline_exceeded("context deadline exceeded")
}

fn parse(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let plain =
        !text.is_empty() && text.len() <= MAX_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok().map(Duration::from_millis)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_plain_milliseconds() {
        assert_eq!(parse(b"60000"), Some(Duration::from_mins(1)));
        assert_eq!(parse(b"0"), Some(Duration::ZERO));
        for bad in ["", "-1", "+1", "1.5", "x", "12345678901"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
