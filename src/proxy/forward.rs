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
    envelope::{self, Close, Envelopes},
    error::{Cause, ProxyError},
    headers,
    limit::Share,
    target::Bound,
    upgrade::{self, Tunnel},
};
use crate::{hold::Hold, id::SandboxId};

/// A response body on its way out, with all that must live as long as it.
#[derive(Debug)]
struct Streamed {
    body: Incoming,
    lease: Option<Lease>,
    ended: CancellationToken,
    complete: bool,
    id: SandboxId,
    /// Where the response stands, if it is an RPC stream that can be told an end.
    envelopes: Option<Envelopes>,
    /// It was told its end.
    told: bool,
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
    let told = envelope::is_understood_by(request.headers());
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
            let envelopes = told.then(|| Envelopes::of(&response)).flatten();
            let (id, ended) = (target.id, target.ended);
            Ok(response.map(|body| {
                let (lease, complete, told) = (Some(lease), false, false);
                Body::new(Streamed { body, lease, ended, complete, id, envelopes, told, _share: share })
            }))
        }
    }
}

// === impl Streamed ===

impl Streamed {
    /// The guest's bytes have stopped in the middle: an RPC stream is told so in its own words.
    fn cut(&mut self, cause: Cause) -> Option<Result<Frame<Bytes>, Cause>> {
        match self.envelopes.take().map(|envelopes| envelopes.close(self.id)) {
            Some(Close::Said) => None,
            Some(Close::Say(words)) => {
                self.told = true;
                Some(Ok(Frame::data(words)))
            }
            Some(Close::Torn) | None => Some(Err(cause)),
        }
    }
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if self.told {
                return Poll::Ready(None);
            }
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
                Some(Ok(frame)) => {
                    if let (Some(envelopes), Some(bytes)) = (&mut self.envelopes, frame.data_ref()) {
                        envelopes.pass(bytes);
                    }
                    Some(Ok(frame))
                }
                Some(Err(error)) => self.cut(error.into()),
                // An end without a length says little when the machine has gone.
                None if self.ended.is_cancelled() => self.cut(Cut.into()),
                None => {
                    self.complete = true;
                    None
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.told || self.body.is_end_stream()
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
