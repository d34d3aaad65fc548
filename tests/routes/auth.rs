//! Who is let in, and the exact texts for those who are not.

use axum::body::Body;
use firkin::store::Standing;

use super::{Plane, request};

const INVALID: &str = "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.\n";

#[tokio::test]
async fn each_refusal_has_its_text() {
    let plane = Plane::new().await;
    assert_eq!(plane.call("GET", "/sandboxes", None).await.status, 200);
    let missing = request("GET", "/sandboxes").body(Body::empty()).unwrap();
    assert_eq!(plane.send(missing).await.error(401), "authorization header is missing");
    let unknown = format!("e2b_{}", "0".repeat(40));
    for (key, text) in [
        ("sk_e2b_00", "authorization header is malformed".to_owned()),
        ("", "authorization header is malformed".to_owned()),
        ("e2b_xyz", format!("{INVALID}Invalid API key format")),
        ("e2b_00", format!("{INVALID}Invalid API key format")),
        (unknown.as_str(), format!("{INVALID}Cannot get the team for the given API key")),
    ] {
        assert_eq!(plane.call_with(key, "GET", "/sandboxes", None).await.error(401), text, "{key}");
    }
    for (value, part) in [("Basic x", "authorization header is malformed"), ("Bearer sk_e2b_0", "X-API-Key")]
    {
        let sent = request("GET", "/sandboxes").header("authorization", value).body(Body::empty()).unwrap();
        assert!(plane.send(sent).await.error(401).contains(part), "{value}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_on_the_next_request() {
    let plane = Plane::new().await;
    let issued = plane.state.keys.issue(plane.team.id, "second").await.unwrap();
    assert_eq!(plane.call_with(&issued.secret, "GET", "/sandboxes", None).await.status, 200);
    plane.state.keys.revoke(issued.record.id).await.unwrap();
    plane.call_with(&issued.secret, "GET", "/sandboxes", None).await.error(401);
    assert_eq!(plane.call("GET", "/sandboxes", None).await.status, 200, "the other key still opens");
}

#[tokio::test]
async fn only_a_hash_is_kept_and_the_use_is_noted_once_a_minute() {
    let plane = Plane::new().await;
    plane.call("GET", "/sandboxes", None).await;
    let stored = plane.state.store.keys().await.unwrap();
    let digits = plane.key.strip_prefix("e2b_").unwrap();
    assert_eq!(digits.len(), 40);
    assert!(!serde_json::to_string(&stored).unwrap().contains(digits));
    let noted = async || {
        // The note is taken in the background; a later write of the same queue comes after it.
        tokio::task::yield_now().await;
        plane.state.keys.issue(plane.team.id, "barrier").await.unwrap();
        let keys = plane.state.store.keys().await.unwrap();
        keys.into_iter().find(|key| key.mask.0 == digits[..2] && key.name == "test").unwrap().last_used
    };
    let first = noted().await;
    assert!(first.is_some());
    plane.clock.jump(jiff::SignedDuration::from_secs(1));
    plane.call("GET", "/sandboxes", None).await;
    assert_eq!(noted().await, first);
    plane.clock.jump(jiff::SignedDuration::from_mins(1));
    plane.call("GET", "/sandboxes", None).await;
    assert!(noted().await > first);
}

#[tokio::test]
async fn blocked_teams_read_and_delete_and_banned_ones_do_nothing() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    plane.state.keys.set_standing(plane.team.id, Standing::Blocked("unpaid".to_owned())).await.unwrap();
    let body = serde_json::json!({"templateID": "base"});
    let refused = plane.call("POST", "/sandboxes", Some(body)).await;
    assert_eq!(refused.error(403), "team is blocked: unpaid");
    assert_eq!(plane.call("GET", &format!("/sandboxes/{id}"), None).await.status, 200);
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    plane.state.keys.set_standing(plane.team.id, Standing::Banned).await.unwrap();
    plane.call("GET", "/sandboxes", None).await.error(403);
    assert_eq!(plane.call_with(&plane.other_key, "GET", "/sandboxes", None).await.status, 200);
}

#[tokio::test]
async fn browsers_may_ask_from_anywhere() {
    let plane = Plane::new().await;
    let preflight = request("OPTIONS", "/v2/sandboxes")
        .header("origin", "https://example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "x-api-key,sdk_runtime,idempotency-key")
        .body(Body::empty())
        .unwrap();
    let answer = plane.send(preflight).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("x-api-key") && allowed.contains("sdk_runtime"), "{allowed}");
    let refused =
        request("GET", "/nowhere").header("origin", "https://example.com").body(Body::empty()).unwrap();
    let refused = plane.send(refused).await;
    assert_eq!(refused.headers["access-control-allow-origin"], "*", "errors can be read too");
}
