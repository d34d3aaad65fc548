//! The registry: the one way to sandboxes for routes (commands) and proxy (look-up).

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    id::{SandboxId, TeamId},
    runtime::{engine::EngineError, link::GuestLink},
    sandbox::{SandboxRecord, SandboxSpec},
    store::StoreError,
};

/// Every sandbox of this gateway. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    _inner: Arc<()>,
}

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
    /// Resolves when this run ends (kill, pause, exit): open streams must be cut then.
    pub ended: tokio_util::sync::CancellationToken,
}

/// Why the proxy gets no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRunning {
    /// Unknown, killed, or paused and not to be woken.
    NotFound,
    /// On its way from one state to another.
    Transitioning,
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
    /// The engine did not do it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest did not become ready.
    #[error("the guest did not become ready: {0}")]
    Guest(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

// === impl Registry ===

impl Registry {
    /// Makes a sandbox and returns when its guest is ready. The work goes on to a consistent end
    /// (running, or wholly undone) when the returned future is dropped.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, LifeError> {
        let _ = spec;
        std::future::pending().await
    }

    /// A running (or paused) sandbox of the team.
    pub async fn get(&self, team: TeamId, id: SandboxId) -> Result<Sandbox, LifeError> {
        let _ = team;
        Err(LifeError::NotFound(id))
    }

    /// Ends a sandbox of the team. `Ok` also when its end has already begun.
    pub async fn kill(&self, team: TeamId, id: SandboxId) -> Result<(), LifeError> {
        let _ = team;
        Err(LifeError::NotFound(id))
    }

    /// Sets the deadline to now + `timeout`, clamped to the run's maximum; zero ends it now.
    pub async fn set_timeout(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), LifeError> {
        let _ = (team, timeout);
        Err(LifeError::NotFound(id))
    }

    /// Moves the deadline to now + `timeout` if that is later.
    pub async fn extend(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), LifeError> {
        let _ = (team, timeout);
        Err(LifeError::NotFound(id))
    }

    /// Connects to a sandbox of the team: extends a running one.
    pub async fn connect(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
    ) -> Result<(Sandbox, Connected), LifeError> {
        let _ = (team, timeout);
        Err(LifeError::NotFound(id))
    }

    /// The tokens that belong to a record.
    pub fn view(&self, record: SandboxRecord) -> Sandbox {
        Sandbox { record, envd_access_token: None, traffic_access_token: None }
    }

    /// The hot path: what the proxy needs, from memory.
    pub fn target(&self, id: &SandboxId) -> Result<Target, NotRunning> {
        let _ = id;
        Err(NotRunning::NotFound)
    }

    /// The longest run, if one is configured.
    pub fn max_length(&self) -> Option<Duration> {
        None
    }

    /// When a sandbox made now with this timeout would end.
    pub fn deadline(&self, timeout: Duration) -> Timestamp {
        let _ = timeout;
        Timestamp::UNIX_EPOCH
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Registry")
    }
}
