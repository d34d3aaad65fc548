//! What a full server answers.

use std::time::Duration;

use firkin::runtime::registry::{Limits, Rules};
use serde_json::json;

use super::{Plane, until};

fn rules(limit: u64, queue: usize, patience: Duration) -> Limits {
    let mut rules = Rules { queue, patience, ..Rules::default() };
    rules.capacity.sandboxes = Some(limit);
    Limits { admission: rules, ..Limits::default() }
}

#[tokio::test]
async fn a_create_that_waits_in_vain_is_503_with_a_time_to_come_back() {
    let plane = Plane::with_limits(rules(1, 64, Duration::from_millis(50))).await;
    let id = plane.sandbox().await;
    let refused = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": "base"}))).await;
    let message = refused.error(503).to_owned();
    assert!(message.starts_with("Failed to place sandbox: "), "{message}");
    assert!(message.contains("end sandboxes"), "it says what to do: {message}");
    assert_eq!(refused.body["error_code"], "sandbox_capacity_unavailable");
    assert_eq!(refused.headers["retry-after"], "5");
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    plane.sandbox().await;
}

#[tokio::test]
async fn a_create_that_finds_the_queue_full_is_429_at_once() {
    let plane = Plane::with_limits(rules(1, 1, Duration::from_secs(30))).await;
    let id = plane.sandbox().await;
    let waiting = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": "base"})));
    let more = async {
        until("one waits", async || (plane.state.registry.occupancy().waiting == 1).then_some(())).await;
        let refused = plane.call("POST", "/sandboxes", Some(json!({"templateID": "base"}))).await;
        assert!(refused.error(429).contains("1 requests wait"), "{refused:?}");
        assert_eq!(refused.headers["retry-after"], "2");
        assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    };
    let (waited, ()) = tokio::join!(waiting, more);
    assert_eq!(waited.status, 201, "{waited:?}");
}

#[tokio::test]
async fn a_sandbox_that_never_fits_is_503_and_not_to_be_repeated() {
    let plane = Plane::with_limits({
        let mut limits = rules(9, 64, Duration::from_secs(30));
        limits.admission.capacity.cpus = Some(1);
        limits
    })
    .await;
    let refused = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": "base"}))).await;
    assert!(refused.error(503).contains("never enough CPUs"), "{refused:?}");
    assert_eq!(refused.body["error_code"], "sandbox_no_compatible_node");
    assert_eq!(refused.headers["should-retry"], "false");
    assert!(!refused.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_resume_without_room_is_503_and_the_sandbox_stays_paused() {
    let plane = Plane::with_limits(rules(1, 64, Duration::from_millis(50))).await;
    let id = plane.sandbox().await;
    assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/pause"), None).await.status, 204);
    let other = plane.sandbox().await;
    let path = format!("/v2/sandboxes/{id}/connect");
    let refused = plane.call("POST", &path, Some(json!({"timeout": 60}))).await;
    assert_eq!(refused.headers["retry-after"], "5", "{refused:?}");
    refused.error(503);
    let shown = plane.call("GET", &format!("/sandboxes/{id}"), None).await;
    assert_eq!(shown.body["state"], "paused", "{shown:?}");
    // Each fork that finds no room says so in its own place.
    let forks = plane.call("POST", &format!("/sandboxes/{other}/fork"), Some(json!({"count": 2}))).await;
    assert_eq!(forks.status, 201, "{forks:?}");
    for fork in forks.body.as_array().unwrap() {
        assert_eq!(fork["error"]["code"], 503, "{forks:?}");
    }
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{other}"), None).await.status, 204);
    assert_eq!(plane.call("POST", &path, Some(json!({"timeout": 60}))).await.status, 201);
}

#[tokio::test]
async fn a_key_of_a_create_that_found_no_room_serves_its_repeat() {
    let plane = Plane::with_limits(rules(1, 64, Duration::from_millis(50))).await;
    let id = plane.sandbox().await;
    let create = async || {
        let request = super::request("POST", "/v2/sandboxes")
            .header("x-api-key", &plane.key)
            .header("idempotency-key", "again")
            .body(axum::body::Body::from(json!({"templateID": "base"}).to_string()))
            .unwrap();
        plane.send(request).await
    };
    let refused = create().await;
    refused.error(503);
    assert_eq!(refused.headers["retry-after"], "5", "{refused:?}");
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    let made = create().await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(create().await.body["sandboxID"], made.body["sandboxID"]);
}
