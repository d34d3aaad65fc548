//! The policy against single cases and against sequences of requests.

use proptest::prelude::*;

use super::*;

const FREE: Policy = Policy { max_length: None };
const HOUR: Policy = Policy { max_length: Some(Duration::from_hours(1)) };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn running(end: i64) -> Stage {
    Stage::Running { started_at: at(0), end_at: at(end) }
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

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (0..9000_u64).prop_map(|count| Request::SetTimeout(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Extend(seconds(count))),
        (0..9000_u64).prop_map(|count| Request::Connect(seconds(count))),
        Just(Request::Expire),
        Just(Request::End),
    ]
}

proptest! {
    #[test]
    fn sequences_keep_the_rules(
        max_length in proptest::option::of(1..5000_u64),
        ready_after in 0..4_usize,
        steps in proptest::collection::vec((any_request(), 0..600_i64), 1..60),
    ) {
        let policy = Policy { max_length: max_length.map(seconds) };
        let mut stage = Stage::Creating;
        let (mut now, mut teardowns) = (0, 0);
        for (index, (request, pause)) in steps.into_iter().enumerate() {
            now += pause;
            if index == ready_after && stage == Stage::Creating {
                let end_at = policy.deadline(at(now), at(now), seconds(300));
                stage = Stage::Running { started_at: at(now), end_at };
            }
            let verdict = policy.decide(stage, request, at(now));
            match (stage, verdict) {
                (Stage::Killing, Ok(verdict)) => prop_assert_eq!(verdict, Verdict::Keep),
                (Stage::Creating, Ok(Verdict::Deadline(_))) => prop_assert!(false, "a deadline before the start"),
                (Stage::Running { started_at, end_at }, Ok(Verdict::Deadline(moved))) => {
                    prop_assert!(at(now) < end_at, "an ended one came back");
                    if !matches!(request, Request::SetTimeout(_)) {
                        prop_assert!(moved > end_at);
                    }
                    if let Some(length) = max_length {
                        prop_assert!(moved <= later(started_at, seconds(length)));
                    }
                    stage = Stage::Running { started_at, end_at: moved };
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
