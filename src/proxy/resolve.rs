//! From a name to a running sandbox, by the registry's memory; a paused one may be woken first.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use futures_util::future::{BoxFuture, Either};
use http::{HeaderMap, Request};
use tower::{Layer, Service};

use super::{
    error::ProxyError,
    target::{Bound, Inbound},
};
use crate::{
    id::SandboxId,
    runtime::registry::{Knock, NotRunning, Target},
};

/// Finds a running sandbox; the registry's `target`, or a test's few lines.
pub type Lookup = Arc<dyn Fn(&SandboxId) -> Result<Target, NotRunning> + Send + Sync>;

/// Waits for one that rests, and may wake it; the registry's `wake`.
pub type Wake = Arc<dyn Fn(SandboxId, Knock) -> BoxFuture<'static, Result<Target, NotRunning>> + Send + Sync>;

/// Binds requests to the present run of their sandbox.
#[derive(Clone)]
pub(super) struct ResolveLayer {
    find: Lookup,
    wake: Option<Wake>,
}

/// [`ResolveLayer`] in front of a service.
#[derive(Clone)]
pub(super) struct Resolve<S> {
    layer: ResolveLayer,
    inner: S,
}

// === impl ResolveLayer ===

impl ResolveLayer {
    pub(super) fn new(find: Lookup, wake: Option<Wake>) -> Self {
        Self { find, wake }
    }
}

impl<S> Layer<S> for ResolveLayer {
    type Service = Resolve<S>;

    fn layer(&self, inner: S) -> Resolve<S> {
        Resolve { layer: self.clone(), inner }
    }
}

// === impl Resolve ===

impl<S> Service<Inbound> for Resolve<S>
where
    S: Service<Bound, Error = ProxyError> + Clone + Send + 'static,
    S::Response: Send,
    S::Future: Send,
{
    type Response = S::Response;
    type Error = ProxyError;
    type Future = Either<
        S::Future,
        Either<Ready<Result<S::Response, ProxyError>>, BoxFuture<'static, Result<S::Response, ProxyError>>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, inbound: Inbound) -> Self::Future {
        let Inbound { address, request } = inbound;
        let port = address.port;
        // What has not the form of our ids names no sandbox of ours.
        let Ok(id) = address.id.parse::<SandboxId>() else {
            return Either::Right(Either::Left(ready(Err(ProxyError::NotFound))));
        };
        match ((self.layer.find)(&id), &self.layer.wake) {
            (Ok(target), _) => Either::Left(self.inner.call(bound(target, port, request))),
            (Err(NotRunning::Resting), Some(wake)) => {
                let waking = wake(id, knock(port, request.headers()));
                let mut inner = self.inner.clone();
                Either::Right(Either::Right(Box::pin(async move {
                    let target = waking.await?;
                    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
                    inner.call(bound(target, port, request)).await
                })))
            }
            (Err(reason), _) => Either::Right(Either::Left(ready(Err(reason.into())))),
        }
    }
}

fn bound(target: Target, port: u16, request: Request<Body>) -> Bound {
    Bound { target, port, request, share: None, upgrade: None }
}

/// What the request shows; a field that stands there twice shows nothing.
fn knock(port: u16, headers: &HeaderMap) -> Knock {
    let only = |name: &str| {
        let mut fields = headers.get_all(name).iter();
        match (fields.next(), fields.next()) {
            (Some(field), None) => field.to_str().ok().map(str::to_owned),
            _ => None,
        }
    };
    Knock { port, access_token: only("x-access-token"), traffic_token: only("e2b-traffic-access-token") }
}

impl From<NotRunning> for ProxyError {
    fn from(reason: NotRunning) -> Self {
        match reason {
            NotRunning::NotFound | NotRunning::Resting => Self::NotFound,
            NotRunning::Transitioning => Self::Transitioning,
            NotRunning::Denied => Self::Denied,
            NotRunning::Full => Self::Full,
        }
    }
}
