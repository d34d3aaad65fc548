//! What stands for the Virtualization.framework engine where there is none: it refuses by name.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::{
    id::{BuildId, SandboxId},
    runtime::engine::{
        Ability, Capabilities, DiskSpace, Engine, EngineError, ImageUse, Machine, MachineRecord, MachineSpec,
    },
};

const NAME: &str = "vz";
const REASON: &str = "macOS only: use the namespace engine (or qemu) on Linux";

/// The engine that this host cannot have.
#[derive(Debug, Clone, Copy, Default)]
pub struct VzEngine;

// === impl VzEngine ===

#[async_trait]
impl Engine for VzEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            freeze: Ability::Missing(REASON),
            memory_snapshot: Ability::Missing(REASON),
            survive_gateway: Ability::Missing(REASON),
        }
    }

    fn disk(&self) -> Result<DiskSpace, EngineError> {
        Err(refusal("disk"))
    }

    async fn create(&self, _spec: MachineSpec) -> Result<Arc<dyn Machine>, EngineError> {
        Err(refusal("create"))
    }

    async fn adopt(
        &self,
        _sandbox: SandboxId,
        _record: &MachineRecord,
    ) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        Err(refusal("adopt"))
    }

    async fn find(&self, _sandbox: SandboxId) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        Err(refusal("find"))
    }

    async fn kept(&self) -> Result<Vec<SandboxId>, EngineError> {
        Err(refusal("kept"))
    }

    async fn seal(
        &self,
        _sandbox: SandboxId,
        _build: BuildId,
        _copied: oneshot::Sender<()>,
    ) -> Result<(), EngineError> {
        Err(refusal("seal"))
    }

    async fn images(&self) -> Result<Vec<ImageUse>, EngineError> {
        Err(refusal("images"))
    }

    async fn remove_image(&self, _build: BuildId) -> Result<bool, EngineError> {
        Err(refusal("remove_image"))
    }

    async fn discard(&self, _sandbox: SandboxId) -> Result<(), EngineError> {
        Err(refusal("discard"))
    }

    async fn sweep(&self, _keep: &[SandboxId]) -> Result<Vec<SandboxId>, EngineError> {
        Err(refusal("sweep"))
    }
}

fn refusal(ability: &'static str) -> EngineError {
    EngineError::Unsupported { engine: NAME, ability, reason: REASON }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_refusal_says_what_to_use_instead() {
        let error = VzEngine.sweep(&[]).await.unwrap_err();
        assert!(error.to_string().contains("use the namespace engine"), "{error}");
    }
}
