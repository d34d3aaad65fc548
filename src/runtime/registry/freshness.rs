//! The gates of sandboxes from outside: how they stand, and verdicts on them.

use std::time::Duration;

use tokio::time::timeout;

use super::{LifeError, Registry};
use crate::{
    id::SandboxId,
    runtime::{control::ControlError, driver::View},
    sandbox::freshness::{Freshness, Phase, Verdict},
    wire::control::ToGuest,
};

/// How long a verdict that the guest has taken may be on its way to the record.
const RECORD_BOUND: Duration = Duration::from_secs(5);

// === impl Registry ===

impl Registry {
    /// How the gate of a sandbox stands, whoever's it is. None: it has none.
    pub fn freshness(&self, id: SandboxId) -> Result<Option<Freshness>, LifeError> {
        let view = self.inner.handles.look(&id, View::clone);
        match view.ok_or_else(|| self.missing(id))? {
            View::Running(live) => Ok(live.record.freshness.clone()),
            View::Resting(rest) => Ok(rest.record.freshness.clone()),
            _ => Err(self.missing(id)),
        }
    }

    /// Tells the guest of a running sandbox, whoever's it is, a verdict on its gate. Returns the
    /// gate when that is recorded.
    pub async fn judge(&self, id: SandboxId, verdict: Verdict) -> Result<Freshness, LifeError> {
        self.open()?;
        let verdict = verdict.checked().map_err(|error| LifeError::Nonsense(error.to_string()))?;
        let mut handle = self.inner.handles.any(id).ok_or_else(|| self.missing(id))?;
        let asker = match &*handle.view.borrow() {
            View::Running(live) => live.asker.clone(),
            View::Resting(_) => return Err(LifeError::Paused(id)),
            View::Creating => return Err(LifeError::Transitioning(id)),
            View::Killing { .. } | View::Gone | View::LetGo => return Err(self.missing(id)),
        };
        let told = verdict.clone();
        asker.ask(move |seq| ToGuest::Freshness { seq, verdict: told }).await.map_err(
            |error| match error {
                ControlError::Refused(reason) => LifeError::Nonsense(reason),
                error => LifeError::Guest(error.to_string()),
            },
        )?;
        let heard = |view: &View| match view {
            View::Running(live) => live.record.freshness.as_ref().is_some_and(|gate| follows(gate, &verdict)),
            // What was told last goes with the machine.
            _ => true,
        };
        let recorded = timeout(RECORD_BOUND, handle.view.wait_for(heard)).await;
        if !matches!(recorded, Ok(Ok(_))) {
            return Err(LifeError::Transitioning(id));
        }
        self.freshness(id)?.ok_or(LifeError::Transitioning(id))
    }
}

/// Whether a gate shows the verdict.
fn follows(gate: &Freshness, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Complete { target } => {
            gate.phase == Phase::Ready && target.as_ref().is_none_or(|target| *target == gate.target)
        }
        Verdict::Fail { reason } => gate.phase == Phase::Failed && gate.reason.as_ref() == Some(reason),
        // It may have come to its end already.
        Verdict::Run => true,
    }
}
