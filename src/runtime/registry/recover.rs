//! What a new registry does with what an earlier one left: adopt, undo, finish, sweep.
//!
//! | record | machine | then |
//! | --- | --- | --- |
//! | Running | found | adopted; a deadline that has passed is honoured at once |
//! | Running | gone | the record is removed |
//! | Running | cannot be asked for, three times | swept with its record |
//! | Creating, Killing | found or not | ended with its record |
//! | Paused | found | frozen, if it is not; or ended with its disk kept, if that is how it was paused |
//! | Paused | gone, disk kept | paused without its memory |
//! | Paused | gone, disk too | the record is removed |
//! | none | found | swept |

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{LifeError, Registry};
use crate::{
    failpoint::{self, Step},
    id::SandboxId,
    runtime::{
        admission::Share,
        boot::{Active, Remains},
        control::{Control, Identity},
        driver::{Frozen, Resting},
        engine::{EngineError, Machine, MachineRecord},
        logs::LogRing,
    },
    sandbox::{SandboxRecord, SandboxState},
    store::SandboxFilter,
};

/// How long a start waits for an adopted guest; one that is slower serves, and is attached later.
const ATTACH_BOUND: Duration = Duration::from_secs(3);
const ADOPTION_TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// What a recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sandboxes that go on.
    pub adopted: Vec<SandboxId>,
    /// Sandboxes that are paused.
    pub paused: Vec<SandboxId>,
    /// Sandboxes whose machine was gone, that were half-made or half-killed, or not to be had.
    pub ended: Vec<SandboxId>,
    /// Machines without a record that were ended.
    pub swept: Vec<SandboxId>,
}

/// What became of one record.
enum Fate {
    Lives(SandboxRecord, Arc<dyn Machine>),
    Ends(SandboxRecord, Option<Arc<dyn Machine>>),
    Rests(Resting),
}

impl Registry {
    /// Takes up what an earlier gateway left. Once, before any other call. Returns when every
    /// sandbox that goes on serves again.
    pub async fn recover(&self) -> Result<Recovered, LifeError> {
        let world = &self.inner.world;
        let records = world
            .store
            .sandboxes(SandboxFilter {
                states: vec![
                    SandboxState::Creating,
                    SandboxState::Running,
                    SandboxState::Paused,
                    SandboxState::Killing,
                ],
                ascending: true,
                ..SandboxFilter::default()
            })
            .await?;
        let mut fates = JoinSet::new();
        for record in records {
            let registry = self.clone();
            fates.spawn(async move { registry.fate(record).await });
        }
        let mut recovered = Recovered::default();
        let mut keep = Vec::new();
        let (mut lives, mut rests, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(fate) = fates.join_next().await {
            match fate {
                Ok(Fate::Lives(record, machine)) => {
                    keep.push(record.id);
                    recovered.adopted.push(record.id);
                    lives.push((record, machine));
                }
                Ok(Fate::Ends(record, machine)) => {
                    recovered.ended.push(record.id);
                    ends.push((record, machine));
                }
                Ok(Fate::Rests(resting)) => {
                    keep.push(resting.record.id);
                    recovered.paused.push(resting.record.id);
                    rests.push(resting);
                }
                // A task that panicked: its record is read again at the next start.
                Err(error) => tracing::error!(%error, "a record was not recovered"),
            }
        }
        failpoint::reach(Step::RecoverMatched);
        recovered.swept = world.engine.sweep(&keep).await?;
        recovered.swept.retain(|id| !recovered.ended.contains(id));
        failpoint::reach(Step::RecoverSwept);
        for (record, machine) in ends {
            // What is still to be ended has its room until then.
            let seat = Arc::new(world.admission.take_over(Share::default()));
            let driver = self.inner.driver(&record, seat);
            self.inner.tasks.spawn(driver.finish(Remains { record, recorded: true, machine }));
        }
        let mut ready = JoinSet::new();
        for resting in rests {
            let seat = world.admission.take_over(world.admission.share(resting.record.spec.resources));
            seat.rest(resting.memory.is_some());
            let driver = self.inner.driver(&resting.record, Arc::new(seat));
            let (shown, is_shown) = oneshot::channel();
            self.inner.tasks.spawn(driver.take_over_paused(resting, shown));
            ready.spawn(async move {
                let _ = is_shown.await;
            });
        }
        for (record, machine) in lives {
            ready.spawn(self.take_up(record, machine));
        }
        while ready.join_next().await.is_some() {}
        failpoint::reach(Step::RecoverTaken);
        self.collect_images();
        Ok(recovered)
    }

    async fn fate(&self, record: SandboxRecord) -> Fate {
        if record.state == SandboxState::Paused {
            return self.fate_of_paused(record).await;
        }
        let id = record.id;
        let Some(found) = &record.machine else { return Fate::Ends(record, None) };
        match self.adopt(id, found).await {
            Ok(Some(machine)) if record.state == SandboxState::Running => Fate::Lives(record, machine),
            Ok(machine) => Fate::Ends(record, machine),
            Err(error) => {
                tracing::error!(sandbox.id = %id, %error, "sandbox {id} was not adopted and is ended");
                Fate::Ends(record, None)
            }
        }
    }

    async fn adopt(
        &self,
        id: SandboxId,
        found: &MachineRecord,
    ) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        let mut adopted = self.inner.world.engine.adopt(id, found).await;
        for _ in 1..ADOPTION_TRIES {
            let Err(error) = &adopted else { break };
            tracing::warn!(sandbox.id = %id, %error, "sandbox {id} was not adopted, trying again");
            sleep(BETWEEN_TRIES).await;
            adopted = self.inner.world.engine.adopt(id, found).await;
        }
        adopted
    }

