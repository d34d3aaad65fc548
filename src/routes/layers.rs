//! What surrounds every route of the control plane: CORS and the deadline, and the answers for
//! requests that no route takes.

use std::time::Duration;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderName, Method, StatusCode, header};
use tower_http::cors::{Any, CorsLayer};

use crate::routes::reply::ApiError;

/// How long a handler may take (contract/control-plane 1.1); the SDKs give up after 60 s.
pub(crate) const DEADLINE: Duration = Duration::from_secs(70);

/// Any origin, without credentials. The SDKs in browsers send all of these headers.
pub(crate) fn cors() -> CorsLayer {
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::HEAD,
            Method::OPTIONS,
        ])
        .allow_headers([
            header::ORIGIN,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::USER_AGENT,
            header::AUTHORIZATION,
            name("x-api-key"),
            name("x-team-id"),
            name("browser"),
            name("lang"),
            name("lang_version"),
            name("machine"),
            name("os"),
            name("package_version"),
            name("processor"),
            name("publisher"),
            name("release"),
            name("sdk_runtime"),
            name("system"),
            name("idempotency-key"),
        ])
        .expose_headers([
            name("x-next-token"),
            name("x-total-running"),
            name("ratelimit-limit"),
            name("ratelimit-remaining"),
            name("ratelimit-reset"),
            header::RETRY_AFTER,
        ])
}

/// Gives every handler its deadline. What a dropped handler began is finished or undone by its
/// owner (the sandbox's driver, the store's writer).
pub(crate) async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("the request was not done within {} seconds", DEADLINE.as_secs()),
        )
        .never_retry()
        .into_response(),
    }
}

/// No route has this path, or the route has other methods: no operation either, as E2B answers.
pub(crate) async fn unknown_route() -> ApiError {
    ApiError::not_found("validation error: no matching operation was found")
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware, routing::get};
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_hangs_is_answered_for() {
        let wait = |seconds| get(move || tokio::time::sleep(Duration::from_secs(seconds)));
        let router = Router::new()
            .route("/in-time", wait(69))
            .route("/late", wait(71))
            .layer(middleware::from_fn(deadline));
        let status = async |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            (response.status(), response.headers().get("should-retry").cloned())
        };
        assert_eq!(status("/in-time").await, (StatusCode::OK, None));
        let (late, retry) = status("/late").await;
        assert_eq!(late, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(retry.unwrap(), "false", "a create may still be under way");
    }
}
