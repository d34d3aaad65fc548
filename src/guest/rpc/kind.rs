//! Content types of the other kind of call: a unary call's for a stream and the other way round.
//!
//! The RPC library answers them as if the method or the message were wrong. connect-go's handlers
//! know one kind each and refuse the rest with 415 (contract/sandbox 2.3).

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderName, Method, StatusCode, header::CONTENT_TYPE};

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const STREAMS: [&str; 4] = [
    "/process.Process/Start",
    "/process.Process/Connect",
    "/process.Process/StreamInput",
    "/filesystem.Filesystem/WatchDir",
];
const OF_STREAMS: &str = "application/connect+json, application/connect+proto, application/grpc, \
     application/grpc+json, application/grpc+proto, application/grpc-web, application/grpc-web+json, \
     application/grpc-web+proto";
const OF_CALLS: &str = "application/grpc, application/grpc+json, application/grpc+proto, \
     application/grpc-web, application/grpc-web+json, application/grpc-web+proto, application/json, \
     application/proto";

/// Refuses them; what is of neither kind the library refuses itself.
pub(crate) async fn of_its_kind(request: Request, next: Next) -> Response {
    let wanted = STREAMS.contains(&request.uri().path());
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if request.method() == Method::POST && is_stream(kind).is_some_and(|stream| stream != wanted) {
        let accepted = if wanted { OF_STREAMS } else { OF_CALLS };
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, [(ACCEPT_POST, accepted)]).into_response();
    }
    next.run(request).await
}

/// Whether Connect has this type for streams, or for calls; none: it is not Connect's.
fn is_stream(kind: &str) -> Option<bool> {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/connect+json" | "application/connect+proto" => Some(true),
        "application/json" | "application/proto" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_types_are_of_one_kind_each() {
        assert_eq!(is_stream("application/connect+json"), Some(true));
        assert_eq!(is_stream("Application/JSON; charset=utf-8"), Some(false));
        for other in ["", "application/grpc", "text/plain", "application/connect+xml"] {
            assert_eq!(is_stream(other), None, "{other}");
        }
    }
}
