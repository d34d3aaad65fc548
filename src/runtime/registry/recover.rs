//! What a new registry does with what an earlier one left: adopt, undo, finish, sweep.
//!
//! | record | machine | then |
//! | --- | --- | --- |
//! | Running | found | adopted; a deadline that has passed is honoured at once |
//! | Running | gone | the record is removed |
//! | Running | cannot be asked for, three times | swept with its record |
//! | Creating, Killing | found or not | ended with its record |
//! | Paused | | kept as it is |
//! | none | found | swept |

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{LifeError, Registry};
use crate::{
    id::SandboxId,
    runtime::{
        boot::{Active, Remains},
        control::{Control, Identity},
        engine::Machine,
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
    /// Sandboxes whose machine was gone, that were half-made or half-killed, or not to be had.
    pub ended: Vec<SandboxId>,
    /// Machines without a record that were ended.
    pub swept: Vec<SandboxId>,
}

/// What became of one record.
enum Fate {
    Lives(SandboxRecord, Arc<dyn Machine>),
    Ends(SandboxRecord, Option<Arc<dyn Machine>>),
    Stays(SandboxId),
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
        let (mut keep, mut lives, mut ends) = (Vec::new(), Vec::new(), Vec::new());
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
                Ok(Fate::Stays(id)) => keep.push(id),
                // A task that panicked: its record is read again at the next start.
                Err(error) => tracing::error!(%error, "a record was not recovered"),
            }
        }
        recovered.swept = world.engine.sweep(&keep).await?;
        recovered.swept.retain(|id| !recovered.ended.contains(id));
        for (record, machine) in ends {
            let driver = self.inner.driver(&record);
            driver.view.send_replace(super::View::Killing { stopped: false });
            self.inner.tasks.spawn(driver.finish(Remains { record, machine }));
        }
        let mut ready = JoinSet::new();
        for (record, machine) in lives {
            ready.spawn(self.take_up(record, machine));
        }
        while ready.join_next().await.is_some() {}
        Ok(recovered)
    }

    async fn fate(&self, record: SandboxRecord) -> Fate {
        let id = record.id;
        if record.state == SandboxState::Paused {
            return Fate::Stays(id);
        }
        let Some(found) = &record.machine else { return Fate::Ends(record, None) };
        let mut adopted = self.inner.world.engine.adopt(id, found).await;
        for _ in 1..ADOPTION_TRIES {
            let Err(error) = &adopted else { break };
            tracing::warn!(sandbox.id = %id, %error, "sandbox {id} was not adopted, trying again");
            sleep(BETWEEN_TRIES).await;
            adopted = self.inner.world.engine.adopt(id, found).await;
        }
        match adopted {
            Ok(Some(machine)) if record.state == SandboxState::Running => Fate::Lives(record, machine),
            Ok(machine) => Fate::Ends(record, machine),
            Err(error) => {
                tracing::error!(sandbox.id = %id, %error, "sandbox {id} was not adopted and is ended");
                Fate::Ends(record, None)
            }
        }
    }

    /// Resolves when the sandbox serves, or has begun to end.
    fn take_up(
        &self,
        record: SandboxRecord,
        machine: Arc<dyn Machine>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let driver = self.inner.driver(&record);
        let world = Arc::clone(&self.inner.world);
        let (ready, is_ready) = oneshot::channel();
        self.inner.tasks.spawn(async move {
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
            driver.resume(Active { record, machine, control, logs, samples: Arc::default() }, ready).await;
        });
        async move {
            let _ = is_ready.await;
        }
    }
}
