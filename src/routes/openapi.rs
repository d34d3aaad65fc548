//! The OpenAPI document of what this server really answers; locked in `openapi/control.json`.

use std::sync::Arc;

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, SecurityScheme},
};

/// The head of the document; paths and schemas are added by the routes themselves.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "firkin control plane",
        description = "The E2B REST API as this server answers it. Routes that are not here answer 501 or 404.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(super::reply::ErrorBody, super::streams::ClientMessage, super::streams::StreamMessage)),
    modifiers(&ApiKeyScheme)
)]
pub(crate) struct Document;

struct ApiKeyScheme;

// === impl ApiKeyScheme ===

impl Modify for ApiKeyScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        document.components.get_or_insert_default().add_security_scheme("ApiKeyAuth", scheme);
    }
}

/// The document, to anybody.
pub(crate) fn answer(document: &Arc<utoipa::openapi::OpenApi>) -> Json<Arc<utoipa::openapi::OpenApi>> {
    Json(Arc::clone(document))
}

/// The document as the file that is kept in the tree.
pub(crate) fn render(document: &utoipa::openapi::OpenApi) -> String {
    // A document of plain strings and maps always has a JSON form.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}
