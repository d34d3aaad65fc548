//! `Accept-Encoding` and `Content-Encoding` as envd reads them: gzip or nothing.

use axum::http::{HeaderMap, HeaderName, header};

/// How contents travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As they are.
    Identity,
    /// Compressed.
    Gzip,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EncodingError {
    /// The body is compressed in a way that we cannot undo.
    #[error("unsupported Content-Encoding: {0}, supported: [gzip]")]
    Unsupported(String),
    /// The client takes nothing that we have.
    #[error("no acceptable encoding found, supported: [gzip]")]
    NotAcceptable,
}

struct Choice {
    name: String,
    quality: f64,
}

/// How the answer may travel. The highest quality wins, and at equal quality the first one;
/// `*` stands for identity while that is not rejected. `plain_only`: a range or condition was
/// asked for, which has a meaning for identity alone.
pub(super) fn accepted(headers: &HeaderMap, plain_only: bool) -> Result<Encoding, EncodingError> {
    let mut choices: Vec<Choice> = text(headers, &header::ACCEPT_ENCODING)
        .split(',')
        .map(parse)
        .filter(|choice| !choice.name.is_empty())
        .collect();
    choices.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let rejected = rejects_identity(&choices);
    if plain_only {
        return if rejected { Err(EncodingError::NotAcceptable) } else { Ok(Encoding::Identity) };
    }
    let chosen =
        choices.iter().filter(|choice| choice.quality > 0.0).find_map(|choice| match &*choice.name {
            "gzip" => Some(Encoding::Gzip),
            "*" if rejected => Some(Encoding::Gzip),
            "identity" | "*" => Some(Encoding::Identity),
            _ => None,
        });
    match chosen {
        Some(encoding) => Ok(encoding),
        None if rejected => Err(EncodingError::NotAcceptable),
        None => Ok(Encoding::Identity),
    }
}

/// Whether identity is refused, by its name or, when it is not named with a quality, by `*`.
fn rejects_identity(choices: &[Choice]) -> bool {
    let refuses = |name: &str| choices.iter().any(|choice| choice.name == name && choice.quality == 0.0);
    let named = choices.iter().any(|choice| choice.name == "identity" && choice.quality != 0.0);
    refuses("identity") || refuses("*") && !named
}

/// How the request's body travels.
pub(super) fn of_body(headers: &HeaderMap) -> Result<Encoding, EncodingError> {
    let header = text(headers, &header::CONTENT_ENCODING);
    match &*parse(&header).name {
        "" | "identity" => Ok(Encoding::Identity),
        "gzip" => Ok(Encoding::Gzip),
        _ => Err(EncodingError::Unsupported(header)),
    }
}

/// All values of a list header in one line.
fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.collect::<Vec<_>>().join(",")
}

fn parse(value: &str) -> Choice {
    let mut parts = value.split(';');
    let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let quality = parts
        .filter_map(|part| {
            let (key, quality) = part.split_once('=')?;
            key.trim().eq_ignore_ascii_case("q").then(|| quality.trim().parse::<f64>().ok())?
        })
        .next_back()
        .unwrap_or(1.0);
    Choice { name, quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> Result<Encoding, EncodingError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
        accepted(&headers, false)
    }

    #[test]
    fn the_best_acceptable_encoding_wins() {
        assert_eq!(accepted(&HeaderMap::new(), false), Ok(Encoding::Identity));
        for (value, wanted) in [
            ("gzip, deflate", Encoding::Gzip),
            ("GZIP;q=0.5", Encoding::Gzip),
            ("identity, gzip", Encoding::Identity),
            ("gzip, identity", Encoding::Gzip),
            ("gzip;q=0.1, identity;q=0.2", Encoding::Identity),
            ("*", Encoding::Identity),
            ("identity;q=0, *", Encoding::Gzip),
            ("deflate, br", Encoding::Identity),
            ("gzip;q=0", Encoding::Identity),
        ] {
            assert_eq!(accept(value), Ok(wanted), "{value}");
        }
        assert_eq!(accept("identity;q=0, br"), Err(EncodingError::NotAcceptable));
        assert_eq!(accept("identity;q=0, gzip;q=0"), Err(EncodingError::NotAcceptable));
        assert_eq!(accept("*;q=0"), Err(EncodingError::NotAcceptable));
        assert_eq!(accept("gzip, *;q=0"), Ok(Encoding::Gzip));
        assert_eq!(accept("*;q=0, identity;q=0.5"), Ok(Encoding::Identity));
    }

    #[test]
    fn ranges_are_plain() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(accepted(&headers, true), Ok(Encoding::Identity));
        for refused in ["gzip, identity;q=0", "gzip; q=1,*; q=0"] {
            headers.insert(header::ACCEPT_ENCODING, refused.parse().unwrap());
            assert_eq!(accepted(&headers, true), Err(EncodingError::NotAcceptable), "{refused}");
        }
    }

    #[test]
    fn bodies_are_gzip_or_plain() {
        let mut headers = HeaderMap::new();
        assert_eq!(of_body(&headers), Ok(Encoding::Identity));
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(of_body(&headers), Ok(Encoding::Gzip));
        headers.insert(header::CONTENT_ENCODING, "br".parse().unwrap());
        assert!(matches!(of_body(&headers), Err(EncodingError::Unsupported(_))));
    }
}
