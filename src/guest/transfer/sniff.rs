//! The content type of a file by its first bytes: the WHATWG algorithm as Go implements it.

/// How many bytes are looked at.
pub(super) const LENGTH: usize = 512;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// Tags that make a document HTML, when white space or `>` follows.
const TAGS: [&str; 17] = [
    "<!DOCTYPE HTML",
    "<HTML",
    "<HEAD",
    "<SCRIPT",
    "<IFRAME",
    "<H1",
    "<DIV",
    "<FONT",
    "<TABLE",
    "<A",
    "<STYLE",
    "<TITLE",
    "<B",
    "<BODY",
    "<BR",
    "<P",
    "<!--",
];

/// Signatures that begin the file.
const EXACT: [(&[u8], &str); 22] = [
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\xFE\xFF", "text/plain; charset=utf-16be"),
    (b"\xFF\xFE", "text/plain; charset=utf-16le"),
    (b"\xEF\xBB\xBF", TEXT),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"\x00\x00\x02\x00", "image/x-icon"),
    (b"BM", "image/bmp"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x89PNG\x0D\x0A\x1A\x0A", "image/png"),
    (b"\xFF\xD8\xFF", "image/jpeg"),
    (b"ID3", "audio/mpeg"),
    (b"OggS\x00", "application/ogg"),
    (b"MThd\x00\x00\x00\x06", "audio/midi"),
    (b"\x1A\x45\xDF\xA3", "video/webm"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
    (b"ttcf", "font/collection"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\x1F\x8B\x08", "application/x-gzip"),
];

/// Signatures after those that need a closer look.
const ARCHIVES: [(&[u8], &str); 4] = [
    (b"PK\x03\x04", "application/zip"),
    (b"Rar!\x1A\x07\x00", "application/x-rar-compressed"),
    (b"Rar!\x1A\x07\x01\x00", "application/x-rar-compressed"),
    (b"\x00asm", "application/wasm"),
];

/// Names the type of contents that begin with `head`.
pub(super) fn content_type(head: &[u8]) -> &'static str {
    let head = &head[..head.len().min(LENGTH)];
    let start = head.iter().position(|byte| !b"\t\n\x0C\r ".contains(byte)).unwrap_or(head.len());
    let trimmed = &head[start..];
    if TAGS.iter().any(|tag| is_tag(trimmed, tag.as_bytes())) {
        return HTML;
    }
    if trimmed.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    let known = EXACT.iter().chain(&ARCHIVES).find(|(signature, _)| head.starts_with(signature));
    if let Some((_, kind)) = known {
        return kind;
    }
    if let Some(kind) = riff(head).or_else(|| is_mp4(head).then_some("video/mp4")) {
        return kind;
    }
    if head.get(34..36) == Some(b"LP") {
        return "application/vnd.ms-fontobject";
    }
    let binary = |byte: &u8| matches!(byte, 0..=8 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if trimmed.iter().any(binary) { "application/octet-stream" } else { TEXT }
}

fn is_tag(text: &[u8], tag: &[u8]) -> bool {
    let Some(next) = text.get(tag.len()) else { return false };
    let same = text[..tag.len()].eq_ignore_ascii_case(tag);
    // A comment's opening needs nothing after it, but Go asks for it all the same, as of a tag.
    same && matches!(next, b' ' | b'>')
}

fn riff(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"FORM") && head.get(8..12) == Some(b"AIFF") {
        return Some("audio/aiff");
    }
    if !head.starts_with(b"RIFF") {
        return None;
    }
    match head.get(8..12)? {
        b"AVI " => Some("video/avi"),
        b"WAVE" => Some("audio/wave"),
        _ if head.get(8..14) == Some(b"WEBPVP") => Some("image/webp"),
        _ => None,
    }
}

/// An ISO media file whose brands say mp4.
fn is_mp4(head: &[u8]) -> bool {
    let Some(Ok(size)) = head.get(..4).map(<[u8; 4]>::try_from) else { return false };
    let size = u32::from_be_bytes(size) as usize;
    if head.len() < 12 || head.len() < size || !size.is_multiple_of(4) || &head[4..8] != b"ftyp" {
        return false;
    }
    // The four bytes after the major brand are its version.
    (8..size).step_by(4).filter(|&at| at != 12).any(|at| head.get(at..at + 3) == Some(b"mp4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_gos() {
        let cases: [(&[u8], &str); 17] = [
            (b"", TEXT),
            (b"hello\n", TEXT),
            (b"caf\xc3\xa9", TEXT),
            (b"\x01\x02", "application/octet-stream"),
            (b"\x1b[0m", TEXT),
            (b"  <!doctype html>", HTML),
            (b"<HtMl><body>", HTML),
            (b"<htmlx>", TEXT),
            (b"\n<?xml version", "text/xml; charset=utf-8"),
            (b"%PDF-1.7", "application/pdf"),
            (b"\x89PNG\r\n\x1a\n", "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"\x1f\x8b\x08\x00", "application/x-gzip"),
            (b"PK\x03\x04", "application/zip"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom", "video/mp4"),
            (b"\0asm\x01\0\0\0", "application/wasm"),
        ];
        for (head, kind) in cases {
            assert_eq!(content_type(head), kind, "{head:?}");
        }
    }
}
