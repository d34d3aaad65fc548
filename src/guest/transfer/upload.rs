//! `POST /files` (contract/sandbox 5.3).

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_compression::tokio::bufread::GzipDecoder;
use axum::{
    body::Body,
    extract::{State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use serde::Serialize;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{
    FilesQuery, Pairs, authorize, bind,
    encoding::{self, Encoding},
    problem::Problem,
    store::{self, Target},
};
use crate::guest::{
    entry::{self, UserMetadata, metadata},
    filesystem::change::Owner,
    paths,
    signature::Operation,
    state::Guest,
    users::User,
};

/// Bytes that a decompressor gives at a time.
const DECODED: usize = 64 * 1024;
/// How long a refused body is read on, so that its sender sees the answer and not a reset.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// One file of the answer.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    #[serde(skip_serializing_if = "UserMetadata::is_empty")]
    pub(super) metadata: UserMetadata,
    pub(super) name: String,
    pub(super) path: String,
    pub(super) r#type: &'static str,
}

/// What all files of one request share.
pub(super) struct Upload {
    pub(super) user: Arc<User>,
    pub(super) workdir: Option<String>,
    pub(super) path: Option<String>,
    pub(super) metadata: UserMetadata,
    pub(super) announced: Option<u64>,
    pub(super) guest: Guest,
}

/// Takes one file (`application/octet-stream`) or several (`multipart/*`).
pub(super) async fn post_files(
    State(guest): State<Guest>,
    query: Result<Pairs, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let query = match bind(query) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    match upload(&guest, query, &headers, body).await {
        // Go names the type of what it was given no type for.
        Ok(written) => match serde_json::to_vec(&written) {
            Ok(text) => {
                (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
            }
            Err(error) => Problem::internal(format!("error marshaling response: {error}")).into_response(),
        },
        Err(problem) => problem.into_response(),
    }
}

async fn upload(
    guest: &Guest,
    query: FilesQuery,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<Written>, Problem> {
    let mut raw = body.into_data_stream().map_err(io::Error::other).boxed();
    let upload = match prepare(guest, query, headers) {
        Ok(upload) => upload,
        Err(problem) => {
            drain(&mut raw).await;
            return Err(problem);
        }
    };
    let mut pieces = match decoded(raw, headers).await {
        Ok(pieces) => pieces,
        Err(problem) => return Err(problem),
    };
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    let kind = kind.as_deref().unwrap_or_default();
    let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/octet-stream" {
        let written = upload.raw(&mut pieces).await;
        if written.is_err() {
            drain(&mut pieces).await;
        }
        return Ok(vec![written?]);
    }
    if media.starts_with("multipart/") {
        return upload.multipart(pieces, kind).await;
    }
    drain(&mut pieces).await;
    Err(Problem::bad_request(format!(
        "unsupported content type: {kind}, expected multipart/form-data or application/octet-stream"
    )))
}

fn prepare(guest: &Guest, query: FilesQuery, headers: &HeaderMap) -> Result<Upload, Problem> {
    let user = authorize(guest, &query, headers, Operation::Write)?;
    guest.gate().admit("write").map_err(Problem::gated)?;
    let metadata =
        metadata::from_headers(headers).map_err(|error| Problem::bad_request(error.to_string()))?;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let (workdir, guest) = (guest.default_workdir(), guest.clone());
    Ok(Upload { user, workdir, path: query.path, metadata, announced, guest })
}

/// The body without its content encoding; a body that is no gzip at all is told of here.
pub(super) async fn decoded(raw: Pieces, headers: &HeaderMap) -> Result<Pieces, Problem> {
    let refused = |error: &dyn std::fmt::Display| {
        Problem::bad_request(format!("error decompressing request body: {error}"))
    };
    match encoding::of_body(headers) {
        Ok(Encoding::Identity) => Ok(raw),
        Ok(Encoding::Gzip) => {
            let mut decoder = GzipDecoder::new(StreamReader::new(raw));
            decoder.multiple_members(true);
            let mut pieces = ReaderStream::with_capacity(decoder, DECODED);
            match pieces.next().await {
                Some(Ok(first)) => Ok(futures_util::stream::iter([Ok(first)]).chain(pieces).boxed()),
                Some(Err(error)) => Err(refused(&format_args!("failed to create gzip reader: {error}"))),
                None => Ok(pieces.boxed()),
            }
        }
        Err(error) => {
            let mut raw = raw;
            drain(&mut raw).await;
            Err(refused(&error))
        }
    }
}

/// Reads on for a moment.
async fn drain<T>(pieces: &mut (impl Stream<Item = io::Result<T>> + Unpin)) {
    let all = async { while let Some(Ok(_)) = pieces.next().await {} };
    // Either end is fine: what is not read by then closes the connection.
    let _ = tokio::time::timeout(DRAIN, all).await;
}

// === impl Upload ===

impl Upload {
    async fn raw(&self, pieces: &mut Pieces) -> Result<Written, Problem> {
        let Some(path) = &self.path else {
            return Err(Problem::bad_request("path query parameter is required for raw body upload"));
        };
        self.save(self.resolve(path)?, pieces).await
    }

    async fn multipart(&self, mut pieces: Pieces, kind: &str) -> Result<Vec<Written>, Problem> {
        let boundary = boundary(kind).ok_or_else(|| {
            Problem::internal("error parsing multipart form: no multipart boundary param in Content-Type")
        })?;
        let mut form = multer::Multipart::new(Paced { inner: &mut pieces, rest: false }, boundary);
        let written = self.parts(&mut form).await;
        drop(form);
        // The form ends at its last boundary, the body after it: an answer to a body that is not
        // read to its end closes the connection, and a client still writing loses the answer.
        drain(&mut pieces).await;
        written
    }

    async fn parts(&self, form: &mut multer::Multipart<'_>) -> Result<Vec<Written>, Problem> {
        let mut seen = HashSet::new();
        let mut written = Vec::new();
        while let Some((path, mut field)) = self.next_file(form, &mut seen).await? {
            written.push(self.save(path, &mut field).await?);
        }
        Ok(written)
    }

    /// The next part that is a file, and where it goes; `seen` are the places of those before it.
    pub(super) async fn next_file<'a>(
        &self,
        form: &mut multer::Multipart<'a>,
        seen: &mut HashSet<PathBuf>,
    ) -> Result<Option<(PathBuf, multer::Field<'a>)>, Problem> {
        let failed = |error: multer::Error| Problem::internal(format!("error reading form: {error}"));
        while let Some(field) = form.next_field().await.map_err(failed)? {
            if field.name() != Some("file") {
                continue;
            }
            let name = self.path.as_deref().or_else(|| field.file_name());
            let path =
                self.resolve(name.ok_or_else(|| Problem::bad_request("multipart part has no file name"))?)?;
            if !seen.insert(path.clone()) {
                return Err(Problem::bad_request(format!(
                    "you cannot upload multiple files to the same path '{}' in one upload request, only the first specified file was uploaded",
                    path.display()
                )));
            }
            return Ok(Some((path, field)));
        }
        Ok(None)
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, Problem> {
        paths::resolve(path, &self.user, self.workdir.as_deref())
            .map_err(|error| Problem::bad_request(format!("error resolving path: {error}")))
    }

    async fn save<S, E>(&self, path: PathBuf, pieces: &mut S) -> Result<Written, Problem>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let owner = Owner { uid: self.user.uid, gid: self.user.gid };
        let (metadata, announced, guest) = (self.metadata.clone(), self.announced, self.guest.clone());
        let target = Target { path, owner, metadata, announced, guest };
        store::save(&target, pieces).await?;
        Ok(Written::new(&target.path, target.metadata))
    }
}

// === impl Written ===

impl Written {
    pub(super) fn new(path: &Path, metadata: UserMetadata) -> Self {
        Self {
            metadata,
            name: entry::base_name(path),
            path: path.to_string_lossy().into_owned(),
            r#type: "file",
        }
    }
}

/// The boundary of any `multipart/*` type.
pub(super) fn boundary(kind: &str) -> Option<String> {
    let value = kind.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim())
    })?;
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Gives one piece at a time: the form parser would otherwise take all that a fast sender has
/// into memory before it hands anything on.
pub(super) struct Paced<'a> {
    pub(super) inner: &'a mut Pieces,
    pub(super) rest: bool,
}

// === impl Paced ===

impl Stream for Paced<'_> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rest) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.inner.poll_next_unpin(context);
        self.rest = matches!(next, Poll::Ready(Some(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_of_any_multipart() {
        assert_eq!(boundary("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(boundary("multipart/mixed; charset=x; Boundary=\"a b\"").as_deref(), Some("a b"));
        assert_eq!(boundary("multipart/form-data"), None);
        assert_eq!(boundary("multipart/form-data; boundary="), None);
    }
}
