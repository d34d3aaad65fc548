//! The driver: one task a sandbox, the only writer of its record and the only caller of its machine.
//!
//! ```text
//!   registry --Command--> [ bounded queue ] --> driver --> boot phases, engine, store
//!   reaper ---Expired-->                          |
//!   machine --exited--> (awaited by the driver)   '--View (watch)--> registry, proxy
//!
//!   create --> live <--pause, resume--> rest        each hands what exists to the next
//!                '------- end --------'-----> clear
//! ```
//! - Commands are decided by the policy (`queue`), one at a time; while a change is under way they
//!   are refused, joined to it, or put off until its end (`inbox`).
//! - Deadline, kill and exit are one thing, an end, with another cause; [`Driver::clear`] is the
//!   only teardown. The view says Killing, and open streams are cut, before it begins: nobody
//!   finds a sandbox that is on its way out.
//! - A pause is recorded before it is done, and a resume after: a gateway that dies in between
//!   leaves a sandbox that is paused for the next one.
//! - Teardown is retried until it works; what a closing gateway leaves is recorded as Killing and
//!   finished by the next one.
//! - A registry that is dropped or closed lets go of its sandboxes: machine and record stay.

mod freshness;
mod inbox;
mod inside;
mod live;
mod pause;
mod relief;
mod rest;
mod seal;

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::inbox::PauseReply;
pub(super) use self::{
    inbox::{Command, Inbox, Manner},
    relief::Relief,
    rest::{Frozen, Resting},
};
use super::{
    admission::Seat,
    boot::{self, Active, Failed, Remains, Requested},
    control::Asker,
    engine::Machine,
    logs::LogRing,
    queue::{Refusal, Request, Stage, Verdict},
    registry::{Handles, KILL_BOUND, LifeError, Sandbox, Target},
    samples::History,
    traces::{Class, Happening},
    warm::Warm,
    world::World,
};
use crate::{
    failpoint::{self, Step},
    id::SandboxId,
    sandbox::{OnTimeout, SandboxRecord, SandboxState},
};

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

/// What a driver shows.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// Not ready.
    Creating,
    /// Serving.
    Running(Arc<Live>),
    /// Paused, or on the way there or back.
    Resting(Arc<Rest>),
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
    pub(super) seat: Arc<Seat>,
}

/// A sandbox that does not serve, and is not lost.
#[derive(Debug)]
pub(super) struct Rest {
    /// As it is recorded: paused.
    pub(super) record: SandboxRecord,
    /// Where it stands: [`Stage::Pausing`], [`Stage::Paused`] or [`Stage::Resuming`].
    pub(super) stage: Stage,
    pub(super) logs: Arc<LogRing>,
    pub(super) samples: Arc<History>,
}

/// One sandbox's task.
pub(super) struct Driver {
    id: SandboxId,
    world: Arc<World>,
    handles: Weak<Handles>,
    commands: Inbox,
    view: watch::Sender<View>,
    /// Its share of the host, until no process of it is left.
    seat: Arc<Seat>,
    /// Cancelled when the present run no longer serves.
    ended: CancellationToken,
    /// Who waits for the pause that is under way.
    pausers: Vec<PauseReply>,
    /// An end that came in the middle of a change.
    ending: Option<EndCause>,
    /// The host API of the present machine.
    inside: Option<inside::Inside>,
}

/// What comes after a part of a sandbox's life.
enum Next {
    Live(Active),
    Rest(Resting),
    End(Remains, EndCause),
    LetGo,
}

// === impl EndCause ===

impl EndCause {
    /// As metrics name it.
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Expired => "expired",
            Self::Exited => "exited",
            Self::Shutdown => "shutdown",
        }
    }
}

// === impl Driver ===

impl Driver {
    pub(super) fn new(
        id: SandboxId,
        world: Arc<World>,
        handles: Weak<Handles>,
        commands: Inbox,
        view: watch::Sender<View>,
        seat: Arc<Seat>,
    ) -> Self {
        let (ended, pausers) = (CancellationToken::new(), Vec::new());
        Self { id, world, handles, commands, view, seat, ended, pausers, ending: None, inside: None }
    }

