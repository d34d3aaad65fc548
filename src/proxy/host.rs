//! Sorts requests by their host: for the control plane, or for which port of which sandbox.
//!
//! Pure: it decides by the text of the request alone and looks nothing up. In this order:
//!
//! 1. A request with no single well-formed host is refused. The request target's authority
//!    (HTTP/2's `:authority`, HTTP/1's absolute form) and a `Host` field must agree.
//! 2. `{port}-{id}[-anything].{domain}` of our own domain is a sandbox; so is the same first label
//!    with a whole sandbox id under any other domain, so that a name nobody told us about works.
//! 3. Any other label below our own domain, `api` and `sandbox` excepted, is a mistake.
//! 4. What is left (localhost, addresses, `sandbox.*`, the own domain, any name under which the
//!    server happens to be reached) is a base host: there, and only there, `E2b-Sandbox-Id` with
//!    `E2b-Sandbox-Port` choose a sandbox, and without them the request is the control plane's.
//!
//! Rules and texts: contract/sandbox 7.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName, Version, header::HOST, request::Parts};

use crate::id::SandboxId;

/// Chooses the sandbox on base hosts.
pub const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
/// Chooses the port on base hosts.
pub const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// The longest name that DNS carries.
const MAX_NAME: usize = 253;
/// The longest label of it.
const MAX_LABEL: usize = 63;

/// Knows the names of this server.
#[derive(Debug, Clone)]
pub struct Hosts {
    own: Box<str>,
}

/// Who a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The control plane.
    Routes,
    /// A port of a sandbox, which may or may not exist.
    Sandbox(Address),
}

/// A port of a sandbox, as the outside names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `[a-z0-9]+`, at most 63 characters; not always the form of our own ids.
    pub id: String,
    /// The port, never 0.
    pub port: u16,
}

/// Why a request is for nobody. The texts are answered as they stand, status 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No host, several, or one that is not well-formed.
    #[error("Invalid host")]
    Host,
    /// The id is not `[a-z0-9]+`.
    #[error("Invalid sandbox ID")]
    Id,
    /// The port is not a number from 1 to 65535.
    #[error("Invalid sandbox port")]
    Port,
    /// One routing header without the other.
    #[error("missing header")]
    MissingHeader,
}

/// A host without its port.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Address,
    Dns(String),
}

// === impl Hosts ===

impl Hosts {
    /// For a server whose answers name this domain; a port in it does not matter here.
    pub fn new(domain: &str) -> Self {
        let name = domain.rsplit_once(':').map_or(domain, |(name, _)| name);
        Self { own: name.trim_end_matches('.').to_ascii_lowercase().into() }
    }

    /// Who the request is for.
    pub fn destination(&self, request: &Parts) -> Result<Destination, HostError> {
        let Some(host) = host_of(request)? else {
            // HTTP/1.0 may come without a host, and then means the server itself.
            return base_host(&request.headers);
        };
        let Name::Dns(name) = Name::parse(host)? else {
            return base_host(&request.headers);
        };
        if *name == *self.own {
            return base_host(&request.headers);
        }
        let Some((label, parent)) = name.split_once('.') else {
            return base_host(&request.headers);
        };
        let ours = parent == &*self.own || parent.strip_suffix(&*self.own).is_some_and(|p| p.ends_with('.'));
        match (label, ours) {
            ("sandbox" | "api", _) => base_host(&request.headers),
            (label, true) => Address::from_label(label).map(Destination::Sandbox),
            (label, false) => match Address::from_label(label) {
                // A whole id cannot be meant otherwise; anything less may be the server's own name.
                Ok(address) if address.id.parse::<SandboxId>().is_ok() => Ok(Destination::Sandbox(address)),
                _ => base_host(&request.headers),
            },
        }
    }
}

// === impl Address ===

impl Address {
    /// Reads `{port}-{id}[-anything]`, already in lower case.
    fn from_label(label: &str) -> Result<Self, HostError> {
        let mut words = label.split('-');
        match (words.next(), words.next()) {
            (Some(port), Some(id)) => Self::new(id, port),
            _ => Err(HostError::Host),
        }
    }

    fn new(id: &str, port: &str) -> Result<Self, HostError> {
        let well_formed = !id.is_empty()
            && id.len() <= MAX_LABEL
            && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !well_formed {
            return Err(HostError::Id);
        }
        let port = decimal(port).filter(|port| *port != 0).ok_or(HostError::Port)?;
        Ok(Self { id: id.to_owned(), port })
    }
}

// === impl Name ===

impl Name {
    fn parse(host: &str) -> Result<Self, HostError> {
        if let Some(rest) = host.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(HostError::Host)?;
            let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(port_text);
            return match address.parse::<Ipv6Addr>() {
                Ok(_) if port_fits => Ok(Self::Address),
                _ => Err(HostError::Host),
            };
        }
        let name = match host.split_once(':') {
            Some((name, port)) if port_text(port) => name,
            Some(_) => return Err(HostError::Host),
            None => host,
        };
        if name.parse::<Ipv4Addr>().is_ok() {
            return Ok(Self::Address);
        }
        // A trailing dot only says that the name is complete.
        let name = name.strip_suffix('.').unwrap_or(name);
        let well_formed = name.len() <= MAX_NAME && name.split('.').all(label_text);
        if well_formed { Ok(Self::Dns(name.to_ascii_lowercase())) } else { Err(HostError::Host) }
    }
}

/// The one host that a request names; none only where HTTP/1.0 allows it.
fn host_of(request: &Parts) -> Result<Option<&str>, HostError> {
    let mut fields = request.headers.get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (Some(field), None) => Some(field.to_str().map_err(|_| HostError::Host)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(HostError::Host),
    };
    let target = request.uri.authority().map(http::uri::Authority::as_str);
    match (target, field) {
        (Some(target), Some(field)) if !target.eq_ignore_ascii_case(field) => Err(HostError::Host),
        (Some(host), _) | (None, Some(host)) => Ok(Some(host)),
        (None, None) if request.version <= Version::HTTP_10 => Ok(None),
        (None, None) => Err(HostError::Host),
    }
}

/// A base host is the control plane's, unless the routing headers say otherwise.
fn base_host(headers: &HeaderMap) -> Result<Destination, HostError> {
    match (headers.get(SANDBOX_ID), headers.get(SANDBOX_PORT)) {
        (None, None) => Ok(Destination::Routes),
        (Some(id), Some(port)) => {
            let id = id.to_str().ok().filter(|_| single(headers, &SANDBOX_ID)).ok_or(HostError::Id)?;
            let port =
                port.to_str().ok().filter(|_| single(headers, &SANDBOX_PORT)).ok_or(HostError::Port)?;
            Address::new(id, port).map(Destination::Sandbox)
        }
        _ => Err(HostError::MissingHeader),
    }
}

fn single(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().nth(1).is_none()
}

fn label_text(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// `host:` without digits is allowed by RFC 3986.
fn port_text(port: &str) -> bool {
    port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// One spelling of a number only: no sign, no leading zero.
fn decimal(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}
