//! Gateways that are killed at any moment, over the real store: what is recorded, what runs and
//! what is known are the same afterwards, and nothing that was answered is lost.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use firkin::{
    clock::SystemClock,
    id::{BuildId, OsEntropy, SandboxId, TeamId, TemplateId},
    runtime::{
        fake::FakeEngine,
        registry::{Limits, Registry, TokenKey},
    },
    sandbox::{Lifecycle, Resources, SandboxSpec, SandboxState},
    store::{SandboxFilter, Store, sqlite::SqliteStore},
};
use tokio::{sync::mpsc, time::timeout};

const LONG: Duration = Duration::from_secs(20);

fn spec(team: TeamId) -> SandboxSpec {
    SandboxSpec {
        team,
        template: TemplateId::generate(&OsEntropy),
        alias: None,
        build: BuildId::generate(&OsEntropy),
        resources: Resources { cpu_count: 1, memory_mb: 128, disk_mb: 256 },
        timeout_s: 3600,
        lifecycle: Lifecycle::default(),
        metadata: [("name".to_owned(), "value".to_owned())].into(),
        env_vars: [].into(),
        secure: true,
        allow_internet_access: None,
        network: None,
    }
}

fn gateway(engine: &FakeEngine, store: Arc<dyn Store>) -> Registry {
    Registry::new(
        Arc::new(engine.clone()),
        store,
        Arc::new(SystemClock),
        Arc::new(OsEntropy),
        TokenKey::new([3; 32]),
        Limits::default(),
    )
}

/// A gateway that is killed after so many answers, while it makes and ends sandboxes. Sends the ids of
/// those that were answered (true) and those whose kill was begun (false).
fn killed_after(
    answers: usize,
    engine: FakeEngine,
    path: std::path::PathBuf,
    team: TeamId,
    told: mpsc::UnboundedSender<(SandboxId, bool)>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (tick, ticks) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let store = Arc::new(SqliteStore::open(&path).unwrap());
        let registry = gateway(&engine, store);
        registry.recover().await.unwrap();
        for number in 0..200 {
            let (registry, told, tick) = (registry.clone(), told.clone(), tick.clone());
            tokio::spawn(async move {
                let id = registry.create(spec(team)).await.unwrap().record.id;
                told.send((id, true)).unwrap();
                tick.send(()).unwrap();
                if number % 3 == 0 {
                    told.send((id, false)).unwrap();
                    registry.kill(team, id).await.unwrap();
                }
            });
        }
        std::future::pending::<()>().await;
    });
    for _ in 0..answers {
        ticks.recv_timeout(LONG).unwrap();
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
}

#[tokio::test]
async fn nothing_is_lost_or_left_when_a_gateway_dies_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let engine = FakeEngine::new();
    engine.faults(|faults| faults.create_delay = Duration::from_millis(2));
    let team = TeamId::generate(&OsEntropy);
    let (told, mut hears) = mpsc::unbounded_channel();
    for answers in [1, 30, 100] {
        let (engine, path, told) = (engine.clone(), path.clone(), told.clone());
        let dying = tokio::task::spawn_blocking(move || killed_after(answers, engine, path, team, told));
        timeout(LONG, dying).await.unwrap().unwrap();
    }
    drop(told);
    let (mut answered, mut killed) = (BTreeSet::new(), BTreeSet::new());
    while let Some((id, made)) = hears.recv().await {
        if made {
            answered.insert(id)
        } else {
            killed.insert(id)
        };
    }

    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).unwrap());
    let registry = gateway(&engine, Arc::clone(&store));
    let recovered = timeout(LONG, registry.recover()).await.unwrap().unwrap();
    let settled = timeout(LONG, async {
        while registry.len() != recovered.adopted.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    settled.await.unwrap();
    let running: BTreeSet<SandboxId> = engine.live().into_iter().collect();
    assert!(answered.len() > killed.len(), "the gateways did something: {}", answered.len());
    assert!(answered.difference(&killed).all(|id| running.contains(id)), "an answered one was lost");
    let states = [SandboxState::Creating, SandboxState::Running, SandboxState::Killing];
    let filter = SandboxFilter { states: states.into(), ..SandboxFilter::default() };
    let recorded: BTreeSet<SandboxId> =
        store.sandboxes(filter).await.unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(recorded, running, "what is recorded is what runs");
    for id in &running {
        assert!(registry.target(id).is_ok());
    }
    assert!(registry.shutdown(true).await);
    assert_eq!(engine.live(), []);
    assert_eq!(store.count_sandboxes(SandboxFilter::default()).await.unwrap(), 0);
}