    /// The life of a sandbox from its admission on; it was asked for before.
    pub(super) async fn create(
        mut self,
        record: SandboxRecord,
        asked: Instant,
        warm: Option<Warm>,
        reply: oneshot::Sender<Result<Sandbox, LifeError>>,
    ) {
        let (world, cancel) = (Arc::clone(&self.world), CancellationToken::new());
        let class = if warm.is_some() { Class::Hot } else { Class::ColdPrepared };
        world.traces.begin_at(self.id, class, world.now(), asked);
        world.traces.event(self.id, Happening::Admitted);
        let requested = Requested::new(record);
        let booting = async {
            match warm {
                Some(warm) => {
                    world.traces.event(requested.record.id, Happening::PoolLeaseAcquired);
                    failpoint::reach(Step::WarmTaken);
                    boot::run_on(&world, warm, requested, &cancel).await
                }
                None => boot::run(&world, requested, &cancel).await,
            }
        };
        match self.during(Stage::Creating, &cancel, booting).await {
            Ok(active) => {
                let sandbox = self.world.tokens.view(active.record.clone());
                self.begin(&active);
                tracing::info!(sandbox.id = %self.id, "sandbox {} runs", self.id);
                failpoint::reach(Step::BootShown);
                // Nobody may be waiting any more: it then lives until its deadline.
                let _ = reply.send(Ok(sandbox));
                self.drive(Next::Live(active)).await;
            }
            Err(Failed { error, remains }) => {
                tracing::warn!(sandbox.id = %self.id, %error, "sandbox {} was not made", self.id);
                self.world.traces.event(self.id, Happening::StartFailed);
                self.undo(remains, error, reply).await;
            }
        }
    }

    /// The life of a sandbox that an earlier gateway made, from its adoption on.
    pub(super) async fn take_over(mut self, active: Active, ready: oneshot::Sender<()>) {
        self.world.traces.begin(self.id, Class::Adopted, self.world.now());
        let over = active.record.end_at <= self.world.now();
        if over && active.record.spec.lifecycle.on_timeout == OnTimeout::Kill {
            self.vanish();
            let _ = ready.send(());
            return self.drive(Next::end(active, EndCause::Expired)).await;
        }
        self.begin(&active);
        let _ = ready.send(());
        self.drive(Next::Live(active)).await;
    }

    /// The life of a sandbox that an earlier gateway left paused, or half-paused.
    pub(super) async fn take_over_paused(self, resting: Resting, ready: oneshot::Sender<()>) {
        self.world.traces.begin(self.id, Class::Adopted, self.world.now());
        self.show_rest(&resting, Stage::Paused);
        if let Some(frozen) = &resting.memory {
            // Frozen memory is memory: what it holds is charged.
            self.measure(&resting.record, &resting.samples, &frozen.machine);
        }
        let _ = ready.send(());
        self.drive(Next::Rest(resting)).await;
    }

    /// The end of a sandbox that an earlier gateway left half-made or half-killed.
    pub(super) async fn finish(mut self, remains: Remains) {
        self.vanish();
        self.clear(remains).await;
    }

    async fn drive(mut self, mut next: Next) {
        loop {
            next = match next {
                Next::Live(active) => self.live(active).await,
                Next::Rest(resting) => self.rest(resting).await,
                Next::End(remains, cause) => return self.end(remains, cause).await,
                Next::LetGo => return,
            };
        }
    }

