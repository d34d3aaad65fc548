//! Lists: filters, order, pages.

use axum::body::Body;
use firkin::clock::Clock as _;
use serde_json::{Value, json};

use super::{Plane, request};

fn ids(body: &Value) -> Vec<String> {
    body.as_array().unwrap().iter().map(|item| item["sandboxID"].as_str().unwrap().to_owned()).collect()
}

async fn some(plane: &Plane, count: usize) -> Vec<String> {
    let mut made = Vec::new();
    for number in 0..count {
        let metadata = json!({"k 1": "v=1", "n": number.to_string()});
        let body = json!({"templateID": "base", "metadata": metadata});
        let answer = plane.call("POST", "/v2/sandboxes", Some(body)).await;
        made.push(answer.body["sandboxID"].as_str().unwrap().to_owned());
        plane.clock.jump(jiff::SignedDuration::from_secs(1));
    }
    made
}

#[tokio::test]
async fn newest_first_or_oldest_first_in_pages() {
    let plane = Plane::new().await;
    let mut oldest_first = some(&plane, 5).await;
    plane.call_with(&plane.other_key, "POST", "/v2/sandboxes", Some(json!({"templateID": "base"}))).await;
    for order in ["asc", "desc"] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let path = format!("/v2/sandboxes?limit=2&order={order}&nextToken={token}");
            let page = plane.call("GET", &path, None).await;
            assert_eq!(page.status, 200, "{page:?}");
            assert_eq!(page.headers["x-total-running"], "5");
            seen.extend(ids(&page.body));
            assert!(seen.len() <= 5);
            let Some(next) = page.headers.get("x-next-token") else { break };
            token = next.to_str().unwrap().replace('=', "%3D");
            let other = if order == "asc" { "desc" } else { "asc" };
            let replay =
                plane.call("GET", &format!("/v2/sandboxes?order={other}&nextToken={token}"), None).await;
            assert_eq!(replay.error(400), "Invalid next token");
        }
        assert_eq!(seen, oldest_first, "{order}");
        oldest_first.reverse();
    }
    let v1 = plane.call("GET", "/sandboxes", None).await;
    assert_eq!(ids(&v1.body).len(), 5);
    assert!(v1.headers.get("x-next-token").is_none());
}

#[tokio::test]
async fn filters_are_all_applied() {
    let plane = Plane::new().await;
    let made = some(&plane, 3).await;
    let second = plane.call("GET", &format!("/sandboxes/{}", made[1]), None).await;
    let start = second.body["startedAt"].as_str().unwrap().to_owned();
    let template = second.body["templateID"].as_str().unwrap().to_owned();
    for (query, count) in [
        (String::new(), 3),
        ("state=running".to_owned(), 3),
        ("state=running%2Cpaused".to_owned(), 3),
        ("state=paused".to_owned(), 0),
        (format!("startedAfter={start}"), 2),
        ("template=base".to_owned(), 3),
        (format!("template={template}"), 3),
        ("template=nope".to_owned(), 0),
        ("metadata=k%2525201%3Dv%25253D1".to_owned(), 3),
        ("metadata=n%3D1%26k%2525201%3Dv%25253D1".to_owned(), 1),
        ("metadata=n%3D9".to_owned(), 0),
    ] {
        let listed = plane.call("GET", &format!("/v2/sandboxes?{query}"), None).await;
        assert_eq!(listed.body.as_array().map(Vec::len), Some(count), "{query}: {listed:?}");
    }
    for (query, total) in [("template=nope", "0"), ("metadata=n%3D1&limit=1", "1")] {
        let listed = plane.call("GET", &format!("/v2/sandboxes?{query}"), None).await;
        assert_eq!(listed.headers["x-total-running"], total, "{query}");
        assert!(listed.headers.get("x-next-token").is_none(), "{query}");
    }
    let paused = plane.call("GET", "/v2/sandboxes?state=paused", None).await;
    assert!(paused.headers.get("x-total-running").is_none(), "only when running ones were asked for");
    let v1 = plane.call("GET", "/sandboxes?metadata=n%3D1", None).await;
    assert_eq!(ids(&v1.body), [made[1].clone()]);
}

#[tokio::test]
async fn paused_sandboxes_are_listed_by_state_and_not_counted_as_running() {
    let plane = Plane::new().await;
    let made = some(&plane, 3).await;
    assert_eq!(plane.call("POST", &format!("/sandboxes/{}/pause", made[1]), None).await.status, 204);
    let paused_at = plane.clock.now();
    for (query, found, total) in [
        ("", vec![&made[2], &made[1], &made[0]], Some("2")),
        ("state=running%2Cpaused", vec![&made[2], &made[1], &made[0]], Some("2")),
        ("state=running", vec![&made[2], &made[0]], Some("2")),
        ("state=paused", vec![&made[1]], None),
        ("state=paused&metadata=n%3D1", vec![&made[1]], None),
        ("state=paused&metadata=n%3D2", vec![], None),
    ] {
        let listed = plane.call("GET", &format!("/v2/sandboxes?{query}"), None).await;
        assert_eq!(ids(&listed.body).iter().collect::<Vec<_>>(), found, "{query}");
        let header = listed.headers.get("x-total-running").map(|value| value.to_str().unwrap());
        assert_eq!(header, total, "{query}");
    }
    let paused = &plane.call("GET", "/v2/sandboxes?state=paused", None).await.body[0];
    assert_eq!(paused["state"], "paused");
    assert_eq!(paused["endAt"], paused_at.to_string(), "when it was paused");
    assert_eq!(ids(&plane.call("GET", "/sandboxes", None).await.body).len(), 2, "v1 has running ones alone");
}

#[tokio::test]
async fn parameters_that_do_not_fit_are_refused() {
    let plane = Plane::new().await;
    assert_eq!(plane.call("GET", "/v2/sandboxes?limit=100", None).await.status, 200);
    for query in [
        "limit=0",
        "limit=101",
        "limit=x",
        "order=up",
        "state=killing",
        "startedAfter=yesterday",
        "template=base:v1",
        "template=nope&state=killing",
        "template=b%20b",
        "nextToken=x",
        "metadata=novalue",
        "metadata=a%3Db%3Dc",
        "metadata=%25zz%3D1",
        "limit=%FF",
    ] {
        plane.call("GET", &format!("/v2/sandboxes?{query}"), None).await.error(400);
    }
    let stranger = request("GET", "/v2/sandboxes?limit=0").body(Body::empty()).unwrap();
    plane.send(stranger).await.error(401);
}
