//! Server-sent events: the stream's messages one way, each with the id that `Last-Event-ID` wants.

use std::convert::Infallible;

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    message::{Refusal, StreamMessage},
    processes::Attachment,
    ring::Step,
};
use crate::routes::reply::ApiError;

/// Answers with the stream until it ends or the client goes away.
pub(super) fn serve(attachment: Attachment, connection: OwnedSemaphorePermit) -> Response {
    let Attachment { name, opening, follower, .. } = attachment;
    let opening: Vec<_> = opening
        .iter()
        .map(|message| Ok::<_, Infallible>(Event::default().data(message.text().as_str())))
        .collect();
    let following = stream::unfold((follower, connection), move |(mut follower, connection)| {
        let name = name.clone();
        async move {
            let event = match follower.next().await? {
                Step::Message(seq, text) => Event::default().id(format!("{name}:{seq}")).data(text.as_str()),
                Step::Lost(from, to) => {
                    Event::default().data(StreamMessage::Lost { from, to: Some(to) }.text().as_str())
                }
            };
            Some((Ok(event), (follower, connection)))
        }
    });
    Sse::new(stream::iter(opening).chain(following)).keep_alive(KeepAlive::default()).into_response()
}

/// The stream and number that a browser saw last.
pub(super) fn last_seen(headers: &HeaderMap) -> Option<(String, u64)> {
    let (stream, seq) = headers.get("last-event-id")?.to_str().ok()?.split_once(':')?;
    Some((stream.to_owned(), seq.parse().ok()?))
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.code.as_str() {
            "not_found" => StatusCode::NOT_FOUND,
            "invalid_argument" | "failed_precondition" => StatusCode::BAD_REQUEST,
            "permission_denied" => StatusCode::FORBIDDEN,
            "resource_exhausted" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, refusal.message)
    }
}
