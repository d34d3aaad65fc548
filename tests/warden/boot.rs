//! A boot that fails at any of its phases leaves this host as it was.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use firkin::{
    clock::SystemClock,
    id::{BuildId, OsEntropy, SandboxId, TeamId, TemplateId},
    runtime::{
        registry::{BootFault, LifeError, Limits, Phase, Registry},
        token::TokenKey,
    },
    sandbox::{Lifecycle, Resources, SandboxSpec},
    store::{SandboxFilter, Store as _, memory::MemoryStore},
};

use super::server::{Data, pid};
use crate::support::host::{Host, descriptors};

/// Fails the boots that reach this phase; none: lets all pass.
struct FailAt(Mutex<Option<Phase>>);

#[async_trait]
impl BootFault for FailAt {
    async fn reached(&self, _: SandboxId, phase: Phase) -> Result<(), LifeError> {
        let wanted = *self.0.lock().unwrap() == Some(phase);
        if wanted { Err(LifeError::Guest("injected".to_owned())) } else { Ok(()) }
    }
}

fn sandbox(team: TeamId, build: BuildId) -> SandboxSpec {
    SandboxSpec {
        team,
        template: TemplateId::generate(&OsEntropy),
        alias: None,
        build,
        resources: Resources { cpu_count: 1, memory_mb: 256, disk_mb: 1024 },
        timeout_s: 300,
        lifecycle: Lifecycle::default(),
        metadata: BTreeMap::new(),
        env_vars: BTreeMap::new(),
        secure: true,
        allow_internet_access: None,
        network: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_that_fails_in_any_phase_leaves_the_host_as_before() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let store = Arc::new(MemoryStore::new());
    let registry = Registry::new(
        server.engine.clone(),
        store.clone(),
        Arc::new(SystemClock),
        Arc::new(OsEntropy),
        TokenKey::new([7; 32]),
        Limits::default(),
    );
    registry.recover().await.unwrap();
    let fault = Arc::new(FailAt(Mutex::new(None)));
    registry.inject(fault.clone());
    let (team, build) = (TeamId::generate(&OsEntropy), data.image());

    let before = server.scope.look();
    // The twin that is let through: it runs, and its end leaves nothing either.
    let made = registry.create(sandbox(team, build)).await.unwrap();
    assert_eq!(server.scope.look().networks.len(), 1);
    registry.kill(team, made.record.id).await.unwrap();
    server.scope.settles_as(&before);

    for phase in [Phase::Prepared, Phase::Booted, Phase::Attached, Phase::Active] {
        *fault.0.lock().unwrap() = Some(phase);
        registry.create(sandbox(team, build)).await.unwrap_err();
        server.scope.settles_as(&before);
        assert_eq!(store.sandboxes(SandboxFilter::default()).await.unwrap(), [], "{phase:?}");
        assert!(registry.is_empty(), "{phase:?}");
        // The pool of slots fills up meanwhile; what is a machine's own must be gone.
        let open = descriptors(pid());
        let machines = |target: &&String| target.contains("cgroup.") || target.contains("/machines/");
        assert_eq!(open.iter().find(machines), None, "{phase:?}");
    }
    registry.shutdown(true).await;
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}
