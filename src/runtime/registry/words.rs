//! What the registry gives and takes, in words that know nothing of HTTP.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    id::SandboxId,
    runtime::{admission::Refused, engine::EngineError, link::GuestLink},
    sandbox::SandboxRecord,
    store::StoreError,
};

/// A sandbox as answers need it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its record.
    pub record: SandboxRecord,
    /// What envd wants in `X-Access-Token`; none when the sandbox is not secured.
    pub envd_access_token: Option<String>,
    /// What user ports want; none when traffic is public.
    pub traffic_access_token: Option<String>,
}

/// What the proxy needs of a running sandbox; taken from memory, nothing is locked while it is held.
#[derive(Debug, Clone)]
pub struct Target {
    /// The sandbox.
    pub id: SandboxId,
    /// The run generation: pooled connections carry it.
    pub generation: u64,
    /// The way in.
    pub link: Arc<dyn GuestLink>,
    /// What user ports want in `e2b-traffic-access-token`; none when traffic is public.
    pub traffic_access_token: Option<Arc<str>>,
    /// The `Host` that user ports see, with `${PORT}` still in it.
    pub mask_request_host: Option<Arc<str>>,
    /// User ports that speak TLS inside.
    pub https_ports: Arc<[u16]>,
    /// Resolves when this run ends (kill, pause, exit): open streams must be cut then.
    pub ended: CancellationToken,
}

/// Why the proxy gets no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRunning {
    /// Unknown, killed, or paused and not to be woken.
    NotFound,
    /// On its way from one state to another.
    Transitioning,
    /// Paused, or on the way there or back: [`Registry::wake`](super::Registry::wake) knows more.
    Resting,
    /// Paused, and to be woken only with other credentials.
    Denied,
    /// It may be woken, but the host has no room for it now.
    Full,
}

/// How a connect found the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connected {
    /// It was running: 200.
    Running,
    /// It was resumed: 201.
    Resumed,
}

/// Why a sandbox did not do what it was asked to. Knows nothing of HTTP.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifeError {
    /// Unknown, foreign or killed.
    #[error("sandbox {0} does not exist")]
    NotFound(SandboxId),
    /// On its way from one state to another.
    #[error("sandbox {0} is changing its state")]
    Transitioning(SandboxId),
    /// This run has lasted its maximum.
    #[error("max instance length exceeded")]
    MaxLength,
    /// It is paused already.
    #[error("sandbox {0} is paused already")]
    Paused(SandboxId),
    /// It runs already.
    #[error("sandbox {0} is running already")]
    Running(SandboxId),
    /// A pause was wanted only if its guest answers, and it does not; it runs on.
    #[error("the guest of the sandbox does not answer")]
    Unresponsive,
    /// It was not paused, and runs on.
    #[error("the sandbox was not paused: {0}")]
    Pause(String),
    /// There was no room for it on this host.
    #[error(transparent)]
    NoRoom(#[from] Refused),
    /// What was asked for makes no sense; nothing was done.
    #[error("{0}")]
    Nonsense(String),
    /// The engine did not do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest did not become ready, or does not answer.
    #[error("the guest does not answer as it should: {0}")]
    Guest(String),
    /// The guest of a paused sandbox does not answer any more; it is still paused.
    #[error("the guest of the paused sandbox does not answer: {0}")]
    Unresumable(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// How many sandboxes are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Not ready yet.
    pub creating: usize,
    /// Serving.
    pub running: usize,
    /// Paused, or on the way there or back.
    pub resting: usize,
    /// On their way out.
    pub ending: usize,
}
