//! Sandboxes as the control plane shows them (contract/control-plane 2): absent things are left
//! out, never null, for null crashes the Python SDK.

pub(crate) mod connect;
pub(crate) mod create;
pub(crate) mod egress;
pub(crate) mod fork;
pub(crate) mod get;
mod idempotency;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod metrics;
mod network;
pub(crate) mod pause;
pub(crate) mod refresh;
pub(super) mod request;
pub(crate) mod resume;
pub(crate) mod snapshot;
pub(crate) mod timeout;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    clock::Clock,
    routes::{freshness::FreshnessView, state::AppState},
    runtime::registry::Sandbox,
    sandbox::{CLIENT_ID, ENVD_VERSION, NetworkConfig, OnTimeout, SandboxRecord, SandboxState},
};

/// What create and connect answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Sandbox)]
pub(crate) struct SandboxView {
    /// The template, never its alias.
    #[serde(rename = "templateID")]
    template_id: String,
    /// The sandbox.
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    /// A constant that old SDKs require.
    #[serde(rename = "clientID")]
    client_id: &'static str,
    /// Which envd the guest behaves like.
    envd_version: &'static str,
    /// The template's first alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    /// What envd wants in `X-Access-Token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    /// What user ports want in `e2b-traffic-access-token`; only when traffic is not public.
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<String>,
    /// Where `{port}-{sandboxID}.{domain}` is found.
    domain: String,
}

/// A sandbox in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedSandbox {
    /// The template, never its alias.
    #[serde(rename = "templateID")]
    template_id: String,
    /// The template's first alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    /// The sandbox.
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    /// A constant that old SDKs require.
    #[serde(rename = "clientID")]
    client_id: &'static str,
    /// Start of the present run.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// The deadline; for a paused sandbox, when it was paused.
    #[schema(value_type = String, format = DateTime)]
    end_at: Timestamp,
    /// Virtual CPUs.
    cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    /// The caller's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    /// `running` or `paused`.
    state: &'static str,
    /// Which envd the guest behaves like.
    envd_version: &'static str,
    /// Always there; empty until volumes exist.
    #[schema(value_type = Vec<Object>)]
    volume_mounts: [(); 0],
}

/// One sandbox with all that may be shown of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxDetail {
    #[serde(flatten)]
    listed: ListedSandbox,
    /// What envd wants in `X-Access-Token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    /// Only when the caller set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_internet_access: Option<bool>,
    /// Where `{port}-{sandboxID}.{domain}` is found; absent while paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    /// Only when the caller set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    network: Option<NetworkConfig>,
    /// What happens at the deadline.
    lifecycle: LifecycleView,
    /// Of a paused sandbox, what it has kept: `full` (its processes too) or `filesystem`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
    /// Only true, and of a paused sandbox: its guest did not answer when it was paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_unresponsive_at_pause: Option<bool>,
    /// Only when labels of the create asked for it: what is synchronized before files may be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    freshness: Option<FreshnessView>,
}

/// What happens at the deadline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxLifecycle)]
struct LifecycleView {
    /// Whether traffic wakes the paused sandbox.
    auto_resume: bool,
    /// `kill` or `pause`.
    #[schema(value_type = String)]
    on_timeout: OnTimeout,
}

// === impl SandboxView ===

impl SandboxView {
    /// The view of a running sandbox.
    pub(crate) fn of(sandbox: Sandbox, state: &AppState) -> Self {
        let Sandbox { record, envd_access_token, traffic_access_token } = sandbox;
        Self {
            template_id: record.spec.template.to_string(),
            sandbox_id: record.id.to_string(),
            client_id: CLIENT_ID,
            envd_version: ENVD_VERSION,
            alias: record.spec.alias,
            envd_access_token,
            traffic_access_token,
            domain: state.settings.domain.to_string(),
        }
    }
}

// === impl ListedSandbox ===

impl ListedSandbox {
    /// The view of a running or paused sandbox, in times of the wall clock.
    pub(crate) fn of(record: SandboxRecord, clock: &dyn Clock) -> Self {
        let SandboxRecord { id, spec, state, started_at, end_at, .. } = record;
        Self {
            template_id: spec.template.to_string(),
            alias: spec.alias,
            sandbox_id: id.to_string(),
            client_id: CLIENT_ID,
            started_at: clock.shown(started_at),
            end_at: clock.shown(end_at),
            cpu_count: spec.resources.cpu_count,
            memory_mb: spec.resources.memory_mb,
            disk_size_mb: spec.resources.disk_mb,
            metadata: spec.metadata,
            state: if state == SandboxState::Paused { "paused" } else { "running" },
            envd_version: ENVD_VERSION,
            volume_mounts: [],
        }
    }
}

// === impl SandboxDetail ===

impl SandboxDetail {
    /// The detail of a running or paused sandbox.
    pub(crate) fn of(sandbox: Sandbox, state: &AppState) -> Self {
        let Sandbox { record, envd_access_token, .. } = sandbox;
        let paused = record.state == SandboxState::Paused;
        let freshness = record.freshness.clone().map(FreshnessView::from);
        Self {
            envd_access_token,
            allow_internet_access: record.spec.allow_internet_access,
            domain: (!paused).then(|| state.settings.domain.to_string()),
            network: record.spec.network.clone(),
            lifecycle: LifecycleView {
                auto_resume: record.spec.lifecycle.auto_resume,
                on_timeout: record.spec.lifecycle.on_timeout,
            },
            pause_mode: paused.then_some(if record.machine.is_some() { "full" } else { "filesystem" }),
            envd_unresponsive_at_pause: (paused && record.unresponsive).then_some(true),
            freshness,
            listed: ListedSandbox::of(record, &*state.clock),
        }
    }
}
