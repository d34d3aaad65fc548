//! Reads what an answer left of its request's body, within bounds.
//!
//! An answer to a body that was not read to its end closes the connection, and a client that is
//! still writing (the proxy is one) then meets a broken pipe before it reads the answer. Refusals
//! are the common case: they answer from the headers alone.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

/// How much is read, and how long it may take to come.
const MOST: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(250);

/// A body that can be taken back from its reader.
struct Lent(Arc<Mutex<Body>>);

/// Runs the request, then reads what is left of its body unless somebody still does.
pub(super) async fn read_out(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if http_body::Body::is_end_stream(&body) {
        return next.run(Request::from_parts(head, body)).await;
    }
    let kept = Arc::new(Mutex::new(body));
    let lent = Body::new(Lent(Arc::clone(&kept)));
    let response = next.run(Request::from_parts(head, lent)).await;
    if let Some(body) = Arc::into_inner(kept) {
        let body = body.into_inner().unwrap_or_else(PoisonError::into_inner);
        // What has not come by then closes the connection, as it would have anyway.
        let _ = tokio::time::timeout(PATIENCE, discard(body)).await;
    }
    response
}

async fn discard(mut body: Body) {
    let mut read = 0;
    while read < MOST {
        let Some(Ok(frame)) = body.frame().await else { return };
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

// === impl Lent ===

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
