//! Who calls: the team behind `X-API-Key`, with the exact refusals of contract/control-plane 1.3.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{HeaderMap, StatusCode, header, request::Parts};

use crate::{
    routes::{keyring::KeyRefused, reply::ApiError, state::AppState},
    store::{Standing, Team},
};

const INVALID_KEY: &str =
    "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n";

/// The calling team, for requests that read or delete. Banned teams are refused.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Arc<Team>);

/// The calling team, for requests that change something. Blocked teams are refused too.
#[derive(Debug, Clone)]
pub(crate) struct Actor(pub(crate) Arc<Team>);

/// Who runs this server, by its admin token: in `X-Admin-Token`, or as a bearer token, which is what
/// Prometheus can send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operator;

// === impl Operator ===

impl FromRequestParts<AppState> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let bearer = || {
            let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
            value.strip_prefix("Bearer ")
        };
        let token = match parts.headers.get("x-admin-token") {
            Some(token) => token.to_str().ok(),
            None => bearer(),
        };
        match token {
            Some(token) if state.keys.is_admin(token) => Ok(Self),
            Some(_) => Err(ApiError::unauthorized(
                "Invalid admin token: it is in the file gateway/admin-token of the data directory",
            )),
            None => Err(ApiError::unauthorized("X-Admin-Token header is missing")),
        }
    }
}

// === impl Caller ===

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let team = authenticate(&parts.headers, state)?;
        if team.standing == Standing::Banned {
            return Err(banned());
        }
        Ok(Self(team))
    }
}

// === impl Actor ===

impl FromRequestParts<AppState> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        acting(authenticate(&parts.headers, state)?)
    }
}

/// The team as one that changes something, unless it may not.
pub(crate) fn acting(team: Arc<Team>) -> Result<Actor, ApiError> {
    match &team.standing {
        Standing::Banned => Err(banned()),
        Standing::Blocked(reason) => {
            Err(ApiError::new(StatusCode::FORBIDDEN, format!("team is blocked: {reason}")))
        }
        Standing::Good => Ok(Actor(team)),
    }
}

fn banned() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "team is banned")
}

fn authenticate(headers: &HeaderMap, state: &AppState) -> Result<Arc<Team>, ApiError> {
    if let Some(key) = headers.get("x-api-key") {
        // A value that is no text has no e2b_ prefix either.
        return state.keys.open(key.to_str().unwrap_or_default()).map_err(refusal);
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let bearer = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        return Err(ApiError::unauthorized(match bearer {
            Some(_) => "bearer tokens open nothing on this server: send an API key in X-API-Key",
            None => "authorization header is malformed",
        }));
    }
    if headers.contains_key("x-admin-token") {
        return Err(ApiError::unauthorized(
            "the admin token opens /metrics and /admin only: send an API key in X-API-Key",
        ));
    }
    Err(ApiError::unauthorized("authorization header is missing"))
}

fn refusal(refused: KeyRefused) -> ApiError {
    match refused {
        KeyRefused::Prefix => ApiError::unauthorized("authorization header is malformed"),
        KeyRefused::Format => ApiError::unauthorized(format!("{INVALID_KEY}Invalid API key format")),
        KeyRefused::Unknown => {
            ApiError::unauthorized(format!("{INVALID_KEY}Cannot get the team for the given API key"))
        }
    }
}
