//! What is seen of sandboxes from outside: their records, logs and samples, and the rounds that take those.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::time::MissedTickBehavior;

use super::{Handles, LifeError, LogLine, Registry, Sample};
use crate::{
    clock::Clock,
    id::{SandboxId, TeamId},
    runtime::{
        driver::{Live, Rest, View},
        logs::LogRing,
        samples::{self, History},
    },
    sandbox::SandboxRecord,
    wire::control::ToGuest,
};

/// How long a guest has to hear how full its disk is.
const TELLING: Duration = Duration::from_secs(1);

/// What is known of a sandbox that serves or rests.
pub(super) enum Shown {
    Live(Arc<Live>),
    Rest(Arc<Rest>),
}

// === impl Registry ===

impl Registry {
    /// The last lines of the guest's log, oldest first; for a while also of one that has ended.
    pub fn logs(&self, team: TeamId, id: SandboxId) -> Result<Vec<LogLine>, LifeError> {
        match self.shown(team, id) {
            Ok(shown) => Ok(shown.logs().lines()),
            Err(error) => self.inner.world.past.logs(team, id).ok_or(error),
        }
    }

    /// What a sandbox used from `start` to `end`, oldest first; of each `step` the last sample.
    pub fn metrics(
        &self,
        team: TeamId,
        id: SandboxId,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<Sample>, LifeError> {
        let window = Duration::try_from(end.duration_since(start)).unwrap_or_default();
        Ok(self.shown(team, id)?.samples().between(start, end, samples::step(window)))
    }

    /// The newest sample of a sandbox; none when there is none yet.
    pub fn latest_sample(&self, team: TeamId, id: SandboxId) -> Result<Option<Sample>, LifeError> {
        Ok(self.shown(team, id)?.samples().latest())
    }

    /// A sandbox that serves or rests.
    pub(super) fn shown(&self, team: TeamId, id: SandboxId) -> Result<Shown, LifeError> {
        match &*self.handle(team, id)?.view.borrow() {
            View::Running(live) => Ok(Shown::Live(Arc::clone(live))),
            View::Resting(rest) => Ok(Shown::Rest(Arc::clone(rest))),
            View::Killing { .. } => Err(LifeError::NotFound(id)),
            View::Creating | View::Gone | View::LetGo => Err(self.missing(id)),
        }
    }
}

// === impl Shown ===

impl Shown {
    pub(super) fn record(&self) -> &SandboxRecord {
        match self {
            Self::Live(live) => &live.record,
            Self::Rest(rest) => &rest.record,
        }
    }

    fn logs(&self) -> &LogRing {
        match self {
            Self::Live(live) => &live.logs,
            Self::Rest(rest) => &rest.logs,
        }
    }

    fn samples(&self) -> &History {
        match self {
            Self::Live(live) => &live.samples,
            Self::Rest(rest) => &rest.samples,
        }
    }
}

/// Measures all serving sandboxes in turn, for as long as the registry is there.
pub(super) async fn sample(handles: Weak<Handles>, clock: Arc<dyn Clock>) {
    let mut ticks = tokio::time::interval(samples::PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(serving) = handles.upgrade().map(|handles| handles.serving()) else { return };
        let measures = futures_util::stream::iter(serving).map(|live| {
            let now = clock.now();
            async move { measure(&live, now).await }
        });
        measures.buffer_unordered(samples::AT_ONCE).collect::<()>().await;
    }
}

/// Measures a serving sandbox; its guest, and its owner, hear what they should.
async fn measure(live: &Live, now: Timestamp) {
    let samples = &live.samples;
    samples.sample(&*live.machine, live.record.spec.resources, now).await;
    samples.charge(&live.seat);
    let ended = samples.writers_ended();
    if ended > 0 {
        let text = format!("the disk is far over its size: {ended} processes that wrote to it were ended");
        live.logs.note("warn", &text, now);
    }
    if let Some(used_bytes) = samples.disk_news() {
        let told = live.asker.ask(move |seq| ToGuest::Disk { seq, used_bytes });
        // A guest that is about to be frozen, or is of an earlier version, is told again.
        if let Ok(Ok(())) = tokio::time::timeout(TELLING, told).await {
            samples.disk_told(used_bytes);
        }
    }
}
