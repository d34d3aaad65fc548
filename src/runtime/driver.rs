//! The driver: one task a sandbox, the only writer of its record and the only caller of its machine.
//!
//! ```text
//!   registry --Command--> [ bounded queue ] --> driver --> boot phases, engine, store
//!   reaper ---Expired-->                          |
//!   machine --exited--> (awaited by the driver)   '--View (watch)--> registry, proxy
//! ```
//! - Commands are decided by the policy (`queue`), one at a time.
//! - Deadline, kill and exit are one thing, an end, with another cause; [`Driver::clear`] is the
//!   only teardown. The view says Killing, and open streams are cut, before it begins: nobody
//!   finds a sandbox that is on its way out.
//! - Teardown is retried until it works; what a closing gateway leaves is recorded as Killing and
//!   finished by the next one.
//! - A registry that is dropped or closed lets go of running sandboxes: machine and record stay.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    boot::{self, Active, Failed, Remains, Requested},
    control::Asker,
    engine::Machine,
    logs::LogRing,
    queue::{Refusal, Request, Stage, Verdict},
    registry::{Handles, KILL_BOUND, LifeError, Sandbox, Target},
    samples::History,
    world::World,
};
use crate::{
    id::SandboxId,
    sandbox::{SandboxRecord, SandboxState},
};

/// Commands that wait for one driver.
pub(super) const QUEUE: usize = 32;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Why a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndCause {
    /// Somebody asked.
    Killed,
    /// Its deadline struck.
    Expired,
    /// Its machine ended.
    Exited,
    /// The gateway ends with its sandboxes.
    Shutdown,
}

/// What a driver is told.
pub(super) enum Command {
    /// A request about the deadline.
    Deadline { request: Request, reply: oneshot::Sender<Result<SandboxRecord, LifeError>> },
    /// The reaper: look at your deadline.
    Expired,
    /// End it.
    End(EndCause),
}

/// What a driver shows.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// Not ready.
    Creating,
    /// Serving.
    Running(Arc<Live>),
    /// On its way out; `stopped`: no process of it is left.
    Killing { stopped: bool },
    /// Nothing of it is left.
    Gone,
    /// This gateway has let go of it; it runs on for the next one.
    LetGo,
}

/// A serving sandbox.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) record: SandboxRecord,
    pub(super) target: Target,
    pub(super) logs: Arc<LogRing>,
    pub(super) samples: Arc<History>,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) asker: Asker,
}

/// One sandbox's task.
pub(super) struct Driver {
    pub(super) id: SandboxId,
    pub(super) world: Arc<World>,
    pub(super) handles: Weak<Handles>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) view: watch::Sender<View>,
}

// === impl Driver ===

impl Driver {
    /// The life of a sandbox from its request on.
    pub(super) async fn create(
        mut self,
        record: SandboxRecord,
        reply: oneshot::Sender<Result<Sandbox, LifeError>>,
    ) {
        match self.boot(record).await {
            Ok(active) => {
                let sandbox = self.world.tokens.view(active.record.clone());
                let ended = self.begin(&active);
                tracing::info!(sandbox.id = %self.id, "sandbox {} runs", self.id);
                // Nobody may be waiting any more: it then lives until its deadline.
                let _ = reply.send(Ok(sandbox));
                self.live(active, ended).await;
            }
            Err(Failed { error, remains }) => {
                tracing::warn!(sandbox.id = %self.id, %error, "sandbox {} was not made", self.id);
                self.undo(remains, error, reply).await;
            }
        }
    }

    /// The life of a sandbox that an earlier gateway made, from its adoption on.
    pub(super) async fn resume(self, active: Active, ready: oneshot::Sender<()>) {
        let expired = active.record.end_at <= self.world.now();
        if expired {
            let _ = ready.send(());
            self.end(active, &CancellationToken::new(), EndCause::Expired).await;
        } else {
            let ended = self.begin(&active);
            let _ = ready.send(());
            self.live(active, ended).await;
        }
    }

