//! The older way back to a paused sandbox: `POST /sandboxes/{sandboxID}/resume`.

use std::time::Duration;

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    SandboxView,
    request::{Api, checked_timeout},
};
use crate::routes::{
    auth::Actor,
    extract::{MaybeBody, SandboxPath},
    reply::{self, ApiError, ErrorBody},
    state::AppState,
};

/// How long the resumed sandbox shall run.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resume {
    /// Seconds from now; 15 when absent.
    #[schema(minimum = 1)]
    timeout: Option<i32>,
    /// Accepted; what happens at the deadline was said when the sandbox was made.
    #[expect(dead_code, reason = "old clients send it")]
    auto_pause: Option<bool>,
}

/// Resumes a paused sandbox; one that runs already is a conflict. For old SDKs: `connect` does more.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/resume", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = Option<Resume>,
    responses((status = 201, body = SandboxView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn resume(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    MaybeBody(body): MaybeBody<Resume>,
) -> Result<Response, ApiError> {
    let timeout = body.timeout.unwrap_or(Api::V1.default_timeout_s());
    let length = Duration::from_secs(checked_timeout(timeout, state.settings.max_timeout)?);
    let sandbox = state.registry.resume(team.id, path.id()?, length).await?;
    Ok(reply::json(StatusCode::CREATED, SandboxView::of(sandbox, &state)))
}
