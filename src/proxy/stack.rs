//! The way of a request from its address to the port of a sandbox, as one list of layers.

use std::convert::Infallible;

use axum::body::Body;
use http::Response;
use tower::{ServiceBuilder, util::BoxCloneSyncService};

use super::{
    connect::Connector,
    forward, headers,
    limit::Limit,
    rescue::RescueLayer,
    reserved,
    resolve::ResolveLayer,
    step::step,
    target::{Bound, Inbound},
    token,
};

/// The stack with its types erased; cloned for each request.
pub(super) type Stack = BoxCloneSyncService<Inbound, Response<Body>, Infallible>;

/// Builds the stack. `most` is the limit of requests in flight to one sandbox.
pub(super) fn stack(resolve: ResolveLayer, most: Option<u32>) -> Stack {
    let limit = Limit::new(most);
    let connector = Connector::default();
    let stack = ServiceBuilder::new()
        // Above everything, so that nothing below writes an answer of its own.
        .layer(RescueLayer)
        // Before the look-up, so that the answer does not tell whether the sandbox exists.
        .layer(step(reserved::refuse))
        // From here on a run of a sandbox is known, and its end cuts whatever goes on.
        // A paused sandbox may be woken here, and the request waits for it.
        .layer(resolve)
        // Before the limit, so that strangers cannot use it up.
        .layer(step(token::check))
        // Held until the response or the tunnel has ended.
        .layer(step(move |bound| limit.admit(bound)))
        // Last, so that all checks saw what the client had sent.
        .layer(step(headers::clean))
        // A pooled or fresh connection, the response unbuffered, upgrades as tunnels.
        .service_fn(move |bound: Bound| forward::forward(connector.clone(), bound));
    BoxCloneSyncService::new(stack)
}
