//! The log of a sandbox's guest: `GET /sandboxes/{sandboxID}/logs`, v1 (the CLI) and v2
//! (dashboards) (contract/control-plane 2.11).

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    routes::{
        auth::Caller,
        extract::{Query, SandboxPath},
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    runtime::registry::LogLine,
};

/// Lines of one answer, at most and by default.
const MOST: usize = 1000;
/// The longest text to search for.
const LONGEST_SEARCH: usize = 256;

/// A line as text; the CLI reads it as JSON with `level` and `logger`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SandboxLog)]
pub(crate) struct TextLine {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// A JSON object.
    line: String,
}

/// A line in parts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SandboxLogEntry)]
pub(crate) struct Entry {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// `debug`, `info`, `warn` or `error`.
    level: &'static str,
    /// The text.
    message: String,
    /// The rest.
    fields: BTreeMap<String, String>,
}

/// The lines twice, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxLogs)]
pub(crate) struct LogsV1 {
    logs: Vec<TextLine>,
    log_entries: Vec<Entry>,
}

/// The lines in the order of the direction.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SandboxLogsV2)]
pub(crate) struct LogsV2 {
    logs: Vec<Entry>,
}

/// How serious a line is; in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// Shows the last lines of the guest's log, oldest first.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/logs", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, description = "milliseconds since 1970, inclusive"),
        ("limit" = Option<i32>, Query, description = "0 to 1000; 1000 when absent")
    ),
    responses((status = 200, body = LogsV1), (status = "default", body = ErrorBody))
)]
pub(crate) async fn logs_v1(
    State(state): State<AppState>,
    Caller(team): Caller,
    path: SandboxPath,
    query: Query,
) -> Result<Json<LogsV1>, ApiError> {
    let start = milliseconds(&query, "start")?.unwrap_or(Timestamp::MIN);
    let limit = limit(&query)?;
    let lines = state.registry.logs(team.id, path.id()?)?;
    let lines: Vec<LogLine> = lines.into_iter().filter(|line| timestamp(line) >= start).take(limit).collect();
    let logs =
        lines.iter().map(|line| TextLine { timestamp: timestamp(line), line: as_json(line) }).collect();
    Ok(Json(LogsV1 { logs, log_entries: lines.into_iter().map(Entry::from).collect() }))
}

/// Shows lines of the guest's log from a moment on, backward or forward, by level and text.
#[utoipa::path(
    get, path = "/v2/sandboxes/{sandboxID}/logs", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("cursor" = Option<i64>, Query, description = "milliseconds since 1970: up to it when backward, from it when forward"),
        ("limit" = Option<i32>, Query, description = "0 to 1000; 1000 when absent"),
        ("direction" = Option<String>, Query, description = "`forward` or `backward`; `backward` when absent"),
        ("level" = Option<String>, Query, description = "at least `debug`, `info`, `warn` or `error`"),
        ("search" = Option<String>, Query, description = "a part of the text, up to 256 characters")
    ),
    responses((status = 200, body = LogsV2), (status = "default", body = ErrorBody))
)]
pub(crate) async fn logs_v2(
    State(state): State<AppState>,
    Caller(team): Caller,
    path: SandboxPath,
    query: Query,
) -> Result<Json<LogsV2>, ApiError> {
    let cursor = milliseconds(&query, "cursor")?;
    let limit = limit(&query)?;
    let forward = match query.get("direction") {
        None | Some("backward") => false,
        Some("forward") => true,
        Some(_) => return Err(invalid("direction", "want \"forward\" or \"backward\"")),
    };
    let level = match query.get("level") {
        None => Level::Debug,
        Some(text) => {
            Level::parse(text).ok_or_else(|| invalid("level", "want debug, info, warn or error"))?
        }
    };
    let search = query.get("search").unwrap_or_default();
    if search.chars().count() > LONGEST_SEARCH {
        return Err(invalid("search", "maximum string length is 256"));
    }
    let mut lines = state.registry.logs(team.id, path.id()?)?;
    lines.retain(|line| {
        let placed = cursor
            .is_none_or(|cursor| if forward { timestamp(line) >= cursor } else { timestamp(line) <= cursor });
        placed && Level::of(line) >= level && line.message.contains(search)
    });
    if !forward {
        lines.reverse();
    }
    lines.truncate(limit);
    Ok(Json(LogsV2 { logs: lines.into_iter().map(Entry::from).collect() }))
}

fn timestamp(line: &LogLine) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(line.unix_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The line as one JSON object. The guest's own fields never hide the ones that readers rely on.
fn as_json(line: &LogLine) -> String {
    let mut object: serde_json::Map<String, serde_json::Value> =
        line.fields.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    object.insert("timestamp".to_owned(), timestamp(line).to_string().into());
    object.insert("level".to_owned(), Level::of(line).name().into());
    object.insert("logger".to_owned(), line.logger.clone().into());
    object.insert("message".to_owned(), line.message.clone().into());
    serde_json::Value::Object(object).to_string()
}

fn limit(query: &Query) -> Result<usize, ApiError> {
    let Some(text) = query.get("limit") else { return Ok(MOST) };
    let limit = text.parse::<usize>().ok().filter(|limit| *limit <= MOST);
    limit.ok_or_else(|| invalid("limit", "want a number from 0 to 1000"))
}

fn milliseconds(query: &Query, name: &str) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = query.get(name) else { return Ok(None) };
    let time = text.parse::<i64>().ok().filter(|number| *number >= 0);
    time.and_then(|number| Timestamp::from_millisecond(number).ok())
        .map(Some)
        .ok_or_else(|| invalid(name, "want milliseconds since 1970"))
}

fn invalid(name: &str, want: &str) -> ApiError {
    ApiError::validation(format_args!("parameter {name:?} in query: {want}"))
}

// === impl Level ===

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" => Some(Self::Warn),
            "error" => Some(Self::Error),
            _ => None,
        }
    }

    /// The level of a line; what the guest calls otherwise is information.
    fn of(line: &LogLine) -> Self {
        Self::parse(&line.level).unwrap_or(Self::Info)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

// === impl Entry ===

impl From<LogLine> for Entry {
    fn from(line: LogLine) -> Self {
        let (timestamp, level) = (timestamp(&line), Level::of(&line).name());
        let mut fields = line.fields;
        fields.insert("logger".to_owned(), line.logger);
        Self { timestamp, level, message: line.message, fields }
    }
}
