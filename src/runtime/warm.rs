//! Warm machines: booted for templates that are often asked for, introduced to nobody, waiting for
//! the create that takes one.
//!
//! ```text
//!   keeper --boot, guest answers--> Pool --checkout, oldest first--> create: Init -> serving
//!             ^                      '--too old, old build, dead, room needed--> ended
//!             '---- one at a time, when no create boots or waits, while there is room
//! ```
//! A warm machine has an id, and the sandbox that takes it gets that id. It has no record: what a
//! gateway that dies leaves of the pool is swept by the next one, as every machine without a record.
//! A machine is handed out for its own build and size only, so a template's new build is never
//! served by an old machine. Its share of the host is the first to be given back.

mod keeper;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

pub(super) use self::keeper::{end, keep};
use super::{
    admission::{Seat, Share},
    control::Ready,
    engine::Machine,
    logs::LogRing,
};
use crate::{
    id::{BuildId, SandboxId},
    sandbox::Resources,
};

/// What is to be kept warm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmPlan {
    /// Which templates, and how many machines of each.
    pub templates: Vec<WarmTemplate>,
    /// How old a machine may become before another takes its place.
    pub max_age: Duration,
}

/// A template to be kept warm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmTemplate {
    /// The team's part of the name, if it has one.
    pub namespace: Option<String>,
    /// The name, or the id.
    pub name: String,
    /// The tag; none: the default one.
    pub tag: Option<String>,
    /// How many machines.
    pub depth: usize,
}

/// The pool in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmState {
    /// By template, as it was named: how many are ready, how many shall be.
    pub templates: Vec<(String, usize, usize)>,
    /// Creates that got a warm machine.
    pub hits: u64,
    /// Creates of a template that is kept warm that got none.
    pub misses: u64,
    /// Warm machines that did not answer when they were taken.
    pub dead: u64,
    /// Machines that made room for sandboxes.
    pub evicted: u64,
    /// Machines that were ended for their age or their build.
    pub expired: u64,
    /// Machines that could not be made.
    pub failed: u64,
}

/// A machine that waits for its sandbox.
#[derive(Debug)]
pub(super) struct Warm {
    pub(super) id: SandboxId,
    pub(super) build: BuildId,
    pub(super) resources: Resources,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) ready: Ready,
    pub(super) logs: Arc<LogRing>,
    pub(super) seat: Seat,
    born: Instant,
}

/// The machines that wait. A short lock, never across an await.
#[derive(Debug, Default)]
pub(super) struct Pool {
    stock: Mutex<Stock>,
    /// Something was taken, or somebody stopped booting: the keeper looks.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Stock {
    /// Oldest first.
    entries: VecDeque<Warm>,
    /// What the plan means now.
    wanted: Vec<Wanted>,
    max_age: Duration,
    counts: WarmState,
}

/// What one line of the plan means now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    depth: usize,
    /// The build that the name leads to, with its size; none: no such template.
    found: Option<(BuildId, Resources)>,
}

// === impl WarmTemplate ===

impl WarmTemplate {
    /// `[team/]name[:tag]`.
    fn text(&self) -> String {
        let namespace =
            self.namespace.as_deref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let tag = self.tag.as_deref().map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{namespace}{}{tag}", self.name)
    }
}

// === impl Pool ===

impl Pool {
    /// The oldest machine of this build and size, with a seat for its sandbox; nothing when there is
    /// none, or somebody waits for room.
    pub(super) fn checkout(&self, build: BuildId, resources: Resources, need: Share) -> Option<(Warm, Seat)> {
        let mut stock = self.stock.lock();
        let place = stock.place(build, resources)?;
        let seat = stock.entries.get(place)?.seat.promote(need)?;
        let warm = stock.entries.remove(place)?;
        stock.counts.hits += 1;
        drop(stock);
        self.look();
        Some((warm, seat))
    }

    /// The same for one who has its seat already.
    pub(super) fn take(&self, build: BuildId, resources: Resources) -> Option<Warm> {
        let mut stock = self.stock.lock();
        let place = stock.place(build, resources);
        let warm = place.and_then(|place| stock.entries.remove(place));
        if warm.is_some() {
            stock.counts.hits += 1;
        } else if stock.wanted.iter().any(|wanted| wanted.found == Some((build, resources))) {
            stock.counts.misses += 1;
        }
        drop(stock);
        if let Some(warm) = &warm {
            // Whoever takes it has paid for it.
            warm.seat.give_back();
            self.look();
        }
        warm
    }

    /// One that was taken did not answer.
    pub(super) fn was_dead(&self) {
        self.stock.lock().counts.dead += 1;
    }

    /// The keeper is to look again.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    pub(super) fn state(&self) -> WarmState {
        let stock = self.stock.lock();
        let ready = |wanted: &Wanted| {
            let of = |entry: &&Warm| wanted.found == Some((entry.build, entry.resources));
            (wanted.name.clone(), stock.entries.iter().filter(of).count(), wanted.depth)
        };
        WarmState { templates: stock.wanted.iter().map(ready).collect(), ..stock.counts.clone() }
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<SandboxId> {
        self.stock.lock().entries.iter().map(|entry| entry.id).collect()
    }
}

// === impl Stock ===

impl Stock {
    fn place(&self, build: BuildId, resources: Resources) -> Option<usize> {
        let now = Instant::now();
        self.entries.iter().position(|entry| {
            (entry.build, entry.resources) == (build, resources) && entry.is_fit(now, self.max_age)
        })
    }

    /// How many machines of this build and size the plan wants.
    fn depth(&self, build: BuildId, resources: Resources) -> usize {
        let same = |wanted: &&Wanted| wanted.found == Some((build, resources));
        self.wanted.iter().filter(same).map(|wanted| wanted.depth).max().unwrap_or(0)
    }

    /// How many there are.
    fn ready(&self, build: BuildId, resources: Resources) -> usize {
        self.entries.iter().filter(|entry| (entry.build, entry.resources) == (build, resources)).count()
    }
}

// === impl Warm ===

impl Warm {
    fn is_fit(&self, now: Instant, max_age: Duration) -> bool {
        now.duration_since(self.born) < max_age && self.machine.exited().now_or_never().is_none()
    }
}
