//! Seats and the queue.

use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};

use super::*;

const ONE: Share = Share { sandboxes: 1, cpus: 0, memory: 10 };

fn admission(capacity: Capacity, queue: usize) -> Arc<Admission> {
    Admission::new(Rules { capacity, queue, floor: 10, ..Rules::default() })
}

fn sandboxes(most: u64) -> Capacity {
    Capacity { sandboxes: Some(most), ..Capacity::default() }
}

fn memory(most: u64) -> Capacity {
    Capacity { memory: Some(most), ..Capacity::default() }
}

/// One more that waits, when this returns.
async fn waiting(admission: &Arc<Admission>, need: Share) -> JoinHandle<Result<Seat, Refused>> {
    let before = admission.occupancy().waiting;
    let task = tokio::spawn({
        let admission = Arc::clone(admission);
        async move { admission.admit(need).await }
    });
    while admission.occupancy().waiting == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test(start_paused = true)]
async fn seats_are_given_in_the_order_of_arrival() {
    let admission = admission(sandboxes(1), 9);
    let mut seat = admission.admit(ONE).await.unwrap();
    let mut waiters = Vec::new();
    for _ in 0..5 {
        waiters.push(waiting(&admission, ONE).await);
    }
    for waiter in waiters.drain(..) {
        assert!(!waiter.is_finished());
        drop(seat);
        seat = waiter.await.unwrap().unwrap();
    }
    let occupancy = admission.occupancy();
    assert_eq!((occupancy.waiting, occupancy.waited, occupancy.active.sandboxes), (0, 5, 1));
    drop(seat);
    assert_eq!(admission.occupancy().active, Share::default());
}

