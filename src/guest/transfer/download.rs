//! `GET /files` (contract/sandbox 5.2).

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use axum::{
    body::Body,
    extract::{State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use rustix::buffer::spare_capacity;

use super::{
    FilesQuery, Pairs, authorize, bind,
    block::{self, Block},
    blocking,
    conditional::{self, Verdict},
    disposition,
    encoding::{self, Encoding},
    problem::Problem,
    sniff,
};
use crate::guest::{
    entry,
    failure::{self, is_missing},
    paths,
    signature::Operation,
    state::Guest,
};

/// Between the parts of a multi-range answer.
const BOUNDARY: &str = "firkin-5f1c3a0d9be24706a8d2b7e4c6913f58";

/// Sends one file.
pub(super) async fn get_files(
    State(guest): State<Guest>,
    query: Result<Pairs, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let query = match bind(query) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    match download(&guest, &query, headers).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn download(guest: &Guest, query: &FilesQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let user = authorize(guest, query, &headers, Operation::Read)?;
    let asked = query.path.clone().unwrap_or_default();
    let path = paths::resolve(&asked, &user, guest.default_workdir().as_deref()).map_err(|error| {
        Problem::bad_request(format!("error expanding and resolving path '{asked}': {error}"))
    })?;
    let mut response = blocking(move || {
        check(&path)?;
        let encoding = encoding::accepted(&headers, conditional::wants_plain(&headers)).map_err(|error| {
            Problem::new(StatusCode::NOT_ACCEPTABLE, format!("error parsing Accept-Encoding: {error}"))
        })?;
        let source = Source::open(path, &asked)?;
        let mut response = match encoding {
            Encoding::Gzip => source.compressed(),
            Encoding::Identity => source.plain(&headers)?,
        };
        let disposition = disposition::inline(&entry::base_name(Path::new(&asked)));
        if let Ok(value) = HeaderValue::from_str(&disposition) {
            response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
        }
        Ok(response)
    })
    .await?;
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(response)
}

fn check(path: &Path) -> Result<(), Problem> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            Err(Problem::bad_request(format!("path '{}' is a directory", path.display())))
        }
        // Opening one would wait for a peer that may never come.
        Ok(found) if !entry::is_openable(&found) => {
            Err(Problem::bad_request(format!("path '{}' is a pipe or socket, not a file", path.display())))
        }
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) => {
            Err(Problem::new(StatusCode::NOT_FOUND, format!("path '{}' does not exist", path.display())))
        }
        Err(error) => Err(Problem::internal(format!(
            "error checking if path exists '{}': {}",
            path.display(),
            failure::describe("stat", path, &error)
        ))),
    }
}

/// An open file and what headers say of it.
struct Source {
    file: File,
    path: PathBuf,
    /// By the extension; none: unknown, or no extension.
    kind: Option<String>,
    size: u64,
    modified: Option<SystemTime>,
}

/// What a plain answer consists of, in order.
enum Segment {
    Text(Bytes),
    File(Range<u64>),
}

// === impl Source ===

impl Source {
    fn open(path: PathBuf, asked: &str) -> Result<Self, Problem> {
        let failed = |error: &io::Error| {
            let text = failure::describe("open", &path, error);
            Problem::internal(format!("error opening file '{}': {text}", path.display()))
        };
        let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let file = options.map_err(|error| failed(&error))?;
        let found = file.metadata().map_err(|error| failed(&error))?;
        let kind = disposition::type_by_extension(asked);
        Ok(Self { kind, size: found.len(), modified: conditional::modified(&found), file, path })
    }

    /// The whole file, compressed as it is read.
    fn compressed(self) -> Response {
        let kind = self.kind.unwrap_or_else(|| "application/octet-stream".to_owned());
        let headers = [(header::CONTENT_ENCODING, "gzip".to_owned()), (header::CONTENT_TYPE, kind)];
        let mut input = self.file;
        // Links to a sandbox are fast: the cheapest level is the quickest on the whole.
        let mut encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
        let blocks = block::read_ahead(move || compress(&mut input, &mut encoder));
        (headers, Body::from_stream(blocks)).into_response()
    }

