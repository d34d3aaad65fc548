//! The one who fills the pool and ends what has no place in it any more.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{join_all, select_all};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Pool, Wanted, Warm, WarmPlan, WarmTemplate};
use crate::{
    failpoint::{self, Step},
    id::{BuildId, SandboxId, TeamId},
    runtime::{
        admission::Seat,
        control::Ready,
        engine::{Disk, EngineError, Machine, MachineSpec},
        logs::LogRing,
        registry::LifeError,
        world::World,
    },
    sandbox::Resources,
    store::StoreError,
};

/// How often the plan's names are looked up, and what is kept is measured, when nothing happens.
const PERIOD: Duration = Duration::from_secs(5);
/// After a template's machine could not be made; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_mins(5);
/// Attempts to end one machine; what is left after that is swept by the next start.
const STOP_TRIES: u32 = 5;
const BETWEEN_STOPS: Duration = Duration::from_millis(200);

/// Fills the pool until `refusing`; then ends what is in it.
pub(in crate::runtime) async fn keep(world: Weak<World>, plan: WarmPlan, refusing: CancellationToken) {
    let Some(first) = world.upgrade() else { return };
    let (pool, admission) = (Arc::clone(&first.pool), Arc::clone(&first.admission));
    drop(first);
    pool.stock.lock().max_age = plan.max_age;
    let mut keeper = Keeper { backoffs: vec![None; plan.templates.len()], plan };
    loop {
        let Some(present) = world.upgrade() else { return };
        if refusing.is_cancelled() {
            let entries: Vec<Warm> = pool.stock.lock().entries.drain(..).collect();
            join_all(entries.into_iter().map(|warm| end(&present, warm))).await;
            return;
        }
        let wait = keeper.round(&present, &refusing).await;
        drop(present);
        tokio::select! {
            () = refusing.cancelled() => {}
            () = sleep(wait) => {}
            () = pool.changed.notified() => {}
            () = admission.pressed() => {}
            () = pool.one_exits() => {}
        }
    }
}

/// Ends a warm machine with all that it holds.
pub(in crate::runtime) async fn end(world: &World, warm: Warm) {
    let Warm { id, machine, ready, seat, .. } = warm;
    drop(ready);
    stop(world, id, &*machine).await;
    drop(seat);
}

struct Keeper {
    plan: WarmPlan,
    /// For each template: how long it is left alone, and since when, after a failure.
    backoffs: Vec<Option<(Duration, Instant)>>,
}

// === impl Keeper ===

impl Keeper {
    /// Ends what is to go, and makes one machine at most. Returns how long nothing is to be done
    /// when nothing happens.
    async fn round(&mut self, world: &Arc<World>, refusing: &CancellationToken) -> Duration {
        let before = world.pool.stock.lock().wanted.clone();
        let mut wanted = Vec::new();
        for (place, template) in self.plan.templates.iter().enumerate() {
            let found = resolve(world, template).await.unwrap_or_else(|error| {
                tracing::warn!(template.name = %template.text(), %error, "a warm template was not looked up");
                // As it was known: room that somebody needs is made all the same.
                before.get(place).and_then(|known| known.found)
            });
            wanted.push(Wanted { name: template.text(), depth: template.depth, found });
        }
        let leaving = world.pool.leaving(wanted, world.admission.short_of());
        let some_left = !leaving.is_empty();
        join_all(leaving.into_iter().map(|warm| end(world, warm))).await;
        if some_left {
            // An image may be free now.
            world.held.look();
        }
        world.pool.measure().await;
        let Some((place, build, resources)) = self.lacking(world) else { return self.rest() };
        // A create that boots has the host to itself.
        let idle = world.boots.available_permits() >= world.limits.concurrent_boots.max(1);
        let Some(permit) = idle.then(|| world.boots.try_acquire().ok()).flatten() else { return PERIOD };
        if world.warm_floor().is_err() {
            return PERIOD;
        }
        let Some(seat) = world.admission.spare(resources) else { return PERIOD };
        let cancel = CancellationToken::new();
        let mut making = pin!(make(world, build, resources, seat, &cancel));
        let made = tokio::select! {
            made = &mut making => made,
            () = gives_way(world, refusing) => {
                cancel.cancel();
                making.await
            }
        };
        drop(permit);
        match made {
            Ok(warm) => {
                self.backoffs[place] = None;
                tracing::debug!(sandbox.id = %warm.id, build.id = %build, "a warm machine is ready");
                world.pool.stock.lock().entries.push_back(warm);
                failpoint::reach(Step::WarmReady);
                Duration::ZERO
            }
            Err(_) if cancel.is_cancelled() => Duration::ZERO,
            Err(error) => {
                let pause =
                    self.backoffs[place].map_or(FIRST_BACKOFF, |(last, _)| (2 * last).min(LONGEST_BACKOFF));
                self.backoffs[place] = Some((pause, Instant::now()));
                let name = self.plan.templates[place].text();
                tracing::warn!(template.name = %name, %error, "no warm machine of {name} was made; next try in {pause:?}");
                world.pool.stock.lock().counts.failed += 1;
                Duration::ZERO
            }
        }
    }

    /// The first template that has too few machines and may be tried.
    fn lacking(&self, world: &World) -> Option<(usize, BuildId, Resources)> {
        let stock = world.pool.stock.lock();
        let now = Instant::now();
        let wanted = stock.wanted.iter().enumerate();
        wanted
            .filter(|(place, _)| self.backoffs[*place].is_none_or(|(pause, since)| now >= since + pause))
            .find_map(|(place, wanted)| {
                let (build, resources) = wanted.found?;
                (stock.ready(build, resources) < stock.depth(build, resources))
                    .then_some((place, build, resources))
            })
    }

