//! Properties of uploads' forms and of the headers that `/files` reads.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::{
    conditional::{self, Verdict},
    disposition, encoding, sniff,
    upload::{Paced, Pieces, Upload, boundary, decoded},
};
use crate::guest::{
    entry::{UserMetadata, metadata},
    state::Guest,
    users::User,
};

/// The pieces that a body is cut into; what is read must not depend on them.
const CUTS: [usize; 4] = [usize::MAX, 1, 7, 64];
/// A part's head beyond this in one piece is not tried byte by byte: it would only be slow.
const LONGEST: usize = 64 << 10;

/// Where a file goes and what it holds.
type Files = Result<Vec<(PathBuf, Vec<u8>)>, String>;

/// `p` or `g` (a body plain or in gzip) and the content type, a line; then the body. `f`: what
/// follows are files, apart by zero bytes, of which a form is made.
pub(crate) async fn form(data: &[u8]) {
    let Some((mode, rest)) = data[..data.len().min(LONGEST)].split_first() else { return };
    if *mode == b'f' {
        return written(rest).await;
    }
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return };
    let (kind, body) = (&rest[..end], &rest[end + 1..]);
    let Ok(kind) = HeaderValue::from_bytes(kind) else { return };
    let Some(boundary) = boundary(&String::from_utf8_lossy(kind.as_bytes())) else { return };
    assert!(!boundary.is_empty());
    let gzip = *mode == b'g';
    let whole = read(body, usize::MAX, &boundary, gzip).await;
    if let (Ok(files), false) = (&whole, gzip) {
        let total: usize = files.iter().map(|(_, contents)| contents.len()).sum();
        assert!(total <= body.len(), "a form holds no more than its body");
    }
    if let Ok(files) = &whole {
        let places: HashSet<_> = files.iter().map(|(path, _)| path).collect();
        assert_eq!(places.len(), files.len(), "each place once");
        assert!(files.iter().all(|(path, _)| path.is_absolute()));
    }
    if body.len() > 4096 {
        return;
    }
    for cut in &CUTS[1..] {
        let pieces = read(body, *cut, &boundary, gzip).await;
        assert_eq!(pieces.is_ok(), whole.is_ok(), "pieces of {cut}: {pieces:?} instead of {whole:?}");
        if whole.is_ok() {
            assert_eq!(pieces, whole, "pieces of {cut}");
        }
    }
}

