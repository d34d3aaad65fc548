//! Moving the deadline either way: `POST /sandboxes/{sandboxID}/timeout`.

use std::time::Duration;

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::routes::{
    auth::Actor,
    extract::{JsonBody, SandboxPath},
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// When the sandbox shall end.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NewTimeout {
    /// Seconds from now; 0 ends it now, more than the maximum is clamped to it.
    #[schema(minimum = 0)]
    timeout: i32,
}

/// Sets the deadline to now + `timeout`, earlier or later than it was.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/timeout", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = NewTimeout,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn timeout(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    JsonBody(body): JsonBody<NewTimeout>,
) -> Result<StatusCode, ApiError> {
    let seconds = not_negative(body.timeout)?;
    state.registry.set_timeout(team.id, path.id()?, Duration::from_secs(seconds)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A `timeout` that the schema lets through.
pub(crate) fn not_negative(timeout: i32) -> Result<u64, ApiError> {
    u64::try_from(timeout)
        .map_err(|_| ApiError::validation("request body: field \"timeout\": number must be at least 0"))
}
