//! The combinator of the stack: a step that lets a request pass, changed or not, or refuses it.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use tower::{Layer, Service};

use super::error::ProxyError;

/// Puts a function in front of a service.
#[derive(Debug, Clone)]
pub(super) struct StepLayer<F>(F);

/// A function in front of a service. Always as ready as the service.
#[derive(Debug, Clone)]
pub(super) struct Step<F, S> {
    step: F,
    inner: S,
}

/// A layer of this function.
pub(super) fn step<F>(function: F) -> StepLayer<F> {
    StepLayer(function)
}

// === impl StepLayer ===

impl<F: Clone, S> Layer<S> for StepLayer<F> {
    type Service = Step<F, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Step { step: self.0.clone(), inner }
    }
}

// === impl Step ===

impl<A, B, F, S> Service<A> for Step<F, S>
where
    F: Fn(A) -> Result<B, ProxyError>,
    S: Service<B, Error = ProxyError>,
{
    type Response = S::Response;
    type Error = ProxyError;
    type Future = Either<S::Future, Ready<Result<S::Response, ProxyError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: A) -> Self::Future {
        match (self.step)(request) {
            Ok(request) => Either::Left(self.inner.call(request)),
            Err(refusal) => Either::Right(ready(Err(refusal))),
        }
    }
}
