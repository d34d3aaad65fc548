//! The boot of a sandbox, a type for each phase.
//!
//! ```text
//!   Requested --store: Creating--> Prepared --engine--> Booted --guest: Init, Done--> Attached --store: Running--> Active
//! ```
//! Each phase consumes the former. One that fails or is cancelled hands back what exists by then
//! as [`Remains`], which the one teardown clears: nothing is released in two ways. The intent is
//! recorded before its effect, so that a gateway that dies in between finds it at its next start.
//! A warm machine enters at the third phase ([`run_on`]).
//! The lifetime counts from the moment the guest is ready (contract/control-plane 2.1).

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    control::{Control, Identity},
    engine::{Disk, Machine, MachineSpec},
    logs::LogRing,
    registry::LifeError,
    samples::History,
    warm::Warm,
    world::{Phase, World},
};
use crate::{
    sandbox::{SandboxRecord, SandboxState},
    store::StoreError,
};

/// How long a warm machine has to take its init: it has answered before.
const WARM_BOUND: Duration = Duration::from_secs(2);

/// Somebody wants it; no machine exists.
pub(super) struct Requested {
    pub(super) record: SandboxRecord,
    /// What its machine starts from.
    pub(super) disk: Disk,
    /// How long it shall run.
    pub(super) length: Duration,
    pub(super) logs: Arc<LogRing>,
    pub(super) samples: Arc<History>,
}

/// The intent is recorded.
struct Prepared(Requested);

/// The machine exists.
struct Booted {
    request: Requested,
    machine: Arc<dyn Machine>,
}

/// The guest knows who it is.
struct Attached {
    request: Requested,
    machine: Arc<dyn Machine>,
    control: Control,
}

/// It serves, and that is recorded.
pub(super) struct Active {
    pub(super) record: SandboxRecord,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) control: Control,
    pub(super) logs: Arc<LogRing>,
    pub(super) samples: Arc<History>,
}

/// A phase did not come to its end.
pub(super) struct Failed {
    pub(super) error: LifeError,
    pub(super) remains: Remains,
}

/// What there is to be cleared: the record, and the machine if there is one.
pub(super) struct Remains {
    pub(super) record: SandboxRecord,
    /// False: the store was full, and has nothing of it.
    pub(super) recorded: bool,
    pub(super) machine: Option<Arc<dyn Machine>>,
}

/// All phases of a new sandbox. Cancelling makes the phase that is under way fail.
pub(super) async fn run(
    world: &Arc<World>,
    requested: Requested,
    cancel: &CancellationToken,
) -> Result<Active, Failed> {
    // Held through all phases. The semaphore is never closed.
    let Some(Ok(permit)) = cancel.run_until_cancelled(world.boots.acquire()).await else {
        return Err(requested.failed(LifeError::ShuttingDown));
    };
    let made = match requested.prepare(world).await {
        Ok(prepared) => prepared.start(world, cancel).await,
        Err(failed) => Err(failed),
    };
    drop(permit);
    world.pool.look();
    made
}

/// The last phases of a new sandbox, on a warm machine. One that does not answer is ended, and the
/// sandbox gets a machine of its own, its second. There is no intent to record: a gateway that dies
/// before the result is recorded leaves a machine without a record, which the next one sweeps.
pub(super) async fn run_on(
    world: &Arc<World>,
    warm: Warm,
    mut requested: Requested,
    cancel: &CancellationToken,
) -> Result<Active, Failed> {
    let Warm { machine, ready, logs, .. } = warm;
    requested.logs = logs;
    let id = requested.record.id;
    let introducing =
        timeout(WARM_BOUND, ready.introduce(Identity::new(Arc::clone(world), &requested.record)));
    let introduced = tokio::select! {
        introduced = introducing => match introduced {
            Ok(introduced) => introduced.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {WARM_BOUND:?}")),
        },
        () = machine.exited() => Err("the machine ended".to_owned()),
        () = cancel.cancelled() => return Err(requested.failed_with(LifeError::ShuttingDown, machine)),
    };
    let reason = match introduced {
        Ok(control) => {
            return match world.reached(id, Phase::Attached).await {
                Ok(()) => Attached { request: requested, machine, control }.activate(world).await,
                Err(error) => Err(requested.failed_with(error, machine)),
            };
        }
        Err(reason) => reason,
    };
    tracing::warn!(sandbox.id = %id, reason, "the warm machine of sandbox {id} did not answer; it gets another");
    world.pool.was_dead();
    if let Err(error) = machine.stop(Duration::ZERO).await {
        return Err(requested.failed_with(error.into(), machine));
    }
    requested.logs = Arc::default();
    requested.record.generation += 1;
    run(world, requested, cancel).await
}

