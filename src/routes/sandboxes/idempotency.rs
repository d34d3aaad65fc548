//! `Idempotency-Key` on v2 create: a repeated request gets the answer of the first one.
//!
//! ```text
//!   (unknown) --begin: Mine--> running --finish--> answered --TTL--> (unknown)
//!       ^                        | | the gateway dies
//!       `-- "try again later" ---' v
//!                          outcome unknown --TTL--> (unknown)
//! ```
//! Errors are answers too, but for those that say when to try again: a repeat is what they ask for.
//! The holder's work runs in its own task: a caller that hangs up does not leave a key that is
//! "in progress" for ever (contract/control-plane 1.9).

use std::{future::Future, sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, response::Response};
use http::{StatusCode, request::Parts};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::request::NewSandbox;
use crate::{
    id::TeamId,
    routes::{
        reply::{self, ApiError},
        state::AppState,
    },
    store::{Idempotency, Store},
};

/// How long an answer is kept.
const TTL: Duration = Duration::from_hours(24);
const LONGEST: usize = 255;

/// The key of the request, if it has one.
#[derive(Debug)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

// === impl IdempotencyKey ===

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self(None)) };
        let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        match value.to_str() {
            Ok(key) if (1..=LONGEST).contains(&key.len()) && key.as_bytes().iter().all(fits) => {
                Ok(Self(Some(key.to_owned())))
            }
            _ => Err(ApiError::validation("header Idempotency-Key: want 1 to 255 characters of [a-z0-9-]")),
        }
    }
}

/// The same for requests that mean the same: taken of the parsed body, so unknown fields, order
/// and white space do not count.
pub(crate) fn fingerprint(body: &NewSandbox) -> Result<String, ApiError> {
    let text = serde_json::to_vec(body).map_err(|_| ApiError::internal())?;
    Ok(hex::encode(Sha256::digest(text)))
}

/// Runs the work if this request is the first of its key; else says what became of the first.
pub(crate) async fn once(
    store: Arc<dyn Store>,
    team: TeamId,
    key: String,
    fingerprint: String,
    now: Timestamp,
    work: impl Future<Output = Result<(StatusCode, String), ApiError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let begun = store.begin_idempotent(team, &key, &fingerprint, now, TTL).await.map_err(|error| {
        tracing::error!(%error, "an idempotency key could not be taken");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the idempotency store is not available")
            .retry_after(1)
    })?;
    let conflict = |message: &str, code| Err(ApiError::new(StatusCode::CONFLICT, message).code(code));
    match begun {
        Idempotency::Mine => run(store, team, key, work).await,
        Idempotency::Answered { status, body } => {
            let status = StatusCode::from_u16(status).map_err(|_| ApiError::internal())?;
            Ok(reply::stored(status, body))
        }
        Idempotency::Mismatch => {
            conflict("this Idempotency-Key was used for another request", "idempotency_request_mismatch")
        }
        Idempotency::InProgress => {
            conflict("the request with this Idempotency-Key is still running", "idempotency_in_progress")
        }
        Idempotency::OutcomeUnknown => Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the server was restarted during the request with this Idempotency-Key: list the sandboxes to see what became of it",
        )
        .code("idempotency_outcome_unknown")),
    }
}

async fn run(
    store: Arc<dyn Store>,
    team: TeamId,
    key: String,
    work: impl Future<Output = Result<(StatusCode, String), ApiError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let keeper = tokio::spawn(async move {
        // A panic in the work must end the key's life as "running" too.
        let outcome = tokio::spawn(work).await.unwrap_or_else(|_| Err(ApiError::internal()));
        let kept = match &outcome {
            Ok((status, body)) => store.finish_idempotent(team, &key, status.as_u16(), body).await,
            Err(error) if error.asks_to_come_back() => store.release_idempotent(team, &key).await,
            Err(error) => store.finish_idempotent(team, &key, error.status().as_u16(), &error.body()).await,
        };
        if let Err(error) = kept {
            tracing::error!(%error, "the answer to an idempotency key was not kept");
        }
        outcome
    });
    let (status, body) = keeper.await.unwrap_or_else(|_| Err(ApiError::internal()))?;
    Ok(reply::stored(status, body))
}