    /// What a paused sandbox has kept: nothing of it is given up while that is not certain.
    async fn fate_of_paused(&self, mut record: SandboxRecord) -> Fate {
        let (world, id) = (&self.inner.world, record.id);
        let rests = |record, memory| {
            let (logs, samples) = Default::default();
            Fate::Rests(Resting { record, memory, reclaimed: false, logs, samples })
        };
        let adopted = match &record.machine {
            Some(found) => self.adopt(id, found).await,
            None => Ok(None),
        };
        match adopted {
            Ok(Some(machine)) => {
                // The pause, or a resume, was cut short: it stands still again.
                if let Err(error) = machine.freeze().await {
                    tracing::error!(sandbox.id = %id, %error, "paused sandbox {id} was not frozen");
                }
                return rests(record, Some(Frozen { machine, control: None }));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(sandbox.id = %id, %error, "paused sandbox {id} was not adopted");
                return rests(record, None);
            }
        }
        if let Ok(Some(machine)) = world.engine.find(id).await {
            // A resume from its disk was cut short; where it was one without the memory that had been
            // kept, the record names the machine before.
            if let Err(error) = machine.shelve().await {
                tracing::error!(sandbox.id = %id, %error, "a half-resumed machine of {id} was not ended");
            }
        }
        match world.engine.kept().await {
            Ok(kept) if !kept.contains(&id) => {
                tracing::error!(sandbox.id = %id, "nothing is left of paused sandbox {id}");
                Fate::Ends(record, None)
            }
            _ => {
                if record.machine.take().is_some() {
                    tracing::warn!(sandbox.id = %id, "paused sandbox {id} has lost its memory");
                    if let Err(error) = world.store.put_sandbox(record.clone()).await {
                        tracing::error!(sandbox.id = %id, %error, "a lost memory was not recorded");
                    }
                }
                rests(record, None)
            }
        }
    }

    /// Resolves when the sandbox serves, or has begun to end.
    fn take_up(
        &self,
        record: SandboxRecord,
        machine: Arc<dyn Machine>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let world = Arc::clone(&self.inner.world);
        // What runs is counted, whether there is room for it or not.
        let seat = world.admission.take_over(world.admission.share(record.spec.resources));
        let driver = self.inner.driver(&record, Arc::new(seat));
        let (ready, is_ready) = oneshot::channel();
        self.inner.tasks.spawn(async move {
            // One that was being copied when its gateway died stands still.
            if let Err(error) = machine.thaw().await {
                tracing::warn!(sandbox.id = %record.id, %error, "an adopted machine was not thawed");
            }
            let logs = Arc::new(LogRing::default());
            let identity = || Identity::new(Arc::clone(&world), &record);
            let attaching = Control::attach(machine.link(), identity(), Arc::clone(&logs));
            let control = if let Ok(Ok(control)) = timeout(ATTACH_BOUND, attaching).await {
                control
            } else {
                let id = record.id;
                tracing::warn!(sandbox.id = %id, "the guest of sandbox {id} does not answer yet");
                Control::attach_later(machine.link(), identity(), Arc::clone(&logs))
            };
            driver.take_over(Active { record, machine, control, logs, samples: Arc::default() }, ready).await;
        });
        async move {
            let _ = is_ready.await;
        }
    }
}
