//! Properties of a request's head at the gateway: one destination, by the documented order, and
//! nothing of one connection crosses to the other.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};
use tokio_util::sync::CancellationToken;

use super::{
    headers,
    host::{Address, Destination, Hosts, SANDBOX_ID, SANDBOX_PORT},
    reserved,
    target::Bound,
};
use crate::{
    id::SandboxId,
    runtime::{
        link::{GuestLink, LinkError, LinkStream},
        registry::Target,
    },
    wire::link::{Malformed, Nonce},
};

const DOMAIN: &str = "firkin.localhost:3000";

/// A link that nobody may use.
#[derive(Debug)]
struct NoLink;

#[async_trait]
impl GuestLink for NoLink {
    async fn open(&self, _: u16) -> Result<LinkStream, LinkError> {
        Err(Malformed::UNEXPECTED.into())
    }

    async fn open_control(&self, _: Nonce) -> Result<(LinkStream, u32), LinkError> {
        Err(Malformed::UNEXPECTED.into())
    }
}

/// `METHOD target version` and fields, a line each.
pub(crate) fn head(data: &[u8]) {
    let Some(request) = read(data) else { return };
    let hosts = Hosts::new(DOMAIN);
    let (parts, ()) = request.into_parts();
    let destination = hosts.destination(&parts);
    assert_eq!(destination, hosts.destination(&parts), "decided by the text alone");
    if parts.headers.get_all(HOST).iter().count() > 1 {
        assert!(destination.is_err(), "two hosts are none");
    }
    if let Ok(Destination::Sandbox(address)) = &destination {
        well_formed(address);
    }
    routing_headers(&hosts, &parts, destination.as_ref().ok());
    spelling(&hosts, &parts, destination.as_ref().ok());

    let path = reserved::cleaned(parts.uri.path());
    assert!(path.starts_with('/') && !path.contains("//") && !path.split('/').any(|part| part == ".."));

    if let Ok(Destination::Sandbox(address)) = destination {
        crossing(&address, Request::from_parts(parts, Body::empty()));
    }
}

fn read(data: &[u8]) -> Option<Request<()>> {
    let mut lines = data.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let mut words = first.split(' ');
    let method: Method = words.next()?.parse().ok()?;
    let uri: Uri = words.next()?.parse().ok()?;
    let version = match words.next()? {
        "HTTP/1.0" => Version::HTTP_10,
        "HTTP/1.1" => Version::HTTP_11,
        "HTTP/2" => Version::HTTP_2,
        _ => return None,
    };
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, version);
    for line in lines.filter(|line| !line.is_empty()).take(128) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}

fn well_formed(address: &Address) {
    assert!(address.port > 0 && (1..=63).contains(&address.id.len()));
    assert!(address.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
}

/// They count on base hosts only: taking them away changes nothing elsewhere.
fn routing_headers(hosts: &Hosts, parts: &http::request::Parts, destination: Option<&Destination>) {
    let mut bare = parts.clone();
    bare.headers.remove(SANDBOX_ID);
    bare.headers.remove(SANDBOX_PORT);
    match hosts.destination(&bare) {
        Ok(Destination::Sandbox(by_host)) => {
            assert_eq!(destination, Some(&Destination::Sandbox(by_host)), "the host's word is the last");
        }
        Ok(Destination::Routes) => {
            let (id, port) = (parts.headers.get(SANDBOX_ID), parts.headers.get(SANDBOX_PORT));
            match destination {
                Some(Destination::Routes) => assert!(id.is_none() && port.is_none()),
                Some(Destination::Sandbox(address)) => {
                    assert_eq!(id.unwrap().as_bytes(), address.id.as_bytes());
                    assert_eq!(port.unwrap().as_bytes(), address.port.to_string().as_bytes());
                }
                None => assert!(id.is_some() || port.is_some()),
            }
        }
        Err(_) => assert_eq!(destination, None, "a header does not mend a bad host"),
    }
}

/// Case, a port and a last dot in the host do not matter.
fn spelling(hosts: &Hosts, parts: &http::request::Parts, destination: Option<&Destination>) {
    if parts.uri.authority().is_some() || parts.headers.get_all(HOST).iter().count() > 1 {
        return;
    }
    let Some(host) = parts.headers.get(HOST).and_then(|host| host.to_str().ok()) else { return };
    let mut spelled = vec![host.to_ascii_uppercase(), host.to_ascii_lowercase()];
    if destination.is_some() && !host.contains(':') {
        spelled.push(format!("{host}:1"));
    }
    for host in spelled {
        let mut parts = parts.clone();
        parts.headers.remove(HOST);
        parts.headers.insert(HOST, HeaderValue::from_str(&host).unwrap());
        assert_eq!(hosts.destination(&parts).ok().as_ref(), destination, "{host}");
    }
}

/// What the guest is sent, and what its answer becomes.
fn crossing(address: &Address, request: Request<Body>) {
    let (fields, version) = (request.headers().clone(), request.version());
    let target = Target {
        id: "i0123456789abcdefghij".parse::<SandboxId>().unwrap(),
        generation: 1,
        link: Arc::new(NoLink),
        traffic_access_token: None,
        mask_request_host: fields.contains_key("x-mask").then(|| "masked:${PORT}".into()),
        https_ports: Arc::from([]),
        ended: CancellationToken::new(),
    };
    let bound = Bound { target, port: address.port, request, share: None, upgrade: None };
    let Ok(bound) = headers::clean(bound) else { return };
    let sent = bound.request.headers();
    assert_eq!(sent.get_all(HOST).iter().count(), 1);
    assert_eq!(bound.request.version(), Version::HTTP_11);
    assert!(bound.request.uri().authority().is_none() && bound.request.uri().scheme().is_none());
    for name in [TRANSFER_ENCODING, EXPECT, HeaderName::from_static("keep-alive")] {
        assert!(!sent.contains_key(&name), "{name}");
    }
    assert!(sent.get_all(COOKIE).iter().count() <= 1);
    assert!(sent.get_all(TE).iter().all(|value| value == "trailers"));
    let forwarded = sent.keys().filter(|name| name.as_str().starts_with("x-forwarded"));
    assert!(forwarded.into_iter().all(|name| name == "x-forwarded-host" && fields.contains_key("x-mask")));
    let upgrade = bound.upgrade.is_some();
    assert!(!upgrade || version == Version::HTTP_11);
    assert_eq!(sent.contains_key(UPGRADE), upgrade);
    let connection: Vec<_> = sent.get_all(CONNECTION).iter().collect();
    assert!(connection.len() <= 1);
    assert!(connection.iter().all(|value| *value == if upgrade { "upgrade" } else { "close" }));

    for status in [StatusCode::OK, StatusCode::SWITCHING_PROTOCOLS] {
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields.clone();
        headers::clean_response(&mut response);
        answered(&fields, response.headers(), status);
    }
}

fn answered(given: &HeaderMap, headers: &HeaderMap, status: StatusCode) {
    assert!(!headers.contains_key(TRANSFER_ENCODING));
    assert!(!(given.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH)));
    let upgraded = headers.contains_key(UPGRADE);
    assert!(!upgraded || status == StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(headers.contains_key(CONNECTION), upgraded);
}
