//! The registry: the one way to sandboxes for routes (commands) and proxy (look-up).
//!
//! ```text
//!   Registry (clones) --> Inner --> Handles: id -> { queue of its driver, view it shows }
//!                           '-----> World: engine, store, clock, keys, limits, reaper
//! ```
//! - The map is locked for a look-up or an insertion only, never across an await; a driver takes
//!   its own entry out when it ends. Drivers hold the map weakly, so that dropping the last
//!   registry ends them (running sandboxes stay, for the next registry's `recover`).
//! - Work belongs to drivers, not to requests: a caller that goes away loses the answer only.
//! - [`Registry::recover`] runs once, before any other call: it adopts, undoes, finishes, sweeps.

mod freshness;
mod handles;
mod images;
mod liveness;
mod observed;
mod pressure;
mod recover;
mod room;
mod wake;
mod words;

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::{Instant, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::handles::Handle;
pub(super) use self::{handles::Handles, images::Held};
pub use self::{
    images::{Forking, Sealed},
    pressure::{PausedPolicy, Pressure},
    recover::Recovered,
    wake::{Knock, WAKE_BOUND},
    words::{Census, Connected, LifeError, NotRunning, Sandbox, Target},
};
use super::{
    admission::{Admission, Seat},
    driver::{Command, Driver, EndCause, Inbox, Live, Manner, View},
    past::Past,
    queue::{self, Refusal, Request},
    reaper::Reaper,
    traces::Traces,
    world::World,
};
pub use super::{
    admission::{Capacity, Charge, Floors, Occupancy, Purpose, Refused, Rules, Scarce, Share},
    envd::{CallError, EnvdClient, Messages},
    inside::{Caller as InsideCaller, HostApi},
    logs::LogLine,
    samples::Sample,
    token::{TokenKey, same},
    traces::{BUCKETS_S, Class, Event, Happening, Histogram, Tally, Trace},
    warm::{WarmPlan, WarmState, WarmTemplate},
    world::{BootFault, Limits, Phase},
};
use crate::{
    clock::Clock,
    id::{Entropy, SandboxId, TeamId},
    runtime::engine::Engine,
    sandbox::{Egress, SandboxRecord, SandboxSpec, SandboxState, freshness::Freshness},
    store::Store,
};

/// How long a kill is waited for: its answer comes when no process is left, or after this.
pub const KILL_BOUND: Duration = Duration::from_secs(5);
/// How long a shutdown takes at most.
pub const SHUTDOWN_BOUND: Duration = Duration::from_secs(10);

/// Every sandbox of this gateway. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    world: Arc<World>,
    handles: Arc<Handles>,
    tasks: TaskTracker,
    refusing: CancellationToken,
    stopped: CancellationToken,
    _reaper: DropGuard,
}

// === impl Registry ===

