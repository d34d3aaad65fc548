//! Whether the server answers.

/// Says that it does, to anybody.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = String, description = "The server answers")))]
pub(crate) async fn health() -> &'static str {
    "Health check successful"
}
