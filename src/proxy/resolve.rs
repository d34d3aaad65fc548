//! From a name to a running sandbox, by the registry's memory.

use std::sync::Arc;

use super::{
    error::ProxyError,
    target::{Bound, Inbound},
};
use crate::{
    id::SandboxId,
    runtime::registry::{NotRunning, Target},
};

/// Finds a running sandbox; the registry's `target`, or a test's few lines.
pub type Lookup = Arc<dyn Fn(&SandboxId) -> Result<Target, NotRunning> + Send + Sync>;

/// Binds a request to the sandbox's present run.
pub(super) fn resolve(lookup: &Lookup, inbound: Inbound) -> Result<Bound, ProxyError> {
    let Inbound { address, request } = inbound;
    // What has not the form of our ids names no sandbox of ours.
    let id: SandboxId = address.id.parse().map_err(|_| ProxyError::NotFound)?;
    let target = lookup(&id).map_err(|reason| match reason {
        NotRunning::NotFound => ProxyError::NotFound,
        NotRunning::Transitioning => ProxyError::Transitioning,
    })?;
    Ok(Bound { target, port: address.port, request, share: None, upgrade: None })
}
