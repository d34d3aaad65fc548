//! One template with its builds: `GET /templates/{templateID}`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::list::TemplateView;
use crate::{
    id::{BuildId, TemplateId},
    routes::{
        auth::Caller,
        extract::{PathText, Query},
        page,
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    sandbox::ENVD_VERSION,
    store::Build,
};

/// A template and a page of its builds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateWithBuilds {
    /// The template.
    #[serde(flatten)]
    template: TemplateView,
    /// Its builds, newest first.
    builds: Vec<BuildView>,
}

/// One build.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = TemplateBuild)]
struct BuildView {
    /// Its id.
    #[serde(rename = "buildID")]
    build_id: Uuid,
    /// `ready`: builds are kept when they are done.
    status: &'static str,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The same: a build does not change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// The same.
    #[schema(value_type = String, format = DateTime)]
    finished_at: Timestamp,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    /// Which envd its sandboxes behave like.
    envd_version: &'static str,
}

/// Shows a template of the team or of everybody, with its builds in pages.
#[utoipa::path(
    get, path = "/templates/{templateID}", tag = "templates", security(("ApiKeyAuth" = [])),
    params(
        ("templateID" = String, Path, description = "an id, not a name"),
        ("limit" = Option<i32>, Query, description = "builds, 1 to 100; 100 when absent"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before")
    ),
    responses((status = 200, body = TemplateWithBuilds, headers(("X-Next-Token" = String))), (status = "default", body = ErrorBody))
)]
pub(crate) async fn details(
    State(state): State<AppState>,
    Caller(team): Caller,
    PathText(text): PathText,
    query: Query,
) -> Result<Response, ApiError> {
    let limit = page::limit(&query)?;
    let after = page::after::<BuildId>(&query)?;
    let missing = || ApiError::not_found(format!("template '{text}' not found"));
    let id: TemplateId = text.parse().map_err(|_| missing())?;
    let template = state.store.template(&id).await?.ok_or_else(missing)?;
    if template.team.is_some_and(|owner| owner != team.id) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("template '{text}' belongs to another team"),
        ));
    }
    let mut builds = state.store.template_builds(&id).await?;
    let template = TemplateView::of(template, builds.len(), &team, state.settings.default_resources);
    if let Some((created, id)) = after {
        builds.retain(|build| build.created_at < created || build.created_at == created && build.id > id);
    }
    let next = page::cut(&mut builds, limit, |build| (build.created_at, build.id.to_string()));
    let builds = builds.into_iter().map(BuildView::from).collect();
    Ok(page::answer(Json(TemplateWithBuilds { template, builds }).into_response(), next))
}

// === impl BuildView ===

impl From<Build> for BuildView {
    fn from(build: Build) -> Self {
        Self {
            build_id: build.id.0,
            status: "ready",
            created_at: build.created_at,
            updated_at: build.created_at,
            finished_at: build.created_at,
            cpu_count: build.resources.cpu_count,
            memory_mb: build.resources.memory_mb,
            disk_size_mb: build.resources.disk_mb,
            envd_version: ENVD_VERSION,
        }
    }
}
