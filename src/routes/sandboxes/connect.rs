//! Coming back to a sandbox: `POST /sandboxes/{sandboxID}/connect`, v1 and v2.

use std::time::Duration;

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    SandboxView,
    request::{Api, checked_timeout, within_max},
    timeout::not_negative,
};
use crate::{
    routes::{
        auth::Actor,
        extract::{JsonBody, MaybeBody, SandboxPath},
        reply::{self, ApiError, ErrorBody},
        state::AppState,
    },
    runtime::registry::Connected,
    store::Team,
};

/// How long it shall live at least; v1 requires it.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ConnectV1 {
    /// Seconds from now.
    #[schema(minimum = 0)]
    timeout: i32,
    /// False: start a paused sandbox from its disk alone.
    memory: Option<bool>,
}

/// How long it shall live at least.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ConnectV2 {
    /// Seconds from now; 300 when absent.
    #[schema(minimum = 1)]
    timeout: Option<i32>,
    /// False: start a paused sandbox from its disk alone.
    memory: Option<bool>,
}

/// Extends a running sandbox (200) or resumes a paused one (201). For SDKs up to 2.50.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = ConnectV1,
    responses((status = 200, body = SandboxView), (status = 201, body = SandboxView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn connect_v1(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    JsonBody(body): JsonBody<ConnectV1>,
) -> Result<Response, ApiError> {
    let seconds = within_max(not_negative(body.timeout)?, state.settings.max_timeout)?;
    connect(&state, &team, &path, seconds, body.memory).await
}

/// Extends a running sandbox (200) or resumes a paused one (201).
#[utoipa::path(
    post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = Option<ConnectV2>,
    responses((status = 200, body = SandboxView), (status = 201, body = SandboxView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn connect_v2(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    MaybeBody(body): MaybeBody<ConnectV2>,
) -> Result<Response, ApiError> {
    let timeout = body.timeout.unwrap_or(Api::V2.default_timeout_s());
    let seconds = checked_timeout(timeout, state.settings.max_timeout)?;
    connect(&state, &team, &path, seconds, body.memory).await
}

async fn connect(
    state: &AppState,
    team: &Team,
    path: &SandboxPath,
    seconds: u64,
    memory: Option<bool>,
) -> Result<Response, ApiError> {
    let id = path.id()?;
    let length = Duration::from_secs(seconds);
    let (sandbox, connected) = match memory {
        Some(false) => state.registry.reboot(team.id, id, length).await?,
        _ => state.registry.connect(team.id, id, length).await?,
    };
    let status = match connected {
        Connected::Running => StatusCode::OK,
        Connected::Resumed => StatusCode::CREATED,
    };
    Ok(reply::json(status, SandboxView::of(sandbox, state)))
}