    /// The end of a sandbox that an earlier gateway left half-made or half-killed.
    pub(super) async fn finish(self, remains: Remains) {
        self.clear(remains).await;
    }

    async fn boot(&mut self, record: SandboxRecord) -> Result<Active, Failed> {
        let cancel = CancellationToken::new();
        let world = Arc::clone(&self.world);
        let mut booting = pin!(boot::run(&world, Requested { record }, &cancel));
        loop {
            tokio::select! {
                booted = &mut booting => return booted,
                Some(command) = self.commands.recv() => match command {
                    Command::Deadline { request, reply } => {
                        let decided = world.policy().decide(Stage::Creating, request, world.now());
                        let refusal = decided.err().unwrap_or(Refusal::Transitioning);
                        let _ = reply.send(Err(refusal.error(self.id)));
                    }
                    Command::End(_) => cancel.cancel(),
                    Command::Expired => {}
                },
            }
        }
    }

    /// Shows a sandbox that serves. The token is cancelled when it no longer does.
    fn begin(&self, active: &Active) -> CancellationToken {
        let ended = CancellationToken::new();
        self.show(active, &ended);
        self.measure(active);
        self.world.reaper.set(self.id, active.record.end_at);
        ended
    }

    /// The first sample is there at once; the sampler goes on.
    fn measure(&self, active: &Active) {
        let (samples, machine) = (Arc::clone(&active.samples), Arc::clone(&active.machine));
        let (resources, now) = (active.record.spec.resources, self.world.now());
        tokio::spawn(async move { samples.sample(&*machine, resources, now).await });
    }

    fn show(&self, active: &Active, ended: &CancellationToken) {
        let record = active.record.clone();
        let tokens = self.world.tokens.view(record.clone());
        let mask = record.spec.network.as_ref().and_then(|network| network.mask_request_host.as_deref());
        let target = Target {
            id: self.id,
            generation: record.generation,
            link: active.machine.link(),
            traffic_access_token: tokens.traffic_access_token.map(Arc::from),
            mask_request_host: mask.map(Arc::from),
            ended: ended.clone(),
        };
        let live = Live {
            record,
            target,
            logs: Arc::clone(&active.logs),
            samples: Arc::clone(&active.samples),
            machine: Arc::clone(&active.machine),
            asker: active.control.asker(),
        };
        self.view.send_replace(View::Running(Arc::new(live)));
    }

    async fn live(mut self, mut active: Active, ended: CancellationToken) {
        let cause = loop {
            tokio::select! {
                () = active.machine.exited() => break EndCause::Exited,
                () = self.world.closing.cancelled() => return,
                command = self.commands.recv() => {
                    // The registry was dropped: the sandbox stays for the next one.
                    let Some(command) = command else { return };
                    if let Some(cause) = self.obey(&mut active, &ended, command).await {
                        break cause;
                    }
                }
            }
        };
        self.end(active, &ended, cause).await;
    }

    /// Decides and does one command. `Some`: it is the end.
    async fn obey(
        &self,
        active: &mut Active,
        ended: &CancellationToken,
        command: Command,
    ) -> Option<EndCause> {
        let Command::Deadline { request, reply } = command else {
            let (request, cause) = match command {
                Command::End(cause) => (Request::End, cause),
                _ => (Request::Expire, EndCause::Expired),
            };
            let decided = self.decide(active, request);
            if decided == Ok(Verdict::Keep) {
                self.world.reaper.set(self.id, active.record.end_at);
            }
            return (decided == Ok(Verdict::TearDown)).then_some(cause);
        };
        match self.decide(active, request) {
            Err(refusal) => {
                let _ = reply.send(Err(refusal.error(self.id)));
                None
            }
            Ok(Verdict::TearDown) => {
                self.vanish(ended);
                let _ = reply.send(Ok(active.record.clone()));
                Some(EndCause::Expired)
            }
            Ok(Verdict::Keep) => {
                let _ = reply.send(Ok(active.record.clone()));
                None
            }
            Ok(Verdict::Deadline(end_at)) => {
                let moved = SandboxRecord { end_at, ..active.record.clone() };
                let stored = self.world.store.put_sandbox(moved.clone()).await;
                if stored.is_ok() {
                    active.record = moved;
                    self.show(active, ended);
                    self.world.reaper.set(self.id, end_at);
                }
                let _ = reply.send(stored.map(|()| active.record.clone()).map_err(LifeError::from));
                None
            }
        }
    }

