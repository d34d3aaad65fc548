//! New sandboxes from the disk of a running one: `POST /sandboxes/{sandboxID}/fork`.

use axum::{extract::State, response::Response};
use futures_util::future::join_all;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    SandboxView,
    request::{Api, checked_timeout},
    snapshot::{FILESYSTEM, KIND, refuse_memory},
};
use crate::{
    failpoint::{self, Step},
    routes::{
        auth::Actor,
        extract::{MaybeBody, SandboxPath},
        reply::{self, ApiError, ErrorBody},
        state::AppState,
    },
    sandbox::SandboxSpec,
};

/// The most forks of one request.
const MOST: u32 = 100;

/// How many forks, and for how long.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct NewForks {
    /// Seconds until the forks' deadline; 15 when absent.
    #[schema(minimum = 1)]
    timeout: Option<i32>,
    /// From 1 to 100; 1 when absent.
    #[schema(minimum = 1, maximum = 100)]
    count: Option<u32>,
    /// True: memory too, which no engine here can keep.
    memory: Option<bool>,
}

/// What came of one fork: one of the two.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fork {
    /// It runs.
    Sandbox(Box<SandboxView>),
    /// It was not made.
    Error {
        /// As an HTTP status.
        code: u16,
        /// Why.
        message: String,
    },
}

/// Copies a running sandbox's disk once and makes sandboxes of it; the sandbox goes on.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/fork", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = Option<NewForks>,
    responses((status = 201, body = Vec<Fork>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn fork(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    MaybeBody(body): MaybeBody<NewForks>,
) -> Result<Response, ApiError> {
    refuse_memory(body.memory)?;
    let id = path.id()?;
    let count = body.count.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        let reason = if count < 1 {
            "Count must be at least 1".to_owned()
        } else {
            format!("Count cannot be greater than {MOST}")
        };
        return Err(ApiError::bad_request(reason));
    }
    let timeout = body.timeout.unwrap_or(Api::V1.default_timeout_s());
    let timeout_s = checked_timeout(timeout, state.settings.max_timeout)?;
    if state.registry.is_paused(team.id, id)? {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            format!("Sandbox '{id}' is paused and cannot be forked; resume it first"),
        ));
    }
    let _forking = state.registry.forking(id);
    let sealed = state.registry.seal(team.id, id).await?;
    failpoint::reach(Step::ImageMade);
    let spec = SandboxSpec { build: sealed.build, timeout_s, ..sealed.record.spec.clone() };
    let making = (0..count).map(|_| state.registry.create(spec.clone()));
    let forks: Vec<Fork> = join_all(making)
        .await
        .into_iter()
        .map(|made| match made {
            Ok(sandbox) => Fork::Sandbox(Box::new(SandboxView::of(sandbox, &state))),
            Err(error) => {
                let error = ApiError::from(error);
                Fork::Error { code: error.status().as_u16(), message: error.message().to_owned() }
            }
        })
        .collect();
    drop(sealed);
    failpoint::reach(Step::ForksMade);
    let mut response = reply::json(StatusCode::CREATED, forks);
    response.headers_mut().insert(KIND, FILESYSTEM);
    Ok(response)
}
