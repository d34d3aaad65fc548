//! Processes: `GET /sandboxes/{sandboxID}/processes`, and what all streams do to attach.

use axum::{
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use http::HeaderMap;

use super::{
    Stream,
    access::{Door, Visitor},
    events,
    message::{ClientMessage, Refusal, StartProcess, StreamMessage},
    ring::Follower,
    socket,
    source::{Selector, Source},
    ticket::Kind,
};
use crate::{
    id::{SandboxId, TeamId},
    routes::{
        extract::Query,
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    runtime::registry::EnvdClient,
};

/// The route as a type.
#[derive(Debug)]
pub(crate) struct Processes;

impl Door for Processes {
    const KIND: Kind = Kind::Processes;
}

/// A connection's hold on a stream.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) envd: EnvdClient,
    pub(super) name: String,
    pub(super) pid: Option<u32>,
    pub(super) pty: bool,
    /// What is said before the stream's own messages.
    pub(super) opening: Vec<StreamMessage>,
    pub(super) follower: Follower,
}

/// Where a client wants to go on.
#[derive(Debug, Clone, Default)]
pub(super) struct Resume {
    pub(super) stream: Option<String>,
    pub(super) after: Option<u64>,
}

/// What a connection wants.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) team: TeamId,
    pub(super) sandbox: SandboxId,
    pub(super) resume: Resume,
}

