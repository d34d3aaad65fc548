//! The part of a life in which the sandbox does not serve, and the way back.
//!
//! ```text
//!   memory kept:  thaw -> guest: Thaw or Init ----------------.
//!   disk only:    machine on the kept disk -> guest: Init -----+-> store: Running -> serving
//! ```
//! Recorded last: a gateway that dies on the way leaves a paused sandbox. A machine that dies while
//! it is frozen leaves its disk, and the sandbox goes on resting without its memory.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Driver, EndCause, Next, Retry, inbox::Command, pause::thawed};
use crate::{
    failpoint::{self, Step},
    runtime::{
        boot::{self, Active, Failed, Remains, Requested},
        control::{Control, Identity},
        engine::{Disk, Machine},
        logs::LogRing,
        queue::{Request, Stage, Verdict},
        registry::{Connected, LifeError},
        samples::History,
        traces::{Class, Happening},
        world::{Phase, World},
    },
    sandbox::{SandboxRecord, SandboxState},
};

/// The shortest run of a sandbox that traffic woke (contract/control-plane 2.13).
const SHORTEST_WAKE: Duration = Duration::from_mins(5);

/// A paused sandbox.
pub(in crate::runtime) struct Resting {
    /// As it is recorded.
    pub(in crate::runtime) record: SandboxRecord,
    /// None: only its disk is kept.
    pub(in crate::runtime) memory: Option<Frozen>,
    /// What its memory could give without loss, it has given.
    pub(in crate::runtime) reclaimed: bool,
    pub(in crate::runtime) logs: Arc<LogRing>,
    pub(in crate::runtime) samples: Arc<History>,
}

/// A machine for which time stands still.
pub(in crate::runtime) struct Frozen {
    pub(in crate::runtime) machine: Arc<dyn Machine>,
    /// None: an earlier gateway froze it, and nobody is attached.
    pub(in crate::runtime) control: Option<Control>,
}

impl Driver {
    /// Until it is to serve, to end, or is let go of.
    pub(super) async fn rest(&mut self, mut resting: Resting) -> Next {
        loop {
            if let Some(cause) = self.ending.take() {
                return Next::End(resting.remains(), cause);
            }
            let command = tokio::select! {
                () = died(resting.memory.as_ref()) => match self.lost_memory(resting).await {
                    Next::Rest(kept) => {
                        resting = kept;
                        continue;
                    }
                    next => return next,
                },
                () = self.world.closing.cancelled() => return Next::LetGo,
                command = self.commands.next() => command,
            };
            let Some(command) = command else { return Next::LetGo };
            match (self.decide(Stage::Paused, command.request()), command) {
                (Err(refusal), command) => command.refuse(refusal.error(self.id)),
                (Ok(Verdict::TearDown), Command::End(cause)) => {
                    return Next::End(resting.remains(), cause);
                }
                (Ok(Verdict::Resume), command) => {
                    let traffic = command.request() == Request::Wake;
                    if traffic && !(resting.record.spec.lifecycle.auto_resume && resting.memory.is_some()) {
                        command.refuse(LifeError::NotFound(self.id));
                        continue;
                    }
                    match Box::pin(self.resume(resting, command)).await {
                        Next::Rest(back) => resting = back,
                        next => return next,
                    }
                }
                (Ok(Verdict::Relieve), Command::Relieve { to_disk, reply }) => {
                    let (next, relief) = Box::pin(self.relieve(resting, to_disk)).await;
                    let _ = reply.send(relief);
                    match next {
                        Next::Rest(back) => resting = back,
                        next => return next,
                    }
                }
                (Ok(_), command) => command.refuse(LifeError::Transitioning(self.id)),
            }
        }
    }

