//! The admin socket's routes, as the `firkin` command uses them.

use axum::body::Body;
use firkin::routes;
use serde_json::{Value, json};

use super::{Answer, Plane, answer, request};

async fn admin(plane: &Plane, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    answer(routes::admin::router(plane.state.clone()), request(method, path).body(body).unwrap()).await
}

#[tokio::test]
async fn a_key_opens_from_its_issue_to_its_revocation() {
    let plane = Plane::new().await;
    let issued = admin(&plane, "POST", "/keys", Some(json!({"team": "theirs", "name": "ci"}))).await;
    assert_eq!(issued.status, 201);
    let key = issued.body["key"].as_str().unwrap();
    assert!(key.starts_with("e2b_") && key.len() == 44);
    assert_eq!(plane.call_with(key, "GET", "/sandboxes", None).await.status, 200);
    let listed = admin(&plane, "GET", "/keys", None).await;
    assert!(!listed.body.to_string().contains(key));
    assert_eq!(listed.body.as_array().unwrap().len(), 3);
    let path = format!("/keys/{}", issued.body["id"].as_str().unwrap());
    assert_eq!(admin(&plane, "DELETE", &path, None).await.status, 204);
    plane.call_with(key, "GET", "/sandboxes", None).await.error(401);
    admin(&plane, "DELETE", &path, None).await.error(404);
    admin(&plane, "DELETE", "/keys/x", None).await.error(400);
    admin(&plane, "POST", "/keys", Some(json!({"team": "nobody"}))).await.error(404);
}

#[tokio::test]
async fn teams_have_unique_slugs() {
    let plane = Plane::new().await;
    assert_eq!(admin(&plane, "POST", "/teams", Some(json!({"slug": "new"}))).await.status, 201);
    admin(&plane, "POST", "/teams", Some(json!({"slug": "new"}))).await.error(409);
    admin(&plane, "POST", "/teams", Some(json!({"slug": "No Slug"}))).await.error(400);
    assert_eq!(admin(&plane, "GET", "/teams", None).await.body.as_array().unwrap().len(), 3);
    let blocked = admin(&plane, "PUT", "/teams/ours/standing", Some(json!({"blocked": "unpaid"}))).await;
    assert_eq!(blocked.status, 204);
    plane.call("POST", "/sandboxes", Some(json!({"templateID": "base"}))).await.error(403);
}

#[tokio::test]
async fn an_imported_image_gets_a_name_and_a_newer_one_takes_it_over() {
    let plane = Plane::new().await;
    plane.clock.jump(jiff::SignedDuration::from_secs(1));
    let import = |build: &str| json!({"name": "tool", "aliases": ["tool-2"], "build": build});
    let first =
        admin(&plane, "POST", "/templates", Some(import("00000000-0000-4000-8000-000000000001"))).await;
    assert_eq!(first.status, 201);
    let second =
        admin(&plane, "POST", "/templates", Some(import("00000000-0000-4000-8000-000000000002"))).await;
    assert_eq!(second.body["templateID"], first.body["templateID"]);
    let listed = plane.call("GET", "/templates", None).await;
    assert_eq!(listed.body[1]["buildID"], "00000000-0000-4000-8000-000000000002");
    let made = plane.call("POST", "/v2/sandboxes", Some(json!({"templateID": "tool-2"}))).await;
    assert_eq!((made.status.as_u16(), &made.body["alias"]), (201, &json!("tool")));
    admin(&plane, "POST", "/templates", Some(json!({"name": "a b", "build": uuid::Uuid::nil()})))
        .await
        .error(400);
    admin(&plane, "POST", "/templates", Some(json!({"name": "a"}))).await.error(400);
}

#[tokio::test]
async fn the_status_counts() {
    let plane = Plane::new().await;
    plane.sandbox().await;
    let status = admin(&plane, "GET", "/status", None).await;
    assert_eq!(
        (&status.body["teams"], &status.body["keys"], &status.body["sandboxes"]),
        (&json!(2), &json!(2), &json!(1))
    );
    admin(&plane, "GET", "/nowhere", None).await.error(404);
}
