//! What does not fit: every refusal beside its allowed twin, and never axum's own text.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::{Answer, Plane, request};

async fn create(plane: &Plane, path: &str, body: Value) -> Answer {
    plane.call("POST", path, Some(body)).await
}

#[tokio::test]
async fn fields_of_the_wrong_type_are_named() {
    let plane = Plane::new().await;
    let fits = json!({"templateID": "base", "metadata": {"a": "b"}, "envVars": {}, "unknown": 1});
    assert_eq!(create(&plane, "/v2/sandboxes", fits).await.status, 201);
    for (body, field) in [
        (json!({}), "templateID"),
        (json!({"templateID": 5}), "templateID"),
        (json!({"templateID": "base", "timeout": "5"}), "timeout"),
        (json!({"templateID": "base", "timeout": 1.5}), "timeout"),
        (json!({"templateID": "base", "timeout": 3_000_000_000_u32}), "timeout"),
        (json!({"templateID": "base", "metadata": {"a": 1}}), "metadata.a"),
        (json!({"templateID": "base", "envVars": {"A": null}}), "envVars.A"),
        (json!({"templateID": "base", "autoResume": {}}), "enabled"),
        (json!({"templateID": "base", "mcp": "x"}), "mcp"),
        (json!([]), "request body"),
    ] {
        for path in ["/sandboxes", "/v2/sandboxes"] {
            let refused = create(&plane, path, body.clone()).await;
            let message = refused.error(400);
            assert!(
                message.starts_with("validation error: ") && message.contains(field),
                "{body}: {message}"
            );
        }
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_are_refused_in_json() {
    let plane = Plane::new().await;
    let send = async |body: &'static str, kind: Option<&str>| {
        let mut request = request("POST", "/v2/sandboxes").header("x-api-key", &plane.key);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        plane.send(request.body(Body::from(body)).unwrap()).await
    };
    let good = r#"{"templateID":"base"}"#;
    assert_eq!(send(good, None).await.status, 201);
    assert_eq!(send(good, Some("application/json; charset=utf-8")).await.status, 201);
    for (body, kind) in
        [("{", None), ("", None), ("  ", None), ("{} {}", None), (good, Some("text/plain")), ("\u{0}", None)]
    {
        let refused = send(body, kind).await;
        assert!(refused.error(400).starts_with("validation error: "), "{body:?}");
    }
}

#[tokio::test]
async fn bodies_end_at_sixteen_mebibytes_with_and_without_a_length() {
    let plane = Plane::new().await;
    let chunks = |size: usize| {
        let head = Bytes::from_static(br#"{"templateID":"base","mcp":{"pad":""#);
        let tail = Bytes::from_static(br#""}}"#);
        let pad = Bytes::from(vec![b'x'; size - head.len() - tail.len()]);
        Body::from_stream(stream::iter([head, pad, tail].map(Ok::<_, std::convert::Infallible>)))
    };
    let post = || request("POST", "/v2/sandboxes").header("x-api-key", &plane.key);
    assert_eq!(plane.send(post().body(chunks(16 << 20)).unwrap()).await.status, 201);
    plane.send(post().body(chunks((16 << 20) + 1)).unwrap()).await.error(413);
    let announced = post().header("content-length", (16 << 20) + 1).body(Body::empty()).unwrap();
    plane.send(announced).await.error(413);
}

#[tokio::test]
async fn the_key_is_asked_for_before_the_body_is_looked_at() {
    let plane = Plane::new().await;
    let bad = || Body::from("{");
    let with = request("POST", "/v2/sandboxes").header("x-api-key", &plane.key).body(bad()).unwrap();
    plane.send(with).await.error(400);
    let without = request("POST", "/v2/sandboxes").body(bad()).unwrap();
    plane.send(without).await.error(401);
}

#[tokio::test]
async fn timeouts_are_checked_against_the_configured_maximum() {
    let plane = Plane::with_max(Some(Duration::from_hours(1))).await;
    let fits = create(&plane, "/sandboxes", json!({"templateID": "base", "timeout": 3600})).await;
    assert_eq!(fits.status, 201);
    let id = fits.body["sandboxID"].as_str().unwrap();
    for path in ["/sandboxes".to_owned(), "/v2/sandboxes".to_owned(), format!("/v2/sandboxes/{id}/connect")] {
        let zero = create(&plane, &path, json!({"templateID": "base", "timeout": 0})).await;
        assert_eq!(zero.error(400), "Timeout must be greater than 0");
        let long = create(&plane, &path, json!({"templateID": "base", "timeout": 3601})).await;
        assert_eq!(long.error(400), "Timeout cannot be greater than 1 hours");
    }
    let day = Plane::new().await;
    let long = create(&day, "/v2/sandboxes", json!({"templateID": "base", "timeout": 86_400})).await;
    assert_eq!(long.status, 201, "without a maximum a day is fine");
}

#[tokio::test]
async fn sandbox_ids_are_read_strictly_and_foreign_ones_are_hidden() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    let hidden = |id: &str| format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    for (method, tail, body) in [
        ("GET", "", None),
        ("POST", "/timeout", Some(json!({"timeout": 60}))),
        ("POST", "/refreshes", Some(json!({}))),
        ("POST", "/connect", Some(json!({"timeout": 60}))),
        ("DELETE", "", None),
    ] {
        let path = |id: &str| format!("/sandboxes/{id}{tail}");
        let foreign = plane.call_with(&plane.other_key, method, &path(&id), body.clone()).await;
        assert_eq!(foreign.error(404), hidden(&id));
        assert_eq!(plane.call(method, &path("nope"), body.clone()).await.error(404), hidden("nope"));
        for bad in ["UPPER", "a-b-c", "..%2Fx", "%20"] {
            assert_eq!(
                plane.call(method, &path(bad), body.clone()).await.error(400),
                "Invalid sandbox ID",
                "{bad}"
            );
        }
        let own = plane.call(method, &path(&format!("{id}-6532622b")), body).await;
        assert!(own.status.is_success(), "{method} {tail}: {own:?}");
    }
}

#[tokio::test]
async fn paths_and_methods_without_a_route_answer_json() {
    let plane = Plane::new().await;
    for path in ["/", "/nowhere", "/sandboxes/", "/sandboxes/x/y/z", "/v9/sandboxes"] {
        let answer = plane.call("GET", path, None).await;
        assert_eq!(answer.error(404), "validation error: no matching operation was found", "{path}");
    }
    plane.call("PUT", "/sandboxes", None).await.error(404);
    plane.call("POST", "/health", None).await.error(404);
    assert_eq!(plane.call("GET", "/sandboxes", None).await.status, 200);
}

#[tokio::test]
async fn known_features_that_are_not_built_are_named() {
    let plane = Plane::new().await;
    for (method, path, feature) in [
        ("POST", "/v3/templates", "template builds"),
        ("GET", "/templates/team%2Fnm/tags/count", "template tags"),
        ("GET", "/volumes", "volumes"),
        ("POST", "/secrets/sec_x", "secrets"),
        ("GET", "/teams", "team lists"),
        ("GET", "/events/sandboxes", "lifecycle events"),
    ] {
        let answer = plane.call(method, path, None).await;
        assert!(answer.error(501).starts_with(&format!("{feature} is not built yet")), "{path}: {answer:?}");
        let stranger = plane.send(request(method, path).body(Body::empty()).unwrap()).await;
        stranger.error(401);
    }
}

#[tokio::test]
async fn what_a_create_may_not_ask_for() {
    let plane = Plane::new().await;
    for (body, status, text) in [
        (json!({"templateID": "b b"}), 400, "Invalid template reference: "),
        (json!({"templateID": "nope"}), 404, "template 'nope' not found"),
        (json!({"templateID": "base:v1"}), 404, "tag 'v1' does not exist for template 'base'"),
        (
            json!({"templateID": "base", "volumeMounts": [{"name": "v", "path": "/v"}]}),
            400,
            "Volume mounts are not enabled.",
        ),
        (
            json!({"templateID": "base", "iam": {"tokens": {"t": {}}}}),
            400,
            "Sandbox IAM workload tokens are not available for your team.",
        ),
        (
            json!({"templateID": "base", "network": {"rules": {"x": []}}}),
            400,
            "Network transform rules are not available for your team.",
        ),
        (
            json!({"templateID": "base", "network": {"allowOut": ["x.y"]}}),
            400,
            "When specifying allowed domains",
        ),
    ] {
        let refused = create(&plane, "/v2/sandboxes", body.clone()).await;
        assert!(refused.error(status).starts_with(text), "{body}: {refused:?}");
    }
    for reference in ["base", " BASE ", "base:default"] {
        assert_eq!(
            create(&plane, "/v2/sandboxes", json!({"templateID": reference})).await.status,
            201,
            "{reference}"
        );
    }
    assert_eq!(plane.engine.live().len(), 3);
}

#[tokio::test]
async fn a_full_or_broken_engine_is_told_apart() {
    let plane = Plane::new().await;
    plane.sandbox().await;
    plane.engine.faults(|faults| faults.create_error = Some("disk on fire at /secret".to_owned()));
    let broken = create(&plane, "/v2/sandboxes", json!({"templateID": "base"})).await;
    let message = broken.error(500);
    assert!(!message.contains("/secret"), "inner text stays in the log: {message}");
    assert_eq!(broken.body["error_code"], "sandbox_create_failed");
}
