//! Pages of lists: `limit`, the opaque `nextToken`, and `X-Next-Token` (contract/control-plane 1.8).
//!
//! A token holds the key of the last item shown, (start, id), and the order it was made under:
//! under the other order it would skip or repeat items, so it is refused there.

use std::{fmt, str::FromStr};

use axum::response::Response;
use base64::{Engine as _, prelude::BASE64_URL_SAFE};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use crate::{
    id::SandboxId,
    routes::{extract::Query, reply::ApiError},
    sandbox::SandboxRecord,
    store::SandboxFilter,
};

/// Where the next page is found; absent on the last one.
pub(crate) const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
const MOST: u32 = 100;
const ASCENDING: &str = "__asc";

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    limit: u32,
    ascending: bool,
    after: Option<(Timestamp, SandboxId)>,
}

// === impl Page ===

impl Page {
    /// Reads `limit`, `order` and `nextToken`.
    pub(crate) fn read(query: &Query) -> Result<Self, ApiError> {
        let limit = limit(query)?;
        let ascending = match query.get("order") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => {
                return Err(ApiError::validation(
                    "parameter \"order\" in query: value is not one of asc, desc",
                ));
            }
        };
        let after = match query.get("nextToken") {
            None => None,
            Some(token) => {
                Some(decode(token, ascending).ok_or_else(|| ApiError::bad_request("Invalid next token"))?)
            }
        };
        Ok(Self { limit, ascending, after })
    }

    /// The filter bound to this page, and one item more to see whether another follows.
    pub(crate) fn bound(self, filter: SandboxFilter) -> SandboxFilter {
        SandboxFilter { ascending: self.ascending, after: self.after, limit: Some(self.limit + 1), ..filter }
    }

    /// Takes off the one item more; the token of the next page if it was there.
    pub(crate) fn cut(self, records: &mut Vec<SandboxRecord>) -> Option<HeaderValue> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if records.len() <= limit {
            return None;
        }
        records.truncate(limit);
        let last = records.last()?;
        HeaderValue::try_from(encode(last.started_at, last.id, self.ascending)).ok()
    }
}

/// How many items a page may have.
pub(super) fn limit(query: &Query) -> Result<u32, ApiError> {
    match query.get("limit").map(str::parse) {
        None => Ok(MOST),
        Some(Ok(limit)) if (1..=MOST).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::validation("parameter \"limit\" in query: want a number from 1 to 100")),
    }
}

/// The token of the page behind an item.
pub(super) fn encode(start: Timestamp, id: impl fmt::Display, ascending: bool) -> String {
    let order = if ascending { ASCENDING } else { "" };
    BASE64_URL_SAFE.encode(format!("{start}__{id}{order}"))
}

/// The item that a token names, if it was made under this order.
pub(super) fn decode<T: FromStr>(token: &str, ascending: bool) -> Option<(Timestamp, T)> {
    let text = String::from_utf8(BASE64_URL_SAFE.decode(token).ok()?).ok()?;
    let key = match text.strip_suffix(ASCENDING) {
        Some(key) if ascending => key,
        None if !ascending => text.as_str(),
        _ => return None,
    };
    let (start, id) = key.split_once("__")?;
    Some((start.parse().ok()?, id.parse().ok()?))
}

/// Behind which item a page newest first begins, by the query's `nextToken`.
pub(super) fn after<T: FromStr>(query: &Query) -> Result<Option<(Timestamp, T)>, ApiError> {
    let Some(token) = query.get("nextToken") else { return Ok(None) };
    decode(token, false).map(Some).ok_or_else(|| ApiError::bad_request("Invalid next token"))
}

/// Cuts a list newest first to a page; the token of the next one if more are there. `key` gives what
/// the items are sorted by.
pub(super) fn cut<T>(
    items: &mut Vec<T>,
    limit: u32,
    key: impl Fn(&T) -> (Timestamp, String),
) -> Option<HeaderValue> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if items.len() <= limit {
        return None;
    }
    items.truncate(limit);
    let (time, id) = key(items.last()?);
    // Microseconds are what the store keeps.
    let time = Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time);
    HeaderValue::try_from(encode(time, id, false)).ok()
}

/// An answer with the token of the next page, if there is one.
pub(super) fn answer(mut response: Response, next: Option<HeaderValue>) -> Response {
    if let Some(token) = next {
        response.headers_mut().insert(NEXT_TOKEN, token);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_under_their_own_order_only() {
        let id: SandboxId = "i0123456789abcdefghij".parse().unwrap();
        let start = Timestamp::from_microsecond(1_700_000_000_123_456).unwrap();
        for ascending in [false, true] {
            let token = encode(start, id, ascending);
            assert_eq!(decode(&token, ascending), Some((start, id)));
            assert_eq!(decode::<SandboxId>(&token, !ascending), None);
        }
        for bad in ["", "x", "AAAA", &BASE64_URL_SAFE.encode("2024-01-01T00:00:00Z__nope")] {
            assert_eq!(decode::<SandboxId>(bad, false), None, "{bad}");
        }
    }
}
