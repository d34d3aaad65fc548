//! The team's templates: `GET /templates` (all) and `GET /v2/templates` (in pages).

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    id::{TeamId, TemplateId},
    routes::{
        auth::Caller,
        extract::Query,
        page,
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
    build_count: usize,
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
    check_team(&query, &team)?;
    views(&state, &team, own(&state, &team).await?).await.map(Json)
}

/// Lists the team's templates and those of everybody, newest first, in pages.
#[utoipa::path(
    get, path = "/v2/templates", tag = "templates", security(("ApiKeyAuth" = [])),
    params(
        ("teamID" = Option<String>, Query, description = "must be the key's own team"),
        ("limit" = Option<i32>, Query, description = "1 to 100; 100 when absent"),
        ("nextToken" = Option<String>, Query, description = "`X-Next-Token` of the page before")
    ),
    responses((status = 200, body = Vec<TemplateView>, headers(("X-Next-Token" = String))), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_v2(
    State(state): State<AppState>,
    Caller(team): Caller,
    query: Query,
) -> Result<Response, ApiError> {
    check_team(&query, &team)?;
    let limit = page::limit(&query)?;
    let after = page::after::<TemplateId>(&query)?;
    let mut found = own(&state, &team).await?;
    found.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    if let Some((created, id)) = after {
        found.retain(|template| {
            template.created_at < created || template.created_at == created && template.id > id
        });
    }
    let next = page::cut(&mut found, limit, |template| (template.created_at, template.id.to_string()));
    Ok(page::answer(Json(views(&state, &team, found).await?).into_response(), next))
}

fn check_team(query: &Query, team: &Team) -> Result<(), ApiError> {
    if query.get("teamID").is_some_and(|id| id.parse::<TeamId>() != Ok(team.id)) {
        return Err(ApiError::bad_request("teamID does not match the team of the API key"));
    }
    Ok(())
}

/// The team's and everybody's, oldest first. Foreign public templates can be used by id, but are no
/// part of the team's list.
async fn own(state: &AppState, team: &Team) -> Result<Vec<Template>, ApiError> {
    let mut templates = state.store.templates(team.id).await?;
    templates.retain(|template| template.team.is_none_or(|owner| owner == team.id));
    Ok(templates)
}

async fn views(
    state: &AppState,
    team: &Team,
    templates: Vec<Template>,
) -> Result<Vec<TemplateView>, ApiError> {
    let mut views = Vec::with_capacity(templates.len());
    for template in templates {
        let builds = state.store.template_builds(&template.id).await?.len();
        views.push(TemplateView::of(template, builds, team, state.settings.default_resources));
    }
    Ok(views)
}

/// The names of a template with their namespace, if it has one.
pub(super) fn names(template: &Template, team: &Team) -> Vec<String> {
    let namespace = template.team.map_or_else(String::new, |_| format!("{}/", team.slug));
    template.aliases.iter().map(|alias| format!("{namespace}{alias}")).collect()
}

// === impl TemplateView ===

impl TemplateView {
    /// The view of a template that has so many builds; its size is the default while it has none.
    pub(super) fn of(template: Template, builds: usize, team: &Team, default: Resources) -> Self {
        let names = names(&template, team);
        let build = template.build;
        let resources = build.as_ref().map_or(default, |build| build.resources);
        Self {
            template_id: template.id.to_string(),
            build_id: build.as_ref().map_or(Uuid::nil(), |build| build.id.0),
            cpu_count: resources.cpu_count,
            memory_mb: resources.memory_mb,
            disk_size_mb: resources.disk_mb,
            public: template.public || template.team.is_none(),
            names,
            aliases: template.aliases,
            created_at: template.created_at,
            updated_at: template.updated_at,
            created_by: None,
            last_spawned_at: template.last_spawned_at,
            spawn_count: template.spawn_count,
            build_count: builds,
            envd_version: if build.is_some() { ENVD_VERSION } else { "" },
            build_status: if build.is_some() { "ready" } else { "waiting" },
        }
    }
}
