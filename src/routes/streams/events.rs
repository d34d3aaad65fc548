//! Server-sent events: the stream's messages one way, each with the id that `Last-Event-ID` wants.

use std::convert::Infallible;

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Connection,
    message::{Refusal, StreamMessage},
    processes::Attachment,
    ring::Step,
};
use crate::routes::reply::ApiError;

/// Answers with the stream until it ends, or the client goes away or takes nothing.
pub(super) fn serve(attachment: Attachment, connection: Connection) -> Response {
    let (sender, receiver) = mpsc::channel(1);
    // A body that nobody takes is not polled: somebody else has to watch the time.
    tokio::spawn(feed(attachment, connection, sender));
    let events = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|event| (Ok::<Event, Infallible>(event), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Gives a stream's events to the answer's body, as long as there is one.
async fn feed(attachment: Attachment, connection: Connection, body: mpsc::Sender<Event>) {
    let Attachment { name, opening, mut follower, .. } = attachment;
    let mut opening = opening.into_iter();
    loop {
        let (event, last) = if let Some(message) = opening.next() {
            (data(&message), false)
        } else {
            let step = tokio::select! {
                step = follower.next() => step,
                () = body.closed() => return,
            };
            match step {
                Step::Message(seq, text) => {
                    (Event::default().id(format!("{name}:{seq}")).data(text.as_str()), false)
                }
                Step::Lost(from, to) => (data(&StreamMessage::Lost { from, to: Some(to) }), false),
                Step::End(ending) => (data(&ending.event()), true),
            }
        };
        match timeout(connection.bounds.unread, body.send(event)).await {
            Ok(Ok(())) if !last => {}
            Ok(_) => return,
            Err(_) => return connection.cut(),
        }
    }
}

fn data(message: &StreamMessage) -> Event {
    Event::default().data(message.text().as_str())
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
