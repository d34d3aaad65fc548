//! Refusals read what is left of their request's body before they answer.

use axum::{body::Body, extract::Request, middleware::Next, response::Response};

use crate::body;

/// Runs the request, then reads what is left of its body unless somebody still does.
pub(super) async fn read_out(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if http_body::Body::is_end_stream(&body) {
        return next.run(Request::from_parts(head, body)).await;
    }
    let (lent, loan) = body::lend(body);
    let response = next.run(Request::from_parts(head, Body::new(lent))).await;
    loan.read_out().await;
    response
}
