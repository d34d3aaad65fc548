//! Gateways that die, restart, fail in the middle, or close.

use super::*;
use crate::{runtime::engine::EngineError, store::StoreError};

/// Fails, or never goes on, at one phase.
struct At {
    phase: Phase,
    hang: bool,
}

#[async_trait]
impl BootFault for At {
    async fn reached(&self, _sandbox: SandboxId, phase: Phase) -> Result<(), LifeError> {
        if phase != self.phase {
            return Ok(());
        }
        if self.hang {
            std::future::pending::<()>().await;
        }
        Err(LifeError::Guest(format!("injected at {phase:?}")))
    }
}

const PHASES: [Phase; 4] = [Phase::Prepared, Phase::Booted, Phase::Attached, Phase::Active];

#[tokio::test]
async fn a_failure_in_any_phase_leaves_nothing() {
    for phase in PHASES {
        let stage = Stage::new();
        let registry = stage.registry();
        registry.inject(Arc::new(At { phase, hang: false }));
        let error = registry.create(stage.spec()).await.unwrap_err();
        assert!(error.to_string().contains("injected"), "{error}");
        stage.assert_empty(&registry).await;
    }
}

#[tokio::test]
async fn failures_of_engine_and_store_leave_nothing() {
    let stage = Stage::new();
    let registry = stage.registry();
    stage.engine.faults(|faults| faults.create_error = Some("no more ids".to_owned()));
    let error = registry.create(stage.spec()).await.unwrap_err();
    assert!(matches!(error, LifeError::Engine(EngineError::Host { .. })), "{error}");
    stage.assert_empty(&registry).await;
    stage.engine.faults(|faults| faults.create_error = None);

    stage.store.fail_sandbox_writes(Some(StoreError::Backend("no answer".to_owned())));
    let failing = tokio::spawn({
        let (registry, spec) = (registry.clone(), stage.spec());
        async move { registry.create(spec).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    stage.store.fail_sandbox_writes(None);
    let error = timeout(LONG, failing).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, LifeError::Store(_)), "{error}");
    stage.assert_empty(&registry).await;
    assert!(registry.create(stage.spec()).await.is_ok());
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_and_holds_nothing_of_it() {
    let stage = Stage::new();
    let registry = stage.registry();
    let kept = registry.create(stage.spec()).await.unwrap().record;
    stage.store.fail_sandbox_writes(Some(StoreError::Full));
    for _ in 0..3 {
        let refused = timeout(Duration::from_secs(1), registry.create(stage.spec())).await.unwrap();
        assert!(matches!(refused, Err(LifeError::Store(StoreError::Full))), "{refused:?}");
    }
    // Nobody goes on trying to forget what was never kept.
    eventually(|| registry.len() == 1).await;
    let paused =
        timeout(Duration::from_secs(1), registry.pause(stage.team, kept.id, true, false)).await.unwrap();
    assert!(matches!(paused, Err(LifeError::Store(StoreError::Full))), "{paused:?}");
    assert!(registry.target(&kept.id).is_ok(), "it goes on serving");
    assert_eq!(stage.records().await, std::slice::from_ref(&kept));
    stage.store.fail_sandbox_writes(None);
    registry.pause(stage.team, kept.id, true, false).await.unwrap();
    stage.store.fail_sandbox_writes(Some(StoreError::Full));
    let resumed = registry.connect(stage.team, kept.id, Duration::from_mins(1)).await;
    assert!(matches!(resumed, Err(LifeError::Store(StoreError::Full))), "{resumed:?}");
    assert!(registry.is_paused(stage.team, kept.id).unwrap(), "it is paused still");
    stage.store.fail_sandbox_writes(None);
    registry.connect(stage.team, kept.id, Duration::from_mins(1)).await.unwrap();
    registry.kill(stage.team, kept.id).await.unwrap();
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_gateway_that_dies_in_any_phase_is_undone_by_the_next() {
    for phase in PHASES {
        let stage = Stage::new();
        let bystander = stage.registry().create(stage.spec()).await.unwrap().record.id;
        let dying = stage.registry();
        dying.inject(Arc::new(At { phase, hang: true }));
        let spec = stage.spec();
        timeout(Duration::from_millis(200), dying.create(spec)).await.unwrap_err();
        drop(dying);

        let next = stage.registry();
        let recovered = next.recover().await.unwrap();
        assert!(recovered.adopted.contains(&bystander), "{phase:?}");
        if phase == Phase::Active {
            // It was recorded as running: it goes on, and its owner finds it in the list.
            assert_eq!(recovered.adopted.len(), 2);
        } else {
            assert_eq!(recovered.ended.len(), 1, "{phase:?}");
            eventually(|| next.len() == 1).await;
            assert_eq!(stage.engine.live(), [bystander], "{phase:?}");
            assert_eq!(stage.records().await.len(), 1, "{phase:?}");
        }
    }
}

#[tokio::test]
async fn a_restart_finds_what_runs_and_forgets_what_is_gone() {
    let stage = Stage::new();
    stage.engine.listen(8000, Service::Echo);
    let first = stage.registry();
    let [kept, gone, expired, orphan] =
        [(); 4].map(|()| async { first.create(stage.spec()).await.unwrap().record });
    let (kept, gone, expired, orphan) = (kept.await, gone.await, expired.await, orphan.await);
    first.set_timeout(stage.team, expired.id, Duration::from_secs(10)).await.unwrap();
    let token = first.get(stage.team, kept.id).await.unwrap().envd_access_token;
    assert!(first.shutdown(false).await);
    assert!(matches!(first.create(stage.spec()).await, Err(LifeError::ShuttingDown)));
    // Nobody is told that what runs on is dead.
    assert!(matches!(first.get(stage.team, kept.id).await, Err(LifeError::ShuttingDown)));
    assert!(matches!(first.kill(stage.team, kept.id).await, Err(LifeError::ShuttingDown)));
    assert_eq!(first.target(&kept.id).unwrap_err(), NotRunning::Transitioning);
    drop(first);
    assert_eq!(stage.engine.live().len(), 4);
    stage.engine.exit(gone.id);
    stage.store.remove_sandbox(orphan.id).await.unwrap();
    stage.clock.jump(SignedDuration::from_secs(20));
    stage.engine.faults(|faults| faults.adopt_failures = 2);

    let second = stage.registry();
    let recovered = second.recover().await.unwrap();
    assert_eq!(recovered.swept, [orphan.id]);
    assert_eq!(recovered.ended, [gone.id]);
    eventually(|| second.len() == 1).await;
    assert_eq!(stage.engine.live(), [kept.id]);
    assert_eq!(stage.records().await, std::slice::from_ref(&kept));
    let again = second.get(stage.team, kept.id).await.unwrap();
    assert_eq!((again.record, again.envd_access_token), (kept.clone(), token));
    assert_eq!(echo(&second.target(&kept.id).unwrap(), 8000).await, b"hello");
    assert_eq!(stage.engine.guest(kept.id).unwrap().attachments, 2);
    stage.clock.jump(SignedDuration::from_secs(280));
    stage.assert_empty(&second).await;
}

#[tokio::test]
async fn a_kill_that_was_cut_short_is_finished_by_the_next_gateway() {
    let stage = Stage::new();
    let first = stage.registry();
    let id = first.create(stage.spec()).await.unwrap().record.id;
    stage.engine.faults(|faults| faults.stop_failures = u32::MAX);
    timeout(Duration::from_millis(100), first.kill(stage.team, id)).await.unwrap_err();
    assert!(first.shutdown(false).await);
    assert_eq!(stage.records().await[0].state, SandboxState::Killing);
    assert_eq!(stage.engine.live(), [id]);
    stage.engine.faults(|faults| faults.stop_failures = 0);
    let second = stage.registry();
    assert_eq!(second.recover().await.unwrap().ended, [id]);
    stage.assert_empty(&second).await;
}

#[tokio::test]
async fn a_guest_that_is_slow_after_a_restart_serves_and_is_attached_later() {
    let stage = Stage::new();
    let first = stage.registry();
    let id = first.create(stage.spec()).await.unwrap().record.id;
    drop(first);
    stage.engine.faults(|faults| faults.mute = true);
    let second = stage.registry();
    timeout(LONG, second.recover()).await.unwrap().unwrap();
    assert!(second.target(&id).is_ok());
    stage.engine.faults(|faults| faults.mute = false);
    assert!(second.kill(stage.team, id).await.is_ok());
}

#[tokio::test]
async fn a_shutdown_with_sandboxes_ends_those_half_made_too() {
    let stage = Stage::new();
    let registry = stage.registry();
    registry.create(stage.spec()).await.unwrap();
    stage.engine.faults(|faults| faults.create_delay = Duration::from_mins(1));
    let making = tokio::spawn({
        let (registry, spec) = (registry.clone(), stage.spec());
        async move { registry.create(spec).await }
    });
    eventually(|| stage.engine.live().len() == 2).await;
    assert!(registry.shutdown(true).await);
    assert!(matches!(making.await.unwrap(), Err(LifeError::ShuttingDown)));
    stage.assert_empty(&registry).await;
}
