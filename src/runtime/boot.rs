//! The boot of a sandbox, a type for each phase.
//!
//! ```text
//!   Requested --store: Creating--> Prepared --engine--> Booted --guest: Init, Done--> Attached --store: Running--> Active
//! ```
//! Each phase consumes the former. One that fails or is cancelled hands back what exists by then
//! as [`Remains`], which the one teardown clears: nothing is released in two ways. The intent is
//! recorded before its effect, so that a gateway that dies in between finds it at its next start.
//! The lifetime counts from the moment the guest is ready (contract/control-plane 2.1).

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    control::{Control, Identity},
    engine::{Machine, MachineSpec},
    logs::LogRing,
    registry::LifeError,
    samples::History,
    world::{Phase, World},
};
use crate::sandbox::{SandboxRecord, SandboxState};

/// Somebody wants it; nothing exists.
pub(super) struct Requested {
    pub(super) record: SandboxRecord,
}

/// The intent is recorded.
pub(super) struct Prepared {
    record: SandboxRecord,
}

/// The machine exists.
pub(super) struct Booted {
    record: SandboxRecord,
    machine: Arc<dyn Machine>,
}

/// The guest knows who it is.
pub(super) struct Attached {
    record: SandboxRecord,
    machine: Arc<dyn Machine>,
    control: Control,
    logs: Arc<LogRing>,
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
    pub(super) machine: Option<Arc<dyn Machine>>,
}

/// All phases. Cancelling makes the phase that is under way fail.
pub(super) async fn run(
    world: &Arc<World>,
    requested: Requested,
    cancel: &CancellationToken,
) -> Result<Active, Failed> {
    // Held through all phases. The semaphore is never closed.
    let Some(Ok(_permit)) = cancel.run_until_cancelled(world.boots.acquire()).await else {
        return Err(requested.failed(LifeError::ShuttingDown));
    };
    let prepared = requested.prepare(world).await?;
    let booted = prepared.boot(world, cancel).await?;
    let attached = booted.attach(world, cancel).await?;
    attached.activate(world).await
}

// === impl Requested ===

impl Requested {
    async fn prepare(self, world: &World) -> Result<Prepared, Failed> {
        if let Err(error) = world.store.put_sandbox(self.record.clone()).await {
            return Err(self.failed(error.into()));
        }
        let id = self.record.id;
        let prepared = Prepared { record: self.record };
        match world.reached(id, Phase::Prepared).await {
            Ok(()) => Ok(prepared),
            Err(error) => Err(prepared.failed(error)),
        }
    }

    fn failed(self, error: LifeError) -> Failed {
        Failed { error, remains: Remains { record: self.record, machine: None } }
    }
}

// === impl Prepared ===

impl Prepared {
    async fn boot(self, world: &World, cancel: &CancellationToken) -> Result<Booted, Failed> {
        let spec = MachineSpec {
            sandbox: self.record.id,
            generation: self.record.generation,
            build: self.record.spec.build,
            resources: self.record.spec.resources,
            hostname: self.record.id.to_string(),
        };
        // A create that is dropped releases what it made: the engine's promise.
        let machine = match cancel.run_until_cancelled(world.engine.create(spec)).await {
            Some(Ok(machine)) => machine,
            Some(Err(error)) => return Err(self.failed(error.into())),
            None => return Err(self.failed(LifeError::ShuttingDown)),
        };
        let id = self.record.id;
        let booted = Booted { record: self.record, machine };
        match world.reached(id, Phase::Booted).await {
            Ok(()) => Ok(booted),
            Err(error) => Err(booted.failed(error)),
        }
    }

    fn failed(self, error: LifeError) -> Failed {
        Failed { error, remains: Remains { record: self.record, machine: None } }
    }
}

// === impl Booted ===

impl Booted {
    async fn attach(self, world: &Arc<World>, cancel: &CancellationToken) -> Result<Attached, Failed> {
        let logs = Arc::new(LogRing::default());
        let identity = Identity::new(Arc::clone(world), &self.record);
        let attaching = timeout(
            world.limits.guest_timeout,
            Control::attach(self.machine.link(), identity, Arc::clone(&logs)),
        );
        let attached = tokio::select! {
            attached = attaching => match attached {
                Ok(attached) => attached.map_err(|error| LifeError::Guest(error.to_string())),
                Err(_) => Err(LifeError::Guest(format!("no answer in {:?}", world.limits.guest_timeout))),
            },
            () = self.machine.exited() => Err(LifeError::Guest("the machine ended".to_owned())),
            () = cancel.cancelled() => Err(LifeError::ShuttingDown),
        };
        let control = match attached {
            Ok(control) => control,
            Err(error) => return Err(self.failed(error)),
        };
        let id = self.record.id;
        let attached = Attached { record: self.record, machine: self.machine, control, logs };
        match world.reached(id, Phase::Attached).await {
            Ok(()) => Ok(attached),
            Err(error) => Err(attached.failed(error)),
        }
    }

    fn failed(self, error: LifeError) -> Failed {
        Failed { error, remains: Remains { record: self.record, machine: Some(self.machine) } }
    }
}

// === impl Attached ===

impl Attached {
    async fn activate(mut self, world: &World) -> Result<Active, Failed> {
        let now = world.now();
        self.record.state = SandboxState::Running;
        self.record.started_at = now;
        self.record.end_at = world.policy().deadline(now, now, self.record.spec.timeout());
        self.record.machine = Some(self.machine.record());
        if let Err(error) = world.store.put_sandbox(self.record.clone()).await {
            return Err(self.failed(error.into()));
        }
        match world.reached(self.record.id, Phase::Active).await {
            Ok(()) => Ok(Active {
                record: self.record,
                machine: self.machine,
                control: self.control,
                logs: self.logs,
                samples: Arc::default(),
            }),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(self, error: LifeError) -> Failed {
        Failed { error, remains: Remains { record: self.record, machine: Some(self.machine) } }
    }
}
