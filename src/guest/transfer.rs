//! `/files`: whole files in and out of the sandbox (contract/sandbox 5.2 to 5.4).
//!
//! Contents pass in blocks of [`block::SIZE`] with one block of read-ahead or write-behind, so a
//! transfer holds two blocks however large the file is; file I/O and compression run on the
//! blocking pool one block at a time, so a slow client holds no thread.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Query, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, on, post},
};

pub(crate) use self::problem::Problem;
use crate::guest::{
    signature::{Operation, Signed},
    state::Guest,
    users::User,
};

mod block;
mod compose;
mod conditional;
mod disposition;
mod download;
mod encoding;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod problem;
mod sniff;
mod store;
mod upload;

/// The routes, with their own token check (signatures) on `/files`.
pub(crate) fn routes() -> Router<Guest> {
    let files: MethodRouter<Guest> = on(MethodFilter::GET, download::get_files)
        .post(upload::post_files)
        // axum would answer HEAD with GET's handler; envd refuses it.
        .head(|| async { (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, POST")]) });
    Router::new().route("/files", files).route("/files/compose", post(compose::post_compose))
}

/// The query of `/files`, as it came.
#[derive(Debug, Default)]
pub(super) struct FilesQuery {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    /// Unix seconds.
    pub(super) signature_expiration: Option<i64>,
}

/// A query's names and values in their order.
type Pairs = Query<Vec<(String, String)>>;

/// What a query that does not parse is answered with: text, unlike all other errors here.
fn bind(query: Result<Pairs, QueryRejection>) -> Result<FilesQuery, Box<Response>> {
    let parsed = match query {
        Ok(Query(pairs)) => FilesQuery::parse(pairs),
        Err(rejection) => Err(format!("Invalid format for parameter query: {}", rejection.body_text())),
    };
    parsed.map_err(|text| {
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        Box::new((StatusCode::BAD_REQUEST, headers, text + "\n").into_response())
    })
}

// === impl FilesQuery ===

impl FilesQuery {
    /// Each name at most once; names that mean nothing here are passed over.
    pub(super) fn parse(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let (mut query, mut expiration) = (Self::default(), None);
        for (name, value) in pairs {
            let place = match &*name {
                "path" => &mut query.path,
                "username" => &mut query.username,
                "signature" => &mut query.signature,
                "signature_expiration" => &mut expiration,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(format!("Invalid format for parameter {name}: more than one value"));
            }
        }
        query.signature_expiration = match expiration.as_deref().map(str::parse) {
            Some(Ok(seconds)) => Some(seconds),
            Some(Err(_)) => {
                return Err(
                    "Invalid format for parameter signature_expiration: not a whole number".to_owned()
                );
            }
            None => None,
        };
        Ok(query)
    }
}

/// Who the request is for, once its token or signature is found good.
fn authorize(
    guest: &Guest,
    query: &FilesQuery,
    headers: &HeaderMap,
    operation: Operation,
) -> Result<Arc<User>, Problem> {
    let signed = Signed {
        path: query.path.as_deref().unwrap_or_default(),
        operation,
        username: query.username.as_deref().unwrap_or_default(),
        expiration: query.signature_expiration,
    };
    let header = headers.get("x-access-token").map(axum::http::HeaderValue::as_bytes);
    let token = guest.access_token();
    signed
        .check(token.as_deref(), header, query.signature.as_deref(), guest.now().as_second())
        .map_err(|error| Problem::new(StatusCode::UNAUTHORIZED, error.to_string()))?;
    user(guest, query.username.as_deref())
}

/// Looks the request's user up, by its query or as the sandbox's default.
fn user(guest: &Guest, name: Option<&str>) -> Result<Arc<User>, Problem> {
    let name = match name.filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => guest.default_user(),
    };
    if name.is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "username not provided"));
    }
    guest.users().by_name(&name).ok_or_else(|| {
        let text = format!("error looking up user '{name}': user: unknown user {name}");
        Problem::new(StatusCode::UNAUTHORIZED, text)
    })
}

/// Runs file I/O off the async thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Problem::internal("file operation was aborted")))
}

#[cfg(test)]
mod tests;
