//! The gates of sandboxes, for whoever runs the server: `/admin/sandboxes/{sandboxID}/freshness`, or
//! on the admin socket without the prefix and the token.
//!
//! Not the owner's own route: the owner can change the files from inside anyway, and a gate is there
//! for those whose only way is the API.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    routes::{
        auth::Operator,
        extract::{JsonBody, SandboxPath},
        reply::ApiError,
        state::AppState,
    },
    sandbox::freshness::{Freshness, Verdict},
};

/// What has to be brought up to date before files are changed, and where that stands.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FreshnessView {
    /// `Restored`, `Syncing`, `Ready` or `Failed`.
    phase: String,
    /// The branch, without `refs/heads/`.
    branch: String,
    /// What it is set to.
    target: String,
    /// Where the guest does it; absent: somebody else does.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkout: Option<String>,
    /// Whether starting processes is refused too.
    gates_processes: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `GET /admin/sandboxes/{sandboxID}/freshness`.
pub(crate) async fn show(
    _: Operator,
    state: State<AppState>,
    path: SandboxPath,
) -> Result<Json<FreshnessView>, ApiError> {
    local_show(state, path).await
}

/// The same for whoever may use the admin socket.
pub(crate) async fn local_show(
    State(state): State<AppState>,
    path: SandboxPath,
) -> Result<Json<FreshnessView>, ApiError> {
    let gate = state.registry.freshness(path.id()?)?;
    let gate = gate.ok_or_else(|| ApiError::not_found("the sandbox has nothing to be synchronized"))?;
    Ok(Json(gate.into()))
}

/// `POST /admin/sandboxes/{sandboxID}/freshness`: complete, fail or run it.
pub(crate) async fn judge(
    _: Operator,
    state: State<AppState>,
    path: SandboxPath,
    body: JsonBody<Verdict>,
) -> Result<Json<FreshnessView>, ApiError> {
    local_judge(state, path, body).await
}

/// The same for whoever may use the admin socket.
pub(crate) async fn local_judge(
    State(state): State<AppState>,
    path: SandboxPath,
    JsonBody(verdict): JsonBody<Verdict>,
) -> Result<Json<FreshnessView>, ApiError> {
    Ok(Json(state.registry.judge(path.id()?, verdict).await?.into()))
}

// === impl FreshnessView ===

impl From<Freshness> for FreshnessView {
    fn from(gate: Freshness) -> Self {
        Self {
            phase: gate.phase.to_string(),
            branch: gate.branch,
            target: gate.target,
            checkout: gate.checkout,
            gates_processes: gate.gates_processes,
            reason: gate.reason,
        }
    }
}
