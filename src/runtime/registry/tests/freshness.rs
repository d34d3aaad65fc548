//! Gates: asked for by labels, told by the guest, decided from outside, kept over every change.

use super::*;
use crate::sandbox::freshness::{Phase as GatePhase, Verdict};

impl Stage {
    fn gated(&self) -> SandboxSpec {
        let labels = [("firkin.sync.branch", "main"), ("firkin.sync.target", "origin/main")];
        let metadata = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        SandboxSpec { metadata, ..self.spec() }
    }
}

fn complete() -> Verdict {
    Verdict::Complete { target: Some("abc123".to_owned()) }
}

fn phase(registry: &Registry, id: SandboxId) -> GatePhase {
    registry.freshness(id).unwrap().expect("a gate").phase
}

#[tokio::test]
async fn labels_that_ask_for_nonsense_make_no_sandbox() {
    let stage = Stage::new();
    let registry = stage.registry();
    let mut spec = stage.gated();
    spec.metadata.insert("firkin.sync.branch".to_owned(), "--upload-pack=sh".to_owned());
    let refused = registry.create(spec).await.unwrap_err();
    assert!(
        matches!(&refused, LifeError::Nonsense(text) if text.contains("firkin.sync.branch")),
        "{refused}"
    );
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_sandbox_without_labels_has_no_gate_to_decide_on() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    assert_eq!(registry.freshness(id).unwrap(), None);
    assert!(matches!(registry.judge(id, complete()).await, Err(LifeError::Nonsense(_))));
}

#[tokio::test]
async fn a_verdict_is_recorded_when_it_is_answered_and_in_the_sandboxs_log_and_trace() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.gated()).await.unwrap().record.id;
    assert_eq!(stage.engine.guest(id).unwrap().init.unwrap().freshness.unwrap().branch, "main");
    let failed = registry.judge(id, Verdict::Fail { reason: "no route".to_owned() }).await.unwrap();
    assert_eq!((failed.phase, failed.reason.as_deref()), (GatePhase::Failed, Some("no route")));
    let ready = registry.judge(id, complete()).await.unwrap();
    assert_eq!((ready.phase, &*ready.target, ready.reason.as_deref()), (GatePhase::Ready, "abc123", None));
    assert_eq!(stage.records().await[0].freshness.as_ref(), Some(&ready));
    let lines = registry.logs(stage.team, id).unwrap();
    assert!(lines.iter().any(|line| line.message.contains("no route") && line.level == "warn"), "{lines:?}");
    let trace = registry.traces(Some(id), 1).remove(0);
    assert!(trace.events.iter().any(|event| event.name == Happening::WorkspaceReady));
    let wrong = Verdict::Complete { target: Some("-x".to_owned()) };
    assert!(matches!(registry.judge(id, wrong).await, Err(LifeError::Nonsense(_))));
}

#[tokio::test]
async fn what_was_decided_survives_a_pause_of_either_kind_and_the_next_gateway() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.gated()).await.unwrap().record.id;
    registry.judge(id, complete()).await.unwrap();
    for memory in [true, false] {
        registry.pause(stage.team, id, memory, false).await.unwrap();
        assert!(matches!(registry.judge(id, complete()).await, Err(LifeError::Paused(_))));
        assert_eq!(phase(&registry, id), GatePhase::Ready, "shown while it is paused");
        registry.resume(stage.team, id, LONG).await.unwrap();
        assert_eq!(phase(&registry, id), GatePhase::Ready);
    }
    let second = stage.engine.guest(id).unwrap();
    assert_eq!(
        second.init.unwrap().freshness.unwrap().phase,
        GatePhase::Ready,
        "a new machine begins with it"
    );
    assert!(registry.shutdown(false).await);
    drop(registry);
    let registry = stage.registry();
    registry.recover().await.unwrap();
    assert_eq!(phase(&registry, id), GatePhase::Ready);
}

#[tokio::test]
async fn a_fork_begins_with_a_gate_of_its_own() {
    let stage = Stage::new();
    let registry = stage.registry();
    let first = registry.create(stage.gated()).await.unwrap();
    registry.judge(first.record.id, complete()).await.unwrap();
    let sealed = registry.seal(stage.team, first.record.id).await.unwrap();
    let spec = SandboxSpec { build: sealed.build, ..sealed.record.spec.clone() };
    let fork = registry.create(spec).await.unwrap().record.id;
    assert_eq!(phase(&registry, fork), GatePhase::Restored);
    assert_eq!(registry.freshness(fork).unwrap().unwrap().target, "origin/main");
}
