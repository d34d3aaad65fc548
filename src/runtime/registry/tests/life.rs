//! Create, use, deadlines, end.

use super::*;

#[tokio::test]
async fn a_sandbox_is_made_used_and_ended() {
    let stage = Stage::new();
    stage.engine.listen(8000, Service::Echo);
    let registry = stage.registry();
    let sandbox = registry.create(stage.spec()).await.unwrap();
    let id = sandbox.record.id;
    assert_eq!(sandbox.record.end_at, registry.deadline(Duration::from_mins(5)));
    assert_eq!(sandbox.traffic_access_token, None);

    let init = stage.engine.guest(id).unwrap().init.unwrap();
    assert_eq!(init.sandbox_id, id);
    assert_eq!(init.access_token, sandbox.envd_access_token);
    assert_eq!(init.env_vars["KEY"], "value");
    assert_eq!(registry.get(stage.team, id).await.unwrap().record, sandbox.record);
    assert_eq!(stage.records().await, [sandbox.record]);

    let target = registry.target(&id).unwrap();
    assert_eq!(echo(&target, 8000).await, b"hello");
    registry.kill(stage.team, id).await.unwrap();
    assert!(target.ended.is_cancelled());
    assert_eq!(registry.target(&id).unwrap_err(), NotRunning::NotFound);
    target.link.open(8000).await.err().expect("the machine is gone");
    stage.assert_empty(&registry).await;
    assert!(matches!(registry.kill(stage.team, id).await, Err(LifeError::NotFound(_))));
}

#[tokio::test]
async fn another_team_sees_nothing() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let other = TeamId::generate(&OsEntropy);
    assert!(registry.get(stage.team, id).await.is_ok());
    assert!(matches!(registry.get(other, id).await, Err(LifeError::NotFound(_))));
    assert!(matches!(registry.kill(other, id).await, Err(LifeError::NotFound(_))));
    assert!(matches!(registry.connect(other, id, LONG).await, Err(LifeError::NotFound(_))));
    assert!(registry.kill(stage.team, id).await.is_ok());
}

#[tokio::test]
async fn tokens_follow_the_spec_and_reach_the_proxy() {
    let stage = Stage::new();
    let registry = stage.registry();
    let network = NetworkConfig {
        allow_public_traffic: Some(false),
        mask_request_host: Some("localhost:${PORT}".to_owned()),
        https_ports: vec![8443],
        ..NetworkConfig::default()
    };
    let spec = SandboxSpec { secure: false, network: Some(network), ..stage.spec() };
    let sandbox = registry.create(spec).await.unwrap();
    assert_eq!(sandbox.envd_access_token, None);
    let target = registry.target(&sandbox.record.id).unwrap();
    assert_eq!(target.traffic_access_token.as_deref(), sandbox.traffic_access_token.as_deref());
    assert!(target.traffic_access_token.is_some());
    assert_eq!(target.mask_request_host.as_deref(), Some("localhost:${PORT}"));
    assert_eq!(*target.https_ports, [8443]);
}

#[tokio::test(start_paused = true)]
async fn deadlines_strike_and_can_be_moved() {
    let mut stage = Stage::new();
    stage.limits.max_length = Some(Duration::from_hours(1));
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let start = registry.get(stage.team, id).await.unwrap().record.started_at;
    let end_of = async || registry.get(stage.team, id).await.unwrap().record.end_at;

    registry.connect(stage.team, id, Duration::from_mins(1)).await.unwrap();
    assert_eq!(end_of().await, start + SignedDuration::from_mins(5));
    registry.extend(stage.team, id, Duration::from_mins(10)).await.unwrap();
    assert_eq!(end_of().await, start + SignedDuration::from_mins(10));
    registry.set_timeout(stage.team, id, Duration::from_secs(9999)).await.unwrap();
    assert_eq!(end_of().await, start + SignedDuration::from_secs(3600));
    registry.set_timeout(stage.team, id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(stage.records().await[0].end_at, end_of().await);

    stage.clock.jump(SignedDuration::from_secs(9));
    tokio::time::sleep(LONG).await;
    assert!(registry.target(&id).is_ok());
    stage.clock.jump(SignedDuration::from_secs(1));
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_timeout_of_zero_ends_at_once() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    registry.set_timeout(stage.team, id, Duration::from_secs(1)).await.unwrap();
    assert!(registry.get(stage.team, id).await.is_ok());
    registry.set_timeout(stage.team, id, Duration::ZERO).await.unwrap();
    assert!(matches!(registry.get(stage.team, id).await, Err(LifeError::NotFound(_))));
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_takes_its_sandbox_along() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let target = registry.target(&id).unwrap();
    assert!(stage.engine.exit(id));
    timeout(LONG, target.ended.cancelled()).await.unwrap();
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_kill_vanishes_at_once_and_answers_when_nothing_runs() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let target = registry.target(&id).unwrap();
    stage.engine.faults(|faults| {
        faults.stop_delay = Duration::from_millis(300);
        faults.stop_failures = 2;
        faults.discard_delay = Duration::from_millis(300);
    });
    let killing = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.kill(team, id).await }
    });
    timeout(LONG, target.ended.cancelled()).await.unwrap();
    assert!(!killing.is_finished());
    assert!(matches!(registry.get(stage.team, id).await, Err(LifeError::NotFound(_))));
    assert_eq!(registry.target(&id).unwrap_err(), NotRunning::NotFound);
    assert!(matches!(registry.connect(stage.team, id, LONG).await, Err(LifeError::Transitioning(_))));
    assert!(matches!(registry.extend(stage.team, id, LONG).await, Err(LifeError::NotFound(_))));
    registry.kill(stage.team, id).await.unwrap();
    assert_eq!(stage.engine.live(), []);
    // Answered is answered, though its disk is still there.
    assert_eq!(registry.len(), 1);
    assert!(matches!(registry.connect(stage.team, id, LONG).await, Err(LifeError::NotFound(_))));
    killing.await.unwrap().unwrap();
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_loses_only_the_answer() {
    let stage = Stage::new();
    let registry = stage.registry();
    stage.engine.faults(|faults| faults.create_delay = Duration::from_millis(100));
    timeout(Duration::from_millis(20), registry.create(stage.spec())).await.unwrap_err();
    assert_eq!(registry.len(), 1);
    let id = stage.engine.live()[0];
    assert_eq!(registry.target(&id).unwrap_err(), NotRunning::Transitioning);
    eventually(|| registry.target(&id).is_ok()).await;
    assert!(registry.kill(stage.team, id).await.is_ok());
    stage.assert_empty(&registry).await;
}

