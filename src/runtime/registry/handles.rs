//! The map of all sandboxes: a short lock, and behind each id the way to its driver.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{Census, KILL_BOUND};
use crate::{
    id::{SandboxId, TeamId},
    runtime::{
        driver::{Command, EndCause, Live, View},
        queue::Stage,
    },
};

/// The map. Locked for a look-up or a change only.
#[derive(Default)]
pub(in crate::runtime) struct Handles(RwLock<HashMap<SandboxId, Handle>>);

/// The way to one driver.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) team: TeamId,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<View>,
}

// === impl Handles ===

impl Handles {
    pub(super) fn insert(&self, id: SandboxId, handle: Handle) {
        self.0.write().insert(id, handle);
    }

    pub(in crate::runtime) fn remove(&self, id: SandboxId) {
        self.0.write().remove(&id);
    }

    pub(super) fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Looks at what a driver shows, without a copy of it.
    pub(super) fn look<T>(&self, id: &SandboxId, at: impl FnOnce(&View) -> T) -> Option<T> {
        self.0.read().get(id).map(|handle| at(&handle.view.borrow()))
    }

    /// The way to a driver, for its own team.
    pub(super) fn of(&self, team: TeamId, id: SandboxId) -> Option<Handle> {
        self.0.read().get(&id).filter(|handle| handle.team == team).cloned()
    }

    /// The way to a driver, for whoever knows its id.
    pub(super) fn any(&self, id: SandboxId) -> Option<Handle> {
        self.0.read().get(&id).cloned()
    }

    /// The sandboxes that serve now.
    pub(super) fn serving(&self) -> Vec<Arc<Live>> {
        let running = |handle: &Handle| match &*handle.view.borrow() {
            View::Running(live) => Some(Arc::clone(live)),
            _ => None,
        };
        self.0.read().values().filter_map(running).collect()
    }

    /// The sandboxes that are paused with their memory, the longest paused first.
    pub(super) fn frozen(&self) -> Vec<SandboxId> {
        let paused = |handle: &Handle| match &*handle.view.borrow() {
            View::Resting(rest) if rest.stage == Stage::Paused && rest.record.machine.is_some() => {
                Some((rest.record.end_at, rest.record.id))
            }
            _ => None,
        };
        let mut frozen: Vec<_> = self.0.read().values().filter_map(paused).collect();
        frozen.sort_unstable();
        frozen.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for handle in self.0.read().values() {
            let count = match &*handle.view.borrow() {
                View::Creating => &mut census.creating,
                View::Running(_) => &mut census.running,
                View::Resting(_) => &mut census.resting,
                View::Killing { .. } => &mut census.ending,
                View::Gone | View::LetGo => continue,
            };
            *count += 1;
        }
        census
    }

    pub(super) fn all(&self) -> Vec<Handle> {
        self.0.read().values().cloned().collect()
    }

    /// Tells a driver to look at its deadline. False: its queue is full.
    pub(super) fn expire(&self, id: SandboxId) -> bool {
        self.0.read().get(&id).is_none_or(|handle| {
            !matches!(handle.commands.try_send(Command::Expired), Err(mpsc::error::TrySendError::Full(_)))
        })
    }
}

// === impl Handle ===

impl Handle {
    pub(super) async fn end(&self, cause: EndCause) {
        // A driver that has gone has ended it already, or has let go of it: the view tells.
        let _ = self.commands.send(Command::End(cause)).await;
    }

    /// Waits until no process of the sandbox is left, or it is let go of, or for [`KILL_BOUND`].
    pub(super) async fn stopped(&mut self) {
        let stopped = self
            .view
            .wait_for(|view| matches!(view, View::Killing { stopped: true } | View::Gone | View::LetGo));
        let _ = timeout(KILL_BOUND, stopped).await;
    }
}
