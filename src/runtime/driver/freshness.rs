//! What the guest says of its gate: recorded, shown, noted for the sandbox's owner.

use super::Driver;
use crate::{
    runtime::{boot::Active, traces::Happening},
    sandbox::{
        SandboxRecord,
        freshness::{Freshness, Phase, bounded},
    },
};

/// The longest name that a guest is believed.
const MAX_TARGET: usize = 255;

impl Driver {
    /// Takes phase, target and reason over; the rest of a wish is the create's and stays.
    pub(super) async fn note_gate(&self, active: &mut Active, told: Freshness) {
        let Some(known) = &active.record.freshness else { return };
        let Freshness { phase, mut target, reason, .. } = told;
        if target.len() > MAX_TARGET {
            target.clone_from(&known.target);
        }
        let gate = Freshness { phase, target, reason: reason.map(bounded), ..known.clone() };
        if gate == *known {
            return;
        }
        self.world.traces.event(
            self.id,
            match phase {
                Phase::Restored => Happening::FreshnessSyncWanted,
                Phase::Syncing => Happening::FreshnessSyncStart,
                Phase::Ready => Happening::WorkspaceReady,
                Phase::Failed => Happening::FreshnessSyncFailed,
            },
        );
        let reason = gate.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let text = format!("freshness sync of branch {:?}: {phase}{reason}", gate.branch);
        let level = if phase == Phase::Failed { "warn" } else { "info" };
        active.logs.note(level, &text, self.world.clock.now());
        tracing::info!(sandbox.id = %self.id, sync.phase = %phase, sync.reason = gate.reason, "sandbox {}: {text}", self.id);
        let record = SandboxRecord { freshness: Some(gate), ..active.record.clone() };
        if let Err(error) = self.world.store.put_sandbox(record.clone()).await {
            // The guest tells it again at its next attachment.
            tracing::error!(sandbox.id = %self.id, %error, "a gate was not recorded");
        }
        active.record = record;
        self.show(active);
    }
}
