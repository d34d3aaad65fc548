//! Guests that do not answer.

use super::*;

/// As [`eventually`], for what takes minutes.
async fn in_time(done: impl Fn() -> bool) {
    timeout(Duration::from_mins(5), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .expect("in time");
}

fn happened(registry: &Registry, id: SandboxId, name: Happening) -> bool {
    registry.traces(Some(id), 1)[0].events.iter().any(|event| event.name == name)
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_is_told_once_and_so_is_its_return() {
    let stage = Stage::new();
    let registry = stage.registry();
    let id = registry.create(stage.spec()).await.unwrap().record.id;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(registry.tally().silent_guests, 0);
    stage.engine.faults(|faults| faults.mute = true);
    in_time(|| registry.tally().silent_guests == 1).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!(happened(&registry, id, Happening::GuestSilent));
    let told = |level: &str| {
        let lines = registry.logs(stage.team, id).unwrap();
        lines.iter().filter(|line| line.level == level && line.message.contains("the guest")).count()
    };
    assert_eq!((told("warn"), told("info")), (1, 0));
    assert!(registry.target(&id).is_ok(), "its processes may go on");
    stage.engine.faults(|faults| faults.mute = false);
    stage.engine.cut(id);
    in_time(|| registry.tally().silent_guests == 0).await;
    assert!(happened(&registry, id, Happening::GuestAnswered));
    assert_eq!((told("warn"), told("info")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_or_rests_is_not_silent() {
    let stage = Stage::new();
    let registry = stage.registry();
    let (killed, paused) = (
        registry.create(stage.spec()).await.unwrap().record.id,
        registry.create(stage.spec()).await.unwrap().record.id,
    );
    stage.engine.faults(|faults| faults.mute = true);
    in_time(|| registry.tally().silent_guests == 2).await;
    registry.kill(stage.team, killed).await.unwrap();
    registry.pause(stage.team, paused, true, false).await.unwrap();
    in_time(|| registry.tally().silent_guests == 0).await;
}
