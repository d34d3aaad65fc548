//! Who gets a machine when there is not room for all.

use super::*;
use crate::runtime::engine::EngineError;

fn one_at_a_time() -> Stage {
    let mut stage = Stage::new();
    stage.limits.admission.capacity.sandboxes = Some(1);
    stage
}

fn creating(registry: &Registry, spec: SandboxSpec) -> tokio::task::JoinHandle<Result<Sandbox, LifeError>> {
    let registry = registry.clone();
    tokio::spawn(async move { registry.create(spec).await })
}

async fn in_the_queue(registry: &Registry, count: usize) {
    eventually(|| registry.occupancy().waiting == count).await;
}

#[tokio::test]
async fn creates_wait_for_room_in_the_order_of_arrival() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    let mut running = registry.create(stage.spec()).await.unwrap().record.id;
    let mut waiters = Vec::new();
    for count in 1..=3 {
        waiters.push(creating(&registry, stage.spec()));
        in_the_queue(&registry, count).await;
    }
    assert_eq!((registry.len(), stage.engine.live().len()), (1, 1), "those who wait hold nothing");
    for waiter in waiters.drain(..) {
        assert!(!waiter.is_finished());
        registry.kill(stage.team, running).await.unwrap();
        running = timeout(LONG, waiter).await.unwrap().unwrap().unwrap().record.id;
        assert_eq!(stage.engine.live(), [running]);
    }
    registry.kill(stage.team, running).await.unwrap();
    stage.assert_empty(&registry).await;
    assert_eq!(registry.occupancy().active, Share::default());
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_queue() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    let running = registry.create(stage.spec()).await.unwrap().record.id;
    let gone = creating(&registry, stage.spec());
    in_the_queue(&registry, 1).await;
    let next = creating(&registry, stage.spec());
    in_the_queue(&registry, 2).await;
    gone.abort();
    in_the_queue(&registry, 1).await;
    registry.kill(stage.team, running).await.unwrap();
    let next = timeout(LONG, next).await.unwrap().unwrap().unwrap().record.id;
    assert_eq!(stage.engine.live(), [next]);
    assert_eq!(registry.occupancy().active.sandboxes, 1);
}

#[tokio::test]
async fn a_create_that_fails_gives_its_room_back() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    stage.engine.faults(|faults| faults.create_error = Some("injected".to_owned()));
    let error = registry.create(stage.spec()).await.unwrap_err();
    assert!(matches!(error, LifeError::Engine(EngineError::Host { .. })), "{error}");
    assert_eq!(registry.occupancy().active, Share::default());
    stage.engine.faults(|faults| faults.create_error = None);
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    // A machine that ends by itself gives back too, whatever is still tidied up.
    let next = creating(&registry, stage.spec());
    in_the_queue(&registry, 1).await;
    assert!(stage.engine.exit(id));
    timeout(LONG, next).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_paused_sandbox_makes_room_and_queues_to_come_back() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    let first = registry.create(stage.spec()).await.unwrap().record.id;
    registry.pause(stage.team, first, true, false).await.unwrap();
    let second = registry.create(stage.spec()).await.unwrap().record.id;
    let back = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.connect(team, first, LONG).await }
    });
    in_the_queue(&registry, 1).await;
    // It is changing, not gone; and the queue is not another way past those who wait.
    assert!(registry.get(stage.team, first).await.is_ok());
    assert!(stage.engine.frozen(first));
    let third = creating(&registry, stage.spec());
    in_the_queue(&registry, 2).await;
    registry.kill(stage.team, second).await.unwrap();
    assert_eq!(timeout(LONG, back).await.unwrap().unwrap().unwrap().1, Connected::Resumed);
    assert!(!third.is_finished());
    registry.kill(stage.team, first).await.unwrap();
    timeout(LONG, third).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_resume_whose_client_hangs_up_leaves_the_queue_and_the_sandbox_rests_on() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    let first = registry.create(stage.spec()).await.unwrap().record.id;
    registry.pause(stage.team, first, true, false).await.unwrap();
    let second = registry.create(stage.spec()).await.unwrap().record.id;
    let back = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.connect(team, first, LONG).await }
    });
    in_the_queue(&registry, 1).await;
    back.abort();
    in_the_queue(&registry, 0).await;
    assert!(stage.engine.frozen(first));
    // A kill does not wait for room.
    let back = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.connect(team, first, LONG).await }
    });
    in_the_queue(&registry, 1).await;
    registry.kill(stage.team, first).await.unwrap();
    assert!(matches!(timeout(LONG, back).await.unwrap().unwrap(), Err(LifeError::NotFound(_))));
    assert_eq!(registry.occupancy().waiting, 0);
    registry.kill(stage.team, second).await.unwrap();
    stage.assert_empty(&registry).await;
    assert_eq!(registry.occupancy().active, Share::default());
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_is_told_why() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    let first = registry.create(stage.spec()).await.unwrap().record.id;
    let error = registry.create(stage.spec()).await.unwrap_err();
    assert!(matches!(error, LifeError::NoRoom(Refused::Impatient { ahead: 0, .. })), "{error}");
    registry.pause(stage.team, first, true, false).await.unwrap();
    let second = registry.create(stage.spec()).await.unwrap().record.id;
    let error = registry.connect(stage.team, first, LONG).await.unwrap_err();
    assert!(matches!(error, LifeError::NoRoom(Refused::Impatient { .. })), "{error}");
    assert!(stage.engine.frozen(first));
    registry.kill(stage.team, second).await.unwrap();
    assert!(registry.connect(stage.team, first, LONG).await.is_ok());
}