impl Registry {
    /// An empty registry, inside a tokio runtime. Call [`Registry::recover`] before anything else.
    pub fn new(
        engine: Arc<dyn Engine>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        tokens: TokenKey,
        limits: Limits,
    ) -> Self {
        let reaper = Arc::new(Reaper::default());
        let handles = Arc::new(Handles::default());
        let stop_reaper = CancellationToken::new();
        let told = Arc::downgrade(&handles);
        let reaping = Arc::clone(&reaper)
            .run(Arc::clone(&clock), move |id| told.upgrade().is_none_or(|handles| handles.expire(id)));
        let stopped = stop_reaper.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(reaping).await });
        let sampling = observed::sample(Arc::downgrade(&handles), Arc::clone(&clock));
        let stopped = stop_reaper.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(sampling).await });
        let world = Arc::new(World {
            engine,
            store,
            clock,
            entropy,
            tokens,
            limits,
            boots: Semaphore::new(limits.concurrent_boots.max(1)),
            admission: Admission::new(limits.admission),
            pool: Arc::default(),
            reaper,
            held: Arc::default(),
            closing: CancellationToken::new(),
            fault: std::sync::OnceLock::new(),
            inside: std::sync::OnceLock::new(),
            traces: Traces::default(),
            past: Past::default(),
        });
        let collecting = images::collect(Arc::downgrade(&world));
        let stopped = stop_reaper.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(collecting).await });
        let attending = liveness::attend(Arc::downgrade(&handles), Arc::downgrade(&world));
        let stopped = stop_reaper.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(attending).await });
        let inner = Inner {
            world,
            handles,
            tasks: TaskTracker::new(),
            refusing: CancellationToken::new(),
            stopped: stop_reaper.clone(),
            _reaper: stop_reaper.drop_guard(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Makes boots fail where a test wants it. Once.
    #[doc(hidden)]
    pub fn inject(&self, fault: Arc<dyn BootFault>) {
        let _ = self.inner.world.fault.set(fault);
    }

    /// What answers inside machines, from the next run on. Once.
    pub fn answer_inside(&self, api: Arc<dyn HostApi>) {
        let _ = self.inner.world.inside.set(api);
    }

    /// Makes a sandbox and returns when its guest is ready. Waits for room before that; dropping
    /// the returned future then gives the place up. Afterwards the work goes on to a consistent end
    /// (running, or wholly undone) all the same.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, LifeError> {
        self.open()?;
        let (world, asked) = (&self.inner.world, Instant::now());
        let (seat, warm) = self.place(&spec).await?;
        let now = world.now();
        let freshness =
            Freshness::from_labels(&spec.metadata).map_err(|error| LifeError::Nonsense(error.to_string()))?;
        let record = SandboxRecord {
            id: warm.as_ref().map_or_else(|| SandboxId::generate(&*world.entropy), |warm| warm.id),
            state: SandboxState::Creating,
            generation: 1,
            started_at: now,
            end_at: world.policy().deadline(now, now, spec.timeout()),
            machine: None,
            unresponsive: false,
            freshness,
            spec,
        };
        let driver = self.inner.driver(&record, Arc::new(seat));
        // Seen again now that a shutdown would see this one: it ends before it begins.
        if let Err(error) = self.open() {
            self.give_up(warm);
            return Err(error);
        }
        let (reply, created) = oneshot::channel();
        self.inner.tasks.spawn(driver.create(record, asked, warm, reply));
        created.await.unwrap_or(Err(LifeError::ShuttingDown))
    }

    /// A running or paused sandbox of the team. One on its way to or from a pause is paused.
    #[expect(clippy::unused_async, reason = "whether it is in memory is not its callers' business")]
    pub async fn get(&self, team: TeamId, id: SandboxId) -> Result<Sandbox, LifeError> {
        Ok(self.view(self.shown(team, id)?.record().clone()))
    }

    /// Ends a sandbox of the team. `Ok` also when its end has already begun. Returns when no
    /// process of it is left, or after [`KILL_BOUND`]; the end goes on in any case.
    pub async fn kill(&self, team: TeamId, id: SandboxId) -> Result<(), LifeError> {
        let mut handle = self.handle(team, id)?;
        let view = handle.view.borrow().clone();
        match view {
            // One whose kill was answered is gone for the next kill, whatever is still tidied up.
            View::Creating | View::Killing { stopped: true } | View::Gone | View::LetGo => {
                return Err(self.missing(id));
            }
            View::Running(_) | View::Resting(_) => handle.end(EndCause::Killed).await,
            View::Killing { stopped: false } => {}
        }
        handle.stopped().await;
        let let_go = matches!(&*handle.view.borrow(), View::LetGo);
        if let_go { Err(LifeError::ShuttingDown) } else { Ok(()) }
    }

    /// Sets the deadline to now + `timeout`, clamped to the run's maximum; zero ends it now.
    pub async fn set_timeout(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), LifeError> {
        self.ask(team, id, Request::SetTimeout(timeout)).await.map(drop)
    }

    /// Moves the deadline to now + `timeout` if that is later.
    pub async fn extend(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), LifeError> {
        self.ask(team, id, Request::Extend(timeout)).await.map(drop)
    }

    /// Connects to a sandbox of the team: extends a running one, resumes a paused one, and waits
    /// for the end of a change that is under way.
    pub async fn connect(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
    ) -> Result<(Sandbox, Connected), LifeError> {
        let (record, how) = self.ask(team, id, Request::Connect(timeout)).await?;
        Ok((self.view(record), how))
    }

    /// As [`Registry::connect`], but a paused sandbox starts anew from its disk.
    pub async fn reboot(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
    ) -> Result<(Sandbox, Connected), LifeError> {
        let (record, how) = self.ask(team, id, Request::Reboot(timeout)).await?;
        Ok((self.view(record), how))
    }

    /// Resumes a paused sandbox of the team; an error when it runs already.
    pub async fn resume(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<Sandbox, LifeError> {
        let (record, _) = self.ask(team, id, Request::Resume(timeout)).await?;
        Ok(self.view(record))
    }

    /// Pauses a sandbox of the team: with `memory` its processes go on at the next resume, else
    /// its disk alone is kept. `healthy`: only if its guest answers. Pauses at the same time are one.
    pub async fn pause(
        &self,
        team: TeamId,
        id: SandboxId,
        memory: bool,
        healthy: bool,
    ) -> Result<(), LifeError> {
        self.open()?;
        let handle = self.handle(team, id)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Pause { manner: Manner { memory, healthy }, reply };
        self.tell(&handle, id, command).await?;
        answer.await.map_err(|_| self.missing(id))?
    }

    /// Replaces the way out of a running sandbox of the team.
    pub async fn set_egress(&self, team: TeamId, id: SandboxId, egress: Egress) -> Result<(), LifeError> {
        self.open()?;
        let handle = self.handle(team, id)?;
        let (reply, answer) = oneshot::channel();
        self.tell(&handle, id, Command::SetEgress { egress, reply }).await?;
        answer.await.map_err(|_| self.missing(id))?
    }

    /// A client of the envd of a running sandbox of the team, with the sandbox's own token.
    pub fn envd(&self, team: TeamId, id: SandboxId) -> Result<EnvdClient, LifeError> {
        let live = self.live(team, id)?;
        let token = self.view(live.record.clone()).envd_access_token;
        Ok(EnvdClient::new(live.target.clone(), token))
    }

    /// Asks the guest whether it is there; a cut control stream may be opened again meanwhile.
    pub async fn ping(&self, team: TeamId, id: SandboxId) -> Result<(), LifeError> {
        let asker = self.live(team, id)?.asker.clone();
        asker.ping().await.map_err(|error| LifeError::Guest(error.to_string()))
    }

    /// The tokens that belong to a record.
    pub fn view(&self, record: SandboxRecord) -> Sandbox {
        self.inner.world.tokens.view(record)
    }

    /// The hot path: what the proxy needs, from memory.
    pub fn target(&self, id: &SandboxId) -> Result<Target, NotRunning> {
        let look = |view: &View| match view {
            View::Running(live) => Ok(live.target.clone()),
            View::Resting(_) => Err(NotRunning::Resting),
            View::Creating | View::LetGo => Err(NotRunning::Transitioning),
            View::Killing { .. } | View::Gone => Err(NotRunning::NotFound),
        };
        self.inner.handles.look(id, look).unwrap_or_else(|| {
            // A closing gateway has let go of sandboxes that run on: "not found" would be "dead".
            let closing = self.inner.refusing.is_cancelled();
            Err(if closing { NotRunning::Transitioning } else { NotRunning::NotFound })
        })
    }

    /// What happened to sandboxes, the newest starts first; to one where one is named.
    pub fn traces(&self, sandbox: Option<SandboxId>, most: usize) -> Vec<Trace> {
        self.inner.world.traces.newest(sandbox, most)
    }

    /// The sums of what happened since this gateway started.
    pub fn tally(&self) -> Tally {
        self.inner.world.traces.tally()
    }

    /// How many sandboxes are in which state now.
    pub fn census(&self) -> Census {
        self.inner.handles.census()
    }

    /// How many sandboxes have a driver now, in any state.
    pub fn len(&self) -> usize {
        self.inner.handles.len()
    }

    /// True when no sandbox has a driver.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest run, if one is configured.
    pub fn max_length(&self) -> Option<Duration> {
        self.inner.world.limits.max_length
    }

    /// When a sandbox made now with this timeout would end.
    pub fn deadline(&self, timeout: Duration) -> Timestamp {
        let now = self.inner.world.now();
        self.inner.world.policy().deadline(now, now, timeout)
    }

    /// No new work; waits for what is under way, at most [`SHUTDOWN_BOUND`]. Running sandboxes
    /// stay for the next gateway, or end too when `stop_sandboxes`. True: nothing is left undone.
    pub async fn shutdown(&self, stop_sandboxes: bool) -> bool {
        let inner = &self.inner;
        inner.refusing.cancel();
        inner.tasks.close();
        let ending = async {
            if stop_sandboxes {
                for handle in inner.handles.all() {
                    handle.end(EndCause::Shutdown).await;
                }
            } else {
                inner.world.closing.cancel();
            }
            inner.tasks.wait().await;
        };
        let done = timeout(SHUTDOWN_BOUND, ending).await.is_ok();
        inner.world.closing.cancel();
        done
    }

    fn open(&self) -> Result<(), LifeError> {
        if self.inner.refusing.is_cancelled() { Err(LifeError::ShuttingDown) } else { Ok(()) }
    }

    fn live(&self, team: TeamId, id: SandboxId) -> Result<Arc<Live>, LifeError> {
        match &*self.handle(team, id)?.view.borrow() {
            View::Running(live) => Ok(Arc::clone(live)),
            View::Killing { .. } | View::Resting(_) => Err(LifeError::NotFound(id)),
            View::Creating | View::Gone | View::LetGo => Err(self.missing(id)),
        }
    }

    fn handle(&self, team: TeamId, id: SandboxId) -> Result<Handle, LifeError> {
        self.inner.handles.of(team, id).ok_or_else(|| self.missing(id))
    }

    /// A closing gateway has let go of sandboxes that run on: it does not call them unknown.
    fn missing(&self, id: SandboxId) -> LifeError {
        self.open().err().unwrap_or(LifeError::NotFound(id))
    }

    async fn ask(
        &self,
        team: TeamId,
        id: SandboxId,
        request: Request,
    ) -> Result<(SandboxRecord, Connected), LifeError> {
        self.open()?;
        let handle = self.handle(team, id)?;
        self.send(&handle, id, request).await
    }

    async fn send(
        &self,
        handle: &Handle,
        id: SandboxId,
        request: Request,
    ) -> Result<(SandboxRecord, Connected), LifeError> {
        let (reply, answer) = oneshot::channel();
        self.tell(handle, id, Command::Ask { request, reply }).await?;
        // A driver that has gone answers nothing.
        answer.await.map_err(|_| self.missing(id))?
    }

    /// Hands a command to a driver that takes some.
    async fn tell(&self, handle: &Handle, id: SandboxId, command: Command) -> Result<(), LifeError> {
        let view = handle.view.borrow().clone();
        match view {
            View::Running(_) | View::Creating | View::Resting(_) => {}
            // A driver in its teardown takes no commands: the policy answers for it.
            View::Killing { stopped: false } => {
                let world = &self.inner.world;
                let decided = world.policy().decide(queue::Stage::Killing, command.request(), world.now());
                return Err(decided.err().unwrap_or(Refusal::NotFound).error(id));
            }
            // Its kill was answered, whatever is still tidied up.
            View::Killing { stopped: true } | View::Gone | View::LetGo => return Err(self.missing(id)),
        }
        // A driver that has gone takes nothing.
        handle.commands.send(command).await.map_err(|_| self.missing(id))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Registry").field("sandboxes", &self.len()).finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    /// A driver that is not running yet, known under its id.
    fn driver(&self, record: &SandboxRecord, seat: Arc<Seat>) -> Driver {
        let (sender, commands) = Inbox::new();
        let (view, shown) = watch::channel(View::Creating);
        let handle = Handle { team: record.spec.team, commands: sender, view: shown };
        self.handles.insert(record.id, handle);
        let handles = Arc::downgrade(&self.handles);
        Driver::new(record.id, Arc::clone(&self.world), handles, commands, view, seat)
    }
}

// === impl TokenKey ===

impl TokenKey {
    /// A record with the tokens that belong to it.
    pub fn view(&self, record: SandboxRecord) -> Sandbox {
        let envd_access_token = record.spec.secure.then(|| self.envd(record.id));
        let traffic_access_token = (!record.spec.public_traffic()).then(|| self.traffic(record.id));
        Sandbox { record, envd_access_token, traffic_access_token }
    }
}

#[cfg(test)]
mod tests;
