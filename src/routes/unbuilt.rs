//! Routes of the E2B API that this version knows but does not have: they answer 501 and name the
//! feature, so that nobody looks for a wrong path. A feature that is built leaves this list.

use axum::{
    Router,
    routing::{MethodFilter, on},
};
use http::Method;

use crate::routes::{auth::Caller, reply::ApiError, state::AppState};

const GET: &Method = &Method::GET;
const POST: &Method = &Method::POST;
const PUT: &Method = &Method::PUT;
const PATCH: &Method = &Method::PATCH;
const DELETE: &Method = &Method::DELETE;

/// The feature, and where it would be.
const ROUTES: &[(&str, &[&Method], &str)] = &[
    ("template builds", &[POST], "/v3/templates"),
    ("template builds", &[POST], "/v2/templates"),
    ("template builds", &[POST], "/templates"),
    ("template builds", &[POST], "/templates/{templateID}"),
    ("template builds", &[POST], "/templates/{templateID}/builds/{build}"),
    ("template builds", &[POST], "/v2/templates/{templateID}/builds/{build}"),
    ("template builds", &[GET], "/templates/{templateID}/builds/{build}/status"),
    ("template builds", &[GET], "/templates/{templateID}/builds/{build}/logs"),
    ("template file uploads", &[GET], "/templates/{templateID}/files/{hash}"),
    ("template changes", &[PATCH], "/templates/{templateID}"),
    ("template tags", &[GET], "/templates/{templateID}/tags/{what}"),
    ("template tags", &[GET], "/templates/{templateID}/tags/{tag}/assignments"),
    ("default templates", &[GET], "/default-templates"),
    ("volumes", &[GET, POST], "/volumes"),
    ("volumes", &[GET, DELETE], "/volumes/{id}"),
    ("volume content", &[GET, PATCH, DELETE], "/volumecontent/{id}/path"),
    ("volume content", &[GET, POST], "/volumecontent/{id}/dir"),
    ("volume content", &[GET, PUT], "/volumecontent/{id}/file"),
    ("secrets", &[GET, POST], "/secrets"),
    ("secrets", &[GET, POST, DELETE], "/secrets/{id}"),
    ("team lists", &[GET], "/teams"),
    ("team metrics", &[GET], "/teams/{id}/metrics"),
    ("team metrics", &[GET], "/teams/{id}/metrics/max"),
    ("API key management over HTTP", &[GET, POST], "/api-keys"),
    ("API key management over HTTP", &[PATCH, DELETE], "/api-keys/{id}"),
    ("access tokens", &[POST], "/access-tokens"),
    ("access tokens", &[DELETE], "/access-tokens/{id}"),
    ("node management", &[GET], "/nodes"),
    ("node management", &[GET, POST], "/nodes/{id}"),
    ("administration over HTTP", &[POST], "/admin/teams/{id}/sandboxes/kill"),
    ("administration over HTTP", &[POST], "/admin/teams/{id}/builds/cancel"),
    ("administration over HTTP", &[GET], "/admin/sandboxes/running-counts"),
    ("administration over HTTP", &[POST], "/admin/teams/{id}/api-keys"),
    ("administration over HTTP", &[DELETE], "/admin/teams/{id}/api-keys/{key}"),
    ("lifecycle events", &[GET], "/events/sandboxes"),
    ("lifecycle events", &[GET], "/events/sandboxes/{id}"),
    ("webhooks", &[GET, POST], "/events/webhooks"),
    ("webhooks", &[GET, PATCH, DELETE], "/events/webhooks/{id}"),
    ("webhooks", &[GET], "/events/webhooks/{id}/deliveries"),
    ("webhooks", &[GET], "/events/webhooks/{id}/stats"),
];

/// All of them. The caller is asked for a key first, as everywhere.
pub(crate) fn router() -> Router<AppState> {
    ROUTES.iter().fold(Router::new(), |router, (feature, methods, path)| {
        let filters = methods.iter().filter_map(|method| MethodFilter::try_from((*method).clone()).ok());
        filters.fold(router, |router, filter| {
            router.route(path, on(filter, |_: Caller| async { ApiError::unbuilt(feature) }))
        })
    })
}

/// Each method and path of them, for the table of endpoints.
pub(crate) fn endpoints() -> impl Iterator<Item = (&'static Method, &'static str)> {
    ROUTES.iter().flat_map(|(_, methods, path)| methods.iter().map(move |method| (*method, *path)))
}