/// Follows a process. As a WebSocket: starts one (the first message is `start`) or attaches to
/// `pid` or `tag`, and takes input, size and signals; otherwise server-sent events of `pid` or
/// `tag`. With `after`, what came after that number is sent again, as far as it is still there.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/processes", tag = "streams", security((), ("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("ticket" = Option<String>, Query, description = "In place of a key; opens one connection"),
        ("pid" = Option<u32>, Query, description = "The process to attach to"),
        ("tag" = Option<String>, Query, description = "The tag of the process to attach to"),
        ("stream" = Option<String>, Query, description = "The stream that `after` counts in"),
        ("after" = Option<u64>, Query, description = "The last number that was seen; absent: from now on"),
    ),
    responses(
        (status = 101, description = "A WebSocket of ClientMessage and StreamMessage texts"),
        (status = 200, description = "Events", content_type = "text/event-stream", body = StreamMessage),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn processes(
    State(state): State<AppState>,
    visitor: Visitor<Processes>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let selector = selector(&visitor.query)?;
    let wanted = Wanted::read(&visitor, &headers)?;
    let connection = visitor.connection(&state.streams)?;
    // Foreign sandboxes are refused before anything is upgraded.
    state.registry.envd(wanted.team, wanted.sandbox)?;
    let Ok(upgrade) = upgrade else {
        let selector = selector.ok_or_else(|| {
            ApiError::bad_request("name a pid or a tag, or open a WebSocket to start a process")
        })?;
        return Ok(events::serve(wanted.follow(&state, selector, false).await?, connection));
    };
    Ok(socket::bounded(upgrade).on_upgrade(move |mut socket| async move {
        if let Some(selector) = selector {
            return socket::run(socket, connection, wanted.follow(&state, selector, false)).await;
        }
        let refusal = match socket::first(&mut socket, &connection).await {
            Ok(ClientMessage::Start(start)) => {
                return socket::run(socket, connection, wanted.start(&state, start)).await;
            }
            Ok(_) => Refusal::new("invalid_argument", "the first message is start"),
            Err(refusal) => refusal,
        };
        socket::refuse(socket, refusal, connection).await;
    }))
}

/// The process that a query names.
pub(super) fn selector(query: &Query) -> Result<Option<Selector>, ApiError> {
    match (number(query, "pid")?, query.get("tag")) {
        (Some(pid), _) => Ok(Some(Selector::Pid(pid))),
        (None, Some(tag)) => Ok(Some(Selector::Tag(tag.to_owned()))),
        (None, None) => Ok(None),
    }
}

/// A number of the query.
pub(super) fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, ApiError> {
    let parsed = query.get(name).map(|text| {
        text.parse().map_err(|_| {
            ApiError::validation(format_args!("parameter {name:?} in query: {text:?} is no number that fits"))
        })
    });
    parsed.transpose()
}

// === impl Wanted ===

impl Wanted {
    pub(super) fn read<D: Door>(visitor: &Visitor<D>, headers: &HeaderMap) -> Result<Self, ApiError> {
        let resume = match events::last_seen(headers) {
            Some((stream, after)) => Resume { stream: Some(stream), after: Some(after) },
            None => Resume {
                stream: visitor.query.get("stream").map(str::to_owned),
                after: number(&visitor.query, "after")?,
            },
        };
        Ok(Self { team: visitor.team.id, sandbox: visitor.sandbox, resume })
    }

    /// Starts a process and follows it from its beginning.
    pub(super) async fn start(self, state: &AppState, start: StartProcess) -> Result<Attachment, Refusal> {
        let mut envd = state.registry.envd(self.team, self.sandbox)?;
        envd.act_as(start.user.clone());
        let place = state.streams.place(self.sandbox).await?;
        let (pid, source) = Source::start(&envd, &start).await?;
        let stream = state.streams.begin(&envd, Some(pid), start.pty.is_some(), source, place);
        attach(envd, &stream, Some(0), Vec::new())
    }

    /// Follows a process that runs, or the stream of one that is remembered.
    pub(super) async fn follow(
        self,
        state: &AppState,
        selector: Selector,
        pty: bool,
    ) -> Result<Attachment, Refusal> {
        let envd = state.registry.envd(self.team, self.sandbox)?;
        let known = match &selector {
            Selector::Pid(pid) => state.streams.of_process(&envd, *pid),
            Selector::Tag(_) => None,
        };
        if let Some(attachment) = self.again(state, known.as_ref())? {
            return Ok(attachment);
        }
        let place = state.streams.place(self.sandbox).await?;
        let (pid, source) = Source::connect(&envd, &selector).await?;
        // A tag's process may be followed already.
        if let Some(known) = state.streams.of_process(&envd, pid)
            && let Some(attachment) = self.again(state, Some(&known))?
        {
            return Ok(attachment);
        }
        let stream = state.streams.begin(&envd, Some(pid), pty, source, place);
        attach(envd, &stream, Some(0), self.lost())
    }

    /// The stream that is named, or that is known, if it is the one that is meant.
    pub(super) fn again(
        &self,
        state: &AppState,
        known: Option<&std::sync::Arc<Stream>>,
    ) -> Result<Option<Attachment>, Refusal> {
        let named = self.resume.stream.as_deref().and_then(|name| state.streams.named(self.sandbox, name));
        let Some(stream) = named.as_ref().or(known) else { return Ok(None) };
        let envd = state.registry.envd(self.team, self.sandbox)?;
        let same = self.resume.stream.as_ref().is_none_or(|name| *name == stream.name());
        if same {
            attach(envd, stream, self.resume.after, Vec::new()).map(Some)
        } else {
            // The numbers are another stream's.
            attach(envd, stream, Some(0), self.lost()).map(Some)
        }
    }

    /// What to say when a client's numbers mean nothing here.
    pub(super) fn lost(&self) -> Vec<StreamMessage> {
        let after = self.resume.after.into_iter();
        after.map(|after| StreamMessage::Lost { from: after.saturating_add(1), to: None }).collect()
    }
}

/// Takes a place at the stream.
pub(super) fn attach(
    envd: EnvdClient,
    stream: &Stream,
    after: Option<u64>,
    lost: Vec<StreamMessage>,
) -> Result<Attachment, Refusal> {
    let follower = stream
        .ring
        .follow(after)
        .ok_or_else(|| Refusal::new("resource_exhausted", "too many connections follow this stream"))?;
    let attached = StreamMessage::Attached { stream: stream.name(), pid: stream.pid };
    Ok(Attachment {
        envd,
        name: stream.name(),
        pid: stream.pid,
        pty: stream.pty,
        opening: std::iter::once(attached).chain(lost).collect(),
        follower,
    })
}