    /// The file as it is, whole or in parts, or why not.
    fn plain(self, headers: &HeaderMap) -> Result<Response, Problem> {
        let failed = |error: &io::Error| Problem::internal(failure::describe("read", &self.path, error));
        let mut head = [0; sniff::LENGTH];
        let mut seen = 0;
        if self.kind.is_none() || self.size == 0 {
            seen = read_at(&self.file, &mut head, 0).map_err(|error| failed(&error))?;
        }
        let kind = self.kind.clone().unwrap_or_else(|| sniff::content_type(&head[..seen]).to_owned());
        // Files of /proc have contents and no size.
        if self.size == 0 && seen > 0 {
            let mut file = self.file;
            let blocks = block::read_ahead(move || read_block(&mut file, block::SIZE as u64));
            return Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(blocks)).into_response());
        }
        let mut response = self.judged(conditional::judge(headers, self.modified, self.size), &kind)?;
        if let Some(modified) = self.modified
            && response.status() != StatusCode::RANGE_NOT_SATISFIABLE
        {
            let date = httpdate::fmt_http_date(modified);
            let value = HeaderValue::from_str(&date).ok();
            response.headers_mut().extend(value.map(|value| (header::LAST_MODIFIED, value)));
        }
        Ok(response)
    }

    fn judged(&self, verdict: Verdict, kind: &str) -> Result<Response, Problem> {
        let size = self.size;
        match verdict {
            Verdict::NotModified => Ok(StatusCode::NOT_MODIFIED.into_response()),
            Verdict::PreconditionFailed => Ok(StatusCode::PRECONDITION_FAILED.into_response()),
            Verdict::BadRange => Ok(unsatisfiable("invalid range\n")),
            Verdict::NoOverlap => {
                let mut response = unsatisfiable("invalid range: failed to overlap\n");
                let range = HeaderValue::from_str(&format!("bytes */{size}")).ok();
                response.headers_mut().extend(range.map(|range| (header::CONTENT_RANGE, range)));
                Ok(response)
            }
            Verdict::Whole => self.answer(StatusCode::OK, kind, VecDeque::from([Segment::File(0..size)])),
            Verdict::Parts(parts) => {
                if let [part] = &parts[..] {
                    let segments = VecDeque::from([Segment::File(part.clone())]);
                    let mut response = self.answer(StatusCode::PARTIAL_CONTENT, kind, segments)?;
                    response.headers_mut().insert(header::CONTENT_RANGE, content_range(part, size));
                    return Ok(response);
                }
                let outer = format!("multipart/byteranges; boundary={BOUNDARY}");
                self.answer(StatusCode::PARTIAL_CONTENT, &outer, in_parts(&parts, kind, size))
            }
        }
    }

    fn answer(
        &self,
        status: StatusCode,
        kind: &str,
        mut segments: VecDeque<Segment>,
    ) -> Result<Response, Problem> {
        let length: u64 = segments.iter().map(Segment::length).sum();
        let failed = |error: &io::Error| Problem::internal(failure::describe("read", &self.path, error));
        let file = self.file.try_clone().map_err(|error| failed(&error))?;
        let first = next_block(&file, &mut segments).map_err(|error| failed(&error))?;
        let body = if first.more {
            let mut first = Some(first);
            Body::from_stream(block::read_ahead(move || {
                first.take().map_or_else(|| next_block(&file, &mut segments), Ok)
            }))
        } else {
            Body::from(first.bytes)
        };
        let headers = [
            (header::CONTENT_TYPE, kind.to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
        ];
        Ok((status, headers, body).into_response())
    }
}

// === impl Segment ===

impl Segment {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(range) => range.end - range.start,
        }
    }
}

/// The segments of a multi-range answer.
fn in_parts(parts: &[Range<u64>], kind: &str, size: u64) -> VecDeque<Segment> {
    let mut segments = VecDeque::new();
    for (number, part) in parts.iter().enumerate() {
        let lead = if number == 0 { "" } else { "\r\n" };
        let range = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
        let text = format!("{lead}--{BOUNDARY}\r\nContent-Range: {range}\r\nContent-Type: {kind}\r\n\r\n");
        segments.push_back(Segment::Text(text.into()));
        segments.push_back(Segment::File(part.clone()));
    }
    segments.push_back(Segment::Text(format!("\r\n--{BOUNDARY}--\r\n").into()));
    segments
}

fn unsatisfiable(text: &'static str) -> Response {
    (StatusCode::RANGE_NOT_SATISFIABLE, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], text).into_response()
}

fn content_range(part: &Range<u64>, size: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1)))
        .unwrap_or(HeaderValue::from_static("bytes */*"))
}

/// The next block of the segments; a file that has shrunk meanwhile breaks the answer off.
fn next_block(file: &File, segments: &mut VecDeque<Segment>) -> io::Result<Block> {
    let bytes = match segments.front_mut() {
        None => Bytes::new(),
        Some(Segment::Text(text)) => std::mem::take(text),
        Some(Segment::File(range)) => {
            let length =
                usize::try_from(range.end - range.start).map_or(block::SIZE, |left| left.min(block::SIZE));
            let buffer = read_exactly(file, length, range.start)?;
            range.start += length as u64;
            buffer.into()
        }
    };
    while segments.front().is_some_and(|segment| segment.length() == 0) {
        segments.pop_front();
    }
    Ok(Block { bytes, more: !segments.is_empty() })
}

/// Reads so many bytes into memory that nobody has zeroed first.
fn read_exactly(file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let filled = buffer.len();
        match rustix::io::pread(file, spare_capacity(&mut buffer), offset + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given more room than was asked for.
    buffer.truncate(length);
    Ok(buffer)
}

/// Reads up to `limit` bytes; a short block is the last one.
fn read_block(file: &mut File, limit: u64) -> io::Result<Block> {
    let mut buffer = Vec::new();
    let read = file.take(limit).read_to_end(&mut buffer)?;
    Ok(Block { more: read as u64 == limit, bytes: buffer.into() })
}

/// Compresses until there is a block to send, or the file ends.
fn compress(input: &mut File, encoder: &mut Option<GzEncoder<Vec<u8>>>) -> io::Result<Block> {
    let mut plain = vec![0; block::SIZE / 4];
    while let Some(gzip) = encoder.as_mut() {
        let read = match input.read(&mut plain) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            let rest = encoder.take().map(GzEncoder::finish).transpose()?.unwrap_or_default();
            return Ok(Block { bytes: rest.into(), more: false });
        }
        gzip.write_all(&plain[..read])?;
        if gzip.get_ref().len() >= block::SIZE / 4 {
            return Ok(Block { bytes: std::mem::take(gzip.get_mut()).into(), more: true });
        }
    }
    Ok(Block { bytes: Bytes::new(), more: false })
}

/// Fills as much of the buffer as the file has.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