    /// Does a piece of work while requests go on being answered. An end only cancels the token:
    /// the work comes to an end of its own, and the end is in `ending` then.
    async fn during<T>(
        &mut self,
        stage: Stage,
        cancel: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            let command = tokio::select! {
                done = &mut work => return done,
                Some(command) = self.commands.fresh() => command,
            };
            match (self.decide(stage, command.request()), command) {
                (Err(refusal), command) => command.refuse(refusal.error(self.id)),
                (Ok(Verdict::TearDown), Command::End(cause)) => {
                    self.ending.get_or_insert(cause);
                    cancel.cancel();
                }
                (Ok(Verdict::Join), Command::Pause { reply, .. }) => self.pausers.push(reply),
                (Ok(Verdict::Wait), command) => self.commands.put_off(command, self.id),
                // A deadline that strikes meanwhile is looked at again afterwards.
                (Ok(_), _) => {}
            }
        }
    }

    fn decide(&self, stage: Stage, request: Request) -> Result<Verdict, Refusal> {
        self.world.policy().decide(stage, request, self.world.now())
    }

    /// Shows a sandbox that serves from now on.
    fn begin(&mut self, active: &Active) {
        self.ended = CancellationToken::new();
        self.show(active);
        self.measure(&active.record, &active.samples, &active.machine);
        self.answer_inside(active);
        self.world.reaper.set(self.id, active.record.end_at);
    }

    /// The first sample is there at once; the sampler goes on.
    fn measure(&self, record: &SandboxRecord, samples: &Arc<History>, machine: &Arc<dyn Machine>) {
        let (samples, machine) = (Arc::clone(samples), Arc::clone(machine));
        // Its guest may be a new one, which knows nothing.
        samples.disk_told(0);
        let (resources, now, seat) = (record.spec.resources, self.world.clock.now(), Arc::clone(&self.seat));
        tokio::spawn(async move {
            samples.sample(&*machine, resources, now).await;
            samples.charge(&seat);
        });
    }

    fn show(&self, active: &Active) {
        let record = active.record.clone();
        let tokens = self.world.tokens.view(record.clone());
        let network = record.spec.network.as_ref();
        let mask = network.and_then(|network| network.mask_request_host.as_deref());
        let https_ports = network.map_or(&[][..], |network| &network.https_ports);
        let target = Target {
            id: self.id,
            generation: record.generation,
            link: active.machine.link(),
            traffic_access_token: tokens.traffic_access_token.map(Arc::from),
            mask_request_host: mask.map(Arc::from),
            https_ports: Arc::from(https_ports),
            ended: self.ended.clone(),
        };
        let live = Live {
            record,
            target,
            logs: Arc::clone(&active.logs),
            samples: Arc::clone(&active.samples),
            machine: Arc::clone(&active.machine),
            asker: active.control.asker(),
            seat: Arc::clone(&self.seat),
        };
        self.view.send_replace(View::Running(Arc::new(live)));
    }

    fn show_rest(&self, resting: &Resting, stage: Stage) {
        let rest = Rest {
            record: resting.record.clone(),
            stage,
            logs: Arc::clone(&resting.logs),
            samples: Arc::clone(&resting.samples),
        };
        self.view.send_replace(View::Resting(Arc::new(rest)));
    }

    /// From here on nobody finds it.
    fn vanish(&mut self) {
        let known = match &*self.view.borrow() {
            View::Running(live) => Some((live.record.spec.team, Arc::clone(&live.logs))),
            View::Resting(rest) => Some((rest.record.spec.team, Arc::clone(&rest.logs))),
            View::Creating | View::Killing { .. } | View::Gone | View::LetGo => None,
        };
        if let Some((team, logs)) = known {
            self.world.past.keep(team, self.id, logs);
        }
        self.view.send_if_modified(|view| {
            let first = !matches!(view, View::Killing { .. });
            if first {
                *view = View::Killing { stopped: false };
            }
            first
        });
        self.ended.cancel();
        self.world.reaper.remove(self.id);
        self.answer_pausers(|id| Err(LifeError::NotFound(id)));
    }

    fn answer_pausers(&mut self, answer: impl Fn(SandboxId) -> Result<(), LifeError>) {
        for reply in self.pausers.drain(..) {
            let _ = reply.send(answer(self.id));
        }
    }

    async fn end(mut self, remains: Remains, cause: EndCause) {
        self.vanish();
        let id = self.id;
        self.world.traces.end(id, cause.name());
        tracing::info!(sandbox.id = %id, cause = ?cause, "sandbox {id} ends");
        self.clear(remains).await;
    }

    /// A create that failed answers when it is undone, or after a bound; the undoing goes on.
    async fn undo(
        mut self,
        remains: Remains,
        error: LifeError,
        reply: oneshot::Sender<Result<Sandbox, LifeError>>,
    ) {
        self.vanish();
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
        let Remains { mut record, recorded, machine } = remains;
        let id = record.id;
        if !recorded {
            // It came to nothing else either: a full store is not asked to forget what it never had.
            return self.world.traces.event(id, Happening::EndDone);
        }
        failpoint::reach(Step::EndHidden);
        record.state = SandboxState::Killing;
        if let Err(error) = self.world.store.put_sandbox(record).await {
            // The machine ends all the same; a restart finds none for the record and removes it.
            tracing::error!(sandbox.id = %id, %error, "the end of sandbox {id} was not recorded");
        }
        failpoint::reach(Step::EndRecorded);
        let mut retry = Retry::default();
        if let Some(machine) = machine {
            while let Err(error) = machine.stop(Duration::ZERO).await {
                tracing::error!(sandbox.id = %id, %error, "sandbox {id} was not stopped");
                if !retry.pause(&self.world.closing).await {
                    return;
                }
            }
        }
        failpoint::reach(Step::EndStopped);
        self.seat.give_back();
        self.view.send_replace(View::Killing { stopped: true });
        // Of a machine that ended by itself, or of a sandbox that was paused without its memory.
        while let Err(error) = self.world.engine.discard(id).await {
            tracing::error!(sandbox.id = %id, %error, "the disk of sandbox {id} was not removed");
            if !retry.pause(&self.world.closing).await {
                return;
            }
        }
        failpoint::reach(Step::EndDiscarded);
        while let Err(error) = self.world.store.remove_sandbox(id).await {
            tracing::error!(sandbox.id = %id, %error, "the record of sandbox {id} was not removed");
            if !retry.pause(&self.world.closing).await {
                return;
            }
        }
        failpoint::reach(Step::EndForgotten);
        self.world.traces.event(id, Happening::EndDone);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.world.traces.close(self.id);
        if let Some(handles) = self.handles.upgrade() {
            handles.remove(self.id);
        }
        self.view.send_modify(|view| {
            *view =
                if matches!(view, View::Running(_) | View::Resting(_)) { View::LetGo } else { View::Gone };
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
            Self::Paused => LifeError::Paused(id),
            Self::Running => LifeError::Running(id),
        }
    }
}
