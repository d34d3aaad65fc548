//! Making sandboxes: `POST /sandboxes` and `POST /v2/sandboxes`.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use http::StatusCode;

use super::{
    SandboxView, idempotency,
    idempotency::IdempotencyKey,
    request::{Api, NewSandbox},
};
use crate::{
    routes::{
        auth::Actor,
        extract::JsonBody,
        reply::{self, ApiError, ErrorBody},
        state::AppState,
        templates::reference::TemplateRef,
    },
    sandbox::SandboxSpec,
    store::{Build, Team, Template},
};

/// Makes a sandbox and answers when it is ready. For SDKs up to 2.50.
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes", security(("ApiKeyAuth" = [])), request_body = NewSandbox,
    responses((status = 201, body = SandboxView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn create_v1(
    State(state): State<AppState>,
    Actor(team): Actor,
    JsonBody(body): JsonBody<NewSandbox>,
) -> Result<Response, ApiError> {
    Ok(reply::json(StatusCode::CREATED, create(&state, &team, body, Api::V1).await?))
}

/// Makes a sandbox and answers when it is ready. With an `Idempotency-Key`, makes it once.
#[utoipa::path(
    post, path = "/v2/sandboxes", tag = "sandboxes", security(("ApiKeyAuth" = [])), request_body = NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 of `[a-z0-9-]`: a repeat of the same request gets the stored answer")),
    responses((status = 201, body = SandboxView), (status = "default", body = ErrorBody))
)]
pub(crate) async fn create_v2(
    State(state): State<AppState>,
    Actor(team): Actor,
    IdempotencyKey(key): IdempotencyKey,
    JsonBody(body): JsonBody<NewSandbox>,
) -> Result<Response, ApiError> {
    match key {
        None => Ok(reply::json(StatusCode::CREATED, create(&state, &team, body, Api::V2).await?)),
        Some(key) => {
            let fingerprint = idempotency::fingerprint(&body)?;
            let (store, now, id) = (Arc::clone(&state.store), state.clock.now(), team.id);
            let work = async move {
                let view = create(&state, &team, body, Api::V2).await?;
                Ok((StatusCode::CREATED, serde_json::to_string(&view).unwrap_or_default()))
            };
            idempotency::once(store, id, key, fingerprint, now, work).await
        }
    }
}

async fn create(state: &AppState, team: &Team, body: NewSandbox, api: Api) -> Result<SandboxView, ApiError> {
    let reference: TemplateRef = body.template_id.parse()?;
    let wish = body.check(api, state.settings.max_timeout)?;
    let (template, build) = reference.resolve(&*state.store, team).await?;
    let spec = SandboxSpec {
        team: team.id,
        template: template.id.clone(),
        alias: template.aliases.first().cloned(),
        build: build.id,
        resources: build.resources,
        timeout_s: wish.timeout_s,
        lifecycle: wish.lifecycle,
        metadata: wish.metadata,
        env_vars: wish.env_vars,
        secure: wish.secure,
        allow_internet_access: wish.allow_internet_access,
        network: wish.network,
    };
    let sandbox = state.registry.create(spec).await?;
    count_spawn(state, &template, &build);
    Ok(SandboxView::of(sandbox, state))
}

/// Nobody waits for the counter.
fn count_spawn(state: &AppState, template: &Template, build: &Build) {
    let (store, id, now) = (Arc::clone(&state.store), template.id.clone(), state.clock.now());
    let build = build.id;
    tokio::spawn(async move {
        if let Err(error) = store.count_spawn(&id, now).await {
            tracing::debug!(template.id = %id, build.id = %build, %error, "a sandbox was not counted");
        }
    });
}
