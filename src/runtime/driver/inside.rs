//! The host API of a machine: opened once a machine, in the background, and gone with it.

use std::sync::{Arc, Once};

use super::Driver;
use crate::runtime::{
    boot::Active,
    engine::EngineError,
    inside::{Caller, Run},
};

/// Said once a gateway.
static WARNED: Once = Once::new();

/// The machine that has its host API.
pub(super) struct Inside {
    generation: u64,
    run: Arc<Run>,
}

impl Driver {
    /// Called whenever a run begins; a machine that goes on keeps its socket.
    pub(super) fn answer_inside(&mut self, active: &Active) {
        let Some(api) = self.world.inside.get().cloned() else { return };
        let generation = active.record.generation;
        let known = self.inside.take().filter(|inside| inside.generation == generation);
        let fresh = known.is_none();
        let run = known.map_or_else(|| Arc::new(Run::new(Arc::clone(&active.logs))), |inside| inside.run);
        run.begins(self.world.clock.now());
        self.inside = Some(Inside { generation, run: Arc::clone(&run) });
        if !fresh {
            return;
        }
        let (machine, logs) = (Arc::clone(&active.machine), Arc::clone(&active.logs));
        let (world, sandbox) = (Arc::clone(&self.world), self.id);
        tokio::spawn(async move {
            let listener = match machine.host_socket().await {
                Ok(listener) => listener,
                Err(EngineError::Unsupported { .. } | EngineError::Gone) => return,
                Err(error) => {
                    // A host that cannot do it cannot do it for anybody.
                    WARNED.call_once(|| {
                        tracing::warn!(%error, "sandboxes may have no host API: see `firkin doctor`");
                    });
                    tracing::debug!(sandbox.id = %sandbox, %error, "sandbox {sandbox} has no host API");
                    return logs.note(
                        "warn",
                        "nothing answers at 192.0.2.1, see the server's log",
                        world.clock.now(),
                    );
                }
            };
            tokio::select! {
                () = api.serve(Caller { sandbox, run }, listener) => {}
                () = machine.exited() => {}
                () = world.closing.cancelled() => {}
            }
        });
    }
}
