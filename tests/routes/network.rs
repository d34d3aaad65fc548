//! The network of a sandbox: what create and update take, keep and show.

use serde_json::{Value, json};

use super::Plane;

async fn made(plane: &Plane, network: Value) -> (String, Value) {
    let body = json!({"templateID": "base", "network": network});
    let made = plane.call("POST", "/v2/sandboxes", Some(body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    (made.body["sandboxID"].as_str().unwrap().to_owned(), made.body)
}

async fn shown(plane: &Plane, id: &str) -> (Value, Value) {
    let detail = plane.call("GET", &format!("/sandboxes/{id}"), None).await;
    let field = |name: &str| detail.body.get(name).cloned().unwrap_or_default();
    (field("network"), field("allowInternetAccess"))
}

#[tokio::test]
async fn the_way_in_is_kept_and_its_token_stays_the_same() {
    let plane = Plane::new().await;
    let network = json!({"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}"});
    let (id, first) = made(&plane, network.clone()).await;
    assert!(first["trafficAccessToken"].is_string());
    assert_eq!(shown(&plane, &id).await.0, network);
    let again = plane.call("POST", &format!("/v2/sandboxes/{id}/connect"), None).await;
    assert_eq!(again.body["trafficAccessToken"], first["trafficAccessToken"]);
    let (_, public) = made(&plane, json!({"allowPublicTraffic": true})).await;
    assert!(public.get("trafficAccessToken").is_none());
    let open = json!({"templateID": "base", "secure": false, "network": {"allowPublicTraffic": false}});
    assert!(plane.call("POST", "/sandboxes", Some(open)).await.error(400).contains("secure"));
}

#[tokio::test]
async fn an_update_replaces_the_whole_way_out_and_nothing_of_the_way_in() {
    let plane = Plane::new().await;
    let ingress = json!({"allowPublicTraffic": false, "maskRequestHost": "a.example"});
    let mut network = ingress.clone();
    network["denyOut"] = json!(["1.1.1.1"]);
    let (id, _) = made(&plane, network).await;
    let put = async |body: Value| {
        let answer = plane.call("PUT", &format!("/sandboxes/{id}/network"), Some(body)).await;
        assert_eq!((answer.status.as_u16(), answer.body), (204, json!("")));
        shown(&plane, &id).await
    };
    let lists =
        json!({"allowOut": ["*.example.com"], "denyOut": ["0.0.0.0/0"], "allow_internet_access": false});
    let (network, internet) = put(lists).await;
    assert_eq!(network["allowOut"], json!(["*.example.com"]));
    assert_eq!(network["denyOut"], json!(["0.0.0.0/0"]));
    assert_eq!(network["maskRequestHost"], "a.example");
    assert_eq!(internet, false);
    let (network, internet) = put(json!({"denyOut": ["8.8.8.8"]})).await;
    assert_eq!((&network["denyOut"], network.get("allowOut")), (&json!(["8.8.8.8"]), None));
    assert_eq!(internet, Value::Null, "what is left out is cleared");
    assert_eq!(put(json!({})).await.0, ingress);

    let bare = plane.sandbox().await;
    plane.call("PUT", &format!("/sandboxes/{bare}/network"), Some(json!({"denyOut": ["8.8.8.8"]}))).await;
    assert_eq!(shown(&plane, &bare).await.0, json!({"denyOut": ["8.8.8.8"]}));
    plane.call("PUT", &format!("/sandboxes/{bare}/network"), Some(json!({}))).await;
    assert_eq!(shown(&plane, &bare).await.0, Value::Null, "absent as before, never null");
}

#[tokio::test]
async fn an_update_that_is_refused_changes_nothing() {
    let plane = Plane::new().await;
    let (id, _) = made(&plane, json!({"denyOut": ["1.1.1.1"]})).await;
    let path = format!("/sandboxes/{id}/network");
    for (body, status, text) in [
        (json!({"denyOut": ["example.com"]}), 400, "invalid denied CIDR example.com"),
        (json!({"denyOut": ["8.8.8.8"], "allowOut": ["a b"]}), 400, "invalid allowed address a b"),
        (json!({"allowOut": ["example.com"]}), 400, "When specifying allowed domains"),
        (json!({"rules": {"x": []}}), 400, "Network transform rules are not available"),
        (json!({"egressProxy": {"address": "p:1080"}}), 403, "Egress proxy is not available"),
        (json!({"egressProxy": {}}), 400, "validation error: "),
        (json!({"dnsServers": ["8.8.8.8"]}), 501, "network.dnsServers"),
        (json!({"allowOut": "1.1.1.1"}), 400, "validation error: "),
    ] {
        let refused = plane.call("PUT", &path, Some(body.clone())).await;
        assert!(refused.error(status).starts_with(text), "{body}: {refused:?}");
    }
    assert!(plane.call("PUT", &path, None).await.error(400).starts_with("validation error: "));
    assert_eq!(shown(&plane, &id).await.0, json!({"denyOut": ["1.1.1.1"]}));
    let body = Some(json!({}));
    plane.call_with(&plane.other_key, "PUT", &path, body.clone()).await.error(404);
    plane.call("PUT", "/sandboxes/i0123456789abcdefghij/network", body.clone()).await.error(404);
    assert_eq!(plane.call("POST", &format!("/sandboxes/{id}/pause"), None).await.status, 204);
    plane.call("PUT", &path, body).await.error(404);
    assert_eq!(shown(&plane, &id).await.0, json!({"denyOut": ["1.1.1.1"]}));
}
