//! What operators and their tools read: `/metrics` in Prometheus' text format, and the traces of
//! sandboxes at `/admin/traces`; behind the admin token, or on the admin socket without one.

use std::fmt::Write as _;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, header};
use serde::Serialize;

use crate::{
    id::SandboxId,
    routes::{auth::Operator, extract::Query, reply::ApiError, state::AppState},
    runtime::registry::{BUCKETS_S, Histogram, Occupancy, Trace, WarmState},
};

/// Traces of one answer, by default and at most.
const USUAL: usize = 20;
const MOST: usize = 100;
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Traces, the newest start first.
#[derive(Debug, Serialize)]
pub(crate) struct Traces {
    traces: Vec<Trace>,
    /// Traces that are no longer kept.
    forgotten: u64,
}

/// `GET /metrics`.
pub(crate) async fn metrics(_: Operator, state: State<AppState>) -> Response {
    local_metrics(state).await
}

/// The same for whoever may use the admin socket.
pub(crate) async fn local_metrics(State(state): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, TEXT)], exposition(&state)).into_response()
}

/// `GET /admin/traces`, of one sandbox with `sandboxID`, `limit` of them.
pub(crate) async fn traces(
    _: Operator,
    state: State<AppState>,
    query: Query,
) -> Result<Json<Traces>, ApiError> {
    local_traces(state, query).await
}

/// The same for whoever may use the admin socket.
pub(crate) async fn local_traces(
    State(state): State<AppState>,
    query: Query,
) -> Result<Json<Traces>, ApiError> {
    let sandbox: Option<SandboxId> = match query.get("sandboxID") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::validation(format_args!(
                "parameter \"sandboxID\" in query: {text:?} is no sandbox's id"
            ))
        })?),
    };
    let limit = match query.get("limit") {
        None => USUAL,
        Some(text) => text.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
            ApiError::validation(format_args!("parameter \"limit\" in query: a number from 1 to {MOST}"))
        })?,
    };
    let traces = state.registry.traces(sandbox, limit);
    Ok(Json(Traces { traces, forgotten: state.registry.tally().forgotten }))
}

/// Every metric. Labels have few values: never a sandbox, a team or a key.
fn exposition(state: &AppState) -> String {
    let (tally, census, usage) = (state.registry.tally(), state.registry.census(), state.streams.usage());
    let occupancy = state.registry.occupancy();
    let mut page = Page::default();
    page.family("firkin_build_info", "gauge", "The version of the program, as a label.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("firkin_sandboxes", "gauge", "Sandboxes by state.");
    for (state, count) in [
        ("creating", census.creating),
        ("running", census.running),
        ("paused", census.resting),
        ("ending", census.ending),
    ] {
        page.sample(&[("state", state)], count);
    }
    page.occupancy(&occupancy);
    page.warm(&state.registry.warm());
    page.family("firkin_sandbox_ends_total", "counter", "Sandboxes that began to end, by cause.");
    for (cause, count) in tally.ends {
        page.sample(&[("cause", cause)], count);
    }
    page.family("firkin_failed_starts_total", "counter", "Creates and resumes that failed.");
    page.sample(&[], tally.failed_starts);
    page.family("firkin_silent_guests", "gauge", "Serving sandboxes whose guest does not answer.");
    page.sample(&[], tally.silent_guests);
    page.family("firkin_sandbox_events_total", "counter", "Events of sandboxes' traces, by name.");
    for (event, count) in tally.events {
        page.sample(&[("event", &format!("{event:?}"))], count);
    }
    let help = "Parts of sandboxes' lives, from event to event (docs/operations.md).";
    page.family("firkin_lifecycle_duration_seconds", "histogram", help);
    for (name, histogram) in &tally.durations {
        page.histogram(name, histogram);
    }
    page.family("firkin_trace_events_overflowed_total", "counter", "Events that a full trace did not keep.");
    page.sample(&[], tally.overflowed);
    page.family("firkin_traces_forgotten_total", "counter", "Traces that made room for newer ones.");
    page.sample(&[], tally.forgotten);
    page.family("firkin_streams", "gauge", "Streams for browsers, ended ones that can be read included.");
    page.sample(&[], usage.streams);
    page.family("firkin_stream_connections", "gauge", "Connections that follow them.");
    page.sample(&[], usage.connections);
    page.text
}

/// A page of Prometheus' text format, version 0.0.4.
#[derive(Debug, Default)]
struct Page {
    text: String,
    family: &'static str,
}

// === impl Page ===

impl Page {
    /// Begins a family; what follows are its samples.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.line("", labels, value);
    }

    /// How full the host is.
    fn occupancy(&mut self, occupancy: &Occupancy) {
        let Occupancy { capacity, active, warm, .. } = occupancy;
        let help = "What sandboxes may have together; a resource without a bound is left out.";
        self.family("firkin_capacity", "gauge", help);
        let bounds =
            [("sandboxes", capacity.sandboxes), ("cpus", capacity.cpus), ("memory_bytes", capacity.memory)];
        for (resource, bound) in bounds {
            if let Some(bound) = bound {
                self.sample(&[("resource", resource)], bound);
            }
        }
        self.family("firkin_reserved", "gauge", "What of it is charged, by whom.");
        for (holder, share) in [("sandboxes", active), ("warm", warm)] {
            for (resource, held) in
                [("sandboxes", share.sandboxes), ("cpus", share.cpus), ("memory_bytes", share.memory)]
            {
                self.sample(&[("holder", holder), ("resource", resource)], held);
            }
        }
        self.family("firkin_queue", "gauge", "Creates and resumes that wait for room.");
        self.sample(&[], occupancy.waiting);
        self.family("firkin_queued_total", "counter", "Creates and resumes that had to wait for room.");
        self.sample(&[], occupancy.waited);
        self.family("firkin_refused_total", "counter", "Creates and resumes without room, by reason.");
        for (reason, count) in [
            ("oversized", occupancy.oversized),
            ("queue_full", occupancy.queue_full),
            ("deadline", occupancy.impatient),
        ] {
            self.sample(&[("reason", reason)], count);
        }
    }

    /// The pool of warm machines. Its templates are the configuration's: few.
    fn warm(&mut self, warm: &WarmState) {
        self.family("firkin_warm_machines", "gauge", "Warm machines that are ready, by template.");
        for (template, ready, _) in &warm.templates {
            self.sample(&[("template", template)], ready);
        }
        self.family("firkin_warm_depth", "gauge", "How many there shall be.");
        for (template, _, depth) in &warm.templates {
            self.sample(&[("template", template)], depth);
        }
        let help = "Creates of templates that are kept warm: a machine was ready, none was, or it was dead.";
        self.family("firkin_warm_checkouts_total", "counter", help);
        for (outcome, count) in [("hit", warm.hits), ("miss", warm.misses), ("dead", warm.dead)] {
            self.sample(&[("outcome", outcome)], count);
        }
        self.family("firkin_warm_ended_total", "counter", "Warm machines that no create took, by reason.");
        for (reason, count) in [("evicted", warm.evicted), ("expired", warm.expired), ("failed", warm.failed)]
        {
            self.sample(&[("reason", reason)], count);
        }
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        let mut total = 0;
        for (count, bound) in histogram.counts.iter().zip(BUCKETS_S) {
            total += count;
            self.line("_bucket", &[("name", name), ("le", &bound.to_string())], total);
        }
        self.line("_bucket", &[("name", name), ("le", "+Inf")], histogram.total());
        self.line("_sum", &[("name", name)], histogram.sum_s);
        self.line("_count", &[("name", name)], histogram.total());
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.family);
    }
}
