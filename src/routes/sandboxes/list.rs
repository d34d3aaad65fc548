//! Lists of sandboxes: `GET /sandboxes` (running ones, all) and `GET /v2/sandboxes` (by filter,
//! in pages).

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::ListedSandbox;
use crate::{
    id::TemplateId,
    routes::{
        auth::Caller,
        extract::{BadEscape, Query, unescape},
        page::{self, Page},
        reply::{ApiError, ErrorBody},
        state::AppState,
        templates::reference::TemplateRef,
    },
    sandbox::{SandboxRecord, SandboxState},
    store::{SandboxFilter, Team},
};

const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");

/// Lists the running sandboxes, newest first.
#[utoipa::path(
    get, path = "/sandboxes", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("metadata" = Option<String>, Query, description = "`key=value&key=value`, each part escaped, and the whole escaped again")),
    responses((status = 200, body = Vec<ListedSandbox>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_v1(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Json<Vec<ListedSandbox>>, ApiError> {
    let filter = SandboxFilter {
        team: Some(team.id),
        states: vec![SandboxState::Running],
        metadata: metadata(&query)?,
        ..SandboxFilter::default()
    };
    let records = state.store.sandboxes(filter).await?;
    Ok(Json(views(&state, records)))
}

/// Lists running and paused sandboxes, in pages.
#[utoipa::path(
    get, path = "/v2/sandboxes", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(
        ("metadata" = Option<String>, Query, description = "`key=value&key=value`, each part escaped, and the whole escaped again"),
        ("state" = Option<String>, Query, description = "`running`, `paused` or both with a comma; both when absent"),
        ("order" = Option<String>, Query, description = "`asc` or `desc` by start; `desc` when absent"),
        ("startedAfter" = Option<String>, Query, description = "RFC 3339, inclusive"),
        ("template" = Option<String>, Query, description = "an id, `alias` or `team/alias`"),
        ("limit" = Option<i32>, Query, description = "1 to 100; 100 when absent"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before")
    ),
    responses((status = 200, body = Vec<ListedSandbox>, headers(("X-Next-Token" = String), ("X-Total-Running" = i64))), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_v2(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let page = Page::read(&query)?;
    let filter = filter(&state, &team, &query)?;
    let running = filter.states.contains(&SandboxState::Running);
    let (mut records, mut next, mut total) = (Vec::new(), None, 0);
    if let Some(filter) = of_template(&state, &team, &query, filter).await? {
        if running {
            total = state.store.count_sandboxes(running_only(filter.clone())).await?;
        }
        records = state.store.sandboxes(page.bound(filter)).await?;
        next = page.cut(&mut records);
    }
    let mut response = Json(views(&state, records)).into_response();
    if let Some(token) = next {
        response.headers_mut().insert(page::NEXT_TOKEN, token);
    }
    if running {
        response.headers_mut().insert(TOTAL_RUNNING, HeaderValue::from(total));
    }
    Ok(response)
}

fn views(state: &AppState, records: Vec<SandboxRecord>) -> Vec<ListedSandbox> {
    records.into_iter().map(|record| ListedSandbox::of(record, &*state.clock)).collect()
}

/// What the query asks for, but for the template.
fn filter(state: &AppState, team: &Team, query: &Query) -> Result<SandboxFilter, ApiError> {
    let started_after = match query.get("startedAfter") {
        None => None,
        Some(text) => {
            let shown = text.parse::<Timestamp>().map_err(|_| {
                ApiError::validation("parameter \"startedAfter\" in query: want an RFC 3339 date-time")
            })?;
            Some(state.clock.steadied(shown))
        }
    };
    Ok(SandboxFilter {
        team: Some(team.id),
        states: states(query)?,
        metadata: metadata(query)?,
        started_after,
        ..SandboxFilter::default()
    })
}

/// The filter with the template that the query names; none when there is no such template.
async fn of_template(
    state: &AppState,
    team: &Team,
    query: &Query,
    filter: SandboxFilter,
) -> Result<Option<SandboxFilter>, ApiError> {
    let Some(text) = query.get("template") else { return Ok(Some(filter)) };
    let found = template(state, team, text).await?;
    Ok(found.map(|template| SandboxFilter { template: Some(template), ..filter }))
}

fn running_only(filter: SandboxFilter) -> SandboxFilter {
    SandboxFilter { states: vec![SandboxState::Running], ..filter }
}

fn states(query: &Query) -> Result<Vec<SandboxState>, ApiError> {
    let items = query.items("state");
    if items.is_empty() {
        return Ok(vec![SandboxState::Running, SandboxState::Paused]);
    }
    let state = |item: &str| match item {
        "running" => Ok(SandboxState::Running),
        "paused" => Ok(SandboxState::Paused),
        _ => Err(ApiError::validation("parameter \"state\" in query: value is not one of running, paused")),
    };
    items.into_iter().map(state).collect()
}

async fn template(state: &AppState, team: &Team, text: &str) -> Result<Option<TemplateId>, ApiError> {
    let reference: TemplateRef = text.parse()?;
    if reference.has_tag() {
        return Err(ApiError::bad_request("Invalid template reference: a filter takes no tag"));
    }
    Ok(reference.find(&*state.store, team).await?.map(|template| template.id))
}

/// Pairs that must all match. The whole is escaped over its escaped parts (contract/control-plane 2.2).
fn metadata(query: &Query) -> Result<Vec<(String, String)>, ApiError> {
    let Some(text) = query.get("metadata") else { return Ok(Vec::new()) };
    let malformed =
        |_: BadEscape| ApiError::bad_request("Invalid metadata filter: want key=value&key=value, escaped");
    let pairs = unescape(text).map_err(malformed)?;
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !value.contains('=') => Ok((unescape(key)?, unescape(value)?)),
        _ => Err(BadEscape),
    };
    pairs.split('&').map(pair).collect::<Result<_, _>>().map_err(malformed)
}
