//! Whether a name is taken, and by whom: `GET /templates/aliases/{alias}`.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::reference::TemplateRef;
use crate::routes::{
    auth::Caller,
    extract::PathText,
    reply::{ApiError, ErrorBody},
    state::AppState,
};

/// Which template a name belongs to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TemplateAlias {
    /// The template.
    #[serde(rename = "templateID")]
    template_id: String,
    /// Whether other teams may use it.
    public: bool,
}

/// Tells which template a name is: 403 when it is another team's, 404 when it is nobody's.
#[utoipa::path(
    get, path = "/templates/aliases/{alias}", tag = "templates", security(("ApiKeyAuth" = [])),
    params(("alias" = String, Path, description = "`alias` or `team/alias`, perhaps with `:tag`, percent-encoded as one segment")),
    responses((status = 200, body = TemplateAlias), (status = "default", body = ErrorBody))
)]
pub(crate) async fn alias(
    State(state): State<AppState>,
    Caller(team): Caller,
    PathText(text): PathText,
) -> Result<Json<TemplateAlias>, ApiError> {
    let reference: TemplateRef = text.parse()?;
    if let Some(namespace) = reference.namespace().filter(|namespace| *namespace != team.slug) {
        return Err(ApiError::bad_request(format!(
            "namespace '{namespace}' does not belong to your team '{}'",
            team.slug
        )));
    }
    let found = reference.find_any(&*state.store, &team).await?;
    let template = found.ok_or_else(|| ApiError::not_found(format!("template '{reference}' not found")))?;
    if template.team.is_some_and(|owner| owner != team.id) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("template '{reference}' belongs to another team"),
        ));
    }
    if reference.has_tag() {
        reference.build(&*state.store, &template).await?;
    }
    let public = template.public || template.team.is_none();
    Ok(Json(TemplateAlias { template_id: template.id.to_string(), public }))
}