    /// Serves again and answers, or rests on and says why.
    async fn resume(&mut self, resting: Resting, mut command: Command) -> Next {
        let (world, cancel) = (Arc::clone(&self.world), CancellationToken::new());
        let (length, reboot) = match command.request() {
            Request::Connect(length) | Request::Resume(length) => (length, false),
            Request::Reboot(length) => (length, true),
            _ => (resting.record.spec.timeout().max(SHORTEST_WAKE), false),
        };
        world.traces.begin(self.id, Class::Resumed, world.now());
        self.show_rest(&resting, Stage::Resuming);
        let seat = Arc::clone(&self.seat);
        let waking = async {
            let wanted = seat.wants(resting.record.spec.resources);
            // Whoever hangs up, or ends the sandbox, leaves the queue.
            let admitted = tokio::select! {
                admitted = world.admission.admit(wanted) => admitted.map_err(LifeError::from),
                () = command.abandoned() => Err(LifeError::Transitioning(resting.record.id)),
                () = cancel.cancelled() => Err(LifeError::NotFound(resting.record.id)),
                () = world.closing.cancelled() => Err(LifeError::ShuttingDown),
            };
            let from_disk = reboot || resting.memory.is_none();
            let admitted = admitted.and_then(|admitted| {
                if from_disk {
                    world.restore_floor()?;
                }
                Ok(admitted)
            });
            match admitted {
                Ok(admitted) => seat.join(&admitted),
                Err(error) => return Err((error, resting)),
            }
            world.traces.event(resting.record.id, Happening::Admitted);
            if resting.memory.is_some() && !reboot {
                world.traces.event(resting.record.id, Happening::SnapshotRestoreStart);
            }
            wake(&world, resting, length, reboot, &cancel).await
        };
        match self.during(Stage::Resuming, &cancel, Box::pin(waking)).await {
            Ok(active) => {
                self.begin(&active);
                tracing::info!(sandbox.id = %self.id, "sandbox {} is resumed", self.id);
                if let Command::Ask { reply, .. } = command {
                    let _ = reply.send(Ok((active.record.clone(), Connected::Resumed)));
                }
                Next::Live(active)
            }
            Err((error, resting)) => {
                tracing::error!(sandbox.id = %self.id, %error, "sandbox {} was not resumed", self.id);
                self.world.traces.event(self.id, Happening::StartFailed);
                // It may have been recorded as running already.
                if let Err(error) = self.world.store.put_sandbox(resting.record.clone()).await {
                    tracing::error!(sandbox.id = %self.id, %error, "a resume that failed was not recorded");
                }
                self.seat.rest(resting.memory.is_some());
                self.show_rest(&resting, Stage::Paused);
                command.refuse(error);
                Next::Rest(resting)
            }
        }
    }

    /// The machine died while it was frozen.
    async fn lost_memory(&mut self, mut resting: Resting) -> Next {
        let mut retry = Retry::default();
        let kept = loop {
            match self.world.engine.kept().await {
                Ok(kept) => break kept.contains(&self.id),
                Err(error) => {
                    tracing::error!(sandbox.id = %self.id, %error, "a disk was not looked for");
                    if !retry.pause(&self.world.closing).await {
                        return Next::LetGo;
                    }
                }
            }
        };
        if !kept {
            return Next::End(resting.remains(), EndCause::Exited);
        }
        tracing::warn!(sandbox.id = %self.id, "sandbox {} lost its memory while it was paused", self.id);
        let text = "the memory of the paused sandbox was lost; its disk is kept";
        resting.logs.note("warn", text, self.world.clock.now());
        resting.memory = None;
        resting.record.machine = None;
        self.seat.rest(false);
        if let Err(error) = self.world.store.put_sandbox(resting.record.clone()).await {
            // The next gateway finds the same.
            tracing::error!(sandbox.id = %self.id, %error, "a lost memory was not recorded");
        }
        self.show_rest(&resting, Stage::Paused);
        Next::Rest(resting)
    }
}

async fn died(memory: Option<&Frozen>) {
    match memory {
        Some(frozen) => frozen.machine.exited().await,
        None => std::future::pending().await,
    }
}

