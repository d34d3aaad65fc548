//! `Content-Disposition` of a download and the content type by its name, both in Go's way.

use std::fmt::Write as _;

/// `inline; filename=...`: bare when it is a token, quoted when it is ASCII, else RFC 2231.
pub(super) fn inline(name: &str) -> String {
    if name.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte > b'~') {
        let mut text = "inline; filename*=utf-8''".to_owned();
        for byte in name.bytes() {
            if is_token(byte) && !matches!(byte, b'*' | b'\'' | b'%') {
                text.push(char::from(byte));
            } else {
                // Writing to a text cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
        return text;
    }
    if !name.is_empty() && name.bytes().all(is_token) {
        return format!("inline; filename={name}");
    }
    let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
    format!("inline; filename=\"{escaped}\"")
}

/// A character of an RFC 2045 token.
fn is_token(byte: u8) -> bool {
    (b'!'..=b'~').contains(&byte) && !br#"()<>@,;:\"/[]?="#.contains(&byte)
}

/// The type that a file's extension stands for, with its character set for text.
pub(super) fn type_by_extension(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let (_, extension) = name.rsplit_once('.')?;
    let kind = mime_guess::from_ext(extension).first_raw()?;
    // The one type that Go knows by its own table and mime_guess by another name.
    let kind = if kind == "application/javascript" { "text/javascript" } else { kind };
    Some(if kind.starts_with("text/") && !kind.contains("charset") {
        format!("{kind}; charset=utf-8")
    } else {
        kind.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_like_gos() {
        for (name, header) in [
            ("a.txt", "inline; filename=a.txt"),
            ("a b.txt", "inline; filename=\"a b.txt\""),
            ("a\"b", "inline; filename=\"a\\\"b\""),
            ("\u{e9}t\u{e9} 1.txt", "inline; filename*=utf-8''%C3%A9t%C3%A9%201.txt"),
        ] {
            assert_eq!(inline(name), header);
        }
    }

    #[test]
    fn types_follow_the_extension() {
        for (path, kind) in [
            ("/a/b.html", Some("text/html; charset=utf-8")),
            ("b.JS", Some("text/javascript; charset=utf-8")),
            ("b.json", Some("application/json")),
            ("/a.d/noext", None),
            ("x.png", Some("image/png")),
        ] {
            assert_eq!(type_by_extension(path).as_deref(), kind, "{path}");
        }
    }
}
