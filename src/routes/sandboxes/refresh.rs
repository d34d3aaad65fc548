//! Keeping a sandbox alive, as old clients do: `POST /sandboxes/{sandboxID}/refreshes`.

use std::time::Duration;

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

const SHORTEST_S: u64 = 15;
const LONGEST_S: u64 = 3600;

/// How much longer it shall live.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Refresh {
    /// Seconds from now, up to an hour; 15 when absent or less.
    #[schema(minimum = 0, maximum = 3600)]
    duration: Option<i32>,
}

/// Moves the deadline to now + `duration` if that is later.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/refreshes", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = Option<Refresh>,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn refresh(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    MaybeBody(body): MaybeBody<Refresh>,
) -> Result<StatusCode, ApiError> {
    let duration = match u64::try_from(body.duration.unwrap_or(0)) {
        Ok(seconds) if seconds <= LONGEST_S => Duration::from_secs(seconds.max(SHORTEST_S)),
        _ => {
            return Err(ApiError::validation(
                "request body: field \"duration\": number must be at least 0 and at most 3600",
            ));
        }
    };
    state.registry.extend(team.id, path.id()?, duration).await?;
    Ok(StatusCode::NO_CONTENT)
}
