//! Which header fields cross the proxy: what speaks of one connection only stays on it.
//!
//! Bodies are framed anew on the other side, so `Transfer-Encoding` never crosses, and a length
//! that stood beside it does not either. HTTP/2 to a cleartext guest is never negotiated, and the
//! guest's own services do not change protocols at all.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        TE, TRANSFER_ENCODING, UPGRADE,
    },
    uri::PathAndQuery,
};

use super::{error::ProxyError, target::Bound};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Makes the request one of the guest's connection.
pub(super) fn clean(mut bound: Bound) -> Result<Bound, ProxyError> {
    let host = original_host(&bound)?;
    bound.upgrade = wanted_upgrade(&bound);
    let guest_service = bound.is_guest_service();

    let headers = bound.request.headers_mut();
    let trailers = headers.get(TE).is_some_and(|te| lists(te, "trailers"));
    strip_hop_by_hop(headers);
    strip_forwarded(headers);
    join_cookies(headers);
    // The client's `100 Continue` is answered on its own connection.
    headers.remove(EXPECT);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = &bound.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if !guest_service {
        // One connection a request: the server on a user port need not wait for a second one.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    match bound.target.mask_request_host.as_deref() {
        Some(mask) if bound.port != crate::sandbox::ENVD_PORT => {
            let masked = mask.replace("${PORT}", &bound.port.to_string());
            let masked = HeaderValue::try_from(masked).map_err(|_| ProxyError::Mask)?;
            headers.insert(FORWARDED_HOST, host);
            headers.insert(HOST, masked);
        }
        _ => {
            headers.insert(HOST, host);
        }
    }
    *bound.request.uri_mut() = origin_form(bound.request.uri(), bound.request.method());
    *bound.request.version_mut() = Version::HTTP_11;
    Ok(bound)
}

/// Makes a guest's response one of the client's connection; an accepted upgrade keeps its fields.
pub(super) fn clean_response<B>(response: &mut Response<B>) {
    let accepted = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| response.headers().get(UPGRADE).cloned())
        .flatten();
    let headers = response.headers_mut();
    if headers.contains_key(TRANSFER_ENCODING) {
        // The guest's word on the length is worth nothing beside chunks, and must not frame the answer.
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    if let Some(protocol) = accepted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// The host as the client named it; HTTP/2 names it in the target.
fn original_host(bound: &Bound) -> Result<HeaderValue, ProxyError> {
    if let Some(host) = bound.request.headers().get(HOST) {
        return Ok(host.clone());
    }
    let authority = bound.request.uri().authority().map_or("", http::uri::Authority::as_str);
    HeaderValue::from_str(authority).map_err(|_| ProxyError::Host(super::host::HostError::Host))
}

/// The protocol that a request asks for; none for HTTP/2 in any disguise and on the guest's services.
fn wanted_upgrade(bound: &Bound) -> Option<HeaderValue> {
    let headers = bound.request.headers();
    let asked = bound.request.version() == Version::HTTP_11
        && !bound.is_guest_service()
        && headers.get_all(CONNECTION).iter().any(|value| lists(value, "upgrade"));
    let mut protocols = headers.get_all(UPGRADE).iter();
    match (asked, protocols.next(), protocols.next()) {
        (true, Some(protocol), None) if !lists(protocol, "h2c") && !lists(protocol, "h2") => {
            Some(protocol.clone())
        }
        _ => None,
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Nobody in front of us is trusted, so nobody's word on the client is passed on.
fn strip_forwarded(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .keys()
        .filter(|name| *name == FORWARDED || name.as_str().starts_with("x-forwarded"))
        .cloned()
        .collect();
    for name in &named {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies over fields, HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let values: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}

fn origin_form(uri: &Uri, method: &Method) -> Uri {
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static(if method == Method::OPTIONS { "*" } else { "/" }));
    Uri::from(path)
}

/// Whether a comma-separated list has this word, parameters aside.
fn lists(value: &HeaderValue, word: &str) -> bool {
    value.to_str().is_ok_and(|value| {
        value
            .split(',')
            .any(|item| item.split(';').next().is_some_and(|item| item.trim().eq_ignore_ascii_case(word)))
    })
}
