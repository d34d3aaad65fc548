//! Who may use a template: `PATCH /v2/templates/{templateID}`.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{list::names, reference::TemplateRef};
use crate::{
    routes::{
        auth::Actor,
        extract::{MaybeBody, PathText},
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    store::Template,
};

/// What shall be different. What is left out stays.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct TemplateUpdateRequest {
    /// Whether other teams may use it.
    public: Option<bool>,
}

/// The names by which others may use it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateUpdateResponse {
    /// With their namespace.
    names: Vec<String>,
}

/// Publishes a template of the team, or takes it back.
#[utoipa::path(
    patch, path = "/v2/templates/{templateID}", tag = "templates", security(("ApiKeyAuth" = [])),
    params(("templateID" = String, Path, description = "an id, `alias` or `team/alias`, percent-encoded as one segment")),
    request_body = Option<TemplateUpdateRequest>,
    responses((status = 200, body = TemplateUpdateResponse), (status = "default", body = ErrorBody))
)]
pub(crate) async fn change(
    State(state): State<AppState>,
    Actor(team): Actor,
    PathText(text): PathText,
    MaybeBody(body): MaybeBody<TemplateUpdateRequest>,
) -> Result<Json<TemplateUpdateResponse>, ApiError> {
    let reference: TemplateRef = text.parse()?;
    let template = reference.own(&*state.store, &team).await?;
    let names = names(&template, &team);
    if let Some(public) = body.public.filter(|public| *public != template.public) {
        state.store.put_template(Template { public, ..template }).await?;
    }
    Ok(Json(TemplateUpdateResponse { names }))
}
