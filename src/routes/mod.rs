//! The control plane: one axum router. This file only lists what is where.

pub mod admin;
mod auth;
mod extract;
mod freshness;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod health;
mod inside;
mod inspection;
pub mod keyring;
mod layers;
mod openapi;
mod page;
pub mod reply;
mod sandboxes;
mod snapshots;
mod state;
mod streams;
mod templates;
mod unbuilt;

use axum::{Router, middleware};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use inside::Inside;
pub use state::{AppState, Settings};
pub use streams::{Bounds, Streams, Usage};

/// Every route of the control plane, with its layers.
pub fn router(state: AppState) -> Router {
    let (router, document) = documented().split_for_parts();
    let document = std::sync::Arc::new(document);
    router
        .route("/openapi.json", axum::routing::get(move || std::future::ready(openapi::answer(&document))))
        .route("/metrics", axum::routing::get(inspection::metrics))
        .route("/admin/traces", axum::routing::get(inspection::traces))
        .route(
            "/admin/sandboxes/{sandboxID}/freshness",
            axum::routing::get(freshness::show).post(freshness::judge),
        )
        .merge(unbuilt::router())
        .fallback(layers::unknown_route)
        .method_not_allowed_fallback(layers::unknown_route)
        .layer(middleware::from_fn(layers::deadline))
        .layer(layers::cors())
        .with_state(state)
}

/// The OpenAPI document of the control plane, as text that ends with a newline.
pub fn document() -> String {
    openapi::render(&documented().into_openapi())
}

/// Each method and path of E2B's that this version knows and does not have.
pub fn unbuilt() -> impl Iterator<Item = (&'static http::Method, &'static str)> {
    unbuilt::endpoints()
}

fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(sandboxes::create::create_v1, sandboxes::list::list_v1))
        .routes(routes!(sandboxes::create::create_v2, sandboxes::list::list_v2))
        .routes(routes!(sandboxes::get::get, sandboxes::kill::kill))
        .routes(routes!(sandboxes::connect::connect_v1))
        .routes(routes!(sandboxes::connect::connect_v2))
        .routes(routes!(sandboxes::pause::pause))
        .routes(routes!(sandboxes::resume::resume))
        .routes(routes!(sandboxes::snapshot::snapshot))
        .routes(routes!(sandboxes::fork::fork))
        .routes(routes!(snapshots::list))
        .routes(routes!(templates::delete::delete))
        .routes(routes!(sandboxes::timeout::timeout))
        .routes(routes!(sandboxes::refresh::refresh))
        .routes(routes!(sandboxes::egress::set))
        .routes(routes!(sandboxes::logs::logs_v1))
        .routes(routes!(sandboxes::logs::logs_v2))
        .routes(routes!(sandboxes::metrics::of_one))
        .routes(routes!(sandboxes::metrics::latest))
        .routes(routes!(streams::ticket::create))
        .routes(routes!(streams::processes::processes))
        .routes(routes!(streams::terminal::terminal))
        .routes(routes!(streams::watch::watch))
        .routes(routes!(templates::list::list))
        .routes(routes!(templates::list::list_v2))
        .routes(routes!(templates::details::details))
        .routes(routes!(templates::change::change))
        .routes(routes!(templates::tags::assign, templates::tags::remove))
        .routes(routes!(templates::tags::list))
        .routes(routes!(templates::alias::alias))
}
