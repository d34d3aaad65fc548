//! From serving to resting.
//!
//! ```text
//!   (guest answers?) -> store: Paused -> streams cut -> guest: Freeze -> freeze           memory kept
//!                                                   '-> end, disk kept -> store: no machine    disk only
//! ```
//! Recorded first: a gateway that dies on the way leaves a paused sandbox, and the next one freezes
//! what it finds running. What fails on the way goes back to serving.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Driver, EndCause, Next, Retry,
    inbox::Manner,
    rest::{Frozen, Resting},
};
use crate::{
    failpoint::{self, Step},
    runtime::{
        boot::{Active, Remains},
        control::Asker,
        engine::{Ability, EngineError, Machine},
        queue::{Stage, later},
        registry::LifeError,
        traces::Happening,
        world::{Phase, World},
    },
    sandbox::{SandboxRecord, SandboxState},
    store::StoreError,
    wire::control::ToGuest,
};

/// How long a guest has to say that it is there, or ready to be frozen.
const GUEST_BOUND: Duration = Duration::from_secs(3);
/// After a failed automatic pause.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl Driver {
    /// Pauses it and answers `pausers`. Comes back live when that was not possible.
    pub(super) async fn pause(&mut self, active: Active, manner: Manner) -> Next {
        let (world, cancel) = (Arc::clone(&self.world), CancellationToken::new());
        world.traces.event(self.id, Happening::PauseStart);
        let memory = manner.memory && world.engine.capabilities().freeze == Ability::Present;
        let asker = active.control.asker();
        if manner.healthy || !manner.memory {
            let asking = timeout(GUEST_BOUND, asker.ping());
            let healthy = matches!(self.during(Stage::Pausing, &cancel, asking).await, Ok(Ok(())));
            if !healthy {
                return self.awake(active, |_| LifeError::Unresponsive);
            }
        }
        let paused =
            SandboxRecord { state: SandboxState::Paused, end_at: world.now(), ..active.record.clone() };
        let mut resting = Resting::of(&active, paused.clone());
        self.show_rest(&resting, Stage::Pausing);
        self.world.reaper.remove(self.id);
        let recorded = async {
            world.store.put_sandbox(paused).await?;
            world.reached(active.record.id, Phase::PauseRecorded).await
        };
        match self.during(Stage::Pausing, &cancel, recorded).await {
            Ok(()) => {}
            // Nothing has changed, and there is no room to say so.
            Err(LifeError::Store(StoreError::Full)) => {
                tracing::error!(sandbox.id = %self.id, "a pause was not recorded: the disk is full");
                return self.served_on(active, &LifeError::Store(StoreError::Full));
            }
            Err(error) => {
                tracing::error!(sandbox.id = %self.id, %error, "a pause was not recorded");
                return self.back(active, error).await;
            }
        }
        self.ended.cancel();
        failpoint::reach(Step::PauseCut);
        let id = self.id;
        let stopping = async {
            let answered = stop(&*active.machine, &asker, memory).await?;
            world.reached(id, Phase::Stopped).await?;
            Ok(answered)
        };
        match self.during(Stage::Pausing, &cancel, stopping).await {
            Ok(answered) => resting.record.unresponsive = !answered,
            // Nothing of it was kept.
            Err(LifeError::Engine(EngineError::Gone)) => return Next::end(active, EndCause::Exited),
            Err(error) => {
                tracing::error!(sandbox.id = %self.id, %error, "sandbox {} was not paused", self.id);
                return self.back(active, error).await;
            }
        }
        if memory { self.frozen(resting, active).await } else { self.shelved(resting).await }
    }

    async fn frozen(&mut self, mut resting: Resting, active: Active) -> Next {
        if resting.record.unresponsive
            && let Err(error) = self.world.store.put_sandbox(resting.record.clone()).await
        {
            tracing::error!(sandbox.id = %self.id, %error, "that a guest was silent was not recorded");
        }
        resting.memory = Some(Frozen { machine: active.machine, control: Some(active.control) });
        self.rests(resting)
    }

    /// Its machine is gone; the record says so before anybody is answered.
    async fn shelved(&mut self, mut resting: Resting) -> Next {
        resting.record.machine = None;
        let mut retry = Retry::default();
        while let Err(error) = self.world.store.put_sandbox(resting.record.clone()).await {
            tracing::error!(sandbox.id = %self.id, %error, "a pause was not recorded");
            if !retry.pause(&self.world.closing).await {
                return Next::LetGo;
            }
        }
        failpoint::reach(Step::PauseShelved);
        self.rests(resting)
    }

    fn rests(&mut self, resting: Resting) -> Next {
        let kept = if resting.memory.is_some() { "its memory" } else { "its disk" };
        tracing::info!(sandbox.id = %self.id, "sandbox {} is paused with {kept}", self.id);
        self.seat.rest(resting.memory.is_some());
        if let Some(frozen) = &resting.memory {
            // Nobody measures it while it rests: what it holds now is what it is charged.
            self.measure(&resting.record, &resting.samples, &frozen.machine);
        }
        if let Some(cause) = self.ending.take() {
            return Next::End(resting.remains(), cause);
        }
        self.show_rest(&resting, Stage::Paused);
        failpoint::reach(Step::PauseShown);
        self.answer_pausers(|_| Ok(()));
        Next::Rest(resting)
    }

    /// Undoes a pause that did not come to its end.
    async fn back(&mut self, active: Active, error: LifeError) -> Next {
        // It may be frozen, or half: what is not is not changed by this.
        let mut retry = Retry::default();
        while let Err(problem) = active.machine.thaw().await {
            if matches!(problem, EngineError::Gone) {
                return Next::end(active, EndCause::Exited);
            }
            tracing::error!(sandbox.id = %self.id, error = %problem, "a pause was not undone");
            if !retry.pause(&self.world.closing).await {
                return Next::LetGo;
            }
        }
        thawed(&self.world, &active.control.asker()).await;
        while let Err(problem) = self.world.store.put_sandbox(active.record.clone()).await {
            tracing::error!(sandbox.id = %self.id, error = %problem, "the end of a pause was not recorded");
            if !retry.pause(&self.world.closing).await {
                // Recorded as paused: the next gateway finds it so.
                return Next::LetGo;
            }
        }
        self.ended.cancel();
        self.served_on(active, &error)
    }

    /// It serves again though it was to be paused; one whose deadline has passed is paused soon.
    fn served_on(&mut self, active: Active, error: &LifeError) -> Next {
        let reason = error.to_string();
        let full = matches!(error, LifeError::Store(StoreError::Full));
        let why = |_| if full { StoreError::Full.into() } else { LifeError::Pause(reason.clone()) };
        let next = self.awake(active, why);
        if let Next::Live(active) = &next {
            self.begin(active);
            if active.record.end_at <= self.world.now() {
                self.world.reaper.set(self.id, later(self.world.now(), TRY_AGAIN));
            }
        }
        next
    }

    /// It goes on serving, and those who wait for the pause hear why.
    fn awake(&mut self, active: Active, why: impl Fn(crate::id::SandboxId) -> LifeError) -> Next {
        self.answer_pausers(|id| Err(why(id)));
        // A deadline may have struck meanwhile.
        self.world.reaper.set(self.id, active.record.end_at);
        Next::Live(active)
    }
}

