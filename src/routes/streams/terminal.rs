//! A terminal: `GET /sandboxes/{sandboxID}/terminal`.

use std::collections::BTreeMap;

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
    message::{StartProcess, TerminalSize},
    processes::{Wanted, number, selector},
    socket,
    ticket::Kind,
};
use crate::routes::{
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// The size of a terminal that says nothing else.
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// The route as a type.
#[derive(Debug)]
pub(crate) struct Terminal;

impl Door for Terminal {
    const KIND: Kind = Kind::Terminal;
}

/// Opens a login shell on a terminal of its own, or attaches to the terminal of `pid`, as a
/// WebSocket. The shell goes on when the connection ends; `pid` and `after` find it again.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/terminal", tag = "streams", security((), ("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("ticket" = Option<String>, Query, description = "In place of a key; opens one connection"),
        ("cols" = Option<u16>, Query, description = "Columns; 80 when absent"),
        ("rows" = Option<u16>, Query, description = "Rows; 24 when absent"),
        ("user" = Option<String>, Query, description = "The user; the sandbox's default user when absent"),
        ("cwd" = Option<String>, Query, description = "The directory; the user's home when absent"),
        ("pid" = Option<u32>, Query, description = "The terminal's process to attach to"),
        ("stream" = Option<String>, Query, description = "The stream that `after` counts in"),
        ("after" = Option<u64>, Query, description = "The last number that was seen; absent: from now on"),
    ),
    responses(
        (status = 101, description = "A WebSocket of ClientMessage and StreamMessage texts"),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn terminal(
    State(state): State<AppState>,
    visitor: Visitor<Terminal>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let query = &visitor.query;
    let selector = selector(query)?;
    let size = TerminalSize {
        cols: number(query, "cols")?.unwrap_or(DEFAULT_SIZE.cols),
        rows: number(query, "rows")?.unwrap_or(DEFAULT_SIZE.rows),
    };
    let shell = shell(size, query.get("user"), query.get("cwd"));
    let wanted = Wanted::read(&visitor, &headers)?;
    let upgrade = upgrade.map_err(|_| ApiError::bad_request("a terminal is a WebSocket: open it as one"))?;
    let connection = visitor.connection(&state.streams)?;
    // Foreign sandboxes are refused before anything is upgraded.
    state.registry.envd(wanted.team, wanted.sandbox)?;
    Ok(socket::bounded(upgrade).on_upgrade(move |socket| async move {
        match selector {
            Some(selector) => socket::run(socket, connection, wanted.follow(&state, selector, true)).await,
            None => socket::run(socket, connection, wanted.start(&state, shell)).await,
        }
    }))
}

/// The shell that the SDKs start for a terminal (contract/sandbox 3).
fn shell(size: TerminalSize, user: Option<&str>, cwd: Option<&str>) -> StartProcess {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    StartProcess {
        cmd: "/bin/bash".to_owned(),
        args: vec!["-i".to_owned(), "-l".to_owned()],
        envs: BTreeMap::from([
            pair("TERM", "xterm-256color"),
            pair("LANG", "C.UTF-8"),
            pair("LC_ALL", "C.UTF-8"),
        ]),
        cwd: cwd.map(str::to_owned),
        user: user.map(str::to_owned),
        pty: Some(size),
        ..StartProcess::default()
    }
}
