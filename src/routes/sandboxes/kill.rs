//! Ending a sandbox: `DELETE /sandboxes/{sandboxID}`.

use axum::extract::State;
use http::StatusCode;

use crate::routes::{
    auth::Caller,
    extract::SandboxPath,
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// Ends a sandbox, running or paused. Blocked teams may.
#[utoipa::path(
    delete, path = "/sandboxes/{sandboxID}", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn kill(
    State(state): State<AppState>,
    Caller(team): Caller,
    path: SandboxPath,
) -> Result<StatusCode, ApiError> {
    state.registry.kill(team.id, path.id()?).await?;
    Ok(StatusCode::NO_CONTENT)
}
