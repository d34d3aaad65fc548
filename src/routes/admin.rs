//! What the `firkin` command asks of the running server over its admin socket.
//!
//! The socket's file permissions are the authentication: no key is asked here. The types are
//! shared with the command.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post, put},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    id::{BuildId, KeyId, TeamId, TemplateId},
    routes::{
        extract::JsonBody, freshness, inspection, keyring::KEY_PREFIX, layers, reply::ApiError,
        state::AppState,
    },
    sandbox::Resources,
    store::{ApiKey, Build, SandboxFilter, Standing, Team, Template},
};

/// Makes a team.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTeam {
    /// Its namespace: `^[a-z0-9-_]+$`.
    pub slug: String,
    /// For people; the slug when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A team as the command shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeamView {
    /// Its id.
    pub id: TeamId,
    /// Its namespace.
    pub slug: String,
    /// For people.
    pub name: String,
    /// What it may do.
    pub standing: Standing,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Makes a key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewKey {
    /// The slug of its team; the oldest team when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// For people.
    #[serde(default)]
    pub name: String,
}

/// A key as the command shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyView {
    /// Its id, for revoking.
    pub id: KeyId,
    /// The team's id.
    pub team: TeamId,
    /// For people.
    pub name: String,
    /// What may be shown of the key: `e2b_ab...cdef`.
    pub mask: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_used: Option<Timestamp>,
}

/// A new key: the only answer that holds a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IssuedKeyView {
    /// The key itself. It cannot be shown again.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub view: KeyView,
}

/// Registers an image under a name: a new template, or a new build of the one of that name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTemplate {
    /// Its first alias: `^[a-z0-9-_]+$`.
    pub name: String,
    /// Further aliases.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The slug of its team; everybody's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The build whose image is on this host already.
    pub build: BuildId,
    /// The size of its sandboxes; the server's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What the image was made of, where that decides whether it must be made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// Where a registered image is now found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateView {
    /// The template.
    #[serde(rename = "templateID")]
    pub template: TemplateId,
    /// Its newest build.
    #[serde(rename = "buildID")]
    pub build: BuildId,
    /// All of its names.
    pub aliases: Vec<String>,
}

/// How the server stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The domain in answers.
    pub domain: String,
    /// How many teams there are.
    pub teams: usize,
    /// How many keys open it.
    pub keys: usize,
    /// How many sandboxes run or are paused, of all teams.
    pub sandboxes: u64,
}

/// Every route of the admin socket.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/teams", get(list_teams).post(add_team))
        .route("/teams/{slug}/standing", put(set_standing))
        .route("/keys", get(list_keys).post(issue_key))
        .route("/keys/{id}", delete(revoke_key))
        .route("/templates", post(add_template))
        .route("/metrics", get(inspection::local_metrics))
        .route("/traces", get(inspection::local_traces))
        .route("/sandboxes/{id}/freshness", get(freshness::local_show).post(freshness::local_judge))
        .fallback(layers::unknown_route)
        .method_not_allowed_fallback(layers::unknown_route)
        .with_state(state)
}

async fn status(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    let (teams, keys) = state.keys.counts();
    let sandboxes = state.store.count_sandboxes(SandboxFilter::default()).await?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: state.settings.domain.to_string(),
        teams,
        keys,
        sandboxes,
    }))
}

async fn list_teams(State(state): State<AppState>) -> Result<Json<Vec<TeamView>>, ApiError> {
    Ok(Json(state.store.teams().await?.into_iter().map(TeamView::from).collect()))
}

async fn add_team(
    State(state): State<AppState>,
    JsonBody(new): JsonBody<NewTeam>,
) -> Result<(StatusCode, Json<TeamView>), ApiError> {
    if !is_name(&new.slug) {
        return Err(ApiError::bad_request(format!("team slug {:?} does not match ^[a-z0-9-_]+$", new.slug)));
    }
    let team = state.keys.add_team(&new.slug, new.name.as_deref().unwrap_or(&new.slug)).await?;
    Ok((StatusCode::CREATED, Json(team.into())))
}

