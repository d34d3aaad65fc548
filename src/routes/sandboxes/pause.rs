//! Putting a sandbox to rest: `POST /sandboxes/{sandboxID}/pause`.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::routes::{
    auth::Actor,
    extract::{MaybeBody, SandboxPath},
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// How it shall be paused. No body is the same as an empty one.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pause {
    /// False: keep the disk alone; the next run starts its processes anew. Default: true.
    memory: Option<bool>,
    /// True: only if the guest answers; else 503, and the sandbox goes on. Default: false.
    require_healthy_guest: Option<bool>,
}

/// Pauses a sandbox: its processes stand still, or only its disk is kept.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/pause", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = Option<Pause>,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn pause(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    MaybeBody(body): MaybeBody<Pause>,
) -> Result<StatusCode, ApiError> {
    let memory = body.memory.unwrap_or(true);
    let healthy = body.require_healthy_guest.unwrap_or(false);
    state.registry.pause(team.id, path.id()?, memory, healthy).await?;
    Ok(StatusCode::NO_CONTENT)
}
