//! A template made of a running sandbox: `POST /sandboxes/{sandboxID}/snapshots`.

use axum::{extract::State, response::Response};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    failpoint::{self, Step},
    id::{OsEntropy, TemplateId},
    routes::{
        auth::Actor,
        extract::{JsonBody, SandboxPath},
        reply::{self, ApiError, ErrorBody},
        state::AppState,
        templates::reference::TemplateRef,
    },
    runtime::registry::Sealed,
    store::{Build, DEFAULT_TAG, Snapshot, StoreError, Team, Template},
};

/// What a snapshot or a fork has kept, in the answer's header.
pub(super) const KIND: HeaderName = HeaderName::from_static("firkin-snapshot-kind");
/// No engine of this version writes memory to disk.
pub(super) const FILESYSTEM: HeaderValue = HeaderValue::from_static("filesystem");

/// What the snapshot shall be called and hold.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NewSnapshot {
    /// `alias` or `team/alias`, perhaps with `:tag`; absent: it is known by its id alone.
    name: Option<String>,
    /// True: memory too, which no engine here can keep. Absent: what the engine can.
    memory: Option<bool>,
}

/// A snapshot, as create and lists show it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SnapshotInfo)]
pub(crate) struct SnapshotView {
    /// What a create takes as its template; with a tag.
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    /// `team/alias` without tag; empty when it has no name.
    names: Vec<String>,
}

/// Makes a snapshot. The sandbox stands still meanwhile and then goes on.
#[utoipa::path(
    post, path = "/sandboxes/{sandboxID}/snapshots", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = NewSnapshot,
    responses((status = 201, body = SnapshotView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn snapshot(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    JsonBody(body): JsonBody<NewSnapshot>,
) -> Result<Response, ApiError> {
    refuse_memory(body.memory)?;
    let id = path.id()?;
    let name = body.name.as_deref().map(|name| TemplateRef::of_team(name, &team)).transpose()?;
    let known = match &name {
        Some(name) => name.find(&*state.store, &team).await?.filter(|known| known.team == Some(team.id)),
        None => None,
    };
    let sealed = state.registry.seal(team.id, id).await?;
    failpoint::reach(Step::ImageMade);
    let now = state.clock.now();
    let template = known.unwrap_or_else(|| Template {
        id: TemplateId::generate(&OsEntropy),
        team: Some(team.id),
        public: false,
        aliases: name.iter().map(|name| name.name().to_owned()).collect(),
        created_at: now,
        updated_at: now,
        last_spawned_at: None,
        spawn_count: 0,
        build: None,
    });
    let tag = name.as_ref().map_or(DEFAULT_TAG, TemplateRef::tag).to_owned();
    let Sealed { record, build, .. } = &sealed;
    let build = Build {
        id: *build,
        template: template.id.clone(),
        resources: record.spec.resources,
        fingerprint: None,
        created_at: now,
    };
    let alias = template.aliases.first().cloned();
    match state.store.add_snapshot(template, build.clone(), &tag, id).await {
        Ok(()) => {}
        Err(StoreError::Conflict(name)) => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("'{name}' names a template that is no snapshot"),
            ));
        }
        Err(error) => return Err(error.into()),
    }
    failpoint::reach(Step::SnapshotRecorded);
    let view = SnapshotView::of(&Snapshot { alias, tag, build, sandbox: id }, &team);
    let mut response = reply::json(StatusCode::CREATED, view);
    response.headers_mut().insert(KIND, FILESYSTEM);
    Ok(response)
}

/// Memory that was asked for and cannot be kept is an error, not a silence.
pub(super) fn refuse_memory(memory: Option<bool>) -> Result<(), ApiError> {
    if memory == Some(true) {
        return Err(ApiError::bad_request(
            "snapshots of memory are not available with this engine; leave out \"memory\" to keep the file system",
        )
        .code("sandbox_memory_snapshot_unavailable"));
    }
    Ok(())
}

// === impl SnapshotView ===

impl SnapshotView {
    /// A snapshot of this team.
    pub(crate) fn of(snapshot: &Snapshot, team: &Team) -> Self {
        let name = snapshot.alias.as_ref().map(|alias| format!("{}/{alias}", team.slug));
        let id = name.clone().unwrap_or_else(|| snapshot.build.template.to_string());
        Self { snapshot_id: format!("{id}:{}", snapshot.tag), names: name.into_iter().collect() }
    }
}
