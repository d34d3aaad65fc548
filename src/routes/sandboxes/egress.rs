//! Another way out for a running sandbox: `PUT /sandboxes/{sandboxID}/network` (contract/control-plane 2.12).

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::network::{self, NewNetwork, NewProxy};
use crate::{
    routes::{
        auth::Actor,
        extract::{JsonBody, SandboxPath},
        reply::{ApiError, ErrorBody},
        state::AppState,
    },
    sandbox::Egress,
};

/// The whole way out: what is left out is cleared.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewEgress {
    /// CIDRs, addresses and domains; wins over `denyOut`.
    allow_out: Option<Vec<String>>,
    /// CIDRs and addresses.
    deny_out: Option<Vec<String>>,
    /// False: no way out but what `allowOut` names.
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    /// Header rules: not available.
    #[schema(value_type = Option<Object>)]
    rules: Option<Map<String, Value>>,
    /// Outgoing proxy: not available.
    egress_proxy: Option<NewProxy>,
    /// Name servers: not available.
    dns_servers: Option<Vec<String>>,
}

/// Replaces the way out of a running sandbox; the way in (public traffic, masked host) stays.
#[utoipa::path(
    put, path = "/sandboxes/{sandboxID}/network", tag = "sandboxes", security(("ApiKeyAuth" = [])),
    params(("sandboxID" = String, Path)), request_body = NewEgress,
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn set(
    State(state): State<AppState>,
    Actor(team): Actor,
    path: SandboxPath,
    JsonBody(body): JsonBody<NewEgress>,
) -> Result<StatusCode, ApiError> {
    let id = path.id()?;
    state.registry.set_egress(team.id, id, body.check()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

// === impl NewEgress ===

impl NewEgress {
    fn check(self) -> Result<Egress, ApiError> {
        let allow_internet_access = self.allow_internet_access;
        let new = NewNetwork {
            allow_out: self.allow_out,
            deny_out: self.deny_out,
            rules: self.rules,
            egress_proxy: self.egress_proxy,
            dns_servers: self.dns_servers,
            ..NewNetwork::default()
        };
        let network = network::check(new, allow_internet_access, true)?;
        Ok(Egress { allow_internet_access, allow_out: network.allow_out, deny_out: network.deny_out })
    }
}
