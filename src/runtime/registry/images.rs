//! Images made of sandboxes: each is held by whoever asked for it until its owner is recorded, and
//! what nobody owns is collected.
//!
//! ```text
//!   seal --> Sealed (held) --recorded: a snapshot's build, forks' records--> dropped
//!   collector: images of the engine, less those held, of builds, of sandboxes, below other images
//! ```
//! Builds that a newer one took the place of are forgotten first, after a while; images that no
//! sandbox was sealed into (imports, `base`) are only collected when nobody has owned them for as
//! long: who imports has the image before its build is recorded.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use super::{LifeError, Registry};
use crate::{
    failpoint::{self, Step},
    id::{BuildId, SandboxId, TeamId},
    runtime::{
        driver::{Command, View},
        engine::{EngineError, ImageUse},
        traces::Happening,
        world::World,
    },
    sandbox::{SandboxRecord, SandboxState},
    store::SandboxFilter,
};

/// How long an image that nobody owns stays when nothing tells of it.
const PERIOD: Duration = Duration::from_mins(1);
/// How long a superseded build, and an import that nobody owns, stay.
pub(super) const GRACE: SignedDuration = SignedDuration::from_hours(1);

/// Images that were asked for and have no recorded owner yet.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Held {
    builds: Mutex<HashSet<BuildId>>,
    /// Since when nobody has owned an image that was not sealed.
    unowned: Mutex<HashMap<BuildId, Timestamp>>,
    changed: Notify,
}

/// A new image of a sandbox. While this lives nobody collects it.
#[derive(Debug)]
pub struct Sealed {
    /// The sandbox as it was.
    pub record: SandboxRecord,
    /// The image.
    pub build: BuildId,
    _hold: Hold,
}

#[derive(Debug)]
struct Hold {
    held: Arc<Held>,
    build: BuildId,
}

/// A fork under way.
pub struct Forking {
    world: Arc<World>,
    id: SandboxId,
}

// === impl Forking ===

impl Drop for Forking {
    fn drop(&mut self) {
        self.world.traces.event(self.id, Happening::ForkDone);
    }
}

// === impl Registry ===

impl Registry {
    /// Makes an image of a running sandbox of the team, which stands still meanwhile.
    pub async fn seal(&self, team: TeamId, id: SandboxId) -> Result<Sealed, LifeError> {
        self.open()?;
        let handle = self.handle(team, id)?;
        self.inner.world.restore_floor()?;
        let build = BuildId::generate(&*self.inner.world.entropy);
        let held = Arc::clone(&self.inner.world.held);
        held.builds.lock().insert(build);
        let guard = Hold { held, build };
        let (reply, answer) = oneshot::channel();
        self.tell(&handle, id, Command::Seal { build, reply }).await?;
        let record = answer.await.map_err(|_| self.missing(id))??;
        Ok(Sealed { record, build, _hold: guard })
    }

    /// Notes in a sandbox's trace that sandboxes are made of it, until what comes back is dropped.
    pub fn forking(&self, id: SandboxId) -> Forking {
        self.inner.world.traces.event(id, Happening::ForkStart);
        Forking { world: Arc::clone(&self.inner.world), id }
    }

    /// Whether a sandbox of the team is paused, or on the way there or back.
    pub fn is_paused(&self, team: TeamId, id: SandboxId) -> Result<bool, LifeError> {
        Ok(matches!(&*self.handle(team, id)?.view.borrow(), View::Resting(_)))
    }

    /// Looks soon for images that nobody owns any more.
    pub fn collect_images(&self) {
        self.inner.world.held.look();
        self.inner.world.pool.look();
    }
}

// === impl Held ===

impl Held {
    /// Somebody let go of an image.
    pub(in crate::runtime) fn look(&self) {
        self.changed.notify_one();
    }

    /// Leaves sealed images, and others that nobody has owned for long. `images`: all without an owner.
    fn ripe(&self, images: &mut Vec<ImageUse>, now: Timestamp) {
        let mut unowned = self.unowned.lock();
        unowned.retain(|build, _| images.iter().any(|image| image.build == *build));
        images.retain(|image| {
            image.sealed || now.duration_since(*unowned.entry(image.build).or_insert(now)) >= GRACE
        });
    }
}

// === impl Hold ===

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.builds.lock().remove(&self.build);
        self.held.changed.notify_one();
    }
}

/// Collects images for as long as the registry is there.
pub(super) async fn collect(world: Weak<World>) {
    loop {
        let Some(held) = world.upgrade().map(|world| Arc::clone(&world.held)) else { return };
        let all = tokio::select! {
            () = held.changed.notified() => false,
            () = sleep(PERIOD) => true,
        };
        let Some(world) = world.upgrade() else { return };
        match sweep(&world, all).await {
            Ok(0) | Err(LifeError::Engine(EngineError::Unsupported { .. })) => {}
            Ok(count) => tracing::info!(count, "images that nobody used were removed"),
            Err(error) => tracing::warn!(%error, "images were not collected"),
        }
    }
}

/// Removes what nobody owns, children before what they lie on; `all`: also what was not sealed.
/// Returns how many.
pub(super) async fn sweep(world: &World, all: bool) -> Result<usize, LifeError> {
    if all && let Ok(before) = world.clock.now().checked_sub(GRACE) {
        let count = world.store.drop_superseded(before).await?;
        if count > 0 {
            tracing::info!(count, "builds that newer ones took the place of were forgotten");
        }
    }
    let mut images = world.engine.images().await?;
    images.retain(|image| image.sealed || all);
    if images.is_empty() {
        return Ok(0);
    }
    // In this order: whoever stops holding an image has recorded its owner before.
    let held = world.held.builds.lock().clone();
    let mut owned: HashSet<BuildId> = world.store.builds().await?.into_iter().collect();
    let states =
        vec![SandboxState::Creating, SandboxState::Running, SandboxState::Paused, SandboxState::Killing];
    let records = world.store.sandboxes(SandboxFilter { states, ..SandboxFilter::default() }).await?;
    owned.extend(records.into_iter().map(|record| record.spec.build));
    images.retain(|image| !owned.contains(&image.build) && !held.contains(&image.build));
    if all {
        world.held.ripe(&mut images, world.now());
    }
    let mut removed = 0;
    loop {
        let mut left = Vec::new();
        for image in &images {
            if world.engine.remove_image(image.build).await? {
                failpoint::reach(Step::ImageCollected);
                removed += 1;
            } else {
                left.push(*image);
            }
        }
        if left.len() == images.len() || left.is_empty() {
            return Ok(removed);
        }
        images = left;
    }
}
