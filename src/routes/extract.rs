//! Reading requests: bodies, paths and queries, with E2B's refusals instead of axum's texts.
//!
//! Handlers name the caller first, so a request without a key is refused before anything of it
//! is read. Routes match on the raw path: `%2F` and `%3A` stay inside their segment and are
//! decoded here.

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path},
};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use crate::{
    id::SandboxId,
    routes::{reply::ApiError, state::AppState},
};

/// The largest JSON body (contract/control-plane 1.1).
pub(crate) const MAX_BODY: usize = 16 << 20;

/// A JSON body that must be there.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

/// A JSON body that may be missing: then it is the default. The SDKs send none, `{}` or fields,
/// with or without a length.
#[derive(Debug)]
pub(crate) struct MaybeBody<T>(pub(crate) T);

/// A sandbox named in the path, well-formed but perhaps nobody's.
#[derive(Debug)]
pub(crate) struct SandboxPath {
    text: String,
}

/// The one parameter of the path, decoded.
#[derive(Debug)]
pub(crate) struct PathText(pub(crate) String);

/// The pairs of the query, decoded once, in order.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

// === impl JsonBody ===

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &AppState) -> Result<Self, ApiError> {
        match read(request).await? {
            Some(body) => parse(&body).map(Self),
            None => Err(ApiError::validation("request body: value is required but missing")),
        }
    }
}

// === impl MaybeBody ===

impl<T: DeserializeOwned + Default> FromRequest<AppState> for MaybeBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &AppState) -> Result<Self, ApiError> {
        match read(request).await? {
            Some(body) => parse(&body).map(Self),
            None => Ok(Self(T::default())),
        }
    }
}

/// The whole body, or none when it is empty.
async fn read(request: Request<Body>) -> Result<Option<Bytes>, ApiError> {
    let (parts, body) = request.into_parts();
    let announced =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(ApiError::validation("request body: it could not be read to its end")),
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    require_json(&parts.headers)?;
    Ok(Some(body))
}

fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("request body is larger than {} MiB", MAX_BODY >> 20),
    )
}

/// A body of no declared type is read as JSON; one declared as something else is refused.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let subtype = essence.to_ascii_lowercase();
    if subtype == "application/json" || (subtype.starts_with("application/") && subtype.ends_with("+json")) {
        Ok(())
    } else {
        Err(ApiError::validation(format_args!(
            "request body: header Content-Type has unexpected value {essence:?}, want application/json"
        )))
    }
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.inner();
        if path == "." {
            ApiError::validation(format_args!("request body: {reason}"))
        } else {
            ApiError::validation(format_args!("request body: field {path:?}: {reason}"))
        }
    })?;
    reader.end().map_err(|error| ApiError::validation(format_args!("request body: {error}")))?;
    Ok(value)
}

// === impl SandboxPath ===

impl SandboxPath {
    /// The id, or the 404 of one that cannot exist.
    pub(crate) fn id(&self) -> Result<SandboxId, ApiError> {
        self.text.parse().map_err(|_| ApiError::no_sandbox(&self.text))
    }

    /// Reads `<id>` or the old `<id>-<client>` (contract/control-plane 2).
    pub(super) fn read(text: &str) -> Result<Self, ApiError> {
        let id = match text.split_once('-') {
            Some((_, client)) if client.contains('-') => "",
            Some((id, _)) => id,
            None => text,
        };
        if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            Ok(Self { text: id.to_owned() })
        } else {
            Err(ApiError::bad_request("Invalid sandbox ID"))
        }
    }
}

impl FromRequestParts<AppState> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let PathText(text) = PathText::from_request_parts(parts, state).await?;
        Self::read(&text)
    }
}

// === impl PathText ===

impl FromRequestParts<AppState> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => Err(ApiError::validation("the path is not UTF-8")),
        }
    }
}

// === impl Query ===

impl Query {
    /// The value of a name; the last one when it is repeated. Empty values count as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The items of an array parameter: `a=x,y` and `a=x&a=y` are the same.
    pub(crate) fn items(&self, name: &str) -> Vec<&str> {
        let values = self.0.iter().filter(|(key, _)| key == name);
        values.flat_map(|(_, value)| value.split(',')).filter(|item| !item.is_empty()).collect()
    }

    pub(super) fn read(query: &str) -> Result<Self, ApiError> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((unescape(key)?, unescape(value)?))
        });
        pairs
            .collect::<Result<_, BadEscape>>()
            .map(Self)
            .map_err(|_| ApiError::validation("the query is malformed"))
    }
}

impl FromRequestParts<AppState> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        Self::read(parts.uri.query().unwrap_or_default())
    }
}

/// A text that is no query escape of UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadEscape;

/// Undoes one layer of query escaping: `+` is a space, `%` needs two hex digits.
pub(crate) fn unescape(text: &str) -> Result<String, BadEscape> {
    let complete = text
        .split('%')
        .skip(1)
        .all(|rest| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    if !complete {
        return Err(BadEscape);
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| BadEscape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_paths_are_new_or_old_ids() {
        for text in ["i0123456789abcdefghij", "i0123456789abcdefghij-6532622b"] {
            let id = SandboxPath::read(text).unwrap().id().unwrap();
            assert_eq!(id.as_str(), "i0123456789abcdefghij");
        }
        // Well-formed, but nobody's: 404 rather than 400.
        assert_eq!(SandboxPath::read("nope").unwrap().id().unwrap_err().status(), StatusCode::NOT_FOUND);
        for text in ["", "-x", "a-b-c", "A", "../x", "i0123456789abcdefghi%"] {
            assert_eq!(
                SandboxPath::read(text).unwrap_err(),
                ApiError::bad_request("Invalid sandbox ID"),
                "{text}"
            );
        }
    }

    #[test]
    fn array_parameters_are_split_after_decoding() {
        for query in ["state=running,paused", "state=running%2Cpaused", "state=running&state=paused"] {
            assert_eq!(Query::read(query).unwrap().items("state"), ["running", "paused"], "{query}");
        }
        assert!(Query::read("").unwrap().items("state").is_empty());
    }

    #[test]
    fn escapes_are_undone_once_and_only_whole_ones() {
        assert_eq!(unescape("k%2520+1").unwrap(), "k%20 1");
        for text in ["%", "%2", "%zz", "a%2", "%FF"] {
            assert_eq!(unescape(text), Err(BadEscape), "{text}");
        }
    }

    #[test]
    fn schema_errors_name_the_field() {
        #[derive(Debug, serde::Deserialize)]
        struct Wanted {
            #[expect(dead_code, reason = "only read")]
            labels: std::collections::BTreeMap<String, String>,
        }
        assert!(parse::<Wanted>(br#"{"labels":{"a":"b"},"unknown":1}"#).is_ok());
        let message = |body: &[u8]| parse::<Wanted>(body).unwrap_err().body();
        assert!(message(br#"{"labels":{"a":5}}"#).contains("labels.a"));
        assert!(message(b"{}").contains("labels"));
        for body in [&b"{"[..], b"[]", b"5", b"{\"labels\":{}} x", b"\xff"] {
            assert!(message(body).contains("validation error: "), "{body:?}");
        }
    }
}
