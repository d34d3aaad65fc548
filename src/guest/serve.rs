//! The HTTP side of envd: who may ask, who asks, and where a request goes.
//!
//! The order is the contract's (sandbox 5.1): CORS, then identity (503 before the first Init),
//! access token, Basic user, route. CORS is outermost so that a preflight needs no token.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post_service},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{ConnectError, ConnectRpcService, Limits};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use subtle::ConstantTimeEq as _;

use crate::guest::{
    filesystem::FilesystemService,
    metrics,
    process::Processes,
    rpc::{self, ProcessService},
    state::{BasicUser, Guest, invalid_username},
    transfer::{self, Problem},
};

mod cors;
mod leftover;

/// The largest RPC message: input is sent in one piece.
const MAX_MESSAGE: usize = 64 << 20;
/// Every RPC. Others are no routes, as with envd's own handlers, and not errors of the RPC library.
const METHODS: [&str; 17] = [
    "process.Process/List",
    "process.Process/Connect",
    "process.Process/Start",
    "process.Process/Update",
    "process.Process/StreamInput",
    "process.Process/SendInput",
    "process.Process/SendSignal",
    "process.Process/CloseStdin",
    "filesystem.Filesystem/Stat",
    "filesystem.Filesystem/MakeDir",
    "filesystem.Filesystem/Move",
    "filesystem.Filesystem/ListDir",
    "filesystem.Filesystem/Remove",
    "filesystem.Filesystem/WatchDir",
    "filesystem.Filesystem/CreateWatcher",
    "filesystem.Filesystem/GetWatcherEvents",
    "filesystem.Filesystem/RemoveWatcher",
];
const ACCESS_TOKEN: &str = "x-access-token";
const DENIED: &str =
    "unauthorized access, please provide a valid access token or method signing if supported";

/// All of envd on one router.
pub(crate) fn router(guest: Guest, processes: Processes) -> Router {
    routes(&guest, processes)
        .layer(middleware::from_fn_with_state(guest.clone(), admit))
        .layer(middleware::from_fn(leftover::read_out))
        .layer(middleware::from_fn(cors::allow))
        .with_state(guest)
}

fn routes(guest: &Guest, processes: Processes) -> Router<Guest> {
    let limits = Limits::default().with_max_request_body_size(MAX_MESSAGE).with_max_message_size(MAX_MESSAGE);
    let services = connectrpc::Router::new()
        .add_service(Arc::new(ProcessService::new(guest.clone(), processes)))
        .add_service(Arc::new(FilesystemService::new(guest.clone())));
    let services = ConnectRpcService::new(services).with_limits(limits);
    let rpcs = METHODS.iter().fold(Router::new(), |router, method| {
        router.route(&format!("/{method}"), post_service(services.clone()))
    });
    rpcs.layer(middleware::from_fn(rpc::moderate))
        .layer(middleware::from_fn(rpc::of_its_kind))
        .route("/health", read_only(health))
        .route("/envs", read_only(envs))
        .merge(metrics::routes(guest))
        .merge(transfer::routes())
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
}

async fn health() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response()
}

async fn envs(State(guest): State<Guest>) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(guest.envs())).into_response()
}

/// Identity, token, user; then the route.
async fn admit(State(guest): State<Guest>, mut request: Request, next: Next) -> Response {
    let Some(identity) = guest.identity() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the sandbox is not initialized yet");
    };
    if let Some(token) = &identity.access_token
        && !exempt(request.method(), request.uri().path())
    {
        let given = request.headers().get(ACCESS_TOKEN).map_or(&[][..], HeaderValue::as_bytes);
        if !bool::from(given.ct_eq(token.as_bytes())) {
            return problem(StatusCode::UNAUTHORIZED, DENIED);
        }
    }
    if let Some(name) = basic_user(request.headers()) {
        match guest.users().by_name(&name) {
            Some(user) => {
                request.extensions_mut().insert(BasicUser(user));
            }
            None => return rpc_error(request.headers(), &invalid_username(&name)),
        }
    }
    next.run(request).await
}

/// What needs no token; `/files` checks token and signature itself.
fn exempt(method: &Method, path: &str) -> bool {
    matches!((method.as_str(), path), ("GET", "/health") | ("GET" | "POST", "/files"))
}

/// The name in a Basic header; the password is of no interest. What is no Basic header names nobody.
fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, coded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(coded).ok()?).ok()?;
    Some(decoded.split_once(':')?.0.to_owned())
}

/// A Connect error outside the RPC library, in the form that the request's kind wants: a stream's
/// error travels in its end frame under HTTP 200 (contract/sandbox 2.3).
pub(crate) fn rpc_error(headers: &HeaderMap, error: &ConnectError) -> Response {
    let status = error.http_status();
    let error = error.to_json();
    let kind =
        headers.get(header::CONTENT_TYPE).filter(|kind| kind.as_bytes().starts_with(b"application/connect+"));
    let Some(kind) = kind else {
        return (status, [(header::CONTENT_TYPE, "application/json")], error).into_response();
    };
    let body = [br#"{"error":"#.as_slice(), &error, b"}"].concat();
    let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
    let frame = [&[2_u8][..], &length, &body].concat();
    ([(header::CONTENT_TYPE, kind.clone())], Body::from(frame)).into_response()
}

/// An error in envd's own form: an integer code, not Connect's word.
pub(crate) fn problem(status: StatusCode, message: &str) -> Response {
    Problem::new(status, message).into_response()
}

/// A route that reads: envd refuses HEAD, which axum would answer with GET's handler.
pub(crate) fn read_only<H, T>(handler: H) -> MethodRouter<Guest>
where
    H: Handler<T, Guest>,
    T: 'static,
{
    get(handler).head(|| async { (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")]) })
}
