//! What sandboxes used: `GET /sandboxes/{sandboxID}/metrics` over a time, `GET /sandboxes/metrics`
//! the newest figures of many (contract/control-plane 2.11).

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    id::SandboxId,
    routes::{
        auth::Caller,
        extract::{Query, SandboxPath},
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    runtime::registry::Sample,
};

/// Sandboxes of one request for the newest figures.
const MOST: usize = 100;
/// By how much a start may be shown later than it was by the host's clock, which tells of samples.
const DRIFT: SignedDuration = SignedDuration::from_secs(2);

/// What a sandbox used at one moment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxMetric)]
pub(crate) struct MetricView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// The same in seconds since 1970.
    timestamp_unix: i64,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Of all of them together, in percent.
    cpu_used_pct: f64,
    /// Bytes charged, page cache included.
    mem_used: u64,
    /// The limit, in bytes.
    mem_total: u64,
    /// Of the used ones, page cache.
    mem_cache: u64,
    /// Bytes in the writable layer.
    disk_used: u64,
    /// Its size, in bytes.
    disk_total: u64,
}

/// The newest figures by sandbox; one without any is left out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SandboxesWithMetrics)]
pub(crate) struct LatestView {
    sandboxes: BTreeMap<String, MetricView>,
}

/// Shows what a sandbox used, oldest first; the longer the time, the coarser.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}/metrics", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, description = "seconds since 1970; the sandbox's start when absent"),
        ("end" = Option<i64>, Query, description = "seconds since 1970; now when absent")
    ),
    responses((status = 200, body = Vec<MetricView>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn of_one(
    State(state): State<AppState>,
    Caller(team): Caller,
    path: SandboxPath,
    query: Query,
) -> Result<Json<Vec<MetricView>>, ApiError> {
    let id = path.id()?;
    let sandbox = state.registry.get(team.id, id).await?;
    let asked = seconds(&query, "start")?;
    let end = seconds(&query, "end")?.unwrap_or_else(|| state.clock.now());
    if asked.is_some_and(|start| start > end) {
        return Err(ApiError::bad_request("Invalid time range for metrics: start is after end"));
    }
    let start = asked.unwrap_or_else(|| {
        let started = state.clock.shown(sandbox.record.started_at);
        started.checked_sub(DRIFT).unwrap_or(started)
    });
    let samples = state.registry.metrics(team.id, id, start, end)?;
    Ok(Json(samples.into_iter().map(MetricView::from).collect()))
}

/// Shows the newest figures of up to 100 sandboxes; unknown ones are left out.
#[utoipa::path(
    get, path = "/sandboxes/metrics", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandbox_ids" = String, Query, description = "up to 100 ids with commas, each once")),
    responses((status = 200, body = LatestView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn latest(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Json<LatestView>, ApiError> {
    let wanted = query.items("sandbox_ids");
    if wanted.is_empty() {
        return Err(ApiError::validation(
            "parameter \"sandbox_ids\" in query: value is required but missing",
        ));
    }
    if wanted.len() > MOST {
        return Err(ApiError::bad_request(format!("Too many sandboxes: at most {MOST} at once")));
    }
    let mut sandboxes = BTreeMap::new();
    for (number, text) in wanted.iter().enumerate() {
        if wanted[..number].contains(text) {
            return Err(ApiError::validation("parameter \"sandbox_ids\" in query: duplicate items found"));
        }
        let Ok(id) = text.split('-').next().unwrap_or_default().parse::<SandboxId>() else { continue };
        if let Ok(Some(sample)) = state.registry.latest_sample(team.id, id) {
            sandboxes.insert(id.to_string(), MetricView::from(sample));
        }
    }
    Ok(Json(LatestView { sandboxes }))
}

/// A time in whole seconds since 1970.
fn seconds(query: &Query, name: &str) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = query.get(name) else { return Ok(None) };
    let time = text.parse::<i64>().ok().filter(|seconds| *seconds >= 0);
    time.and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Some).ok_or_else(|| {
        ApiError::validation(format_args!("parameter {name:?} in query: want seconds since 1970"))
    })
}

// === impl MetricView ===

impl From<Sample> for MetricView {
    fn from(sample: Sample) -> Self {
        Self {
            timestamp: sample.at,
            timestamp_unix: sample.at.as_second(),
            cpu_count: sample.cpu_count,
            cpu_used_pct: sample.cpu_used_pct,
            mem_used: sample.mem_used,
            mem_total: sample.mem_total,
            mem_cache: sample.mem_cache,
            disk_used: sample.disk_used,
            disk_total: sample.disk_total,
        }
    }
}
