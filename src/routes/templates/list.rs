//! The team's templates: `GET /templates`.

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    id::TeamId,
    routes::{
        auth::Caller,
        extract::Query,
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    sandbox::{ENVD_VERSION, Resources},
    store::{Team, Template},
};

/// A template in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Template)]
pub(crate) struct TemplateView {
    /// The template.
    #[serde(rename = "templateID")]
    template_id: String,
    /// Its last ready build, or the nil UUID.
    #[serde(rename = "buildID")]
    build_id: Uuid,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    /// Whether other teams may use it.
    public: bool,
    /// Names without namespace.
    aliases: Vec<String>,
    /// Names with their namespace.
    names: Vec<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its newest build was assigned.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Always there, and null: this server knows no people.
    #[schema(value_type = Option<Object>)]
    created_by: Option<()>,
    /// Always there: when a sandbox was last made from it.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_spawned_at: Option<Timestamp>,
    /// How many sandboxes were made from it.
    spawn_count: u64,
    /// How many builds it has.
    build_count: u32,
    /// Which envd its sandboxes behave like.
    envd_version: &'static str,
    /// `ready` when sandboxes can be made from it.
    build_status: &'static str,
}

/// Lists the team's templates and those of everybody, oldest first.
#[utoipa::path(
    get, path = "/templates", tag = "templates", security(("ApiKeyAuth" = [])),
    params(("teamID" = Option<String>, Query, description = "must be the key's own team")),
    responses((status = 200, body = Vec<TemplateView>), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Json<Vec<TemplateView>>, ApiError> {
    if query.get("teamID").is_some_and(|id| id.parse::<TeamId>() != Ok(team.id)) {
        return Err(ApiError::bad_request("teamID does not match the team of the API key"));
    }
    let visible = state.store.templates(team.id).await?.into_iter();
    // Foreign public templates can be used by id, but are no part of the team's list.
    let own = visible.filter(|template| template.team.is_none_or(|owner| owner == team.id));
    Ok(Json(
        own.map(|template| TemplateView::of(template, &team, state.settings.default_resources)).collect(),
    ))
}

// === impl TemplateView ===

impl TemplateView {
    fn of(template: Template, team: &Team, default: Resources) -> Self {
        let build = template.build;
        let resources = build.as_ref().map_or(default, |build| build.resources);
        let namespace = template.team.map_or_else(String::new, |_| format!("{}/", team.slug));
        Self {
            template_id: template.id.to_string(),
            build_id: build.as_ref().map_or(Uuid::nil(), |build| build.id.0),
            cpu_count: resources.cpu_count,
            memory_mb: resources.memory_mb,
            disk_size_mb: resources.disk_mb,
            public: template.public || template.team.is_none(),
            names: template.aliases.iter().map(|alias| format!("{namespace}{alias}")).collect(),
            aliases: template.aliases,
            created_at: template.created_at,
            updated_at: template.updated_at,
            created_by: None,
            last_spawned_at: template.last_spawned_at,
            spawn_count: template.spawn_count,
            build_count: u32::from(build.is_some()),
            envd_version: if build.is_some() { ENVD_VERSION } else { "" },
            build_status: if build.is_some() { "ready" } else { "waiting" },
        }
    }
}
