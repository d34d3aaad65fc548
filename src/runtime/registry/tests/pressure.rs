//! Paused sandboxes on a host that is short of memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// A host that is short of so much, or of as much as is paused in memory.
#[derive(Default)]
struct Host {
    bytes: AtomicU64,
}

impl Pressure for Host {
    fn shortage(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Short until so many of these sandboxes have no machine.
struct ShortUntil {
    engine: FakeEngine,
    live: usize,
}

impl Pressure for ShortUntil {
    fn shortage(&self) -> u64 {
        u64::try_from(self.engine.live().len().saturating_sub(self.live)).unwrap()
    }
}

/// `paused` sandboxes, the longest paused first, and one that runs.
async fn some(stage: &Stage, registry: &Registry, paused: usize) -> (Vec<SandboxId>, SandboxId) {
    let mut ids = Vec::new();
    for _ in 0..paused {
        let id = registry.create(stage.spec()).await.unwrap().record.id;
        stage.clock.jump(SignedDuration::from_secs(1));
        registry.pause(stage.team, id, true, false).await.unwrap();
        ids.push(id);
    }
    (ids, registry.create(stage.spec()).await.unwrap().record.id)
}

#[tokio::test(start_paused = true)]
async fn each_gives_back_once_what_costs_nothing_and_nobody_is_given_up() {
    let stage = Stage::new();
    stage.engine.faults(|faults| faults.reclaimable = 4096);
    let registry = stage.registry();
    let (paused, _) = some(&stage, &registry, 3).await;
    let host = Arc::new(Host { bytes: AtomicU64::new(1) });
    registry.watch_pressure(Arc::clone(&host) as Arc<dyn Pressure>, PausedPolicy::Keep);
    eventually(|| stage.engine.reclaims().len() == 3).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.engine.reclaims(), paused, "the longest paused first, each once");
    assert!(paused.iter().all(|id| stage.engine.frozen(*id)));
    let trace = registry.traces(Some(paused[0]), 1).remove(0);
    assert!(trace.events.iter().any(|event| event.name == Happening::MemoryReclaimed));
    // A new pause may give again.
    registry.resume(stage.team, paused[0], LONG).await.unwrap();
    registry.pause(stage.team, paused[0], true, false).await.unwrap();
    eventually(|| stage.engine.reclaims().len() == 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_has_memory_takes_none() {
    let stage = Stage::new();
    let registry = stage.registry();
    let (paused, _) = some(&stage, &registry, 1).await;
    registry.watch_pressure(Arc::new(Host::default()), PausedPolicy::Disk);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((stage.engine.reclaims(), stage.engine.frozen(paused[0])), (vec![], true));
}

#[tokio::test(start_paused = true)]
async fn the_longest_paused_are_given_up_until_it_is_enough_and_running_ones_never() {
    let stage = Stage::new();
    let registry = stage.registry();
    let (paused, running) = some(&stage, &registry, 3).await;
    // Two machines less are wanted, of four.
    let host = ShortUntil { engine: stage.engine.clone(), live: 2 };
    registry.watch_pressure(Arc::new(host), PausedPolicy::Disk);
    eventually(|| stage.engine.disks().len() == 2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut given_up = vec![paused[0], paused[1]];
    given_up.sort_unstable();
    assert_eq!(stage.engine.disks(), given_up);
    assert!(stage.engine.frozen(paused[2]) && registry.target(&running).is_ok());
    let record = registry.get(stage.team, paused[0]).await.unwrap().record;
    assert_eq!((record.state, record.machine), (SandboxState::Paused, None));
    assert_eq!(stage.store.sandbox(paused[0]).await.unwrap().unwrap().machine, None, "recorded too");
    let lines = registry.logs(stage.team, paused[0]).unwrap();
    assert!(lines.iter().any(|line| line.message.contains("short of memory")), "{lines:?}");
    let trace = registry.traces(Some(paused[0]), 1).remove(0);
    assert!(trace.events.iter().any(|event| event.name == Happening::MemoryGivenUp));
    let (again, how) = registry.connect(stage.team, paused[0], LONG).await.unwrap();
    assert_eq!((how, again.record.generation), (Connected::Resumed, 2), "it boots anew");
}

#[tokio::test(start_paused = true)]
async fn all_paused_are_given_up_when_that_is_not_enough_and_still_no_running_one() {
    let stage = Stage::new();
    let registry = stage.registry();
    let (paused, running) = some(&stage, &registry, 2).await;
    registry.watch_pressure(Arc::new(Host { bytes: AtomicU64::new(u64::MAX) }), PausedPolicy::Disk);
    eventually(|| stage.engine.disks().len() == paused.len()).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.engine.live(), [running]);
    assert!(registry.target(&running).is_ok());
}
