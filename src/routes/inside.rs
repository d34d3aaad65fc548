//! The host API that programs inside a sandbox reach at `http://192.0.2.1` and `events.e2b.local`:
//! `GET /me` and `POST /logs` (contract/control-plane 7, contract/sandbox 6.3).
//!
//! Whoever asks is known by the socket. All of it is hostile: a request is small and short, a
//! sandbox has few connections, and its lines go to its own log alone.

use std::{collections::BTreeMap, fmt, net::TcpListener, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use http::StatusCode;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    clock::Clock,
    runtime::registry::{HostApi, InsideCaller, LogLine},
};

/// Connections of one sandbox at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long one connection lasts.
const LONGEST: Duration = Duration::from_mins(1);
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// The largest body, in bytes: a line is cut at less.
const LARGEST: usize = 64 << 10;
/// Fields of a line that are kept.
const FIELDS: usize = 32;
/// What the line is made of, or what the host knows better.
const TAKEN: [&str; 7] = ["level", "logger", "message", "timestamp", "instanceID", "envID", "teamID"];

/// The host API of all sandboxes.
#[derive(Clone)]
pub struct Inside {
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Asked {
    caller: InsideCaller,
    clock: Arc<dyn Clock>,
}

// === impl Inside ===

impl Inside {
    /// With the clock that people read.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }

    fn router(&self, caller: InsideCaller) -> Router {
        Router::new()
            .route("/me", get(me))
            .route("/logs", post(logs))
            .fallback(|| async { problem(StatusCode::NOT_FOUND, "no such endpoint") })
            .layer(DefaultBodyLimit::max(LARGEST))
            .with_state(Asked { caller, clock: Arc::clone(&self.clock) })
    }
}

impl fmt::Debug for Inside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Inside")
    }
}

impl HostApi for Inside {
    fn serve(&self, caller: InsideCaller, listener: TcpListener) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (id, router) = (caller.sandbox, self.router(caller));
        Box::pin(async move {
            let listener =
                listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
            match listener {
                Ok(listener) => accept(listener, router).await,
                Err(error) => tracing::warn!(sandbox.id = %id, %error, "a host API was not opened"),
            }
        })
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with the machine, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or a client that has gone: others go on.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _seat = seat;
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off, or takes too long, is its own business.
            let _ = timeout(LONGEST, connection).await;
        });
    }
}

async fn me(State(asked): State<Asked>) -> Response {
    Json(json!({ "sandboxID": asked.caller.sandbox })).into_response()
}

async fn logs(State(asked): State<Asked>, body: Bytes) -> Response {
    let Ok(Value::Object(line)) = serde_json::from_slice(&body) else {
        return problem(StatusCode::BAD_REQUEST, "Invalid body for logs");
    };
    let own = asked.caller.sandbox.to_string();
    if line.get("instanceID").is_some_and(|id| id.as_str() != Some(&own)) {
        return problem(StatusCode::BAD_REQUEST, "the line is of another sandbox");
    }
    let told = line.get("timestamp").and_then(Value::as_str).and_then(|text| text.parse::<Timestamp>().ok());
    let unix_ns = |at: Timestamp| i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX);
    // Not of one without a time: the host's clock may have been set back meanwhile.
    if told.is_some_and(|at| unix_ns(at) < asked.caller.began()) {
        return problem(StatusCode::BAD_REQUEST, "the line is from before this run");
    }
    let at = told.unwrap_or_else(|| asked.clock.now());
    asked.caller.log(log_line(line, unix_ns(at)));
    StatusCode::OK.into_response()
}

fn log_line(mut line: Map<String, Value>, unix_ns: i64) -> LogLine {
    let mut text = |name: &str, missing: &str| match line.remove(name) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => missing.to_owned(),
    };
    let (level, logger, message) = (text("level", "info"), text("logger", "sandbox"), text("message", ""));
    // The gateway's own lines are not to be forged.
    let logger = if logger == "firkin" { "sandbox".to_owned() } else { logger };
    let level = match level.as_str() {
        "debug" | "info" | "warn" | "error" => level,
        _ => "info".to_owned(),
    };
    let others = line.into_iter().filter(|(name, _)| !TAKEN.contains(&name.as_str())).take(FIELDS);
    let fields: BTreeMap<String, String> = others
        .map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    LogLine { level, logger, message, fields, unix_ns }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "code": status.as_u16(), "message": message }))).into_response()
}
