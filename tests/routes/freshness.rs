//! The operator's routes to the gates of sandboxes.

use axum::body::Body;
use firkin::routes;
use serde_json::{Value, json};

use super::{Answer, Plane, answer, request};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn gated(plane: &Plane) -> String {
    let metadata = json!({ "firkin.sync.branch": "refs/heads/main", "firkin.sync.target": "v1" });
    let body = json!({ "templateID": "base", "metadata": metadata });
    let made = plane.call("POST", "/sandboxes", Some(body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.body["sandboxID"].as_str().unwrap().to_owned()
}

async fn ask(plane: &Plane, id: &str, verdict: Option<&Value>) -> Answer {
    let path = format!("/admin/sandboxes/{id}/freshness");
    let asked = request(if verdict.is_some() { "POST" } else { "GET" }, &path).header("x-admin-token", TOKEN);
    let body = verdict.map_or_else(Body::empty, |verdict| Body::from(verdict.to_string()));
    plane.send(asked.header("content-type", "application/json").body(body).unwrap()).await
}

#[tokio::test]
async fn the_operator_sees_and_decides_and_the_owner_sees() {
    let plane = Plane::new().await;
    plane.state.keys.allow_admin(TOKEN);
    let id = gated(&plane).await;
    let shown = ask(&plane, &id, None).await;
    assert_eq!((&shown.body["branch"], &shown.body["phase"]), (&json!("main"), &json!("Restored")));
    let failed = ask(&plane, &id, Some(&json!({ "action": "fail", "reason": "no route" }))).await;
    assert_eq!((failed.status.as_u16(), &failed.body["reason"]), (200, &json!("no route")));
    let ready = ask(&plane, &id, Some(&json!({ "action": "complete", "target": "abc" }))).await;
    assert_eq!((&ready.body["phase"], &ready.body["target"]), (&json!("Ready"), &json!("abc")));
    let detail = plane.call("GET", &format!("/sandboxes/{id}"), None).await;
    assert_eq!(detail.body["freshness"], ready.body);
    let local = request("GET", &format!("/sandboxes/{id}/freshness")).body(Body::empty()).unwrap();
    assert_eq!(answer(routes::admin::router(plane.state.clone()), local).await.body, ready.body);
}

#[tokio::test]
async fn what_makes_no_sense_changes_nothing() {
    let plane = Plane::new().await;
    plane.state.keys.allow_admin(TOKEN);
    let id = gated(&plane).await;
    for wrong in [
        json!({}),
        json!({ "action": "open" }),
        json!({ "action": "fail" }),
        json!({ "action": "complete", "target": "--x" }),
    ] {
        ask(&plane, &id, Some(&wrong)).await.error(400);
    }
    assert_eq!(ask(&plane, &id, None).await.body["phase"], "Restored");
    ask(&plane, "i00000000000000000000", None).await.error(404);
    let plain = plane.sandbox().await;
    ask(&plane, &plain, None).await.error(404);
    ask(&plane, &plain, Some(&json!({ "action": "complete" }))).await.error(400);
    let path = format!("/admin/sandboxes/{id}/freshness");
    let strange = request("GET", &path).header("x-api-key", &plane.key).body(Body::empty()).unwrap();
    plane.send(strange).await.error(401);
    for metadata in [
        json!({ "firkin.sync.branch": "main" }),
        json!({ "firkin.sync.branch": "-x", "firkin.sync.target": "y" }),
    ] {
        let body = json!({ "templateID": "base", "metadata": metadata });
        let refused = plane.call("POST", "/sandboxes", Some(body)).await;
        assert!(refused.error(400).contains("firkin.sync"), "{refused:?}");
    }
}