#[tokio::test]
async fn a_silent_or_refusing_guest_is_undone() {
    let mut stage = Stage::new();
    stage.limits.guest_timeout = Duration::from_millis(100);
    let registry = stage.registry();
    registry.create(stage.spec()).await.unwrap();
    stage.engine.faults(|faults| faults.mute = true);
    let error = registry.create(stage.spec()).await.unwrap_err();
    assert!(matches!(error, LifeError::Guest(_)), "{error}");
    assert_eq!(registry.len(), 1);
    assert_eq!((stage.engine.live().len(), stage.records().await.len()), (1, 1));
    stage.engine.faults(|faults| {
        faults.mute = false;
        faults.init_error = Some("no such user".to_owned());
    });
    let error = registry.create(stage.spec()).await.unwrap_err();
    assert!(error.to_string().contains("no such user"), "{error}");
    assert_eq!((stage.engine.live().len(), stage.records().await.len()), (1, 1));
}

#[tokio::test]
async fn the_control_stream_is_attached_anew_after_a_cut() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    assert!(stage.engine.guest_log(id, "before"));
    eventually(|| registry.logs(stage.team, id).unwrap().len() == 1).await;
    assert!(stage.engine.cut(id));
    eventually(|| stage.engine.guest(id).unwrap().attachments == 2).await;
    let nonces = stage.engine.guest(id).unwrap().nonces;
    assert_ne!(nonces[0], nonces[1]);
    eventually(|| stage.engine.guest_log(id, "after")).await;
    eventually(|| registry.logs(stage.team, id).unwrap().last().unwrap().message == "after").await;
    registry.ping(stage.team, id).await.unwrap();
    assert!(registry.target(&id).is_ok());
}

#[tokio::test]
async fn the_log_of_an_ended_sandbox_can_be_read_by_its_team() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    assert!(stage.engine.guest_log(id, "last words"));
    eventually(|| registry.logs(stage.team, id).unwrap().len() == 1).await;
    registry.kill(stage.team, id).await.unwrap();
    stage.assert_empty(&registry).await;
    assert_eq!(registry.logs(stage.team, id).unwrap()[0].message, "last words");
    let other = TeamId::generate(&OsEntropy);
    assert!(matches!(registry.logs(other, id), Err(LifeError::NotFound(_))));
    assert!(matches!(registry.get(stage.team, id).await, Err(LifeError::NotFound(_))));
}

#[tokio::test]
async fn many_at_once_are_all_answered() {
    let stage = Stage::new();
    let registry = stage.registry();
    stage.engine.faults(|faults| faults.create_delay = Duration::from_millis(2));
    let mut creates = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (registry, spec) = (registry.clone(), stage.spec());
        creates.spawn(async move { registry.create(spec).await.map(|sandbox| sandbox.record.id) });
    }
    let ids = timeout(LONG, creates.join_all()).await.unwrap();
    assert!(ids.iter().all(Result::is_ok));
    assert_eq!(stage.engine.live().len(), 300);
    assert!(registry.shutdown(true).await);
    stage.assert_empty(&registry).await;
    assert!(matches!(registry.create(stage.spec()).await, Err(LifeError::ShuttingDown)));
}
