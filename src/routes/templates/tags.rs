//! Tags of templates: `POST` and `DELETE /templates/tags`, `GET /templates/{templateID}/tags`.

use axum::{Json, extract::State};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::reference::{TemplateRef, is_tag};
use crate::{
    routes::{
        auth::{Actor, Caller},
        extract::{JsonBody, PathText},
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    store::{DEFAULT_TAG, Tag},
};

/// Further tags for a build.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AssignTemplateTagsRequest {
    /// The build by its template's name, perhaps with `:tag`.
    target: String,
    /// The tags that point to it from now on; at least one.
    tags: Vec<String>,
}

/// Where the tags now point.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AssignedTemplateTags {
    /// The tags.
    tags: Vec<String>,
    /// The build.
    #[serde(rename = "buildID")]
    build_id: Uuid,
}

/// Tags to take off a template.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DeleteTemplateTagsRequest {
    /// The template's name, without a tag.
    name: String,
    /// The tags; at least one, and not `default`.
    tags: Vec<String>,
}

/// A tag and what it points to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TemplateTag)]
pub(crate) struct TagView {
    /// The tag.
    tag: String,
    /// The build.
    #[serde(rename = "buildID")]
    build_id: Uuid,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// Makes tags point to a build; a tag that pointed elsewhere moves.
#[utoipa::path(
    post, path = "/templates/tags", tag = "templates", security(("ApiKeyAuth" = [])),
    request_body = AssignTemplateTagsRequest,
    responses((status = 201, body = AssignedTemplateTags), (status = "default", body = ErrorBody))
)]
pub(crate) async fn assign(
    State(state): State<AppState>,
    Actor(team): Actor,
    JsonBody(body): JsonBody<AssignTemplateTagsRequest>,
) -> Result<(StatusCode, Json<AssignedTemplateTags>), ApiError> {
    let reference: TemplateRef = body.target.parse()?;
    let tags = checked(body.tags)?;
    let template = reference.own(&*state.store, &team).await?;
    let build = reference.build(&*state.store, &template).await?.id;
    state.store.assign_tags(&template.id, tags.clone(), build, state.clock.now()).await?;
    Ok((StatusCode::CREATED, Json(AssignedTemplateTags { tags, build_id: build.0 })))
}

/// Takes tags off a template; its builds stay. Blocked teams may.
#[utoipa::path(
    delete, path = "/templates/tags", tag = "templates", security(("ApiKeyAuth" = [])),
    request_body = DeleteTemplateTagsRequest,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn remove(
    State(state): State<AppState>,
    Caller(team): Caller,
    JsonBody(body): JsonBody<DeleteTemplateTagsRequest>,
) -> Result<StatusCode, ApiError> {
    let reference: TemplateRef = body.name.parse()?;
    if reference.given_tag().is_some() {
        return Err(ApiError::bad_request("Invalid template reference: name takes no tag here"));
    }
    let tags = checked(body.tags)?;
    if tags.iter().any(|tag| tag == DEFAULT_TAG) {
        return Err(ApiError::bad_request(format!("tag '{DEFAULT_TAG}' cannot be deleted")));
    }
    let template = reference.own(&*state.store, &team).await?;
    state.store.remove_tags(&template.id, tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows the tags of a template of the team or of everybody.
#[utoipa::path(
    get, path = "/templates/{templateID}/tags", tag = "templates", security(("ApiKeyAuth" = [])),
    params(("templateID" = String, Path, description = "an id, `alias` or `team/alias`, percent-encoded as one segment")),
    responses((status = 200, body = Vec<TagView>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(team): Caller,
    PathText(text): PathText,
) -> Result<Json<Vec<TagView>>, ApiError> {
    let reference: TemplateRef = text.parse()?;
    let found = reference.find_any(&*state.store, &team).await?.filter(|template| template.team.is_none());
    let template = match found {
        Some(everybodys) => everybodys,
        None => reference.own(&*state.store, &team).await?,
    };
    let tags = state.store.tags(&template.id).await?;
    Ok(Json(tags.into_iter().map(TagView::from).collect()))
}

/// At least one tag, each lower-cased, well-formed and no build's id.
fn checked(tags: Vec<String>) -> Result<Vec<String>, ApiError> {
    if tags.is_empty() {
        return Err(ApiError::validation("request body: field \"tags\": minimum number of items is 1"));
    }
    tags.into_iter()
        .map(|tag| {
            let tag = tag.trim().to_lowercase();
            if is_tag(&tag) && tag.parse::<Uuid>().is_err() {
                Ok(tag)
            } else {
                Err(ApiError::bad_request(format!("Invalid tag '{tag}': want ^[a-z0-9-_.]+$ and no UUID")))
            }
        })
        .collect()
}

// === impl TagView ===

impl From<Tag> for TagView {
    fn from(tag: Tag) -> Self {
        Self { tag: tag.name, build_id: tag.build.0, created_at: tag.assigned_at }
    }
}
