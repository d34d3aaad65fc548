//! A request in the phases of its way: [`Inbound`] knows a name, [`Bound`] a running sandbox.

use axum::body::Body;
use http::{HeaderValue, Request};

use super::{host::Address, limit::Share};
use crate::{
    runtime::registry::Target,
    sandbox::{CODE_INTERPRETER_PORT, ENVD_PORT},
};

/// A request for a port of a sandbox that may or may not exist.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) address: Address,
    pub(super) request: Request<Body>,
}

/// A request for a port of this run of a sandbox.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) target: Target,
    pub(super) port: u16,
    pub(super) request: Request<Body>,
    /// The sandbox's limit counts it until this is dropped.
    pub(super) share: Option<Share>,
    /// The protocol that the client wants to change to, where that is allowed.
    pub(super) upgrade: Option<HeaderValue>,
}

// === impl Bound ===

impl Bound {
    /// Whether the port is served by the guest itself, not by what users run.
    pub(super) fn is_guest_service(&self) -> bool {
        is_guest_service(self.port)
    }
}

/// Whether the port is served by the guest itself, not by what users run.
pub(super) fn is_guest_service(port: u16) -> bool {
    matches!(port, ENVD_PORT | CODE_INTERPRETER_PORT)
}
