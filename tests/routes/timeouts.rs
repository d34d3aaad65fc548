//! Deadlines as the routes set them, with and without a longest run (contract/control-plane 2.5-2.8).

use std::time::Duration;

use firkin::clock::Clock as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Answer, Plane};

const MAX: i64 = 3600;

async fn plane() -> Plane {
    Plane::with_max(Some(Duration::from_hours(1))).await
}

async fn create(plane: &Plane, mut body: Value) -> String {
    body["templateID"] = json!("base");
    let made = plane.call("POST", "/v2/sandboxes", Some(body)).await;
    made.body["sandboxID"].as_str().unwrap().to_owned()
}

async fn post(plane: &Plane, id: &str, tail: &str, body: Value) -> Answer {
    plane.call("POST", &format!("/sandboxes/{id}/{tail}"), Some(body)).await
}

async fn detail(plane: &Plane, id: &str) -> Value {
    plane.call("GET", &format!("/sandboxes/{id}"), None).await.body
}

/// Seconds from now to the deadline.
async fn left(plane: &Plane, id: &str) -> i64 {
    let end: Timestamp = detail(plane, id).await["endAt"].as_str().unwrap().parse().unwrap();
    end.duration_since(plane.clock.now()).as_secs()
}

fn later(plane: &Plane, seconds: i64) {
    plane.clock.jump(SignedDuration::from_secs(seconds));
}

#[tokio::test]
async fn the_longest_run_clamps_what_moves_a_deadline_and_refuses_what_asks_for_more() {
    let plane = plane().await;
    let id = create(&plane, json!({"timeout": 3000})).await;
    later(&plane, 600);
    assert_eq!(post(&plane, &id, "timeout", json!({"timeout": 1_000_000})).await.status, 204);
    assert_eq!(left(&plane, &id).await, MAX - 600, "what is left of this run");
    assert_eq!(post(&plane, &id, "timeout", json!({"timeout": 100})).await.status, 204);
    assert_eq!(left(&plane, &id).await, 100, "shorter");
    assert_eq!(post(&plane, &id, "refreshes", json!({"duration": 3600})).await.status, 204);
    assert_eq!(left(&plane, &id).await, MAX - 600);
    assert_eq!(post(&plane, &id, "connect", json!({"timeout": 3600})).await.status, 200);
    assert_eq!(left(&plane, &id).await, MAX - 600);
    for (path, body) in [
        ("connect", json!({"timeout": 3601})),
        ("resume", json!({"timeout": 3601})),
        ("resume", json!({"timeout": 0})),
    ] {
        let message = post(&plane, &id, path, body).await;
        let want = ["Timeout cannot be greater than 1 hours", "Timeout must be greater than 0"];
        assert!(want.contains(&message.error(400)), "{message:?}");
    }
}

#[tokio::test]
async fn refreshes_have_a_least_length_and_connects_may_be_empty() {
    let plane = Plane::new().await;
    let id = create(&plane, json!({"timeout": 5})).await;
    for (body, seconds) in [(json!({}), 15), (json!({"duration": 0}), 15), (json!({"duration": 16}), 16)] {
        assert_eq!(post(&plane, &id, "refreshes", body.clone()).await.status, 204);
        assert_eq!(left(&plane, &id).await, seconds, "{body}");
    }
    let bare = plane.call("POST", &format!("/sandboxes/{id}/refreshes"), None).await;
    assert_eq!(bare.status, 204);
    assert_eq!(post(&plane, &id, "connect", json!({"timeout": 0})).await.status, 200);
    assert_eq!(left(&plane, &id).await, 16, "never shortens");
    let zero = plane.call("POST", &format!("/v2/sandboxes/{id}/connect"), Some(json!({"timeout": 0}))).await;
    assert_eq!(zero.error(400), "Timeout must be greater than 0");
    let v2 = plane.call("POST", &format!("/v2/sandboxes/{id}/connect"), None).await;
    assert_eq!((v2.status.as_u16(), left(&plane, &id).await), (200, 300));
}