/// A form that is written as browsers write it is read as it was meant.
async fn written(data: &[u8]) {
    const BOUNDARY: &str = "fuzz-4b1d";
    let files: Vec<&[u8]> = data.split(|byte| *byte == 0).take(8).collect();
    let mut body = Vec::new();
    for (number, contents) in files.iter().enumerate() {
        if contents.windows(BOUNDARY.len()).any(|window| window == BOUNDARY.as_bytes()) {
            return;
        }
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"d/f {number}\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(contents);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let wanted: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(number, contents)| (PathBuf::from(format!("/home/user/d/f {number}")), contents.to_vec()))
        .collect();
    for cut in CUTS {
        assert_eq!(read(&body, cut, BOUNDARY, false).await.as_ref(), Ok(&wanted), "pieces of {cut}");
    }
}

async fn read(body: &[u8], cut: usize, boundary: &str, gzip: bool) -> Files {
    let upload = Upload {
        user: Arc::new(User {
            name: "user".to_owned(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
            shell: String::new(),
            groups: Vec::new(),
        }),
        workdir: None,
        path: None,
        metadata: UserMetadata::new(),
        announced: None,
        guest: Guest::default(),
    };
    let body = Bytes::copy_from_slice(body);
    let pieces: Vec<io::Result<Bytes>> = if body.is_empty() {
        Vec::new()
    } else {
        (0..body.len())
            .step_by(cut)
            .map(|at| Ok(body.slice(at..body.len().min(at.saturating_add(cut)))))
            .collect()
    };
    let raw: Pieces = stream::iter(pieces).boxed();
    let mut headers = HeaderMap::new();
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let mut pieces = decoded(raw, &headers).await.map_err(|problem| problem.message)?;
    let mut form = multer::Multipart::new(Paced { inner: &mut pieces, rest: false }, boundary);
    let (mut seen, mut files) = (HashSet::new(), Vec::new());
    while let Some((path, mut field)) =
        upload.next_file(&mut form, &mut seen).await.map_err(|problem| problem.message)?
    {
        let mut contents = Vec::new();
        while let Some(piece) = field.next().await {
            contents.extend_from_slice(&piece.map_err(|error| error.to_string())?);
        }
        files.push((path, contents));
    }
    Ok(files)
}

/// Header fields, a line each; an empty line, and the first bytes of a file, whose name they are
/// as well.
pub(crate) fn headers(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let contents = data.get(end + 2..).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in data[..end].split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    for size in [0, 1, 10, 1 << 40, i64::MAX.unsigned_abs()] {
        for modified in [None, Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000))] {
            verdict(&headers, modified, size);
        }
    }
    for plain_only in [false, true] {
        let chosen = encoding::accepted(&headers, plain_only);
        assert!(!plain_only || chosen != Ok(encoding::Encoding::Gzip), "a range is plain");
        let offered = headers.contains_key(header::ACCEPT_ENCODING);
        assert!(offered || chosen == Ok(encoding::Encoding::Identity));
    }
    let _ = encoding::of_body(&headers);
    if let Ok(set) = metadata::from_headers(&headers) {
        assert!(set.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= 4096);
        assert!(set.keys().all(|key| (1..=246).contains(&key.len())));
        assert!(set.values().all(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte))));
    }
    file(contents);
}

fn verdict(headers: &HeaderMap, modified: Option<SystemTime>, size: u64) {
    let verdict = conditional::judge(headers, modified, size);
    if !conditional::wants_plain(headers) {
        assert!(matches!(verdict, Verdict::Whole | Verdict::PreconditionFailed));
    }
    plain_range(headers, modified, size, &verdict);
    if let Verdict::Parts(parts) = verdict {
        assert!(!parts.is_empty());
        assert!(parts.iter().all(|part| part.start <= part.end && part.end <= size));
        let total: u128 = parts.iter().map(|part| u128::from(part.end - part.start)).sum();
        assert!(total <= u128::from(size), "no more than the file is sent");
        let text = headers.get(header::RANGE).map_or(0, HeaderValue::len);
        assert!(parts.len() <= text, "parts come of the text");
    }
}

/// One range `a-b` and no condition: all that is asked for and there.
fn plain_range(headers: &HeaderMap, modified: Option<SystemTime>, size: u64, verdict: &Verdict) {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return };
    let asked = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let Some((Ok(start), Ok(end))) = asked.map(|(start, end)| (start.parse::<u64>(), end.parse::<u64>()))
    else {
        return;
    };
    let conditions = [
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
    ];
    let conditional = conditions.iter().any(|name| headers.contains_key(name));
    if !text.contains('+')
        && !conditional
        && modified.is_none()
        && start <= end
        && end < u64::MAX
        && start < size
    {
        let Verdict::Parts(parts) = verdict else { panic!("{verdict:?}") };
        assert_eq!(parts.as_slice(), std::slice::from_ref(&(start..size.min(end + 1))));
    }
}

fn file(contents: &[u8]) {
    let kind = sniff::content_type(contents);
    let seen = &contents[..contents.len().min(sniff::LENGTH)];
    assert_eq!(sniff::content_type(seen), kind, "only the head counts");
    let name = String::from_utf8_lossy(contents);
    assert!(HeaderValue::from_str(&disposition::inline(&name)).is_ok(), "every name has a header");
    if let Some(kind) = disposition::type_by_extension(&name) {
        assert!(HeaderValue::from_str(&kind).is_ok());
    }
}
