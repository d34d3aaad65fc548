//! What a sandbox is, in words that every layer shares: what was asked for, what is recorded,
//! what the outside may see. No behaviour lives here.

pub mod freshness;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::freshness::Freshness;
use crate::id::{BuildId, SandboxId, TeamId, TemplateId};

/// The version of envd whose behaviour the guest shows (contract/control-plane 10.3).
pub const ENVD_VERSION: &str = "0.6.13";
/// The constant that E2B's deprecated but required `clientID` carries.
pub const CLIENT_ID: &str = "6532622b";
/// The port of the process and filesystem API in every sandbox.
pub const ENVD_PORT: u16 = 49_983;
/// The port of the code interpreter in every sandbox.
pub const CODE_INTERPRETER_PORT: u16 = 49_999;

/// What a machine may use. Memory and CPU are shown to the guest as its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs: a weight between sandboxes, and what `nproc` prints inside.
    pub cpu_count: u32,
    /// Memory limit of the sandbox's own processes, in MiB.
    pub memory_mb: u32,
    /// Disk size shown and, where the storage driver can, enforced, in MiB.
    pub disk_mb: u32,
}

/// What happens when the deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// End the sandbox and forget it.
    #[default]
    Kill,
    /// Pause it, keeping memory unless told otherwise.
    Pause,
}

/// What the sandbox's life is governed by, apart from its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Lifecycle {
    /// Kill or pause at the deadline.
    pub on_timeout: OnTimeout,
    /// Whether traffic may wake a paused sandbox.
    pub auto_resume: bool,
    /// Whether an automatic pause keeps memory.
    pub auto_pause_memory: bool,
}

/// Network fields of a create request (contract/control-plane 3), as far as they are known;
/// stored and shown again as they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkConfig {
    /// False: every port but envd's wants the traffic token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Egress allow list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_out: Vec<String>,
    /// Egress deny list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_out: Vec<String>,
    /// The `Host` that user ports see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// User ports that speak TLS inside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub https_ports: Vec<u16>,
}

/// The way out of a sandbox: the part of its network that may be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// False: no way out but what the allow list names; none: not said.
    pub allow_internet_access: Option<bool>,
    /// Allow list.
    pub allow_out: Vec<String>,
    /// Deny list.
    pub deny_out: Vec<String>,
}

/// All that a create request says, after validation and template resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Who owns it.
    pub team: TeamId,
    /// The template it is made from.
    pub template: TemplateId,
    /// The template's first alias, shown in answers.
    pub alias: Option<String>,
    /// The build of the template.
    pub build: BuildId,
    /// Its size.
    pub resources: Resources,
    /// How long it lives after it is ready, in seconds (the contract counts seconds).
    pub timeout_s: u64,
    /// Pause or kill, wake or not.
    pub lifecycle: Lifecycle,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process; given to the guest, never shown by a GET.
    pub env_vars: BTreeMap<String, String>,
    /// True: envd wants the access token.
    pub secure: bool,
    /// Only when the caller set it.
    pub allow_internet_access: Option<bool>,
    /// Only when the caller set it.
    pub network: Option<NetworkConfig>,
}

// === impl SandboxSpec ===

impl SandboxSpec {
    /// The requested lifetime.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// Replaces the whole way out; the way in stays as it is.
    pub fn set_egress(&mut self, egress: Egress) {
        self.allow_internet_access = egress.allow_internet_access;
        let mut network = self.network.take().unwrap_or_default();
        (network.allow_out, network.deny_out) = (egress.allow_out, egress.deny_out);
        self.network = (network != NetworkConfig::default()).then_some(network);
    }

    /// False when user ports want the traffic token.
    pub fn public_traffic(&self) -> bool {
        self.network.as_ref().and_then(|network| network.allow_public_traffic).unwrap_or(true)
    }
}

/// Where a sandbox stands in its life, as the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Intent recorded, machine not yet ready. After a restart: undone.
    Creating,
    /// The machine serves.
    Running,
    /// Frozen or without a machine; its data is kept.
    Paused,
    /// Teardown has begun. Invisible from outside; after a restart: finished.
    Killing,
}

/// A sandbox as the store keeps it and as answers are made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Where it stands.
    pub state: SandboxState,
    /// Counts its machines: 1 for the first. Cached handles carry it.
    pub generation: u64,
    /// Start of the present run.
    pub started_at: Timestamp,
    /// When the deadline strikes; for a paused one, when it was paused.
    pub end_at: Timestamp,
    /// What the engine needs to find the machine again after a restart; its own format.
    pub machine: Option<serde_json::Value>,
    /// Of a paused one: its guest did not answer when it was frozen.
    pub unresponsive: bool,
    /// What is to be brought up to date before anything is written, as the guest last told it.
    pub freshness: Option<Freshness>,
}
