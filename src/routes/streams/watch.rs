//! File events: `GET /sandboxes/{sandboxID}/files/watch`.

use axum::{
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use http::HeaderMap;

use super::{
    access::{Door, Visitor},
    events,
    message::{Refusal, StreamMessage},
    processes::{Attachment, Wanted, attach},
    socket,
    source::Source,
    ticket::Kind,
};
use crate::routes::{
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// The route as a type.
#[derive(Debug)]
pub(crate) struct Files;

impl Door for Files {
    const KIND: Kind = Kind::Files;
}

/// What is watched, and as whom.
#[derive(Debug)]
struct Place {
    path: Option<String>,
    recursive: bool,
    user: Option<String>,
}

/// Watches a directory, as a WebSocket or as server-sent events. With `stream` and `after` (or
/// `Last-Event-ID`), the events after that number are sent again, as far as they are still there.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/files/watch", tag = "streams", security((), ("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("ticket" = Option<String>, Query, description = "In place of a key; opens one connection"),
        ("path" = Option<String>, Query, description = "The directory; not needed with a known stream"),
        ("recursive" = Option<bool>, Query, description = "Whether directories below it are watched too"),
        ("user" = Option<String>, Query, description = "Whose home relative paths begin in"),
        ("stream" = Option<String>, Query, description = "The stream to go on with"),
        ("after" = Option<u64>, Query, description = "The last number that was seen; absent: from now on"),
    ),
    responses(
        (status = 101, description = "A WebSocket of StreamMessage texts"),
        (status = 200, description = "Events", content_type = "text/event-stream", body = StreamMessage),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn watch(
    State(state): State<AppState>,
    visitor: Visitor<Files>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let place = Place {
        path: visitor.query.get("path").map(str::to_owned),
        recursive: match visitor.query.get("recursive") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(ApiError::validation("parameter \"recursive\" in query: true or false")),
        },
        user: visitor.query.get("user").map(str::to_owned),
    };
    let wanted = Wanted::read(&visitor, &headers)?;
    let connection = visitor.connection(&state.streams)?;
    // Foreign sandboxes are refused before anything is upgraded.
    state.registry.envd(wanted.team, wanted.sandbox)?;
    let Ok(upgrade) = upgrade else {
        return Ok(events::serve(observe(&state, wanted, place).await?, connection));
    };
    Ok(socket::bounded(upgrade).on_upgrade(move |socket| async move {
        socket::run(socket, connection, observe(&state, wanted, place)).await;
    }))
}

async fn observe(state: &AppState, wanted: Wanted, place: Place) -> Result<Attachment, Refusal> {
    if let Some(attachment) = wanted.again(state, None)? {
        return Ok(attachment);
    }
    let path = place.path.ok_or_else(|| Refusal::new("invalid_argument", "name the path to watch"))?;
    let mut envd = state.registry.envd(wanted.team, wanted.sandbox)?;
    envd.act_as(place.user);
    let room = state.streams.place(wanted.sandbox).await?;
    let source = Source::watch(&envd, &path, place.recursive).await?;
    let stream = state.streams.begin(&envd, None, false, source, room);
    attach(envd, &stream, Some(0), wanted.lost())
}
