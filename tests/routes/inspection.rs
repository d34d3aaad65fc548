//! Metrics and traces for operators.

use axum::body::Body;
use firkin::routes;
use serde_json::{Value, json};

use super::{Answer, Plane, answer, request};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn plane() -> Plane {
    let plane = Plane::new().await;
    plane.state.keys.allow_admin(TOKEN);
    plane
}

async fn with(plane: &Plane, path: &str, name: &str, value: &str) -> Answer {
    plane.send(request("GET", path).header(name, value).body(Body::empty()).unwrap()).await
}

async fn local(plane: &Plane, path: &str) -> Answer {
    let asked = request("GET", path).body(Body::empty()).unwrap();
    answer(routes::admin::router(plane.state.clone()), asked).await
}

/// The value of a sample, by its whole name with labels.
async fn value(plane: &Plane, sample: &str) -> f64 {
    let page = with(plane, "/metrics", "x-admin-token", TOKEN).await;
    let text = page.body.as_str().unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
}

async fn traces(plane: &Plane, query: &str) -> Vec<Value> {
    let answer = with(plane, &format!("/admin/traces{query}"), "x-admin-token", TOKEN).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["traces"].as_array().unwrap().clone()
}

fn names(trace: &Value) -> Vec<&str> {
    trace["events"].as_array().unwrap().iter().map(|event| event["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn only_the_operator_sees_metrics_and_traces() {
    let plane = plane().await;
    for path in ["/metrics", "/admin/traces"] {
        assert_eq!(with(&plane, path, "x-admin-token", TOKEN).await.status, 200);
        assert_eq!(with(&plane, path, "authorization", &format!("Bearer {TOKEN}")).await.status, 200);
        for (name, value) in [
            ("x-admin-token", "0123456789abcdef0123456789abcdeF"),
            ("x-admin-token", ""),
            ("x-admin-token", &plane.key),
            ("authorization", "Bearer "),
            ("authorization", TOKEN),
            ("x-api-key", &plane.key),
        ] {
            with(&plane, path, name, value).await.error(401);
        }
    }
    assert_eq!(local(&plane, "/metrics").await.status, 200, "the socket's permissions are enough");
    assert_eq!(local(&plane, "/traces").await.status, 200);
    with(&plane, "/sandboxes", "x-admin-token", TOKEN).await.error(401);
}

#[tokio::test]
async fn without_a_token_nobody_is_the_operator() {
    let plane = Plane::new().await;
    with(&plane, "/metrics", "x-admin-token", "").await.error(401);
    with(&plane, "/metrics", "x-admin-token", TOKEN).await.error(401);
}

#[tokio::test]
async fn a_life_leaves_its_traces_and_is_counted() {
    let plane = plane().await;
    let id = plane.sandbox().await;
    assert!((value(&plane, r#"firkin_sandboxes{state="running"}"#).await - 1.0).abs() < f64::EPSILON);
    assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/pause"), None).await.status, 204);
    assert!((value(&plane, r#"firkin_sandboxes{state="paused"}"#).await - 1.0).abs() < f64::EPSILON);
    let connect = Some(json!({ "timeout": 60 }));
    assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/connect"), connect).await.status, 201);
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    super::until("the end", async || {
        let all = traces(&plane, &format!("?sandboxID={id}")).await;
        names(&all[0]).contains(&"EndDone").then_some(())
    })
    .await;
    let all = traces(&plane, &format!("?sandboxID={id}")).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((&all[0]["class"], &all[1]["class"]), (&json!("Resumed"), &json!("ColdPrepared")));
    assert_eq!(
        names(&all[1]),
        [
            "RequestStart",
            "Admitted",
            "RequestRecorded",
            "MachineStarted",
            "GuestAgentPingPassed",
            "ReadyProbePassed",
            "PauseStart",
            "PauseRecorded",
            "PauseDone",
        ]
    );
    assert_eq!(
        names(&all[0]),
        [
            "RequestStart",
            "Admitted",
            "SnapshotRestoreStart",
            "SnapshotRestoreDone",
            "ReadyProbePassed",
            "EndStart",
            "EndDone",
        ]
    );
    let offsets =
        all[1]["events"].as_array().unwrap().iter().map(|event| event["offsetMs"].as_f64().unwrap());
    assert!(offsets.is_sorted());
    for name in ["create", "pause", "resume", "warm_snapshot_restore", "ready_probe", "kill_delete"] {
        let count = format!(r#"firkin_lifecycle_duration_seconds_count{{name="{name}"}}"#);
        assert!((value(&plane, &count).await - 1.0).abs() < f64::EPSILON, "{name}");
    }
    assert!((value(&plane, r#"firkin_sandbox_ends_total{cause="killed"}"#).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_start_that_fails_is_counted_and_ends_no_duration() {
    let plane = plane().await;
    plane.engine.faults(|faults| faults.create_error = Some("injected".to_owned()));
    let made = plane.call("POST", "/v2/sandboxes", Some(json!({ "templateID": "base" }))).await;
    made.error(500);
    assert!((value(&plane, "firkin_failed_starts_total").await - 1.0).abs() < f64::EPSILON);
    assert!(value(&plane, r#"firkin_lifecycle_duration_seconds_count{name="create"}"#).await < f64::EPSILON);
    let all = traces(&plane, "").await;
    assert!(names(&all[0]).contains(&"StartFailed"), "{all:?}");
}

#[tokio::test]
async fn limits_and_ids_of_traces_are_checked_and_pages_are_the_newest() {
    let plane = plane().await;
    let (older, newer) = (plane.sandbox().await, plane.sandbox().await);
    let newest = traces(&plane, "?limit=1").await;
    assert_eq!((newest.len(), &newest[0]["sandboxID"]), (1, &json!(newer)));
    assert_eq!(traces(&plane, "").await[1]["sandboxID"], json!(older));
    assert!(traces(&plane, "?sandboxID=i00000000000000000000").await.is_empty());
    for query in ["limit=0", "limit=101", "limit=x", "sandboxID=x"] {
        let path = format!("/admin/traces?{query}");
        assert!(with(&plane, &path, "x-admin-token", TOKEN).await.error(400).contains("validation error"));
    }
}

#[tokio::test]
async fn the_page_is_what_prometheus_reads() {
    let plane = plane().await;
    plane.sandbox().await;
    let page = with(&plane, "/metrics", "x-admin-token", TOKEN).await;
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = page.body.as_str().unwrap();
    assert!(text.ends_with('\n'));
    let (mut family, mut last) = ("", 0.0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with(family), "{line} is not of {family}");
        let value: f64 = value.parse().unwrap();
        if name.contains("_bucket{") {
            assert!(value >= last || name.contains(r#"le="0.001""#), "buckets add up: {line}");
            last = value;
        }
    }
    assert!(!text.contains(&plane.key[..12]) && !text.contains("sandboxID"));
}
