//! The one place where errors become answers: E2B's `{"code", "message", "error_code"?}`.
//!
//! External and internal text differ: what went wrong inside is logged here, once, and the caller
//! gets a sentence to act on (contract/control-plane 1.4).

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    runtime::{
        engine::EngineError,
        registry::{LifeError, Refused},
    },
    store::StoreError,
};

const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    /// Seconds after which a repeat is useful; absent where it is not.
    retry_after: Option<u32>,
    /// True: the SDKs must not repeat the request by themselves.
    never_retry: bool,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody {
    /// The HTTP status again; SDKs read this one.
    code: u16,
    /// What is wrong, for people.
    message: String,
    /// What is wrong, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
}

// === impl ApiError ===

impl ApiError {
    /// An error of this status and text.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None, retry_after: None, never_retry: false }
    }

    /// 400 with this text.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: the request does not fit its schema.
    pub fn validation(detail: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("validation error: {detail}"))
    }

    /// 401 with this text.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 404 with this text.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 404: no sandbox of this id is the caller's (contract/control-plane 2).
    pub fn no_sandbox(id: impl std::fmt::Display) -> Self {
        Self::not_found(format!("Sandbox \"{id}\" doesn't exist or you don't have access to it"))
    }

    /// 501: known, but not built.
    pub fn unbuilt(feature: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{feature} is not built yet in this version of firkin"),
        )
    }

    /// 500 without details: they are in the log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error, see the server's log")
            .code("internal_server_error")
    }

    /// 507: there is no room under the data directory; everything is as it was.
    pub fn disk_full() -> Self {
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "This server's disk is full; free space or delete snapshots, then try again",
        )
        .never_retry()
    }

    /// With a slug for programs.
    pub fn code(mut self, slug: &'static str) -> Self {
        self.error_code = Some(slug);
        self
    }

    /// With a time after which a repeat is useful.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// With the order not to repeat.
    pub fn never_retry(mut self) -> Self {
        self.never_retry = true;
        self
    }

    /// Whether it says after which time a repeat is useful.
    pub fn asks_to_come_back(&self) -> bool {
        self.retry_after.is_some()
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The JSON body.
    pub fn body(&self) -> String {
        let body = ErrorBody {
            code: self.status.as_u16(),
            message: self.message.clone(),
            error_code: self.error_code,
        };
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = stored(self.status, self.body());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.never_retry {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(name) => {
                Self::new(StatusCode::CONFLICT, format!("'{name}' is already used"))
            }
            StoreError::Missing => Self::not_found("not found"),
            StoreError::InUse => Self::bad_request("sandboxes use it; end them first"),
            StoreError::Full => Self::disk_full(),
            error => {
                tracing::error!(%error, "the store failed a request");
                Self::internal()
            }
        }
    }
}

impl From<LifeError> for ApiError {
    fn from(error: LifeError) -> Self {
        match error {
            LifeError::NotFound(id) => Self::no_sandbox(id),
            LifeError::Transitioning(id) => {
                Self::new(StatusCode::CONFLICT, format!("Sandbox \"{id}\" is changing its state, try again"))
            }
            LifeError::Nonsense(reason) => Self::bad_request(reason),
            LifeError::MaxLength => Self::bad_request("Max instance length exceeded"),
            LifeError::Paused(id) => {
                Self::new(StatusCode::CONFLICT, format!("Sandbox \"{id}\" is already paused"))
            }
            LifeError::Running(id) => {
                Self::new(StatusCode::CONFLICT, format!("Sandbox \"{id}\" is already running"))
            }
            LifeError::Unresponsive => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The sandbox was not paused: its guest does not answer. It goes on running.",
            )
            .never_retry(),
            LifeError::Unresumable(reason) => {
                tracing::warn!(reason, "a paused sandbox was not resumed");
                Self::new(
                    StatusCode::CONFLICT,
                    "The guest of the paused sandbox does not answer; resume it without its memory",
                )
                .code("sandbox_snapshot_guest_agent_unresponsive")
            }
            LifeError::Pause(reason) => {
                tracing::error!(reason, "a sandbox was not paused");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "The sandbox was not paused and goes on running, see the server's log",
                )
            }
            LifeError::NoRoom(refused) => refused.into(),
            LifeError::Engine(error) => error.into(),
            LifeError::Store(error) => error.into(),
            LifeError::Guest(reason) => {
                tracing::error!(reason, "the guest of a new sandbox did not become ready");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Failed to create sandbox: it started, but did not become ready",
                )
                .code("sandbox_create_failed")
            }
            LifeError::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").retry_after(5)
            }
            #[expect(unreachable_patterns, reason = "the enum may grow")]
            error => {
                tracing::error!(%error, "a sandbox failed a request");
                Self::internal()
            }
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = format!("Failed to place sandbox: {refused}");
        match refused {
            // Who comes back soon may find a place in the queue.
            Refused::QueueFull(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("sandbox_queue_full").retry_after(2)
            }
            Refused::Impatient { .. } | Refused::DiskUnknown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
                    .code("sandbox_capacity_unavailable")
                    .retry_after(5)
            }
            Refused::Disk { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, message)
                .code("sandbox_capacity_unavailable")
                .never_retry(),
            Refused::Oversized(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
                .code("sandbox_no_compatible_node")
                .never_retry(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Capacity(reason) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Failed to place sandbox: no capacity: {reason}"),
            )
            .code("sandbox_capacity_unavailable")
            .retry_after(1),
            EngineError::DiskFull => Self::disk_full(),
            error @ EngineError::Unsupported { .. } => {
                Self::new(StatusCode::NOT_IMPLEMENTED, error.to_string())
            }
            error => {
                tracing::error!(%error, "the engine failed a request");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Failed to create sandbox: the engine could not do it, see the server's log",
                )
                .code("sandbox_create_failed")
            }
        }
    }
}

/// A success with a JSON body.
pub(crate) fn json<T: Serialize>(status: StatusCode, body: T) -> Response {
    (status, Json(body)).into_response()
}

/// An answer whose JSON is text already.
pub(crate) fn stored(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_host_asks_to_come_back() {
        let full = ApiError::from(LifeError::Engine(EngineError::Capacity("no free slot".to_owned())));
        assert_eq!(full.error_code, Some("sandbox_capacity_unavailable"));
        assert!(full.message.starts_with("Failed to place sandbox"));
        let response = full.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }

    #[test]
    fn inner_texts_stay_inside() {
        let broken = EngineError::Host { step: "mount", reason: "/data/secret".to_owned() };
        for error in [
            ApiError::from(LifeError::Engine(broken)),
            ApiError::from(LifeError::Guest("/data/secret".to_owned())),
            ApiError::from(StoreError::Backend("/data/secret".to_owned())),
        ] {
            assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!error.body().contains("secret"), "{error:?}");
            assert!(error.error_code.is_some());
        }
    }
}
