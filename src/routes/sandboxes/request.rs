//! The body of a create: its fields, their rules and defaults (contract/control-plane 2.1).

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::network::{self, NewNetwork};
use crate::{
    routes::reply::ApiError,
    sandbox::{Lifecycle, NetworkConfig, OnTimeout},
};

/// Which generation of the API is spoken: they differ in defaults and in `secure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `POST /sandboxes`, SDKs up to 2.50.
    V1,
    /// `POST /v2/sandboxes`.
    V2,
}

/// A create as it arrives. Unknown fields are ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewSandbox {
    /// An id, `alias` or `team/alias`, each perhaps with `:tag`.
    #[serde(rename = "templateID")]
    pub(crate) template_id: String,
    /// Seconds until the deadline; 15 (v1) or 300 (v2) when absent.
    #[schema(minimum = 1)]
    timeout: Option<i32>,
    /// Pause instead of killing at the deadline.
    auto_pause: Option<bool>,
    /// Whether that pause keeps memory.
    auto_pause_memory: Option<bool>,
    /// Whether traffic wakes the paused sandbox.
    auto_resume: Option<AutoResume>,
    /// v1 only: false opens envd to everybody.
    secure: Option<bool>,
    /// False: no way out but what `network.allowOut` names.
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    /// Who may come in and what may be reached.
    network: Option<NewNetwork>,
    /// Labels.
    metadata: Option<BTreeMap<String, String>>,
    /// Environment of every process.
    env_vars: Option<BTreeMap<String, String>>,
    /// Accepted; the SDK itself starts the MCP gateway.
    #[schema(value_type = Option<Object>)]
    mcp: Option<Map<String, Value>>,
    /// Workload tokens: not available.
    iam: Option<Iam>,
    /// Volumes: not available.
    volume_mounts: Option<Vec<VolumeMount>>,
}

/// Whether traffic wakes a paused sandbox.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub(crate) struct AutoResume {
    /// It does.
    enabled: bool,
}

/// Workload tokens.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Iam {
    /// By name.
    #[schema(value_type = Object)]
    tokens: Option<Map<String, Value>>,
}

/// One volume in one place.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct VolumeMount {
    /// The volume.
    name: String,
    /// Where it is mounted.
    path: String,
}

/// What a create asks for, checked, but for its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) timeout_s: u64,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) secure: bool,
    pub(crate) allow_internet_access: Option<bool>,
    pub(crate) network: Option<NetworkConfig>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env_vars: BTreeMap<String, String>,
}

// === impl Api ===

impl Api {
    /// The lifetime of those who ask for none.
    pub(crate) fn default_timeout_s(self) -> i32 {
        match self {
            Self::V1 => 15,
            Self::V2 => 300,
        }
    }
}

// === impl NewSandbox ===

impl NewSandbox {
    /// Checks every rule that needs nothing but the request and the server's maximum.
    pub(crate) fn check(self, api: Api, max: Option<Duration>) -> Result<Wish, ApiError> {
        self.refuse_unavailable()?;
        let lifecycle = self.lifecycle()?;
        let timeout_s = checked_timeout(self.timeout.unwrap_or(api.default_timeout_s()), max)?;
        let secure = api == Api::V2 || self.secure != Some(false);
        let network = match self.network {
            Some(network) => Some(network::check(network, self.allow_internet_access, secure)?),
            None => None,
        };
        Ok(Wish {
            timeout_s,
            lifecycle,
            secure,
            allow_internet_access: self.allow_internet_access,
            network,
            metadata: self.metadata.unwrap_or_default(),
            env_vars: self.env_vars.unwrap_or_default(),
        })
    }

    fn refuse_unavailable(&self) -> Result<(), ApiError> {
        let tokens = self.iam.as_ref().and_then(|iam| iam.tokens.as_ref());
        if tokens.is_some_and(|tokens| !tokens.is_empty()) {
            return Err(ApiError::bad_request(
                "Sandbox IAM workload tokens are not available for your team.",
            ));
        }
        if self.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()) {
            return Err(ApiError::bad_request("Volume mounts are not enabled."));
        }
        Ok(())
    }

    fn lifecycle(&self) -> Result<Lifecycle, ApiError> {
        let auto_pause = self.auto_pause == Some(true);
        let auto_resume = self.auto_resume.is_some_and(|resume| resume.enabled);
        if self.auto_pause_memory == Some(false) {
            if !auto_pause {
                return Err(ApiError::bad_request("autoPauseMemory: false requires autoPause: true"));
            }
            if auto_resume {
                return Err(ApiError::bad_request(
                    "autoPauseMemory: false cannot be combined with autoResume: traffic wakes only what kept its memory",
                ));
            }
        }
        Ok(Lifecycle {
            on_timeout: if auto_pause { OnTimeout::Pause } else { OnTimeout::Kill },
            auto_resume,
            auto_pause_memory: self.auto_pause_memory.unwrap_or(true),
        })
    }
}

