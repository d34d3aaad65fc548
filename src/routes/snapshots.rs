//! The team's snapshots, newest first: `GET /snapshots`.

use axum::response::IntoResponse as _;
use axum::{Json, extract::State, response::Response};
use http::HeaderValue;
use jiff::Timestamp;

use crate::{
    id::BuildId,
    routes::{
        auth::Caller,
        extract::{Query, SandboxPath},
        page::{self, NEXT_TOKEN},
        reply::{ApiError, ErrorBody},
        sandboxes::snapshot::SnapshotView,
        state::AppState,
        templates::reference::TemplateRef,
    },
    store::SnapshotFilter,
};

/// Lists snapshots, by the sandbox they were made of or by their name.
#[utoipa::path(
    get, path = "/snapshots", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(
        ("sandboxID" = Option<String>, Query, description = "only those made of this sandbox"),
        ("name" = Option<String>, Query, description = "id or name, perhaps with `:tag`; without: the newest of any tag"),
        ("limit" = Option<u32>, Query, description = "1 to 100; 100 when absent"),
        ("nextToken" = Option<String>, Query, description = "where the page before ended"),
    ),
    responses((status = 200, body = Vec<SnapshotView>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let limit = page::limit(&query)?;
    let after: Option<(Timestamp, BuildId)> = match query.get("nextToken") {
        None => None,
        Some(token) => {
            Some(page::decode(token, false).ok_or_else(|| ApiError::bad_request("Invalid next token"))?)
        }
    };
    let none = || Json(Vec::<SnapshotView>::new()).into_response();
    let sandbox = match query.get("sandboxID") {
        None => None,
        Some(text) => match SandboxPath::read(text)?.id() {
            Ok(id) => Some(id),
            Err(_) => return Ok(none()),
        },
    };
    let mut filter =
        SnapshotFilter { team: team.id, sandbox, template: None, tag: None, after, limit: limit + 1 };
    let mut newest = false;
    if let Some(text) = query.get("name") {
        let name = TemplateRef::of_team(text, &team)?;
        let Some(template) = name.find(&*state.store, &team).await? else { return Ok(none()) };
        filter.template = Some(template.id);
        filter.tag = name.given_tag().map(str::to_owned);
        newest = filter.tag.is_none();
    }
    let mut found = state.store.snapshots(filter).await?;
    if newest {
        found.truncate(1);
    }
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > size;
    found.truncate(size);
    let token = found.last().filter(|_| more).and_then(|last| {
        HeaderValue::try_from(page::encode(last.build.created_at, last.build.id, false)).ok()
    });
    let views: Vec<SnapshotView> = found.iter().map(|snapshot| SnapshotView::of(snapshot, &team)).collect();
    let mut response = Json(views).into_response();
    if let Some(token) = token {
        response.headers_mut().insert(NEXT_TOKEN, token);
    }
    Ok(response)
}