async fn set_standing(
    State(state): State<AppState>,
    Path(slug): Path<String>,
    JsonBody(standing): JsonBody<Standing>,
) -> Result<StatusCode, ApiError> {
    state.keys.set_standing(team_of(&state, &slug)?, standing).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_keys(State(state): State<AppState>) -> Result<Json<Vec<KeyView>>, ApiError> {
    Ok(Json(state.store.keys().await?.into_iter().map(KeyView::from).collect()))
}

async fn issue_key(
    State(state): State<AppState>,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<(StatusCode, Json<IssuedKeyView>), ApiError> {
    let team = match &new.team {
        Some(slug) => team_of(&state, slug)?,
        None => state.keys.first_team().ok_or_else(|| ApiError::not_found("there is no team yet"))?.id,
    };
    let issued = state.keys.issue(team, &new.name).await?;
    let answer = IssuedKeyView { key: issued.secret, view: issued.record.into() };
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn revoke_key(State(state): State<AppState>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let id: KeyId =
        id.parse().map_err(|_| ApiError::bad_request("a key's id is a UUID: see `firkin key list`"))?;
    state.keys.revoke(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn add_template(
    State(state): State<AppState>,
    JsonBody(new): JsonBody<NewTemplate>,
) -> Result<(StatusCode, Json<TemplateView>), ApiError> {
    Ok((StatusCode::CREATED, Json(register_template(&state, new).await?)))
}

/// Makes a build the newest of the template of this name, and the template where there is none.
pub async fn register_template(state: &AppState, new: NewTemplate) -> Result<TemplateView, ApiError> {
    if let Some(name) = [&new.name].into_iter().chain(&new.aliases).find(|name| !is_name(name)) {
        return Err(ApiError::bad_request(format!("template name {name:?} does not match ^[a-z0-9-_]+$")));
    }
    let team = new.team.as_deref().map(|slug| team_of(state, slug)).transpose()?;
    let now = state.clock.now();
    let mut template = named_template(state, team, &new.name).await?.unwrap_or_else(|| Template {
        id: TemplateId::generate(&*state.entropy),
        team,
        public: false,
        aliases: Vec::new(),
        created_at: now,
        updated_at: now,
        last_spawned_at: None,
        spawn_count: 0,
        build: None,
    });
    for alias in [new.name].into_iter().chain(new.aliases) {
        if !template.aliases.contains(&alias) {
            template.aliases.push(alias);
        }
    }
    state.store.put_template(template.clone()).await?;
    let build = Build {
        id: new.build,
        template: template.id.clone(),
        resources: new.resources.unwrap_or(state.settings.default_resources),
        fingerprint: new.fingerprint,
        created_at: now,
    };
    state.store.add_build(build).await?;
    Ok(TemplateView { template: template.id, build: new.build, aliases: template.aliases })
}

/// The template that has this alias in exactly this namespace.
async fn named_template(
    state: &AppState,
    team: Option<TeamId>,
    name: &str,
) -> Result<Option<Template>, ApiError> {
    // No team has the nil id, so it sees the global names alone.
    let seen_by = team.unwrap_or(TeamId(uuid::Uuid::nil()));
    let found = state.store.resolve_template(seen_by, None, name).await?;
    Ok(found.filter(|template| template.team == team && template.aliases.iter().any(|alias| alias == name)))
}

fn team_of(state: &AppState, slug: &str) -> Result<TeamId, ApiError> {
    let team =
        state.keys.team(slug).ok_or_else(|| ApiError::not_found(format!("team '{slug}' not found")))?;
    Ok(team.id)
}

/// Whether a text can be a namespace or an alias (contract/control-plane 2.1).
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
}

// === impl TeamView ===

impl From<Team> for TeamView {
    fn from(team: Team) -> Self {
        Self {
            id: team.id,
            slug: team.slug,
            name: team.name,
            standing: team.standing,
            created_at: team.created_at,
        }
    }
}

// === impl KeyView ===

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            team: key.team,
            name: key.name,
            mask: format!("{KEY_PREFIX}{}...{}", key.mask.0, key.mask.1),
            created_at: key.created_at,
            last_used: key.last_used,
        }
    }
}
