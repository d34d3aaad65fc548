//! The one place where errors become answers: JSON for programs, a page for people.
//!
//! Statuses, fields and texts: contract/sandbox 7. Every answer lets other origins read it, so
//! that a dashboard in a browser sees why; nothing in it is secret. For the same reason a preflight
//! that no sandbox can answer is answered here: the browser then asks, and is told the error.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::{TryFutureExt as _, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_TYPE, ORIGIN, USER_AGENT,
        VARY,
    },
};
use http_body::Body as _;
use serde::Serialize;
use tower::{Layer, Service};

use super::{
    error::{Cause, ProxyError},
    host::{Address, HostError},
    target::Inbound,
};
use crate::body::{self, Loan};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const VARIES: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
const BROWSERS: [&str; 7] = ["mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie"];

/// Puts the rescue in front of a stack.
#[derive(Debug, Clone, Copy)]
pub(super) struct RescueLayer;

/// Answers where the stack below it cannot.
#[derive(Debug, Clone)]
pub(super) struct Rescue<S> {
    inner: S,
}

/// A browser's question whether a page of another origin may ask: method and fields that it may use.
#[derive(Debug, Clone)]
struct Preflight {
    method: HeaderValue,
    fields: Option<HeaderValue>,
}

/// The body of a JSON answer; fields in the contract's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_limit: Option<u32>,
}

// === impl RescueLayer ===

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue { inner }
    }
}

// === impl Rescue ===

impl<S> Service<Inbound> for Rescue<S>
where
    S: Service<Inbound, Response = Response<Body>, Error = ProxyError>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Nothing in this stack is ever not ready: waiting happens in the calls.
        let _ = self.inner.poll_ready(cx);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let page = wants_page(inbound.request.headers());
        let preflight = Preflight::of(&inbound.request);
        let Inbound { address, request } = inbound;
        let (request, loan) = lend(request);
        let answer = self.inner.call(Inbound { address: address.clone(), request });
        Box::pin(answer.or_else(move |error| async move {
            log(&error, &address);
            if let Some(loan) = loan {
                loan.read_out().await;
            }
            Ok(match preflight {
                // What is reserved is so by any method.
                Some(preflight) if !matches!(error, ProxyError::Reserved { .. }) => preflight.answer(),
                _ if page => answer_page(&error, &address),
                _ => answer_program(&error, &address),
            })
        }))
    }
}

/// Lends the request's body, if it has one, so that an error's answer can read what is left of it.
fn lend(request: Request<Body>) -> (Request<Body>, Option<Loan<Body>>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let (head, body) = request.into_parts();
    let (lent, loan) = body::lend(body);
    (Request::from_parts(head, Body::new(lent)), Some(loan))
}

// === impl Preflight ===

impl Preflight {
    fn of<B>(request: &Request<B>) -> Option<Self> {
        let headers = request.headers();
        if request.method() != Method::OPTIONS || !headers.contains_key(ORIGIN) {
            return None;
        }
        let method = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.clone();
        Some(Self { method, fields: headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned() })
    }

    /// Yes to this one request. No word on how long: what answers next time may say otherwise.
    fn answer(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(VARY, VARIES);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.method);
        if let Some(fields) = self.fields {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, fields);
        }
        response
    }
}

/// The answer to a request whose host means nobody.
pub(super) fn nobody<B>(request: &Request<B>, error: HostError) -> Response<Body> {
    Preflight::of(request)
        .map_or_else(|| plain(StatusCode::BAD_REQUEST, error.to_string()), Preflight::answer)
}

/// An answer in plain text.
pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    respond(status, TEXT, text.into())
}

fn status(error: &ProxyError) -> StatusCode {
    match error {
        ProxyError::Host(_) | ProxyError::Mask => StatusCode::BAD_REQUEST,
        ProxyError::Reserved { .. } => StatusCode::NOT_FOUND,
        ProxyError::NotFound | ProxyError::PortClosed { .. } => StatusCode::BAD_GATEWAY,
        ProxyError::Transitioning => StatusCode::CONFLICT,
        ProxyError::TokenMissing | ProxyError::TokenInvalid | ProxyError::Denied => StatusCode::FORBIDDEN,
        ProxyError::TooManyConnections { .. } | ProxyError::Full => StatusCode::TOO_MANY_REQUESTS,
    }
}