/// A lifetime in seconds above 0 and, where there is one, up to the maximum.
pub(crate) fn checked_timeout(timeout: i32, max: Option<Duration>) -> Result<u64, ApiError> {
    match u64::try_from(timeout) {
        Ok(seconds) if seconds > 0 => within_max(seconds, max),
        _ => Err(ApiError::bad_request("Timeout must be greater than 0")),
    }
}

/// A lifetime up to the maximum, where there is one.
pub(crate) fn within_max(seconds: u64, max: Option<Duration>) -> Result<u64, ApiError> {
    match max {
        Some(max) if Duration::from_secs(seconds) > max => Err(ApiError::bad_request(format!(
            "Timeout cannot be greater than {} hours",
            max.as_secs() / 3600
        ))),
        _ => Ok(seconds),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(api: Api, body: Value) -> Result<Wish, String> {
        let body: NewSandbox = serde_json::from_value(body).unwrap();
        body.check(api, Some(Duration::from_hours(1))).map_err(|error| error.body())
    }

    #[test]
    fn the_server_owns_the_defaults() {
        let v1 = check(Api::V1, json!({"templateID": "base"})).unwrap();
        let v2 = check(Api::V2, json!({"templateID": "base", "secure": false})).unwrap();
        assert_eq!((v1.timeout_s, v2.timeout_s), (15, 300));
        assert!(v1.secure && v2.secure, "v2 is always secured");
        assert!(!check(Api::V1, json!({"templateID": "base", "secure": false})).unwrap().secure);
        assert_eq!(v1.lifecycle.on_timeout, OnTimeout::Kill);
    }

    #[test]
    fn timeouts_are_above_zero_and_up_to_the_maximum() {
        assert_eq!(check(Api::V2, json!({"templateID": "b", "timeout": 3600})).unwrap().timeout_s, 3600);
        for zero in [0, -1] {
            let error = check(Api::V2, json!({"templateID": "b", "timeout": zero})).unwrap_err();
            assert!(error.contains("Timeout must be greater than 0"), "{error}");
        }
        let error = check(Api::V2, json!({"templateID": "b", "timeout": 3601})).unwrap_err();
        assert!(error.contains("Timeout cannot be greater than 1 hours"), "{error}");
        assert_eq!(checked_timeout(86_400, None), Ok(86_400), "no maximum unless configured");
    }

    #[test]
    fn filesystem_only_pauses_need_a_pause_and_no_waking() {
        let ok = json!({"templateID": "b", "autoPause": true, "autoPauseMemory": false});
        let wish = check(Api::V2, ok).unwrap();
        assert_eq!(wish.lifecycle.on_timeout, OnTimeout::Pause);
        assert!(!wish.lifecycle.auto_pause_memory);
        for refused in [
            json!({"templateID": "b", "autoPauseMemory": false}),
            json!({"templateID": "b", "autoPause": true, "autoPauseMemory": false, "autoResume": {"enabled": true}}),
        ] {
            assert!(check(Api::V2, refused).is_err());
        }
        assert!(check(Api::V2, json!({"templateID": "b", "autoResume": {"enabled": true}})).is_ok());
    }

    #[test]
    fn what_is_not_available_is_named() {
        assert!(
            check(
                Api::V2,
                json!({"templateID": "b", "iam": {"tokens": {}}, "volumeMounts": [], "mcp": null})
            )
            .is_ok()
        );
        assert!(check(Api::V2, json!({"templateID": "b", "mcp": {"x": {}}})).is_ok());
        let error = check(Api::V2, json!({"templateID": "b", "iam": {"tokens": {"a": {}}}})).unwrap_err();
        assert!(error.contains("IAM workload tokens"), "{error}");
        let mounts = json!({"templateID": "b", "volumeMounts": [{"name": "v", "path": "/v"}]});
        assert!(check(Api::V2, mounts).unwrap_err().contains("Volume mounts are not enabled."));
    }
}
