//! envd's error body: `{"code":404,"message":"..."}` and a line feed, escaped in Go's way.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

/// A refusal or failure, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The HTTP status, also the body's `code`.
    pub(crate) status: StatusCode,
    /// For the client.
    pub(crate) message: String,
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The sandbox's checkout is not what it shall be.
    pub(crate) fn gated(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, message)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let message = serde_json::Value::String(self.message).to_string();
        let message = message.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
        let body = format!("{{\"code\":{},\"message\":{message}}}\n", self.status.as_u16());
        let headers = [
            (header::CONTENT_TYPE, "application/json; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (self.status, headers, body).into_response()
    }
}