/// Freezes the machine, or ends it and keeps its disk. False: its guest did not answer.
async fn stop(machine: &dyn Machine, asker: &Asker, memory: bool) -> Result<bool, LifeError> {
    let mut answered = true;
    if memory {
        // A guest that does not answer is frozen all the same.
        answered = matches!(timeout(GUEST_BOUND, asker.ask(|seq| ToGuest::Freeze { seq })).await, Ok(Ok(())));
        if !answered {
            tracing::warn!(machine = ?machine, "a guest is frozen without having answered");
        }
        failpoint::reach(Step::PauseAsked);
        machine.freeze().await?;
    } else {
        machine.shelve().await?;
    }
    Ok(answered)
}

/// Tells a guest that time runs again.
pub(super) async fn thawed(world: &World, asker: &Asker) -> bool {
    let now_unix_ns = i64::try_from(world.clock.now().as_nanosecond()).unwrap_or(i64::MAX);
    let told = timeout(GUEST_BOUND, asker.ask(move |seq| ToGuest::Thaw { seq, now_unix_ns })).await;
    matches!(told, Ok(Ok(())))
}

// === impl Resting ===

impl Resting {
    pub(super) fn of(active: &Active, record: SandboxRecord) -> Self {
        Self {
            record,
            memory: None,
            reclaimed: false,
            logs: Arc::clone(&active.logs),
            samples: Arc::clone(&active.samples),
        }
    }

    pub(super) fn remains(self) -> Remains {
        let machine = self.memory.map(|frozen| frozen.machine);
        Remains { record: self.record, recorded: true, machine }
    }
}