/// All phases but the first, for a sandbox that is recorded as paused, and is until the last.
pub(super) async fn again(
    world: &Arc<World>,
    requested: Requested,
    cancel: &CancellationToken,
) -> Result<Active, Failed> {
    let Some(Ok(permit)) = cancel.run_until_cancelled(world.boots.acquire()).await else {
        return Err(requested.failed(LifeError::ShuttingDown));
    };
    let made = Prepared(requested).start(world, cancel).await;
    drop(permit);
    world.pool.look();
    made
}

// === impl Requested ===

impl Requested {
    /// A new sandbox.
    pub(super) fn new(record: SandboxRecord) -> Self {
        let length = record.spec.timeout();
        Self { record, disk: Disk::New, length, logs: Arc::default(), samples: Arc::default() }
    }

    async fn prepare(self, world: &World) -> Result<Prepared, Failed> {
        if let Err(error) = world.store.put_sandbox(self.record.clone()).await {
            let recorded = error != StoreError::Full;
            let mut failed = self.failed(error.into());
            failed.remains.recorded = recorded;
            return Err(failed);
        }
        match world.reached(self.record.id, Phase::Prepared).await {
            Ok(()) => Ok(Prepared(self)),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(self, error: LifeError) -> Failed {
        Failed { error, remains: Remains { record: self.record, recorded: true, machine: None } }
    }

    fn failed_with(self, error: LifeError, machine: Arc<dyn Machine>) -> Failed {
        let machine = Some(machine);
        Failed { error, remains: Remains { record: self.record, recorded: true, machine } }
    }
}

// === impl Prepared ===

impl Prepared {
    async fn start(self, world: &Arc<World>, cancel: &CancellationToken) -> Result<Active, Failed> {
        let booted = self.boot(world, cancel).await?;
        let attached = booted.attach(world, cancel).await?;
        attached.activate(world).await
    }

    async fn boot(self, world: &World, cancel: &CancellationToken) -> Result<Booted, Failed> {
        let Self(request) = self;
        let record = &request.record;
        let spec = MachineSpec {
            sandbox: record.id,
            generation: record.generation,
            build: record.spec.build,
            resources: record.spec.resources,
            hostname: record.id.to_string(),
            disk: request.disk,
        };
        // A create that is dropped releases what it made: the engine's promise.
        let machine = match cancel.run_until_cancelled(world.engine.create(spec)).await {
            Some(Ok(machine)) => machine,
            Some(Err(error)) => return Err(request.failed(error.into())),
            None => return Err(request.failed(LifeError::ShuttingDown)),
        };
        match world.reached(request.record.id, Phase::Booted).await {
            Ok(()) => Ok(Booted { request, machine }),
            Err(error) => Err(request.failed_with(error, machine)),
        }
    }
}

// === impl Booted ===

impl Booted {
    async fn attach(self, world: &Arc<World>, cancel: &CancellationToken) -> Result<Attached, Failed> {
        let Self { request, machine } = self;
        let identity = Identity::new(Arc::clone(world), &request.record);
        let attaching = timeout(
            world.limits.guest_timeout,
            Control::attach(machine.link(), identity, Arc::clone(&request.logs)),
        );
        let attached = tokio::select! {
            attached = attaching => match attached {
                Ok(attached) => attached.map_err(|error| LifeError::Guest(error.to_string())),
                Err(_) => Err(LifeError::Guest(format!("no answer in {:?}", world.limits.guest_timeout))),
            },
            () = machine.exited() => Err(LifeError::Guest("the machine ended".to_owned())),
            () = cancel.cancelled() => Err(LifeError::ShuttingDown),
        };
        let control = match attached {
            Ok(control) => control,
            Err(error) => return Err(request.failed_with(error, machine)),
        };
        match world.reached(request.record.id, Phase::Attached).await {
            Ok(()) => Ok(Attached { request, machine, control }),
            Err(error) => Err(request.failed_with(error, machine)),
        }
    }
}

// === impl Attached ===

impl Attached {
    async fn activate(self, world: &World) -> Result<Active, Failed> {
        let Self { request, machine, control } = self;
        let now = world.now();
        let record = SandboxRecord {
            state: SandboxState::Running,
            started_at: now,
            end_at: world.policy().deadline(now, now, request.length),
            machine: Some(machine.record()),
            unresponsive: false,
            ..request.record.clone()
        };
        if let Err(error) = world.store.put_sandbox(record.clone()).await {
            return Err(request.failed_with(error.into(), machine));
        }
        match world.reached(record.id, Phase::Active).await {
            Ok(()) => {
                let Requested { logs, samples, .. } = request;
                Ok(Active { record, machine, control, logs, samples })
            }
            Err(error) => Err(request.failed_with(error, machine)),
        }
    }
}
