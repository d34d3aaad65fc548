//! Pages of lists: `limit`, the opaque `nextToken`, and `X-Next-Token` (contract/control-plane 1.8).
//!
//! A token holds the key of the last item shown, (start, id), and the order it was made under:
//! under the other order it would skip or repeat items, so it is refused there.

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
        let limit = match query.get("limit").map(str::parse) {
            None => MOST,
            Some(Ok(limit)) if (1..=MOST).contains(&limit) => limit,
            Some(_) => {
                return Err(ApiError::validation(
                    "parameter \"limit\" in query: want a number from 1 to 100",
                ));
            }
        };
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

pub(super) fn encode(start: Timestamp, id: SandboxId, ascending: bool) -> String {
    let order = if ascending { ASCENDING } else { "" };
    BASE64_URL_SAFE.encode(format!("{start}__{id}{order}"))
}

pub(super) fn decode(token: &str, ascending: bool) -> Option<(Timestamp, SandboxId)> {
    let text = String::from_utf8(BASE64_URL_SAFE.decode(token).ok()?).ok()?;
    let key = match text.strip_suffix(ASCENDING) {
        Some(key) if ascending => key,
        None if !ascending => text.as_str(),
        _ => return None,
    };
    let (start, id) = key.split_once("__")?;
    Some((start.parse().ok()?, id.parse().ok()?))
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
            assert_eq!(decode(&token, !ascending), None);
        }
        for bad in ["", "x", "AAAA", &BASE64_URL_SAFE.encode("2024-01-01T00:00:00Z__nope")] {
            assert_eq!(decode(bad, false), None, "{bad}");
        }
    }
}
