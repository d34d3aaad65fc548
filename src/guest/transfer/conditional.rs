//! Conditions and ranges of a download, decided as Go's `ServeContent` decides them. There are
//! no entity tags, so a condition on one is only ever met by `*`.

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName, header};

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 200 with everything.
    Whole,
    /// 206 with these parts, at least one.
    Parts(Vec<Range<u64>>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416: no range at all.
    BadRange,
    /// 416: a range, but outside the file.
    NoOverlap,
}

/// Whether a header asks for something that only the plain contents can answer.
pub(super) fn wants_plain(headers: &HeaderMap) -> bool {
    [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_NONE_MATCH, header::IF_RANGE]
        .iter()
        .any(|name| headers.get(name).is_some_and(|value| !value.is_empty()))
}

/// When the file was changed, in whole seconds; none for the epoch itself, which Go takes for
/// "unknown".
pub(super) fn modified(found: &std::fs::Metadata) -> Option<SystemTime> {
    let seconds = found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (seconds != 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Weighs all conditions, then the ranges.
pub(super) fn judge(headers: &HeaderMap, modified: Option<SystemTime>, size: u64) -> Verdict {
    let if_match = text(headers, &header::IF_MATCH);
    let met = match if_match {
        Some(tags) => tags.split(',').any(|tag| tag.trim() == "*"),
        None => date(headers, &header::IF_UNMODIFIED_SINCE)
            .zip(modified)
            .is_none_or(|(date, modified)| modified <= date),
    };
    if !met {
        return Verdict::PreconditionFailed;
    }
    let fresh = match text(headers, &header::IF_NONE_MATCH) {
        Some(tags) => tags.split(',').any(|tag| tag.trim() == "*"),
        None => date(headers, &header::IF_MODIFIED_SINCE)
            .zip(modified)
            .is_some_and(|(date, modified)| modified <= date),
    };
    if fresh {
        return Verdict::NotModified;
    }
    let Some(range) = text(headers, &header::RANGE) else { return Verdict::Whole };
    if text(headers, &header::IF_RANGE).is_some() {
        let same =
            date(headers, &header::IF_RANGE).zip(modified).is_some_and(|(date, modified)| date == modified);
        if !same {
            return Verdict::Whole;
        }
    }
    ranges(range, size)
}

fn ranges(text: &str, size: u64) -> Verdict {
    let Some(list) = text.strip_prefix("bytes=") else { return Verdict::BadRange };
    let mut parts = Vec::new();
    let mut outside = false;
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match one_range(part, size) {
            Some(range) if range.start >= size && !part.starts_with('-') => outside = true,
            Some(range) => parts.push(range),
            None => return Verdict::BadRange,
        }
    }
    if parts.is_empty() {
        // Clients that put a range on every request get an empty file as it is.
        return if outside && size > 0 { Verdict::NoOverlap } else { Verdict::Whole };
    }
    // Parts that repeat the file are an attack or a mistake.
    let total = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.end - part.start));
    if total > size { Verdict::Whole } else { Verdict::Parts(parts) }
}

/// `a-b`, `a-` or `-n`; the end is cut to the size, the start is not.
fn one_range(part: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = part.split_once('-')?;
    let (start, end) = (start.trim(), end.trim());
    if start.is_empty() {
        let length = number(end)?.min(size);
        return Some(size - length..size);
    }
    let start = number(start)?;
    if start >= size {
        return Some(start..start);
    }
    let end = if end.is_empty() { size } else { number(end)?.checked_add(1)?.min(size) };
    (start < end).then_some(start..end)
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(pairs: &[(HeaderName, &str)], size: u64) -> Verdict {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        judge(&headers, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)), size)
    }

    fn parts(list: &[(u64, u64)]) -> Verdict {
        Verdict::Parts(list.iter().map(|&(start, end)| start..end).collect())
    }

    const SAME: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";

    #[test]
    fn conditions() {
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        assert_eq!(judged(&[], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, SAME)], 10), Verdict::NotModified);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, BEFORE)], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_MODIFIED_SINCE, "no date")], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_UNMODIFIED_SINCE, SAME)], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_UNMODIFIED_SINCE, BEFORE)], 10), Verdict::PreconditionFailed);
        assert_eq!(judged(&[(IF_NONE_MATCH, "*")], 10), Verdict::NotModified);
        assert_eq!(judged(&[(IF_NONE_MATCH, "\"a\""), (IF_MODIFIED_SINCE, SAME)], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_MATCH, "*")], 10), Verdict::Whole);
        assert_eq!(judged(&[(IF_MATCH, "\"a\"")], 10), Verdict::PreconditionFailed);
    }

    #[test]
    fn byte_ranges() {
        use header::{IF_RANGE, RANGE};
        for (range, verdict) in [
            ("bytes=0-3", parts(&[(0, 4)])),
            ("bytes=4-", parts(&[(4, 10)])),
            ("bytes=-3", parts(&[(7, 10)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes=8-99", parts(&[(8, 10)])),
            ("bytes=0-0, 9-", parts(&[(0, 1), (9, 10)])),
            ("bytes=0-9,0-9", Verdict::Whole),
            ("bytes=10-", Verdict::NoOverlap),
            ("bytes=3-2", Verdict::BadRange),
            ("bytes=a-", Verdict::BadRange),
            ("lines=1-2", Verdict::BadRange),
        ] {
            assert_eq!(judged(&[(RANGE, range)], 10), verdict, "{range}");
        }
        assert_eq!(judged(&[(RANGE, "bytes=5-")], 0), Verdict::Whole);
        assert_eq!(judged(&[(RANGE, "bytes=0-3"), (IF_RANGE, SAME)], 10), parts(&[(0, 4)]));
        assert_eq!(judged(&[(RANGE, "bytes=0-3"), (IF_RANGE, BEFORE)], 10), Verdict::Whole);
    }
}
