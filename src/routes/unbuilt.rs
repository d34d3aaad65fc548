//! Routes of the E2B API that this version knows but does not have: they answer 501 and name the
//! feature, so that nobody looks for a wrong path. A feature that is built leaves this list.

use axum::{
    Router,
    routing::{MethodFilter, on},
};

use crate::routes::{auth::Caller, reply::ApiError, state::AppState};

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PUT: MethodFilter = MethodFilter::PUT;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

/// The feature, and where it would be.
const ROUTES: &[(&str, MethodFilter, &str)] = &[
    ("fork", POST, "/sandboxes/{id}/fork"),
    ("snapshots", POST, "/sandboxes/{id}/snapshots"),
    ("snapshots", GET, "/snapshots"),
    ("network update", PUT, "/sandboxes/{id}/network"),
    ("template builds", POST, "/v3/templates"),
    ("template builds", POST, "/v2/templates"),
    ("template builds", POST, "/templates"),
    ("template builds", POST, "/templates/{id}"),
    ("template builds", POST, "/templates/{id}/builds/{build}"),
    ("template builds", POST, "/v2/templates/{id}/builds/{build}"),
    ("template builds", GET, "/templates/{id}/builds/{build}/status"),
    ("template builds", GET, "/templates/{id}/builds/{build}/logs"),
    ("template file uploads", GET, "/templates/{id}/files/{hash}"),
    ("paged template lists", GET, "/v2/templates"),
    ("template details", GET, "/templates/{id}"),
    ("template changes", PATCH, "/templates/{id}"),
    ("template changes", PATCH, "/v2/templates/{id}"),
    ("template deletion", DELETE, "/templates/{id}"),
    ("template tags", POST.or(DELETE), "/templates/tags"),
    ("template tags", GET, "/templates/{id}/tags"),
    ("template tags", GET, "/templates/{id}/tags/{what}"),
    ("template tags", GET, "/templates/{id}/tags/{tag}/assignments"),
    ("default templates", GET, "/default-templates"),
    ("volumes", GET.or(POST), "/volumes"),
    ("volumes", GET.or(DELETE), "/volumes/{id}"),
    ("volume content", GET.or(PATCH).or(DELETE), "/volumecontent/{id}/path"),
    ("volume content", GET.or(POST), "/volumecontent/{id}/dir"),
    ("volume content", GET.or(PUT), "/volumecontent/{id}/file"),
    ("secrets", GET.or(POST), "/secrets"),
    ("secrets", GET.or(POST).or(DELETE), "/secrets/{id}"),
    ("team lists", GET, "/teams"),
    ("team metrics", GET, "/teams/{id}/metrics"),
    ("team metrics", GET, "/teams/{id}/metrics/max"),
    ("API key management over HTTP", GET.or(POST), "/api-keys"),
    ("API key management over HTTP", PATCH.or(DELETE), "/api-keys/{id}"),
    ("access tokens", POST, "/access-tokens"),
    ("access tokens", DELETE, "/access-tokens/{id}"),
    ("node management", GET, "/nodes"),
    ("node management", GET.or(POST), "/nodes/{id}"),
    ("administration over HTTP", POST, "/admin/teams/{id}/sandboxes/kill"),
    ("administration over HTTP", POST, "/admin/teams/{id}/builds/cancel"),
    ("administration over HTTP", GET, "/admin/sandboxes/running-counts"),
    ("administration over HTTP", POST, "/admin/teams/{id}/api-keys"),
    ("administration over HTTP", DELETE, "/admin/teams/{id}/api-keys/{key}"),
    ("lifecycle events", GET, "/events/sandboxes"),
    ("lifecycle events", GET, "/events/sandboxes/{id}"),
    ("webhooks", GET.or(POST), "/events/webhooks"),
    ("webhooks", GET.or(PATCH).or(DELETE), "/events/webhooks/{id}"),
    ("webhooks", GET, "/events/webhooks/{id}/deliveries"),
    ("webhooks", GET, "/events/webhooks/{id}/stats"),
];

/// All of them. The caller is asked for a key first, as everywhere.
pub(crate) fn router() -> Router<AppState> {
    ROUTES.iter().fold(Router::new(), |router, (feature, methods, path)| {
        router.route(path, on(*methods, |_: Caller| async { ApiError::unbuilt(feature) }))
    })
}