    /// Until the next template may be tried, but no longer than the period.
    fn rest(&self) -> Duration {
        let now = Instant::now();
        let tries = self.backoffs.iter().flatten().map(|(pause, since)| *since + *pause);
        tries
            .map(|next| next.saturating_duration_since(now))
            .filter(|left| !left.is_zero())
            .fold(PERIOD, Duration::min)
    }
}

// === impl Pool ===

impl Pool {
    /// Takes the plan as it is now, and out of the pool what has no place in it: what is not wanted,
    /// too old or dead, and the oldest ones that hold so many bytes.
    fn leaving(&self, wanted: Vec<Wanted>, short_of: u64) -> Vec<Warm> {
        let mut stock = self.stock.lock();
        stock.wanted = wanted;
        let now = Instant::now();
        let (mut leaving, mut staying, mut freed) = (Vec::new(), std::collections::VecDeque::new(), 0);
        // The newest first, so that the surplus is the oldest.
        while let Some(entry) = stock.entries.pop_back() {
            let same = |other: &&Warm| (other.build, other.resources) == (entry.build, entry.resources);
            let enough = staying.iter().filter(same).count() >= stock.depth(entry.build, entry.resources);
            if enough || !entry.is_fit(now, stock.max_age) {
                freed += entry.seat.memory();
                stock.counts.expired += 1;
                leaving.push(entry);
            } else {
                staying.push_front(entry);
            }
        }
        while freed < short_of
            && let Some(entry) = staying.pop_front()
        {
            freed += entry.seat.memory();
            stock.counts.evicted += 1;
            leaving.push(entry);
        }
        stock.entries = staying;
        leaving
    }

    /// Charges what the machines use.
    async fn measure(&self) {
        let machines: Vec<_> =
            self.stock.lock().entries.iter().map(|entry| (entry.id, Arc::clone(&entry.machine))).collect();
        for (id, machine) in machines {
            let Ok(stats) = machine.stats().await else { continue };
            // One that was taken meanwhile is measured by its sandbox.
            if let Some(entry) = self.stock.lock().entries.iter().find(|entry| entry.id == id) {
                entry.seat.measured(stats.memory_bytes.saturating_sub(stats.cache_bytes));
            }
        }
    }

    /// Resolves when one of the machines ends by itself.
    async fn one_exits(&self) {
        let machines: Vec<Arc<dyn Machine>> =
            self.stock.lock().entries.iter().map(|entry| Arc::clone(&entry.machine)).collect();
        if machines.is_empty() {
            return std::future::pending().await;
        }
        select_all(machines.iter().map(|machine| machine.exited())).await;
    }
}

/// Resolves when what is being made is to be given up: somebody waits for room, or the gateway closes.
async fn gives_way(world: &World, refusing: &CancellationToken) {
    tokio::select! {
        () = refusing.cancelled() => {}
        () = world.admission.pressed() => {}
    }
}

/// The build that a name of the plan leads to.
async fn resolve(world: &World, template: &WarmTemplate) -> Result<Option<(BuildId, Resources)>, StoreError> {
    let nobody = TeamId(uuid::Uuid::nil());
    let found = world.store.resolve_template(nobody, template.namespace.as_deref(), &template.name).await?;
    let Some(found) = found else { return Ok(None) };
    let build = match &template.tag {
        None => found.build,
        Some(tag) => world.store.tagged_build(&found.id, tag).await?,
    };
    Ok(build.map(|build| (build.id, build.resources)))
}

/// One machine whose guest has answered.
async fn make(
    world: &Arc<World>,
    build: BuildId,
    resources: Resources,
    seat: Seat,
    cancel: &CancellationToken,
) -> Result<Warm, LifeError> {
    let id = SandboxId::generate(&*world.entropy);
    let spec = MachineSpec {
        sandbox: id,
        generation: 1,
        build,
        resources,
        hostname: id.to_string(),
        disk: Disk::New,
    };
    let machine =
        cancel.run_until_cancelled(world.engine.create(spec)).await.ok_or(LifeError::ShuttingDown)??;
    failpoint::reach(Step::WarmMade);
    let logs = Arc::new(LogRing::default());
    let opening = timeout(world.limits.guest_timeout, Ready::open(machine.link(), world, Arc::clone(&logs)));
    let opened = tokio::select! {
        opened = opening => match opened {
            Ok(opened) => opened.map_err(|error| LifeError::Guest(error.to_string())),
            Err(_) => Err(LifeError::Guest(format!("no answer in {:?}", world.limits.guest_timeout))),
        },
        () = machine.exited() => Err(LifeError::Guest("the machine ended".to_owned())),
        () = cancel.cancelled() => Err(LifeError::ShuttingDown),
    };
    match opened {
        Ok(ready) => Ok(Warm { id, build, resources, machine, ready, logs, seat, born: Instant::now() }),
        Err(error) => {
            stop(world, id, &*machine).await;
            Err(error)
        }
    }
}

/// Ends a machine that has no record, with its disk.
async fn stop(world: &World, id: SandboxId, machine: &dyn Machine) {
    for attempt in 1..=STOP_TRIES {
        let ended = async {
            machine.stop(Duration::ZERO).await?;
            // Of one that ended by itself.
            world.engine.discard(id).await
        };
        match ended.await {
            Ok(()) | Err(EngineError::Gone) => return,
            Err(error) => {
                tracing::error!(sandbox.id = %id, attempt, %error, "a warm machine was not ended");
                sleep(BETWEEN_STOPS).await;
            }
        }
    }
}