    fn decide(&self, active: &Active, request: Request) -> Result<Verdict, Refusal> {
        let SandboxRecord { started_at, end_at, .. } = active.record;
        self.world.policy().decide(Stage::Running { started_at, end_at }, request, self.world.now())
    }

    /// From here on nobody finds it.
    fn vanish(&self, ended: &CancellationToken) {
        self.view.send_if_modified(|view| {
            let first = !matches!(view, View::Killing { .. });
            if first {
                *view = View::Killing { stopped: false };
            }
            first
        });
        ended.cancel();
        self.world.reaper.remove(self.id);
    }

    async fn end(self, active: Active, ended: &CancellationToken, cause: EndCause) {
        self.vanish(ended);
        let id = self.id;
        tracing::info!(sandbox.id = %id, cause = ?cause, "sandbox {id} ends");
        drop(active.control);
        self.clear(Remains { record: active.record, machine: Some(active.machine) }).await;
    }

    /// A create that failed answers when it is undone, or after a bound; the undoing goes on.
    async fn undo(
        self,
        remains: Remains,
        error: LifeError,
        reply: oneshot::Sender<Result<Sandbox, LifeError>>,
    ) {
        self.vanish(&CancellationToken::new());
        let mut clearing = pin!(self.clear(remains));
        let done = tokio::select! {
            () = &mut clearing => true,
            () = sleep(KILL_BOUND) => false,
        };
        let _ = reply.send(Err(error));
        if !done {
            clearing.await;
        }
    }

    /// The teardown: record, machine, record.
    async fn clear(self, remains: Remains) {
        let Remains { mut record, machine } = remains;
        let id = record.id;
        record.state = SandboxState::Killing;
        if let Err(error) = self.world.store.put_sandbox(record).await {
            // The machine ends all the same; a restart finds none for the record and removes it.
            tracing::error!(sandbox.id = %id, %error, "the end of sandbox {id} was not recorded");
        }
        let mut retry = Retry::default();
        if let Some(machine) = machine {
            while let Err(error) = machine.stop(Duration::ZERO).await {
                tracing::error!(sandbox.id = %id, %error, "sandbox {id} was not stopped");
                if !retry.pause(&self.world.closing).await {
                    return;
                }
            }
        }
        self.view.send_replace(View::Killing { stopped: true });
        while let Err(error) = self.world.store.remove_sandbox(id).await {
            tracing::error!(sandbox.id = %id, %error, "the record of sandbox {id} was not removed");
            if !retry.pause(&self.world.closing).await {
                return;
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(handles) = self.handles.upgrade() {
            handles.remove(self.id);
        }
        self.view.send_modify(|view| {
            *view = if matches!(view, View::Running(_)) { View::LetGo } else { View::Gone };
        });
    }
}

/// Pauses between attempts, longer each time.
struct Retry(Duration);

// === impl Retry ===

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

impl Retry {
    /// False: the gateway closes, leave it to the next one.
    async fn pause(&mut self, closing: &CancellationToken) -> bool {
        let pause = self.0;
        self.0 = (2 * pause).min(LONGEST_RETRY);
        closing.run_until_cancelled(sleep(pause)).await.is_some()
    }
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn error(self, id: SandboxId) -> LifeError {
        match self {
            Self::NotFound => LifeError::NotFound(id),
            Self::Transitioning => LifeError::Transitioning(id),
            Self::MaxLength => LifeError::MaxLength,
        }
    }
}
