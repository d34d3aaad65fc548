//! Images made of sandboxes: each is held by whoever asked for it until its owner is recorded, and
//! what nobody owns is collected.
//!
//! ```text
//!   seal --> Sealed (held) --recorded: a snapshot's build, forks' records--> dropped
//!   collector: images of the engine, less those held, of builds, of sandboxes, below other images
//! ```

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

use super::{LifeError, Registry};
use crate::{
    id::{BuildId, SandboxId, TeamId},
    runtime::{
        driver::{Command, View},
        engine::EngineError,
        world::World,
    },
    sandbox::{SandboxRecord, SandboxState},
    store::SandboxFilter,
};

/// How long an image that nobody owns stays when nothing tells of it.
const PERIOD: Duration = Duration::from_mins(1);

/// Images that were asked for and have no recorded owner yet.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Held {
    builds: Mutex<HashSet<BuildId>>,
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

// === impl Registry ===

impl Registry {
    /// Makes an image of a running sandbox of the team, which stands still meanwhile.
    pub async fn seal(&self, team: TeamId, id: SandboxId) -> Result<Sealed, LifeError> {
        self.open()?;
        let handle = self.handle(team, id)?;
        let build = BuildId::generate(&*self.inner.world.entropy);
        let held = Arc::clone(&self.inner.world.held);
        held.builds.lock().insert(build);
        let guard = Hold { held, build };
        let (reply, answer) = oneshot::channel();
        self.tell(&handle, id, Command::Seal { build, reply }).await?;
        let record = answer.await.map_err(|_| self.missing(id))??;
        Ok(Sealed { record, build, _hold: guard })
    }

    /// Whether a sandbox of the team is paused, or on the way there or back.
    pub fn is_paused(&self, team: TeamId, id: SandboxId) -> Result<bool, LifeError> {
        Ok(matches!(&*self.handle(team, id)?.view.borrow(), View::Resting(_)))
    }

    /// Looks soon for images that nobody owns any more.
    pub fn collect_images(&self) {
        self.inner.world.held.changed.notify_one();
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
        tokio::select! {
            () = held.changed.notified() => {}
            () = sleep(PERIOD) => {}
        }
        let Some(world) = world.upgrade() else { return };
        match sweep(&world).await {
            Ok(0) | Err(LifeError::Engine(EngineError::Unsupported { .. })) => {}
            Ok(count) => tracing::info!(count, "images that nobody used were removed"),
            Err(error) => tracing::warn!(%error, "images were not collected"),
        }
    }
}

/// Removes what nobody owns, children before what they lie on. Returns how many.
async fn sweep(world: &World) -> Result<usize, LifeError> {
    let mut images = world.engine.images().await?;
    images.retain(|image| image.sealed);
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
    let mut removed = 0;
    loop {
        let mut left = Vec::new();
        for image in &images {
            if world.engine.remove_image(image.build).await? {
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
