//! The traffic token: what user ports want when a sandbox's traffic is not public.
//!
//! envd's port is not under it (envd checks its own token); the code interpreter's is
//! (contract/sandbox 7). The field goes on to the guest.

use subtle::ConstantTimeEq as _;

use super::{error::ProxyError, target::Bound};
use crate::sandbox::ENVD_PORT;

const FIELD: &str = "e2b-traffic-access-token";

/// Lets pass what needs no token or has the right one.
pub(super) fn check(bound: Bound) -> Result<Bound, ProxyError> {
    let Some(wanted) = bound.target.traffic_access_token.as_deref() else { return Ok(bound) };
    if bound.port == ENVD_PORT {
        return Ok(bound);
    }
    let mut fields = bound.request.headers().get_all(FIELD).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Err(ProxyError::TokenMissing),
        (Some(given), None) if given.is_empty() => Err(ProxyError::TokenMissing),
        (Some(given), None) if bool::from(given.as_bytes().ct_eq(wanted.as_bytes())) => Ok(bound),
        _ => Err(ProxyError::TokenInvalid),
    }
}
