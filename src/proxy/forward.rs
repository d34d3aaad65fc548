//! The last step: the request goes into the machine, the response streams back as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::{
    connect::{Connector, Lease},
    error::{Cause, ProxyError},
    headers,
    limit::Share,
    target::Bound,
    upgrade::{self, Tunnel},
};
use crate::hold::Hold;

/// A response body on its way out, with all that must live as long as it.
#[derive(Debug)]
struct Streamed {
    body: Incoming,
    lease: Option<Lease>,
    ended: CancellationToken,
    complete: bool,
    _share: Option<Share>,
}

/// The sandbox ended in the middle of a response.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox ended in the middle of a response")]
struct Cut;

/// Forwards one request.
pub(super) async fn forward(connector: Connector, bound: Bound) -> Result<Response<Body>, ProxyError> {
    let Bound { target, port, mut request, share, upgrade } = bound;
    let client = upgrade.map(|_| hyper::upgrade::on(&mut request));
    let hold = request.extensions_mut().remove::<Hold>();
    let (mut response, lease) = connector.send(&target, port, request).await?;
    headers::clean_response(&mut response);
    match (response.status(), client) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => {
            let guest = hyper::upgrade::on(&mut response);
            upgrade::start(Tunnel { client, guest, ended: target.ended, hold, share, lease });
            Ok(response.map(|_| Body::empty()))
        }
        (StatusCode::SWITCHING_PROTOCOLS, None) => {
            Err(ProxyError::closed("it changed to a protocol that nobody asked for"))
        }
        _ => {
            let ended = target.ended;
            Ok(response.map(|body| {
                Body::new(Streamed { body, lease: Some(lease), ended, complete: false, _share: share })
            }))
        }
    }
}

// === impl Streamed ===

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            let mut frame = Pin::new(&mut self.body).poll_frame(cx);
            if frame.is_pending()
                && let Some(lease) = &mut self.lease
            {
                lease.drive(cx);
                frame = Pin::new(&mut self.body).poll_frame(cx);
            }
            let frame = ready!(frame);
            return Poll::Ready(match frame {
                // HTTP/2 clients count empty frames as an attack (contract/sandbox 9).
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => continue,
                Some(Ok(frame)) => Some(Ok(frame)),
                Some(Err(error)) => Some(Err(error.into())),
                // An end without a length says little when the machine has gone.
                None if self.ended.is_cancelled() => Some(Err(Cut.into())),
                None => {
                    self.complete = true;
                    None
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // Whoever sends a body of known length does not ask it for its end.
        if (self.complete || http_body::Body::is_end_stream(&self.body))
            && let Some(lease) = self.lease.take()
        {
            lease.finish();
        }
    }
}
