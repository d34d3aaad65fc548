//! Pause and resume, by hand, by deadline and by traffic, and what cuts them short.

use super::*;
use crate::sandbox::{ENVD_PORT, OnTimeout};

const FULL: bool = true;
const DISK_ONLY: bool = false;

impl Stage {
    fn sleeper(&self, auto_resume: bool) -> SandboxSpec {
        let lifecycle = Lifecycle { on_timeout: OnTimeout::Pause, auto_resume, auto_pause_memory: true };
        SandboxSpec { lifecycle, ..self.spec() }
    }

    async fn state(&self, registry: &Registry, id: SandboxId) -> SandboxState {
        registry.get(self.team, id).await.unwrap().record.state
    }
}

async fn pause(registry: &Registry, stage: &Stage, id: SandboxId, memory: bool) -> Result<(), LifeError> {
    registry.pause(stage.team, id, memory, false).await
}

#[tokio::test]
async fn a_pause_keeps_memory_and_cuts_streams_and_a_connect_brings_all_back() {
    let stage = Stage::new();
    stage.engine.listen(8000, Service::Echo);
    let registry = stage.registry();
    let made = registry.create(stage.spec()).await.unwrap();
    let id = made.record.id;
    let before = registry.target(&id).unwrap();
    pause(&registry, &stage, id, FULL).await.unwrap();
    assert!(before.ended.is_cancelled() && stage.engine.frozen(id));
    assert_eq!(registry.target(&id).unwrap_err(), NotRunning::Resting);
    let paused = registry.get(stage.team, id).await.unwrap();
    assert_eq!(paused.record.state, SandboxState::Paused);
    assert!(paused.record.machine.is_some(), "a full pause");
    assert_eq!(stage.records().await, [paused.record]);
    assert!(matches!(pause(&registry, &stage, id, FULL).await, Err(LifeError::Paused(_))));
    let set = registry.set_timeout(stage.team, id, LONG).await;
    assert!(matches!(set, Err(LifeError::NotFound(_))));

    stage.clock.jump(SignedDuration::from_hours(9));
    let (again, how) = registry.connect(stage.team, id, Duration::from_mins(2)).await.unwrap();
    assert_eq!(how, Connected::Resumed);
    assert_eq!(again.envd_access_token, made.envd_access_token);
    assert_eq!(again.record.generation, made.record.generation);
    assert_eq!(again.record.end_at, registry.deadline(Duration::from_mins(2)));
    assert!(!stage.engine.frozen(id));
    assert_eq!(echo(&registry.target(&id).unwrap(), 8000).await, b"hello");
    assert_eq!(stage.engine.guest(id).unwrap().attachments, 1, "nobody had to be introduced again");
    assert!(matches!(registry.resume(stage.team, id, LONG).await, Err(LifeError::Running(_))));
    assert!(registry.kill(stage.team, id).await.is_ok());
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_pause_without_memory_keeps_the_disk_for_the_next_machine() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    pause(&registry, &stage, id, DISK_ONLY).await.unwrap();
    assert_eq!((stage.engine.live(), stage.engine.disks()), (vec![], vec![id]));
    assert_eq!(registry.get(stage.team, id).await.unwrap().record.machine, None);
    let resumed = registry.resume(stage.team, id, LONG).await.unwrap();
    assert_eq!(resumed.record.generation, 2);
    assert_eq!((stage.engine.live(), stage.engine.disks()), (vec![id], vec![]));
    assert_eq!(stage.records().await, [resumed.record]);
    pause(&registry, &stage, id, DISK_ONLY).await.unwrap();
    stage.engine.faults(|faults| faults.create_error = Some("no more ids".to_owned()));
    assert!(registry.resume(stage.team, id, LONG).await.is_err());
    assert_eq!(stage.engine.disks(), [id], "a resume that fails loses nothing");
    assert_eq!(stage.state(&registry, id).await, SandboxState::Paused);
    assert!(registry.kill(stage.team, id).await.is_ok());
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn pauses_at_the_same_time_are_one_and_resumes_too() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let pauses = (0..5).map(|_| pause(&registry, &stage, id, FULL));
    for paused in futures_util::future::join_all(pauses).await {
        // One that comes when all is done finds it paused.
        assert!(matches!(paused, Ok(()) | Err(LifeError::Paused(_))), "{paused:?}");
    }
    let connects = (0..5).map(|_| registry.connect(stage.team, id, LONG));
    let connected: Vec<_> = futures_util::future::join_all(connects).await;
    let resumed = connected.iter().filter(|one| matches!(one, Ok((_, Connected::Resumed)))).count();
    let joined = connected.iter().filter(|one| matches!(one, Ok((_, Connected::Running)))).count();
    assert_eq!((resumed, joined), (1, 4));
    assert_eq!(stage.engine.guest(id).unwrap().freezes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_pauses_and_traffic_wakes() {
    let stage = Stage::new();
    let registry = stage.registry();
    let made = registry.create(stage.sleeper(true)).await.unwrap();
    let id = made.record.id;
    stage.clock.jump(SignedDuration::from_secs(300));
    eventually(|| stage.engine.frozen(id)).await;
    eventually(|| registry.target(&id).err() == Some(NotRunning::Resting)).await;
    let stranger = Knock { port: ENVD_PORT, ..Knock::default() };
    assert_eq!(registry.wake(id, stranger).await.unwrap_err(), NotRunning::Denied);
    assert!(stage.engine.frozen(id));
    let owner = Knock { port: ENVD_PORT, access_token: made.envd_access_token, ..Knock::default() };
    let wakes = (0..3).map(|_| registry.wake(id, owner.clone()));
    for woken in futures_util::future::join_all(wakes).await {
        assert_eq!(woken.unwrap().id, id);
    }
    let end_at = registry.get(stage.team, id).await.unwrap().record.end_at;
    assert_eq!(end_at, registry.deadline(Duration::from_mins(5)), "five minutes at least");
    // A public port wants nothing.
    registry.set_timeout(stage.team, id, Duration::ZERO).await.unwrap();
    eventually(|| stage.engine.frozen(id)).await;
    let public = Knock { port: 8000, ..Knock::default() };
    assert_eq!(registry.wake(id, public).await.unwrap().id, id);
}

#[tokio::test]
async fn what_is_not_to_be_woken_is_not_found_by_traffic() {
    let stage = Stage::new();
    let registry = stage.registry();
    let plain = registry.create(stage.sleeper(false)).await.unwrap().record.id;
    let disk = registry.create(stage.sleeper(true)).await.unwrap().record.id;
    pause(&registry, &stage, plain, FULL).await.unwrap();
    pause(&registry, &stage, disk, DISK_ONLY).await.unwrap();
    for id in [plain, disk] {
        let knock = Knock { port: 8000, ..Knock::default() };
        assert_eq!(registry.wake(id, knock).await.unwrap_err(), NotRunning::NotFound);
    }
}

#[tokio::test]
async fn a_pause_that_fails_leaves_a_running_sandbox() {
    let stage = Stage::new();
    stage.engine.listen(8000, Service::Echo);
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    stage.engine.faults(|faults| faults.freeze_failures = 1);
    assert!(matches!(pause(&registry, &stage, id, FULL).await, Err(LifeError::Pause(_))));
    assert_eq!(stage.state(&registry, id).await, SandboxState::Running);
    assert_eq!(stage.records().await[0].state, SandboxState::Running);
    assert_eq!(echo(&registry.target(&id).unwrap(), 8000).await, b"hello");
    stage.engine.faults(|faults| faults.mute = true);
    let strict = registry.pause(stage.team, id, FULL, true).await;
    assert!(matches!(strict, Err(LifeError::Unresponsive)), "{strict:?}");
    assert!(registry.target(&id).is_ok() && !stage.engine.frozen(id));
    pause(&registry, &stage, id, FULL).await.unwrap();
    assert!(stage.engine.frozen(id), "who does not insist gets it");
}

#[tokio::test]
async fn a_memory_that_is_lost_while_paused_leaves_the_disk() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    pause(&registry, &stage, id, FULL).await.unwrap();
    assert!(stage.engine.exit(id));
    timeout(LONG, async {
        while registry.get(stage.team, id).await.unwrap().record.machine.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let log = registry.logs(stage.team, id).unwrap();
    assert!(log.iter().any(|line| line.message.contains("memory")), "its owner is told");
    let (sandbox, how) = registry.connect(stage.team, id, LONG).await.unwrap();
    assert_eq!((sandbox.record.generation, how), (2, Connected::Resumed));
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_change_is_an_end() {
    for (phase, memory) in [(Phase::PauseRecorded, FULL), (Phase::Stopped, FULL), (Phase::Stopped, DISK_ONLY)]
    {
        let stage = Stage::new();
        let registry = stage.registry();
        let id = registry.create(stage.spec()).await.unwrap().record.id;
        let gate = Arc::new(Gate { phase, open: tokio::sync::Semaphore::new(0) });
        registry.inject(Arc::clone(&gate) as Arc<dyn BootFault>);
        let pausing = tokio::spawn({
            let (registry, team) = (registry.clone(), stage.team);
            async move { registry.pause(team, id, memory, false).await }
        });
        eventually(|| registry.target(&id).err() == Some(NotRunning::Resting)).await;
        let killing = tokio::spawn({
            let (registry, team) = (registry.clone(), stage.team);
            async move { registry.kill(team, id).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.open.add_permits(10);
        killing.await.unwrap().unwrap();
        let _ = pausing.await.unwrap();
        stage.assert_empty(&registry).await;
    }
}

/// Goes on at one phase only when it is opened.
struct Gate {
    phase: Phase,
    open: tokio::sync::Semaphore,
}

#[async_trait]
impl BootFault for Gate {
    async fn reached(&self, _sandbox: SandboxId, phase: Phase) -> Result<(), LifeError> {
        if phase == self.phase {
            self.open.acquire().await.unwrap().forget();
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_gateway_that_dies_while_it_pauses_or_resumes_loses_nothing() {
    let pauses = [
        (Phase::PauseRecorded, FULL),
        (Phase::Stopped, FULL),
        (Phase::PauseRecorded, DISK_ONLY),
        (Phase::Stopped, DISK_ONLY),
    ];
    let resumes = [
        (Phase::Thawed, FULL),
        (Phase::Active, FULL),
        (Phase::Booted, DISK_ONLY),
        (Phase::Attached, DISK_ONLY),
        (Phase::Active, DISK_ONLY),
    ];
    // Of one whose memory was kept and is not wanted.
    let reboots = [(Phase::Booted, FULL), (Phase::Attached, FULL), (Phase::Active, FULL)];
    let cases = pauses.map(|case| (case, "pause")).into_iter();
    let cases = cases.chain(resumes.map(|case| (case, "resume"))).chain(reboots.map(|case| (case, "reboot")));
    for ((phase, memory), change) in cases {
        let stage = Stage::new();
        stage.engine.listen(8000, Service::Echo);
        let first = stage.registry();
        let made = first.create(stage.spec()).await.unwrap();
        let id = made.record.id;
        if change != "pause" {
            pause(&first, &stage, id, memory).await.unwrap();
        }
        first.inject(Arc::new(Hang(phase)));
        let bound = Duration::from_millis(100);
        let cut = match change {
            "pause" => timeout(bound, pause(&first, &stage, id, memory)).await.map(drop),
            "resume" => timeout(bound, first.connect(stage.team, id, LONG)).await.map(drop),
            _ => timeout(bound, first.reboot(stage.team, id, LONG)).await.map(drop),
        };
        assert!(cut.is_err(), "{phase:?} was never reached");
        drop(first);
        let next = stage.registry();
        let recovered = next.recover().await.unwrap();
        assert_eq!(recovered.paused.len() + recovered.adopted.len(), 1, "{phase:?} {memory}");
        assert_eq!((recovered.ended, recovered.swept), (vec![], vec![]), "{change} {phase:?} {memory}");
        if phase != Phase::Active {
            assert_eq!(stage.state(&next, id).await, SandboxState::Paused, "{phase:?} {memory}");
            assert!(stage.engine.live().is_empty() || stage.engine.frozen(id));
        }
        let (sandbox, _) = next.connect(stage.team, id, LONG).await.unwrap();
        assert_eq!(sandbox.envd_access_token, made.envd_access_token);
        assert_eq!(echo(&next.target(&id).unwrap(), 8000).await, b"hello");
        assert!(next.kill(stage.team, id).await.is_ok());
        stage.assert_empty(&next).await;
    }
}

#[tokio::test]
async fn paused_sandboxes_outlive_restarts_and_hosts() {
    let stage = Stage::new();
    let first = stage.registry();
    let spec = || stage.spec();
    let frozen = first.create(spec()).await.unwrap().record.id;
    let stored = first.create(spec()).await.unwrap().record.id;
    let rebooted = first.create(spec()).await.unwrap().record.id;
    for (id, memory) in [(frozen, FULL), (stored, DISK_ONLY), (rebooted, FULL)] {
        pause(&first, &stage, id, memory).await.unwrap();
    }
    assert!(first.shutdown(false).await);
    drop(first);
    stage.engine.exit(rebooted);
    let second = stage.registry();
    let recovered = second.recover().await.unwrap();
    assert_eq!((recovered.paused.len(), recovered.adopted.len(), recovered.ended.len()), (3, 0, 0));
    assert!(stage.engine.frozen(frozen));
    let kept = async |id| second.get(stage.team, id).await.unwrap().record.machine.is_some();
    assert!(kept(frozen).await && !kept(stored).await && !kept(rebooted).await);
    for id in [frozen, stored, rebooted] {
        assert_eq!(second.connect(stage.team, id, LONG).await.unwrap().1, Connected::Resumed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_silent_at_its_pause_is_remembered_until_it_runs_again() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    pause(&registry, &stage, id, FULL).await.unwrap();
    assert!(!registry.get(stage.team, id).await.unwrap().record.unresponsive);
    registry.resume(stage.team, id, LONG).await.unwrap();
    stage.engine.faults(|faults| faults.mute = true);
    pause(&registry, &stage, id, FULL).await.unwrap();
    let paused = registry.get(stage.team, id).await.unwrap().record;
    assert!(paused.unresponsive);
    assert_eq!(stage.records().await, [paused], "for the next gateway too");
    stage.engine.faults(|faults| faults.mute = false);
    assert!(!registry.resume(stage.team, id, LONG).await.unwrap().record.unresponsive);
}