#[tokio::test]
async fn each_run_has_its_own_longest_length() {
    let plane = plane().await;
    let id = create(&plane, json!({"timeout": 3600, "metadata": {"a": "b"}})).await;
    later(&plane, 3000);
    assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/pause"), None).await.status, 204);
    for tail in ["timeout", "refreshes"] {
        let refused = post(&plane, &id, tail, json!({"timeout": 60, "duration": 60})).await;
        assert!(refused.error(404).contains(&id), "{tail}");
    }
    later(&plane, 100_000);
    assert_eq!(post(&plane, &id, "connect", json!({"timeout": 1800})).await.status, 201);
    assert_eq!(left(&plane, &id).await, 1800);
    assert_eq!(post(&plane, &id, "timeout", json!({"timeout": 9999})).await.status, 204);
    assert_eq!(left(&plane, &id).await, MAX, "counted from the resume");
    assert_eq!(detail(&plane, &id).await["metadata"], json!({"a": "b"}));
}

#[tokio::test]
async fn zero_is_now_and_what_now_means_was_said_at_the_start() {
    let plane = Plane::new().await;
    let killed = create(&plane, json!({})).await;
    assert_eq!(post(&plane, &killed, "timeout", json!({"timeout": 0})).await.status, 204);
    plane.call("GET", &format!("/sandboxes/{killed}"), None).await.error(404);
    let paused = create(&plane, json!({"autoPause": true})).await;
    assert_eq!(post(&plane, &paused, "timeout", json!({"timeout": 0})).await.status, 204);
    assert_eq!(detail(&plane, &paused).await["state"], "paused");
}

#[tokio::test]
async fn a_deadline_that_strikes_is_seen_within_seconds() {
    let plane = Plane::new().await;
    let (killed, paused) = (
        create(&plane, json!({"timeout": 60})).await,
        create(&plane, json!({"timeout": 60, "autoPause": true})).await,
    );
    later(&plane, 61);
    let struck = async || {
        let gone = plane.call("GET", &format!("/sandboxes/{killed}"), None).await.status == 404;
        gone && detail(&plane, &paused).await["state"] == "paused"
    };
    let started = std::time::Instant::now();
    while !struck().await {
        assert!(started.elapsed() < Duration::from_secs(10), "the deadline passed unseen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(post(&plane, &killed, "timeout", json!({"timeout": 60})).await.status, 404);
}

#[tokio::test]
async fn a_clock_that_jumps_back_gives_no_run_more_than_its_longest() {
    let plane = plane().await;
    let id = create(&plane, json!({"timeout": 600})).await;
    later(&plane, -7200);
    assert_eq!(post(&plane, &id, "timeout", json!({"timeout": 3600})).await.status, 204);
    let detail = detail(&plane, &id).await;
    let time = |name: &str| detail[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(time("endAt").duration_since(time("startedAt")).as_secs() <= MAX);
}

#[tokio::test]
async fn a_wall_clock_that_is_set_strikes_nothing_and_moves_what_is_shown() {
    let plane = plane().await;
    let id = create(&plane, json!({"timeout": 600})).await;
    let time = |detail: &Value, name: &str| detail[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    let before = detail(&plane, &id).await;
    for hours in [24, -72] {
        plane.clock.set_wall(SignedDuration::from_hours(hours));
        // One whose time does come shows that deadlines were looked at meanwhile.
        let short = create(&plane, json!({"timeout": 5})).await;
        later(&plane, 6);
        let started = std::time::Instant::now();
        while plane.call("GET", &format!("/sandboxes/{short}"), None).await.status != 404 {
            assert!(started.elapsed() < Duration::from_secs(10), "the deadline passed unseen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let after = detail(&plane, &id).await;
    for name in ["startedAt", "endAt"] {
        assert_eq!(time(&after, name) - time(&before, name), SignedDuration::from_hours(-48), "{name}");
    }
    assert_eq!(left(&plane, &id).await, 600 - 12);
    let listed = plane.call("GET", "/v2/sandboxes", None).await;
    assert_eq!(
        (&listed.body[0]["endAt"], &listed.body[0]["startedAt"]),
        (&after["endAt"], &after["startedAt"])
    );
    for (start, count) in [(0, 1), (1, 0)] {
        let start = time(&after, "startedAt") + SignedDuration::from_secs(start);
        let listed = plane.call("GET", &format!("/v2/sandboxes?startedAfter={start}"), None).await;
        assert_eq!(listed.body.as_array().unwrap().len(), count, "{start}");
    }
    assert_eq!(post(&plane, &id, "timeout", json!({"timeout": 1_000_000})).await.status, 204);
    assert_eq!(left(&plane, &id).await, MAX - 12, "the longest run is counted by the steady clock");
}
