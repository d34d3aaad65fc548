//! What the drivers of all sandboxes share: the engine, the store, time, chance, keys and limits.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    admission::{Admission, Floors, Purpose, Refused, Rules},
    engine::Engine,
    inside::HostApi,
    past::Past,
    queue::Policy,
    reaper::Reaper,
    registry::{Held, LifeError},
    token::TokenKey,
    traces::Traces,
    warm::Pool,
};
use crate::{
    clock::Clock,
    failpoint::{self, Step},
    id::{Entropy, SandboxId},
    store::Store,
    wire::link::Nonce,
};

/// What bounds the life of sandboxes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest run of a sandbox; none: any length.
    pub max_length: Option<Duration>,
    /// How many machines are being made at the same time; more creates wait in order.
    pub concurrent_boots: usize,
    /// How long a new machine's guest has to answer its init.
    pub guest_timeout: Duration,
    /// Who may have a machine, and who waits.
    pub admission: Rules,
    /// How much of the disk stays free.
    pub floors: Floors,
}

/// Where a boot stands: the points at which a test can make it fail or hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The intent is recorded.
    Prepared,
    /// The machine exists.
    Booted,
    /// Its guest has answered.
    Attached,
    /// The result is recorded; nobody knows yet.
    Active,
    /// A pause is recorded; the machine runs.
    PauseRecorded,
    /// The machine is frozen, or ended with its disk kept; nobody knows yet.
    Stopped,
    /// The machine is frozen so that an image can be made of it.
    SealFrozen,
    /// Its disk is copied; the machine is frozen still, and the image may not be there yet.
    Sealed,
    /// A frozen machine runs again; it is recorded as paused.
    Thawed,
}

/// Fails a boot at a phase, for tests.
#[async_trait]
pub trait BootFault: Send + Sync {
    /// Called when a boot has reached the phase; an error makes it fail there.
    async fn reached(&self, sandbox: SandboxId, phase: Phase) -> Result<(), LifeError>;
}

/// The shared part.
pub(super) struct World {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) tokens: TokenKey,
    pub(super) limits: Limits,
    pub(super) boots: Semaphore,
    pub(super) admission: Arc<Admission>,
    pub(super) pool: Arc<Pool>,
    pub(super) reaper: Arc<Reaper>,
    pub(super) held: Arc<Held>,
    /// The registry takes no new work; drivers let go of their sandboxes.
    pub(super) closing: CancellationToken,
    pub(super) fault: OnceLock<Arc<dyn BootFault>>,
    pub(super) inside: OnceLock<Arc<dyn HostApi>>,
    pub(super) traces: Traces,
    pub(super) past: Past,
}

// === impl Phase ===

impl Phase {
    fn step(self) -> Step {
        match self {
            Self::Prepared => Step::BootRecorded,
            Self::Booted => Step::BootMade,
            Self::Attached => Step::BootAttached,
            Self::Active => Step::BootActive,
            Self::PauseRecorded => Step::PauseRecorded,
            Self::Stopped => Step::PauseStopped,
            Self::SealFrozen => Step::SealFrozen,
            Self::Sealed => Step::SealCopied,
            Self::Thawed => Step::ResumeThawed,
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_length: None,
            concurrent_boots: 16,
            guest_timeout: Duration::from_secs(10),
            admission: Rules::default(),
            floors: Floors::default(),
        }
    }
}

// === impl World ===

impl World {
    /// Now, by the clock of deadlines, as the store can keep it: whole microseconds.
    pub(super) fn now(&self) -> Timestamp {
        let now = self.clock.steady();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Fresh, for one attachment.
    pub(super) fn nonce(&self) -> Nonce {
        let mut nonce = [0; 16];
        self.entropy.fill(&mut nonce);
        Nonce(nonce)
    }

    /// Whether the disk has room for something that somebody waits for.
    pub(super) fn restore_floor(&self) -> Result<(), Refused> {
        self.limits.floors.check(Purpose::Restore, self.engine.disk())
    }

    /// Whether the disk has room for something that nobody has asked for yet.
    pub(super) fn warm_floor(&self) -> Result<(), Refused> {
        self.limits.floors.check(Purpose::Warm, self.engine.disk())
    }

    pub(super) fn policy(&self) -> Policy {
        Policy { max_length: self.limits.max_length }
    }

    /// Notes that a phase is reached; the injection point of it.
    pub(super) async fn reached(&self, sandbox: SandboxId, phase: Phase) -> Result<(), LifeError> {
        self.traces.reached(sandbox, phase);
        failpoint::reach(phase.step());
        match self.fault.get() {
            Some(fault) => fault.reached(sandbox, phase).await,
            None => Ok(()),
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("World").field("engine", &self.engine.name()).finish_non_exhaustive()
    }
}