fn answer_program(error: &ProxyError, address: &Address) -> Response<Body> {
    let status = status(error);
    if matches!(error, ProxyError::Host(_) | ProxyError::Mask) {
        return plain(status, error.to_string());
    }
    let problem = Problem {
        sandbox_id: (!matches!(error, ProxyError::Reserved { .. })).then_some(&address.id),
        message: error.to_string(),
        path: if let ProxyError::Reserved { path } = error { Some(path) } else { None },
        port: matches!(error, ProxyError::PortClosed { .. }).then_some(address.port),
        code: status.as_u16(),
        connection_limit: if let ProxyError::TooManyConnections { limit } = error {
            Some(*limit)
        } else {
            None
        },
    };
    respond(status, JSON, serde_json::to_string(&problem).unwrap_or_default())
}

fn answer_page(error: &ProxyError, address: &Address) -> Response<Body> {
    let status = status(error);
    let Some(title) = title(error) else { return answer_program(error, address) };
    // Id and port are `[a-z0-9]+` and a number, the message is our own: nothing needs escaping.
    let Address { id, port } = address;
    let more = match error {
        ProxyError::Reserved { .. } => String::new(),
        ProxyError::PortClosed { .. } => format!(
            "<p>The sandbox <code>{id}</code> is running but there's no service running on port {port}.</p>\n\
             <p>Connection refused on port {port}</p>\n"
        ),
        _ => format!("<p>Sandbox <code>{id}</code>, port <code>{port}</code>.</p>\n"),
    };
    let code = status.as_u16();
    // People's tools know pages by these words, and by their last ones: no newline.
    let page = format!(
        "<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body>\n\
         <h1>{title}</h1>\n<p>{error}</p>\n{more}<p>Status {code}.</p>\n</body>\n</html>"
    );
    respond(status, HTML, page)
}

/// What a page is called; none: there is no page of it.
fn title(error: &ProxyError) -> Option<&'static str> {
    match error {
        ProxyError::Host(_) | ProxyError::Mask => None,
        ProxyError::Reserved { .. } => Some("Not Found"),
        ProxyError::NotFound => Some("Sandbox Not Found"),
        ProxyError::Transitioning => Some("Sandbox Still Transitioning"),
        ProxyError::Denied => Some("Sandbox Cannot Be Resumed"),
        ProxyError::Full => Some("No Capacity Left"),
        ProxyError::TokenMissing => Some("Missing Traffic Access Token"),
        ProxyError::TokenInvalid => Some("Invalid Traffic Access Token"),
        ProxyError::TooManyConnections { .. } => Some("Too Many Connections"),
        ProxyError::PortClosed { .. } => Some("Closed Port Error"),
    }
}

fn respond(status: StatusCode, kind: HeaderValue, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// Whether a person looks at the answer: a browser that navigates, not a script in it.
fn wants_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
    };
    let mode = text("sec-fetch-mode");
    let accept = text(ACCEPT.as_str());
    let agent = text(USER_AGENT.as_str());
    let fetched = matches!(mode.as_str(), "cors" | "no-cors" | "same-origin" | "websocket");
    let json = accept.contains("application/json") && !accept.contains("text/html");
    let script = headers.contains_key("x-requested-with") && mode != "navigate";
    !fetched && !json && !script && BROWSERS.iter().any(|browser| agent.contains(browser))
}

fn log(error: &ProxyError, address: &Address) {
    let cause: Option<&Cause> = if let ProxyError::PortClosed { cause } = error { Some(cause) } else { None };
    tracing::debug!(
        sandbox.id = address.id,
        guest.port = address.port,
        cause = cause.map(tracing::field::display),
        "no answer from sandbox {}: {error}",
        address.id,
    );
}
