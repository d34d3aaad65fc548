//! Room for a new sandbox: a warm machine, or a seat on the host and space on its disk.

use super::{LifeError, Occupancy, Registry, WarmPlan, WarmState};
use crate::{
    runtime::{
        admission::Seat,
        engine::{DiskSpace, EngineError},
        warm::{self, Warm},
    },
    sandbox::SandboxSpec,
};

impl Registry {
    /// Begins to keep machines warm; once, after [`Registry::recover`], which sweeps what has no record.
    pub fn keep_warm(&self, plan: WarmPlan) {
        let inner = &self.inner;
        let world = std::sync::Arc::downgrade(&inner.world);
        let (stopped, refusing) = (inner.stopped.clone(), inner.refusing.clone());
        inner.tasks.spawn(async move {
            stopped.run_until_cancelled(warm::keep(world, plan, refusing)).await;
        });
    }

    /// How full the host is, and how many wait for room.
    pub fn occupancy(&self) -> Occupancy {
        self.inner.world.admission.occupancy()
    }

    /// The pool of warm machines in numbers.
    pub fn warm(&self) -> WarmState {
        self.inner.world.pool.state()
    }

    /// How much room there is on the host's disk.
    pub fn disk(&self) -> Result<DiskSpace, EngineError> {
        self.inner.world.engine.disk()
    }

    /// A warm machine at once, or a seat, perhaps after a wait; that is given up when the returned
    /// future is dropped.
    pub(super) async fn place(&self, spec: &SandboxSpec) -> Result<(Seat, Option<Warm>), LifeError> {
        let world = &self.inner.world;
        let need = world.admission.share(spec.resources);
        if let Some((warm, seat)) = world.pool.checkout(spec.build, spec.resources, need) {
            return Ok((seat, Some(warm)));
        }
        let admitted = self.inner.refusing.run_until_cancelled(world.admission.admit(need)).await;
        let seat = admitted.ok_or(LifeError::ShuttingDown)??;
        // One may have become ready, or free, while this one waited.
        let warm = world.pool.take(spec.build, spec.resources);
        if warm.is_none() {
            world.restore_floor()?;
        }
        Ok((seat, warm))
    }

    /// Ends a warm machine that was taken for nobody.
    pub(super) fn give_up(&self, warm: Option<Warm>) {
        if let Some(warm) = warm {
            let world = std::sync::Arc::clone(&self.inner.world);
            self.inner.tasks.spawn(async move { warm::end(&world, warm).await });
        }
    }
}
