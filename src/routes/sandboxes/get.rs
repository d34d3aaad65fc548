//! One sandbox: `GET /sandboxes/{sandboxID}`.

use axum::{Json, extract::State};

use super::SandboxDetail;
use crate::routes::{
    auth::Caller,
    extract::SandboxPath,
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// Shows a running or paused sandbox.
#[utoipa::path(
    get, path = "/sandboxes/{sandboxID}", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)),
    responses((status = 200, body = SandboxDetail), (status = "default", body = ErrorBody))
)]
pub(crate) async fn get(
    State(state): State<AppState>,
    Caller(team): Caller,
    path: SandboxPath,
) -> Result<Json<SandboxDetail>, ApiError> {
    let sandbox = state.registry.get(team.id, path.id()?).await?;
    Ok(Json(SandboxDetail::of(sandbox, &state)))
}