#[tokio::test]
async fn a_pause_is_charged_what_is_frozen_and_a_pause_without_memory_nothing() {
    let mut stage = Stage::new();
    stage.limits.admission.capacity.memory = Some(100 << 20);
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    let charged = |bytes: u64| registry.occupancy().active.memory == bytes;
    eventually(|| charged(stage.limits.admission.floor)).await;
    // It grew since it was measured last.
    stage.engine.faults(|faults| faults.memory_bytes = 99 << 20);
    registry.pause(stage.team, id, true, false).await.unwrap();
    eventually(|| charged(99 << 20)).await;
    let waits = creating(&registry, stage.spec());
    in_the_queue(&registry, 1).await;
    // What it holds already it does not have to wait for; but others came before.
    let back = tokio::spawn({
        let (registry, team) = (registry.clone(), stage.team);
        async move { registry.connect(team, id, LONG).await }
    });
    in_the_queue(&registry, 2).await;
    waits.abort();
    timeout(LONG, back).await.unwrap().unwrap().unwrap();
    registry.pause(stage.team, id, false, false).await.unwrap();
    eventually(|| charged(0)).await;
    assert!(registry.create(stage.spec()).await.is_ok());
}

#[tokio::test]
async fn a_restart_counts_what_it_finds() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let running = before.create(stage.spec()).await.unwrap().record.id;
    let frozen = before.create(stage.spec()).await.unwrap().record.id;
    before.pause(stage.team, frozen, true, false).await.unwrap();
    let on_disk = before.create(stage.spec()).await.unwrap().record.id;
    before.pause(stage.team, on_disk, false, false).await.unwrap();
    drop(before);

    stage.limits.admission.capacity.sandboxes = Some(1);
    let registry = stage.registry();
    registry.recover().await.unwrap();
    let floor = stage.limits.admission.floor;
    let active = Share { sandboxes: 1, cpus: 2, memory: 2 * floor };
    eventually(|| registry.occupancy().active == active).await;
    let next = creating(&registry, stage.spec());
    in_the_queue(&registry, 1).await;
    registry.kill(stage.team, running).await.unwrap();
    timeout(LONG, next).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_closing_gateway_sends_those_who_wait_away() {
    let stage = one_at_a_time();
    let registry = stage.registry();
    registry.create(stage.spec()).await.unwrap();
    let waiting = creating(&registry, stage.spec());
    in_the_queue(&registry, 1).await;
    assert!(registry.shutdown(true).await);
    assert!(matches!(timeout(LONG, waiting).await.unwrap().unwrap(), Err(LifeError::ShuttingDown)));
    stage.assert_empty(&registry).await;
}
