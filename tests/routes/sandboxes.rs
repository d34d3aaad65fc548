//! The life of a sandbox over HTTP: shapes, statuses, deadlines.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Plane;

async fn end_at(plane: &Plane, id: &str) -> Timestamp {
    let detail = plane.call("GET", &format!("/sandboxes/{id}"), None).await;
    detail.body["endAt"].as_str().unwrap().parse().unwrap()
}

fn no_nulls(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => items.iter().all(no_nulls),
        Value::Object(fields) => fields.values().all(no_nulls),
        _ => true,
    }
}

#[tokio::test]
async fn create_and_get_answer_what_the_sdks_need() {
    let plane = Plane::new().await;
    let made = plane
        .call("POST", "/v2/sandboxes", Some(json!({"templateID": "base", "metadata": {"a": "b"}})))
        .await;
    assert_eq!(made.status, 201);
    assert!(no_nulls(&made.body));
    let id = made.body["sandboxID"].as_str().unwrap();
    assert!(id.len() == 21 && id.starts_with('i'));
    assert_eq!(made.body["clientID"], "6532622b");
    assert_eq!(made.body["alias"], "base");
    assert_eq!(made.body["domain"], "firkin.test:3000");
    assert_eq!(made.body["envdVersion"], "0.6.13");
    assert!(made.body["envdAccessToken"].as_str().is_some_and(|token| token.len() == 64));
    assert!(made.body.get("trafficAccessToken").is_none());

    let detail = plane.call("GET", &format!("/sandboxes/{id}"), None).await;
    assert_eq!(detail.status, 200);
    assert!(no_nulls(&detail.body));
    assert_eq!(detail.body["envdAccessToken"], made.body["envdAccessToken"]);
    assert_eq!(detail.body["state"], "running");
    assert_eq!(detail.body["metadata"], json!({"a": "b"}));
    assert_eq!(detail.body["lifecycle"], json!({"autoResume": false, "onTimeout": "kill"}));
    assert_eq!(detail.body["volumeMounts"], json!([]));
    for field in ["startedAt", "endAt", "cpuCount", "memoryMB", "diskSizeMB", "templateID", "domain"] {
        assert!(detail.body.get(field).is_some(), "{field}");
    }
    assert!(detail.body.get("network").is_none());
}

#[tokio::test]
async fn what_was_asked_for_is_kept_and_tokens_are_given_when_wanted() {
    let plane = Plane::new().await;
    let body = json!({
        "templateID": "base", "autoPause": true, "autoResume": {"enabled": true},
        "allow_internet_access": false, "network": {"allowPublicTraffic": false, "denyOut": ["1.1.1.1"]},
    });
    let made = plane.call("POST", "/v2/sandboxes", Some(body)).await;
    assert!(made.body["trafficAccessToken"].is_string(), "{made:?}");
    let detail =
        plane.call("GET", &format!("/sandboxes/{}", made.body["sandboxID"].as_str().unwrap()), None).await;
    assert_eq!(detail.body["lifecycle"], json!({"autoResume": true, "onTimeout": "pause"}));
    assert_eq!(detail.body["allowInternetAccess"], false);
    assert_eq!(detail.body["network"], json!({"allowPublicTraffic": false, "denyOut": ["1.1.1.1"]}));
    assert!(detail.body.get("trafficAccessToken").is_none(), "a GET never shows it");

    let open = json!({"templateID": "base", "secure": false});
    let v1 = plane.call("POST", "/sandboxes", Some(open.clone())).await;
    assert!(v1.body.get("envdAccessToken").is_none());
    let v2 = plane.call("POST", "/v2/sandboxes", Some(open)).await;
    assert!(v2.body["envdAccessToken"].is_string(), "v2 is always secured");
}

#[tokio::test]
async fn the_generations_differ_in_their_default_timeout() {
    let plane = Plane::new().await;
    for (path, seconds) in [("/sandboxes", 15), ("/v2/sandboxes", 300)] {
        let made = plane.call("POST", path, Some(json!({"templateID": "base"}))).await;
        let end = end_at(&plane, made.body["sandboxID"].as_str().unwrap()).await;
        assert_eq!(end, plane.state.registry.deadline(std::time::Duration::from_secs(seconds)));
    }
}

#[tokio::test]
async fn deadlines_move_as_each_route_promises() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    let first = end_at(&plane, &id).await;
    let post = async |tail: &str, body: Value| {
        let answer = plane.call("POST", &format!("/sandboxes/{id}{tail}"), Some(body)).await;
        (answer.status.as_u16(), end_at(&plane, &id).await - first)
    };
    let by = |seconds: i64| SignedDuration::from_secs(seconds);
    assert_eq!(post("/timeout", json!({"timeout": 100})).await, (204, by(-200)), "may shorten");
    assert_eq!(post("/refreshes", json!({"duration": 3})).await, (204, by(-200)), "only extends");
    assert_eq!(post("/refreshes", json!({"duration": 200})).await, (204, by(-100)));
    assert_eq!(post("/connect", json!({"timeout": 10})).await, (200, by(-100)), "never shortens");
    assert_eq!(post("/connect", json!({"timeout": 600})).await, (200, by(300)));
    for (tail, body) in [
        ("/timeout", json!({})),
        ("/timeout", json!({"timeout": -1})),
        ("/refreshes", json!({"duration": 3601})),
        ("/refreshes", json!({"duration": -1})),
        ("/connect", json!({})),
        ("/connect", json!({"timeout": -1})),
    ] {
        let refused = plane.call("POST", &format!("/sandboxes/{id}{tail}"), Some(body)).await;
        assert!(refused.error(400).starts_with("validation error: "), "{tail}");
    }
}

#[tokio::test]
async fn v2_connect_takes_an_empty_body_and_answers_like_create() {
    let plane = Plane::new().await;
    let made = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": "base"}))).await;
    let id = made.body["sandboxID"].as_str().unwrap();
    for body in [None, Some(json!({})), Some(json!({"timeout": 1})), Some(json!({"memory": false}))] {
        let connected = plane.call("POST", &format!("/v2/sandboxes/{id}/connect"), body).await;
        assert_eq!(connected.status, 200);
        assert_eq!(connected.body, made.body);
    }
}

#[tokio::test]
async fn a_killed_sandbox_is_gone_at_once() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    let path = format!("/sandboxes/{id}");
    let killed = plane.call("DELETE", &path, None).await;
    assert_eq!((killed.status.as_u16(), killed.body), (204, json!("")));
    plane.call("GET", &path, None).await.error(404);
    assert_eq!(plane.call("GET", "/v2/sandboxes", None).await.body, json!([]));
    assert!(plane.engine.live().is_empty());
}

#[tokio::test]
async fn health_needs_no_key() {
    let plane = Plane::new().await;
    let health = plane.send(super::request("GET", "/health").body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((health.status.as_u16(), health.body), (200, json!("Health check successful")));
}
