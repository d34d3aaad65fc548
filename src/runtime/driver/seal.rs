//! An image of a sandbox that serves: it stands still for as long as its disk is copied.
//!
//! ```text
//!   guest: Freeze -> freeze -> copy -> thaw -> guest: Thaw -> serves
//!                               '--> summed up, brought to the disk, named -> answer
//! ```
//! Nothing is recorded: a gateway that dies meanwhile leaves a running sandbox whose machine is
//! frozen, and the next one thaws what it adopts. The image belongs to whoever asked for it.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Driver, EndCause, Next, Retry, pause::thawed};
use crate::{
    failpoint::{self, Step},
    id::BuildId,
    runtime::{
        boot::Active,
        engine::{Ability, EngineError},
        queue::Stage,
        registry::LifeError,
        traces::Happening,
        world::Phase,
    },
    sandbox::SandboxRecord,
    wire::control::ToGuest,
};

/// How long a guest has to say that it is ready to be frozen.
const GUEST_BOUND: Duration = Duration::from_secs(3);

impl Driver {
    /// Makes the image, and answers when the sandbox serves again.
    pub(super) async fn seal(
        &mut self,
        active: Active,
        build: BuildId,
        reply: oneshot::Sender<Result<SandboxRecord, LifeError>>,
    ) -> Next {
        let (world, cancel) = (Arc::clone(&self.world), CancellationToken::new());
        let (machine, id) = (Arc::clone(&active.machine), self.id);
        let asker = active.control.asker();
        world.traces.event(id, Happening::SnapshotStart);
        let freezes = world.engine.capabilities().freeze == Ability::Present;
        let work = async {
            if freezes {
                // A guest that does not answer is frozen all the same.
                let _ = timeout(GUEST_BOUND, asker.ask(|seq| ToGuest::Freeze { seq })).await;
                failpoint::reach(Step::SealAsked);
                machine.freeze().await?;
            }
            world.reached(id, Phase::SealFrozen).await?;
            let (copied, may_go_on) = oneshot::channel();
            let engine = Arc::clone(&world.engine);
            let sealing = tokio::spawn(async move { engine.seal(id, build, copied).await });
            let sealing = AbortOnDropHandle::new(sealing);
            // One that has failed says nothing here; its error comes with its end.
            if may_go_on.await.is_ok() {
                world.reached(id, Phase::Sealed).await?;
            }
            Ok(sealing)
        };
        // An end does not wait for the copy.
        let work = async { cancel.run_until_cancelled(work).await.unwrap_or(Err(LifeError::NotFound(id))) };
        let sealed = self.during(Stage::Snapshotting, &cancel, work).await;
        if let Some(cause) = self.ending.take() {
            self.vanish();
            let _ = reply.send(Err(LifeError::NotFound(id)));
            return Next::end(active, cause);
        }
        let mut retry = Retry::default();
        while let Err(error) = machine.thaw().await {
            if matches!(error, EngineError::Gone) {
                let _ = reply.send(Err(LifeError::NotFound(id)));
                return Next::end(active, EndCause::Exited);
            }
            tracing::error!(sandbox.id = %id, %error, "sandbox {id} was not thawed");
            if !retry.pause(&self.world.closing).await {
                return Next::LetGo;
            }
        }
        failpoint::reach(Step::SealThawed);
        thawed(&world, &asker).await;
        // A deadline that struck meanwhile strikes now.
        self.world.reaper.set(id, active.record.end_at);
        match sealed {
            Ok(sealing) => {
                let record = active.record.clone();
                tokio::spawn(async move {
                    let made = sealing.await.unwrap_or(Err(EngineError::Gone));
                    world.traces.event(id, told(made.is_ok()));
                    let _ = reply.send(made.map(|()| record).map_err(LifeError::from));
                });
            }
            Err(error) => {
                world.traces.event(id, told(false));
                let _ = reply.send(Err(error));
            }
        }
        Next::Live(active)
    }
}

/// How a snapshot ended, as traces name it.
fn told(made: bool) -> Happening {
    if made { Happening::SnapshotDone } else { Happening::SnapshotFailed }
}
