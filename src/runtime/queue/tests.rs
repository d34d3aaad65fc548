//! The policy against single cases and against sequences of requests.

use proptest::prelude::*;

use super::*;

const FREE: Policy = Policy { max_length: None };
const HOUR: Policy = Policy { max_length: Some(Duration::from_hours(1)) };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn running(end: i64) -> Stage {
    Stage::Running { started_at: at(0), end_at: at(end), pauses: false }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn connect_and_extend_never_shorten_and_set_timeout_may() {
    for request in [Request::Connect(seconds(10)), Request::Extend(seconds(10))] {
        assert_eq!(FREE.decide(running(100), request, at(95)), Ok(Verdict::Deadline(at(105))));
        assert_eq!(FREE.decide(running(100), request, at(5)), Ok(Verdict::Keep));
    }
    let shorter = FREE.decide(running(100), Request::SetTimeout(seconds(10)), at(5));
    assert_eq!(shorter, Ok(Verdict::Deadline(at(15))));
}

#[test]
fn the_longest_run_clamps_and_then_refuses() {
    let set = Request::SetTimeout(seconds(7200));
    assert_eq!(HOUR.decide(running(100), set, at(50)), Ok(Verdict::Deadline(at(3600))));
    assert_eq!(HOUR.decide(running(9999), set, at(3601)), Err(Refusal::MaxLength));
    assert_eq!(HOUR.decide(running(3600), Request::Connect(seconds(7200)), at(50)), Ok(Verdict::Keep));
}

#[test]
fn zero_ends_and_a_passed_deadline_is_an_end() {
    let zero = Request::SetTimeout(Duration::ZERO);
    assert_eq!(FREE.decide(running(100), zero, at(50)), Ok(Verdict::TearDown));
    assert_eq!(FREE.decide(running(100), Request::Expire, at(99)), Ok(Verdict::Keep));
    assert_eq!(FREE.decide(running(100), Request::Expire, at(100)), Ok(Verdict::TearDown));
    assert_eq!(
        FREE.decide(running(100), Request::Connect(seconds(9)), at(99)),
        Ok(Verdict::Deadline(at(108)))
    );
    assert_eq!(FREE.decide(running(100), Request::Connect(seconds(9)), at(100)), Err(Refusal::NotFound));
}

#[test]
fn deadlines_beyond_time_are_the_last_time() {
    let far = Request::SetTimeout(Duration::MAX);
    assert_eq!(FREE.decide(running(100), far, at(50)), Ok(Verdict::Deadline(Timestamp::MAX)));
}

#[test]
fn a_deadline_pauses_where_that_is_wanted() {
    let pausing = Stage::Running { started_at: at(0), end_at: at(100), pauses: true };
    assert_eq!(FREE.decide(pausing, Request::Expire, at(99)), Ok(Verdict::Keep));
    assert_eq!(FREE.decide(pausing, Request::Expire, at(100)), Ok(Verdict::Pause));
    let zero = Request::SetTimeout(Duration::ZERO);
    assert_eq!(FREE.decide(pausing, zero, at(50)), Ok(Verdict::Pause));
    // It is there yet: whoever comes in time keeps it awake.
    let connect = Request::Connect(seconds(9));
    assert_eq!(FREE.decide(pausing, connect, at(101)), Ok(Verdict::Deadline(at(110))));
}

#[test]
fn what_comes_in_the_middle_of_a_change_waits_or_is_refused() {
    use Request::{Connect, Pause, Resume, Snapshot, Wake};
    let decide = |stage, request| FREE.decide(stage, request, at(1));
    let connect = Connect(seconds(9));
    let resume = Resume(seconds(9));
    assert_eq!(decide(Stage::Pausing, Pause), Ok(Verdict::Join));
    for request in [connect, resume, Wake] {
        assert_eq!(decide(Stage::Pausing, request), Ok(Verdict::Wait));
        assert_eq!(decide(Stage::Paused, request), Ok(Verdict::Resume));
        assert_eq!(decide(Stage::Resuming, request), Ok(Verdict::Wait));
    }
    assert_eq!(decide(Stage::Paused, Pause), Err(Refusal::Paused));
    assert_eq!(decide(Stage::Resuming, Pause), Err(Refusal::Transitioning));
    assert_eq!(decide(running(100), resume), Err(Refusal::Running));
    for request in [Snapshot, resume, Request::SetTimeout(seconds(1)), Request::SetEgress] {
        assert_eq!(decide(Stage::Snapshotting, request), Err(Refusal::Transitioning));
    }
    for request in [connect, Wake, Pause] {
        assert_eq!(decide(Stage::Snapshotting, request), Ok(Verdict::Wait));
    }
    let (set, extend) = (Request::SetTimeout(seconds(1)), Request::Extend(seconds(1)));
    for request in [Snapshot, set, extend, Request::SetEgress] {
        assert_eq!(decide(Stage::Paused, request), Err(Refusal::NotFound));
        assert_eq!(decide(Stage::Pausing, request), Err(Refusal::Transitioning));
    }
    for stage in [Stage::Pausing, Stage::Paused, Stage::Resuming, Stage::Snapshotting] {
        assert_eq!(decide(stage, Request::End), Ok(Verdict::TearDown));
        assert_eq!(decide(stage, Request::Expire), Ok(Verdict::Keep));
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (0..9000_u64).prop_map(|count| Request::SetTimeout(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Extend(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Connect(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Resume(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Reboot(seconds(count))),
        Just(Request::Wake),
        Just(Request::Pause),
        Just(Request::Snapshot),
        Just(Request::SetEgress),
        Just(Request::Expire),
        Just(Request::End),
    ]
}

proptest! {
    #[test]
    fn sequences_keep_the_rules(
        max_length in proptest::option::of(1..5000_u64),
        pauses in proptest::bool::ANY,
        steps in proptest::collection::vec((any_request(), 0..600_i64, 0..4_u8), 1..60),
    ) {
        let policy = Policy { max_length: max_length.map(seconds) };
        let mut stage = Stage::Creating;
        let (mut now, mut teardowns) = (0, 0);
        for (request, pause, luck) in steps {
            now += pause;
            // What is under way comes to its end some time.
            let run = Stage::Running {
                started_at: at(now),
                end_at: policy.deadline(at(now), at(now), seconds(300)),
                pauses,
            };
            stage = match stage {
                Stage::Creating | Stage::Resuming if luck == 0 => run,
                Stage::Resuming | Stage::Pausing if luck == 1 => Stage::Paused,
                other => other,
            };
            let verdict = policy.decide(stage, request, at(now));
            match (stage, verdict) {
                (Stage::Killing, Ok(verdict)) => prop_assert_eq!(verdict, Verdict::Keep),
                (Stage::Running { started_at, end_at, .. }, Ok(Verdict::Deadline(moved))) => {
                    prop_assert!(pauses || at(now) < end_at, "an ended one came back");
                    if !matches!(request, Request::SetTimeout(_)) {
                        prop_assert!(moved > end_at);
                    }
                    if let Some(length) = max_length {
                        prop_assert!(moved <= later(started_at, seconds(length)));
                    }
                    stage = Stage::Running { started_at, end_at: moved, pauses };
                }
                (_, Ok(Verdict::Deadline(_))) => prop_assert!(false, "a deadline of what does not run"),
                (Stage::Running { .. }, Ok(Verdict::Pause)) => {
                    prop_assert!(pauses || request == Request::Pause);
                    stage = Stage::Pausing;
                }
                (Stage::Running { .. }, Ok(Verdict::Snapshot)) => {}
                (Stage::Paused, Ok(Verdict::Resume)) => stage = Stage::Resuming,
                (_, Ok(Verdict::Pause | Verdict::Resume | Verdict::Snapshot)) => {
                    prop_assert!(false, "{:?} in the middle of {:?}", verdict, stage);
                }
                (_, Ok(Verdict::TearDown)) => {
                    teardowns += 1;
                    stage = Stage::Killing;
                }
                _ => {}
            }
            prop_assert!(teardowns <= 1, "two teardowns");
            if request == Request::End {
                prop_assert_eq!(stage, Stage::Killing);
            }
        }
    }
}
