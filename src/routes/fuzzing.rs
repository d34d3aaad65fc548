//! Properties of what the control plane reads: bodies, queries, page tokens and names in paths.
#![expect(clippy::unwrap_used, reason = "a target ends by a panic")]

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use serde::de::DeserializeOwned;

use super::{
    extract::{self, Query, SandboxPath},
    page::{self, Page},
    reply::ApiError,
    sandboxes::{connect, refresh, request, timeout},
    streams::ClientMessage,
    templates::reference::TemplateRef,
};

/// The longest lifetime that is asked against.
const MAX: Duration = Duration::from_hours(24);

/// The first byte says what the rest is.
pub(crate) fn request(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match (kind, std::str::from_utf8(rest)) {
        (b'c', _) => create(rest),
        (b'1', _) => body::<connect::ConnectV1>(rest),
        (b'2', _) => body::<connect::ConnectV2>(rest),
        (b't', _) => body::<timeout::NewTimeout>(rest),
        (b'r', _) => body::<refresh::Refresh>(rest),
        (b'w', _) => body::<ClientMessage>(rest),
        (b'q', Ok(text)) => query(text),
        (b'n', Ok(text)) => token(text),
        (b's', Ok(text)) => sandbox(text),
        (b'm', Ok(text)) => template(text),
        (b'h', _) => content_type(rest),
        _ => {}
    }
}

/// A refusal is the client's, says so in the error's shape, and quotes no more than it was given.
fn refusal(error: &ApiError, given: usize) {
    assert!(error.status().is_client_error() || error.status().as_u16() == 501, "{error:?}");
    let body = error.body();
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value["code"], error.status().as_u16());
    assert!(body.len() <= 1024 + 16 * given, "{} bytes for {given}", body.len());
}

fn body<T: DeserializeOwned>(data: &[u8]) {
    match extract::parse::<T>(data) {
        Ok(_) => {
            let more = [data, b"{}"].concat();
            assert!(extract::parse::<T>(&more).is_err(), "nothing may follow");
        }
        Err(error) => refusal(&error, data.len()),
    }
}

fn create(data: &[u8]) {
    body::<request::NewSandbox>(data);
    for api in [request::Api::V1, request::Api::V2] {
        let Ok(new) = extract::parse::<request::NewSandbox>(data) else { return };
        // What was read prints and reads as the same.
        let printed = serde_json::to_vec(&new).unwrap();
        let again: request::NewSandbox = extract::parse(&printed).unwrap();
        let wish = new.check(api, Some(MAX));
        assert_eq!(again.check(api, Some(MAX)), wish);
        match wish {
            Err(error) => refusal(&error, data.len()),
            Ok(wish) => {
                assert!((1..=MAX.as_secs()).contains(&wish.timeout_s));
                assert!(wish.secure || api == request::Api::V1);
                if let Some(network) = wish.network {
                    assert!(wish.secure || network.allow_public_traffic != Some(false));
                    if let Some(mask) = &network.mask_request_host {
                        let host = mask.replace("${PORT}", "65535");
                        assert!(HeaderValue::from_str(&host).is_ok() && !host.is_empty(), "{host}");
                    }
                    for denied in &network.deny_out {
                        let address = denied.split('/').next().unwrap_or_default();
                        assert!(address.parse::<std::net::IpAddr>().is_ok(), "{denied}");
                    }
                }
            }
        }
    }
}

fn query(text: &str) {
    match Query::read(text) {
        Err(error) => refusal(&error, text.len()),
        Ok(query) => {
            let names = ["limit", "order", "nextToken", "state", "metadata", "teamID"];
            let total: usize = names.iter().flat_map(|name| query.items(name)).map(str::len).sum();
            assert!(total <= text.len(), "escapes only shorten");
            assert!(names.iter().all(|name| query.get(name).is_none_or(|value| !value.is_empty())));
            if let Err(error) = Page::read(&query) {
                refusal(&error, text.len());
            }
        }
    }
    if let Ok(plain) = extract::unescape(text) {
        let escaped = percent_encoding::utf8_percent_encode(&plain, percent_encoding::NON_ALPHANUMERIC);
        assert_eq!(extract::unescape(&escaped.to_string()).unwrap(), plain);
    }
}

/// A token that is read is one that is given out.
fn token(text: &str) {
    for ascending in [false, true] {
        if let Some((start, id)) = page::decode::<crate::id::SandboxId>(text, ascending) {
            let given = page::encode(start, id, ascending);
            assert_eq!(page::decode(&given, ascending), Some((start, id)));
            assert_eq!(
                page::decode::<crate::id::SandboxId>(&given, !ascending),
                None,
                "of its own order only"
            );
            assert!(HeaderValue::from_str(&given).is_ok());
        }
    }
}

fn sandbox(text: &str) {
    match SandboxPath::read(text).and_then(|path| path.id()) {
        Ok(id) => assert!(text.starts_with(id.as_str())),
        Err(error) => refusal(&error, text.len()),
    }
}

fn template(text: &str) {
    match text.parse::<TemplateRef>() {
        Ok(name) => {
            let printed = name.to_string();
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_/".contains(&byte);
            assert!(printed.bytes().all(plain), "{printed}");
            assert_eq!(printed.parse::<TemplateRef>().unwrap().to_string(), printed);
        }
        Err(error) => refusal(&error, text.len()),
    }
}

fn content_type(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, value);
    if let Err(error) = extract::require_json(&headers) {
        refusal(&error, data.len());
    }
}