#[tokio::test(start_paused = true)]
async fn a_small_one_does_not_overtake_a_large_one() {
    let admission = admission(memory(100), 9);
    let first = admission.admit(Share { memory: 60, ..ONE }).await.unwrap();
    let large = waiting(&admission, Share { memory: 90, ..ONE }).await;
    let small = waiting(&admission, Share { memory: 5, ..ONE }).await;
    drop(first);
    let large = large.await.unwrap().unwrap();
    // There is room for both.
    let small = small.await.unwrap().unwrap();
    assert_eq!(admission.occupancy().active.memory, 95);
    drop((large, small));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_queue_lets_the_next_one_in() {
    let admission = admission(memory(100), 9);
    let seat = admission.admit(Share { memory: 60, ..ONE }).await.unwrap();
    let large = waiting(&admission, Share { memory: 90, ..ONE }).await;
    let small = waiting(&admission, Share { memory: 5, ..ONE }).await;
    large.abort();
    assert!(large.await.unwrap_err().is_cancelled());
    small.await.unwrap().unwrap();
    drop(seat);
    assert_eq!(admission.occupancy().active, Share::default());
}

#[tokio::test(start_paused = true)]
async fn a_seat_for_one_who_has_gone_is_the_next_ones() {
    let admission = admission(sandboxes(1), 9);
    let seat = admission.admit(ONE).await.unwrap();
    let gone = waiting(&admission, ONE).await;
    let next = waiting(&admission, ONE).await;
    // Granted, and not yet taken by the task that waits for it.
    drop(seat);
    gone.abort();
    let _ = gone.await;
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn patience_ends_and_the_queue_is_bounded() {
    let admission = admission(sandboxes(1), 2);
    let seat = admission.admit(ONE).await.unwrap();
    let first = waiting(&admission, ONE).await;
    sleep(Duration::from_secs(10)).await;
    let second = waiting(&admission, ONE).await;
    assert_eq!(admission.admit(ONE).await.unwrap_err(), Refused::QueueFull(2));
    let waited = Duration::from_secs(30);
    let refused = first.await.unwrap().unwrap_err();
    assert_eq!(refused, Refused::Impatient { scarce: Scarce::Sandboxes, waited, ahead: 0 });
    assert!(!second.is_finished());
    drop(seat);
    second.await.unwrap().unwrap();
    let oversized = Share { sandboxes: 2, ..ONE };
    assert_eq!(admission.admit(oversized).await.unwrap_err(), Refused::Oversized(Scarce::Sandboxes));
    let occupancy = admission.occupancy();
    assert_eq!((occupancy.queue_full, occupancy.impatient, occupancy.oversized), (1, 1, 1));
    assert_eq!((occupancy.active, occupancy.waiting), (Share::default(), 0));
}

#[tokio::test(start_paused = true)]
async fn memory_is_charged_as_it_is_measured_and_nobody_is_turned_out() {
    let admission = admission(memory(100), 9);
    let seat = admission.admit(ONE).await.unwrap();
    seat.measured(95);
    let next = waiting(&admission, ONE).await;
    seat.measured(300);
    assert_eq!(admission.occupancy().active.memory, 300);
    seat.measured(1);
    assert_eq!(
        next.await.unwrap().map(|next| next.held.lock().share.memory),
        Ok(10),
        "never below the floor"
    );
    assert_eq!(admission.occupancy().active.memory, 10);
    // What was given back is not charged again by a late measurement.
    seat.give_back();
    seat.measured(50);
    assert_eq!(admission.occupancy().active, Share::default());

    let strict =
        Admission::new(Rules { charge: Charge::Limit, capacity: memory(1 << 30), ..Rules::default() });
    let size = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1 };
    let seat = strict.admit(strict.share(size)).await.unwrap();
    seat.measured(1);
    assert_eq!(strict.occupancy().active.memory, 512 << 20);
}

#[tokio::test(start_paused = true)]
async fn one_that_rests_keeps_the_memory_that_it_holds_and_nothing_else() {
    let size = Resources { cpu_count: 4, memory_mb: 512, disk_mb: 1 };
    let capacity = Capacity { sandboxes: Some(1), cpus: Some(4), memory: Some(100) };
    let admission = admission(capacity, 9);
    let seat = admission.admit(admission.share(size)).await.unwrap();
    seat.measured(70);
    seat.rest(true);
    assert_eq!(admission.occupancy().active, Share { memory: 70, ..Share::default() });
    assert_eq!(seat.wants(size), Share { sandboxes: 1, cpus: 4, memory: 0 });
    let other = admission.admit(admission.share(size)).await.unwrap();
    let back = waiting(&admission, seat.wants(size)).await;
    drop(other);
    seat.join(&back.await.unwrap().unwrap());
    assert_eq!(admission.occupancy().active, Share { sandboxes: 1, cpus: 4, memory: 70 });
    seat.rest(false);
    assert_eq!(admission.occupancy().active, Share::default());
    assert_eq!(seat.wants(size).memory, 10);
}

#[tokio::test(start_paused = true)]
async fn warm_machines_are_asked_to_go_before_anybody_is_turned_away() {
    let size = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1 };
    let admission = admission(memory(100), 0);
    let warm = admission.spare(size).unwrap();
    warm.measured(50);
    let seat = admission.admit(Share { memory: 45, ..ONE }).await.unwrap();
    assert!(admission.spare(size).is_none(), "no room");
    let pressed = tokio::spawn({
        let admission = Arc::clone(&admission);
        async move { admission.pressed().await }
    });
    let next = waiting(&admission, ONE).await;
    pressed.await.unwrap();
    assert_eq!(admission.short_of(), 5);
    assert_eq!(admission.admit(ONE).await.unwrap_err(), Refused::QueueFull(1));
    drop(warm);
    let next = next.await.unwrap().unwrap();
    assert_eq!(admission.short_of(), 0);
    // More is used than there is: warm machines go before anybody is in need.
    drop(next);
    let warm = admission.spare(size).unwrap();
    seat.measured(95);
    admission.pressed().await;
    assert_eq!(admission.short_of(), 5);
    drop(warm);
}

#[tokio::test(start_paused = true)]
async fn a_warm_machine_is_taken_with_its_share_but_overtakes_nobody() {
    let size = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1 };
    let capacity = Capacity { sandboxes: Some(1), memory: Some(15), ..Capacity::default() };
    let admission = admission(capacity, 9);
    let need = admission.share(size);
    let warm = admission.spare(size).unwrap();
    assert!(admission.spare(size).is_none());
    let seat = warm.promote(need).unwrap();
    assert!(warm.promote(need).is_none(), "once");
    drop(warm);
    assert_eq!((admission.occupancy().warm, admission.occupancy().active), (Share::default(), need));
    seat.rest(false);
    let warm = admission.spare(size).unwrap();
    seat.join(&admission.take_over(Share { sandboxes: 1, ..Share::default() }));
    assert!(warm.promote(need).is_none(), "as many run as may");
    let next = waiting(&admission, need).await;
    drop(seat);
    // It waits for the memory of the warm machine; a newcomer does not get that.
    assert!(warm.promote(need).is_none());
    drop(warm);
    next.await.unwrap().unwrap();
}
