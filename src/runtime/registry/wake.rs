//! Traffic for a sandbox that rests: who may wake it, and the wait until it serves.

use std::time::Duration;

use tokio::time::timeout;

use super::{LifeError, NotRunning, Registry, Target, same};
use crate::{
    id::SandboxId,
    runtime::{
        driver::{Rest, View},
        engine::EngineError,
        queue::{Request, Stage},
    },
    sandbox::ENVD_PORT,
};

/// How long traffic waits for a paused sandbox (contract/sandbox 7).
pub const WAKE_BOUND: Duration = Duration::from_mins(1);

/// What a request shows that may wake a paused sandbox (contract/sandbox 7).
#[derive(Debug, Clone, Default)]
pub struct Knock {
    /// The port it is for.
    pub port: u16,
    /// `X-Access-Token`.
    pub access_token: Option<String>,
    /// `e2b-traffic-access-token`.
    pub traffic_token: Option<String>,
}

// === impl Registry ===

impl Registry {
    /// Finds a sandbox for traffic, and wakes a paused one whose owner wants that and that kept its
    /// memory, if the request shows what it must. Waits for a change that is under way.
    pub async fn wake(&self, id: SandboxId, knock: Knock) -> Result<Target, NotRunning> {
        timeout(WAKE_BOUND, self.woken(id, &knock)).await.unwrap_or(Err(NotRunning::Transitioning))
    }

    async fn woken(&self, id: SandboxId, knock: &Knock) -> Result<Target, NotRunning> {
        let mut handle = self.inner.handles.any(id).ok_or(NotRunning::NotFound)?;
        loop {
            let view = handle.view.borrow_and_update().clone();
            let rest = match view {
                View::Running(live) => return Ok(live.target.clone()),
                View::Resting(rest) => rest,
                View::Creating | View::LetGo => return Err(NotRunning::Transitioning),
                View::Killing { .. } | View::Gone => return Err(NotRunning::NotFound),
            };
            if rest.stage != Stage::Resuming {
                self.may_wake(&rest, knock)?;
            }
            if rest.stage == Stage::Paused {
                match self.send(&handle, id, Request::Wake).await {
                    Ok(_) | Err(LifeError::Transitioning(_)) => continue,
                    Err(LifeError::NotFound(_)) => return Err(NotRunning::NotFound),
                    Err(LifeError::Engine(EngineError::Capacity(_)) | LifeError::NoRoom(_)) => {
                        return Err(NotRunning::Full);
                    }
                    Err(_) => return Err(NotRunning::Transitioning),
                }
            }
            handle.view.changed().await.map_err(|_| NotRunning::NotFound)?;
        }
    }

    fn may_wake(&self, rest: &Rest, knock: &Knock) -> Result<(), NotRunning> {
        let wakes = rest.record.spec.lifecycle.auto_resume && rest.record.machine.is_some();
        if !wakes {
            return Err(NotRunning::NotFound);
        }
        let sandbox = self.view(rest.record.clone());
        let (wanted, shown) = if knock.port == ENVD_PORT {
            (sandbox.envd_access_token, &knock.access_token)
        } else {
            (sandbox.traffic_access_token, &knock.traffic_token)
        };
        let fits = wanted.is_none_or(|wanted| shown.as_ref().is_some_and(|shown| same(&wanted, shown)));
        if fits { Ok(()) } else { Err(NotRunning::Denied) }
    }
}
