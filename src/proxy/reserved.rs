//! Paths of the guest that only the control plane may use (contract/sandbox 7).
//!
//! Our guest has no such paths on its public port; the refusal is for clients that expect it and
//! for guests that come with a template.

use percent_encoding::percent_decode_str;

use super::{error::ProxyError, target::Inbound};
use crate::sandbox::ENVD_PORT;

const RESERVED: [&str; 7] =
    ["/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"];

/// Refuses them on envd's port, by any method, in any spelling that a server could take for them.
pub(super) fn refuse(inbound: Inbound) -> Result<Inbound, ProxyError> {
    if inbound.address.port == ENVD_PORT {
        let path = cleaned(inbound.request.uri().path());
        if RESERVED.contains(&path.as_str()) {
            return Err(ProxyError::Reserved { path });
        }
    }
    Ok(inbound)
}

/// Decoded once, then without empty, `.` and `..` segments.
pub(super) fn cleaned(path: &str) -> String {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;

    use super::*;
    use crate::proxy::host::Address;

    fn ask(path: &str, port: u16) -> Result<(), ProxyError> {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        refuse(Inbound { address: Address { id: "abc".to_owned(), port }, request }).map(drop)
    }

    #[test]
    fn reserved_paths_are_refused_in_every_spelling() {
        for path in [
            "/init",
            "/init/",
            "//init",
            "/./init",
            "/x/../init",
            "/%69nit",
            "/init?a=b",
            "/x/%2e%2e/upgrade",
        ] {
            assert!(ask(path, 80).is_ok(), "{path} on a user port");
            assert!(matches!(ask(path, ENVD_PORT), Err(ProxyError::Reserved { .. })), "{path}");
        }
        for path in ["/", "/health", "/initial", "/a/init", "/files?path=/init", "/%2569nit"] {
            assert!(ask(path, ENVD_PORT).is_ok(), "{path}");
        }
    }
}