/// A paused sandbox to one that serves; the error gives it back.
async fn wake(
    world: &Arc<World>,
    mut resting: Resting,
    length: Duration,
    reboot: bool,
    cancel: &CancellationToken,
) -> Result<Active, (LifeError, Resting)> {
    match resting.memory.take() {
        Some(frozen) if reboot => match frozen.machine.shelve().await {
            Ok(()) => {
                resting.record.machine = None;
                failpoint::reach(Step::ResumeShelved);
                boot_again(world, resting, length, cancel).await
            }
            Err(error) => {
                resting.memory = Some(frozen);
                Err((error.into(), resting))
            }
        },
        Some(frozen) => thaw(world, resting, frozen, length).await,
        None => boot_again(world, resting, length, cancel).await,
    }
}

async fn thaw(
    world: &Arc<World>,
    mut resting: Resting,
    frozen: Frozen,
    length: Duration,
) -> Result<Active, (LifeError, Resting)> {
    let Frozen { machine, control } = frozen;
    match run_on(world, &resting, &*machine, control, length).await {
        Ok((control, record)) => {
            let Resting { logs, samples, .. } = resting;
            Ok(Active { record, machine, control, logs, samples })
        }
        Err(error) => {
            // What has run meanwhile stands still again.
            if let Err(problem) = machine.freeze().await {
                tracing::error!(sandbox.id = %resting.record.id, error = %problem, "it was not frozen again");
            }
            resting.memory = Some(Frozen { machine, control: None });
            Err((error, resting))
        }
    }
}

/// Lets a frozen machine go on, tells its guest, and records it.
async fn run_on(
    world: &Arc<World>,
    resting: &Resting,
    machine: &dyn Machine,
    control: Option<Control>,
    length: Duration,
) -> Result<(Control, SandboxRecord), LifeError> {
    let id = resting.record.id;
    machine.thaw().await?;
    world.reached(id, Phase::Thawed).await?;
    let control = match control {
        Some(control) if thawed(world, &control.asker()).await => control,
        _ => attach(world, resting, machine).await?,
    };
    failpoint::reach(Step::ResumeAttached);
    let now = world.now();
    let record = SandboxRecord {
        state: SandboxState::Running,
        unresponsive: false,
        started_at: now,
        end_at: world.policy().deadline(now, now, length),
        ..resting.record.clone()
    };
    world.store.put_sandbox(record.clone()).await?;
    world.reached(id, Phase::Active).await?;
    Ok((control, record))
}

async fn attach(world: &Arc<World>, resting: &Resting, machine: &dyn Machine) -> Result<Control, LifeError> {
    let identity = Identity::new(Arc::clone(world), &resting.record);
    let attaching = Control::attach(machine.link(), identity, Arc::clone(&resting.logs));
    let bound = world.limits.guest_timeout;
    let control = timeout(bound, attaching)
        .await
        .map_err(|_| LifeError::Unresumable(format!("no answer in {bound:?}")))?
        .map_err(|error| LifeError::Unresumable(error.to_string()))?;
    thawed(world, &control.asker()).await;
    Ok(control)
}

/// A new machine on the disk that was kept.
async fn boot_again(
    world: &Arc<World>,
    resting: Resting,
    length: Duration,
    cancel: &CancellationToken,
) -> Result<Active, (LifeError, Resting)> {
    let generation = resting.record.generation + 1;
    let requested = Requested {
        record: SandboxRecord { generation, ..resting.record.clone() },
        disk: Disk::Kept,
        length,
        logs: Arc::clone(&resting.logs),
        samples: Arc::clone(&resting.samples),
    };
    match boot::again(world, requested, cancel).await {
        Ok(active) => Ok(active),
        Err(Failed { error, remains: Remains { machine, .. } }) => {
            if let Some(machine) = machine {
                let mut retry = Retry::default();
                while let Err(problem) = machine.shelve().await {
                    tracing::error!(sandbox.id = %resting.record.id, error = %problem, "a half-made machine was not ended");
                    if !retry.pause(&world.closing).await {
                        break;
                    }
                }
            }
            Err((error, resting))
        }
    }
}
