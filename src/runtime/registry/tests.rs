//! The registry over the fake engine and the store in memory.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::SignedDuration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;
use crate::{
    id::{BuildId, OsEntropy, TemplateId},
    runtime::fake::{FakeEngine, HeldClock, Service},
    sandbox::{Lifecycle, NetworkConfig, Resources},
    store::{SandboxFilter, memory::MemoryStore},
};

mod admission;
mod crash;
mod freshness;
mod life;
mod liveness;
mod pressure;
mod rest;
mod seal;
mod warm;

const LONG: Duration = Duration::from_secs(20);

/// Never goes on at one phase.
struct Hang(Phase);

#[async_trait]
impl BootFault for Hang {
    async fn reached(&self, _sandbox: SandboxId, phase: Phase) -> Result<(), LifeError> {
        if phase == self.0 {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// One "host": what outlives a gateway.
struct Stage {
    engine: FakeEngine,
    store: Arc<MemoryStore>,
    clock: Arc<HeldClock>,
    limits: Limits,
    team: TeamId,
}

impl Stage {
    fn new() -> Self {
        Self {
            engine: FakeEngine::new(),
            store: Arc::new(MemoryStore::new()),
            clock: Arc::new(HeldClock::default()),
            limits: Limits::default(),
            team: TeamId::generate(&OsEntropy),
        }
    }

    /// A gateway that starts on this host.
    fn registry(&self) -> Registry {
        Registry::new(
            Arc::new(self.engine.clone()),
            Arc::clone(&self.store) as Arc<dyn Store>,
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            Arc::new(OsEntropy),
            TokenKey::new([1; 32]),
            self.limits,
        )
    }

    fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            team: self.team,
            template: TemplateId::generate(&OsEntropy),
            alias: Some("base".to_owned()),
            build: BuildId::generate(&OsEntropy),
            resources: Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 },
            timeout_s: 300,
            lifecycle: Lifecycle::default(),
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
            secure: true,
            allow_internet_access: None,
            network: None,
        }
    }

    async fn records(&self) -> Vec<SandboxRecord> {
        let states =
            vec![SandboxState::Creating, SandboxState::Running, SandboxState::Paused, SandboxState::Killing];
        self.store.sandboxes(SandboxFilter { states, ..SandboxFilter::default() }).await.unwrap()
    }

    /// Nothing of any sandbox is left, in memory, on the host or in the store.
    async fn assert_empty(&self, registry: &Registry) {
        eventually(|| registry.is_empty()).await;
        assert_eq!(self.engine.live(), []);
        assert_eq!(self.engine.disks(), []);
        assert_eq!(self.records().await, []);
    }
}

async fn eventually(done: impl Fn() -> bool) {
    timeout(LONG, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("in time");
}

async fn echo(target: &Target, port: u16) -> Vec<u8> {
    let mut stream = target.link.open(port).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}
