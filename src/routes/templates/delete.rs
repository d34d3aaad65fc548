//! Removing a template or a snapshot: `DELETE /templates/{templateID}`.

use axum::extract::State;
use http::StatusCode;

use super::reference::TemplateRef;
use crate::{
    failpoint::{self, Step},
    routes::{
        auth::Caller,
        extract::PathText,
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    store::StoreError,
};

/// Removes a template, or one tag of a snapshot, with its builds. Blocked teams may.
#[utoipa::path(
    delete, path = "/templates/{templateID}", tag = "templates", security(("ApiKeyAuth" = [])),
    params(("templateID" = String, Path, description = "an id, `alias` or `team/alias`, perhaps with `:tag`, percent-encoded as one segment")),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(team): Caller,
    PathText(text): PathText,
) -> Result<StatusCode, ApiError> {
    let reference: TemplateRef = text.parse()?;
    let missing = || ApiError::not_found(format!("template '{reference}' not found"));
    let template = reference.find(&*state.store, &team).await?.ok_or_else(missing)?;
    match template.team {
        Some(owner) if owner == team.id => {}
        // Another team's public one is there, but not for this.
        Some(_) => return Err(missing()),
        None => {
            return Err(ApiError::bad_request(format!(
                "template '{reference}' belongs to the server and cannot be deleted"
            )));
        }
    }
    match state.store.remove_template(&template.id, reference.given_tag()).await {
        Ok(()) => {}
        Err(StoreError::Missing) => return Err(missing()),
        Err(StoreError::InUse) => {
            return Err(ApiError::bad_request(format!(
                "cannot delete template '{reference}' because there are running or paused sandboxes using it"
            )));
        }
        Err(error) => return Err(error.into()),
    }
    failpoint::reach(Step::SnapshotRemoved);
    state.registry.collect_images();
    Ok(StatusCode::NO_CONTENT)
}
