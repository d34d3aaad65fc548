//! `Idempotency-Key` on v2 create.

use std::time::Duration;

use axum::body::Body;
use serde_json::{Value, json};

use super::{Answer, Plane, request};

async fn create(plane: &Plane, key: &str, body: Value) -> Answer {
    let request = request("POST", "/v2/sandboxes")
        .header("x-api-key", &plane.key)
        .header("idempotency-key", key)
        .body(Body::from(body.to_string()))
        .unwrap();
    plane.send(request).await
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_makes_nothing() {
    let plane = Plane::new().await;
    let first = create(&plane, "key-1", json!({"templateID": "base"})).await;
    assert_eq!(first.status, 201);
    let again = create(&plane, "key-1", json!({"unknown": 1, "templateID": "base"})).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(plane.engine.live().len(), 1);
    let other = create(&plane, "key-2", json!({"templateID": "base"})).await;
    assert_ne!(other.body["sandboxID"], first.body["sandboxID"]);

    let mismatch = create(&plane, "key-1", json!({"templateID": "base", "timeout": 5})).await;
    mismatch.error(409);
    assert_eq!(mismatch.body["error_code"], "idempotency_request_mismatch");
}

#[tokio::test]
async fn errors_are_repeated_too() {
    let plane = Plane::new().await;
    let first = create(&plane, "k", json!({"templateID": "late"})).await;
    first.error(404);
    plane.template("late", None).await;
    create(&plane, "k", json!({"templateID": "late"})).await.error(404);
    assert_eq!(create(&plane, "k2", json!({"templateID": "late"})).await.status, 201);
}

#[tokio::test]
async fn a_running_request_is_told_and_survives_its_caller() {
    let plane = Plane::new().await;
    plane.engine.faults(|faults| faults.create_delay = Duration::from_millis(400));
    let cut =
        tokio::time::timeout(Duration::from_millis(150), create(&plane, "k", json!({"templateID": "base"})))
            .await;
    assert!(cut.is_err(), "the caller gave up");
    let running = create(&plane, "k", json!({"templateID": "base"})).await;
    running.error(409);
    assert_eq!(running.body["error_code"], "idempotency_in_progress");
    let done = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let answer = create(&plane, "k", json!({"templateID": "base"})).await;
            if answer.status == 201 {
                break answer;
            }
            answer.error(409);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let done = done.await.unwrap();
    let id = done.body["sandboxID"].as_str().unwrap();
    assert_eq!(plane.call("GET", &format!("/sandboxes/{id}"), None).await.status, 200);
    assert_eq!(plane.engine.live().len(), 1);
}

#[tokio::test]
async fn keys_have_their_alphabet_and_length() {
    let plane = Plane::new().await;
    assert_eq!(create(&plane, &"a".repeat(255), json!({"templateID": "base"})).await.status, 201);
    for bad in ["", "A", "a b", "a_b", &"a".repeat(256)] {
        create(&plane, bad, json!({"templateID": "base"})).await.error(400);
    }
}
