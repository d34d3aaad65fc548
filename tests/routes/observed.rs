//! Logs and metrics of sandboxes.

use serde_json::{Value, json};

use super::{Plane, until};

const ABSENT: &str = "i00000000000000000000";

/// A sandbox with these lines in its log.
async fn logged(plane: &Plane, lines: &[&str]) -> String {
    let id = plane.sandbox().await;
    for line in lines {
        assert!(plane.engine.guest_log(id.parse().unwrap(), line), "{line}");
    }
    let path = format!("/sandboxes/{id}/logs");
    until("the log", async || {
        let answer = plane.call("GET", &path, None).await;
        (answer.body["logs"].as_array()?.len() == lines.len()).then_some(answer)
    })
    .await;
    id
}

fn messages(entries: &Value) -> Vec<&str> {
    entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_first_generation_shows_each_line_as_json_and_in_parts() {
    let plane = Plane::new().await;
    let id = logged(&plane, &["one", "two"]).await;
    let answer = plane.call("GET", &format!("/sandboxes/{id}/logs?start=0"), None).await;
    assert_eq!(answer.status, 200);
    let line: Value = serde_json::from_str(answer.body["logs"][0]["line"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&line["level"], &line["logger"], &line["message"]),
        (&json!("info"), &json!("envd"), &json!("one"))
    );
    assert_eq!(answer.body["logs"][0]["timestamp"], "1970-01-01T00:00:00Z");
    let entry = &answer.body["logEntries"][1];
    assert_eq!(entry["message"], "two");
    assert_eq!(entry["fields"]["logger"], "envd");
    let none = plane.call("GET", &format!("/sandboxes/{id}/logs?start=1"), None).await;
    assert_eq!(none.body, json!({"logs": [], "logEntries": []}));
    let first = plane.call("GET", &format!("/sandboxes/{id}/logs?limit=1"), None).await;
    assert_eq!(messages(&first.body["logEntries"]), ["one"]);
}

#[tokio::test]
async fn the_second_generation_goes_backward_or_forward_by_level_and_text() {
    let plane = Plane::new().await;
    let id = logged(&plane, &["one", "two", "twenty"]).await;
    for (query, wanted) in [
        ("", &["twenty", "two", "one"][..]),
        ("?direction=forward", &["one", "two", "twenty"]),
        ("?direction=forward&limit=1", &["one"]),
        ("?limit=0", &[]),
        ("?search=tw", &["twenty", "two"]),
        ("?level=info&cursor=0", &["twenty", "two", "one"]),
        ("?level=warn", &[]),
        ("?direction=forward&cursor=1", &[]),
    ] {
        let answer = plane.call("GET", &format!("/v2/sandboxes/{id}/logs{query}"), None).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        assert_eq!(messages(&answer.body["logs"]), wanted, "{query}");
    }
    for query in ["direction=up", "level=loud", "limit=1001", "limit=-1", "cursor=x", "cursor=-1"] {
        let answer = plane.call("GET", &format!("/v2/sandboxes/{id}/logs?{query}"), None).await;
        assert!(answer.error(400).contains("validation error"), "{query}");
    }
    let long = format!("/v2/sandboxes/{id}/logs?search={}", "x".repeat(257));
    plane.call("GET", &long, None).await.error(400);
}

#[tokio::test]
async fn a_sample_is_there_at_once_and_windows_are_checked() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    let path = format!("/sandboxes/{id}/metrics");
    let answer = until("a sample", async || {
        let answer = plane.call("GET", &path, None).await;
        (!answer.body.as_array()?.is_empty()).then_some(answer)
    })
    .await;
    let sample = &answer.body[0];
    for field in ["timestamp", "timestampUnix", "cpuUsedPct", "memUsed", "memCache", "diskUsed"] {
        assert!(!sample[field].is_null(), "{field}: {sample}");
    }
    assert_eq!(sample["cpuCount"], 2);
    assert_eq!((&sample["memTotal"], &sample["diskTotal"]), (&json!(512 << 20), &json!(1024 << 20)));
    let before = plane.call("GET", &format!("{path}?start=0&end=1"), None).await;
    assert_eq!((before.status.as_u16(), before.body), (200, json!([])));
    assert!(
        plane
            .call("GET", &format!("{path}?start=2&end=1"), None)
            .await
            .error(400)
            .contains("Invalid time range for metrics")
    );
    for query in ["start=x", "end=-1", "start=99999999999999999"] {
        plane.call("GET", &format!("{path}?{query}"), None).await.error(400);
    }
}

#[tokio::test]
async fn clocks_that_differ_a_little_hide_no_sample_and_refuse_nobody() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    let path = format!("/sandboxes/{id}/metrics");
    let latest = format!("/sandboxes/metrics?sandbox_ids={id}");
    until("a sample", async || plane.call("GET", &latest, None).await.body["sandboxes"].get(&id).cloned())
        .await;
    // Nobody said a start: one that is shown as yet to come is no bad range.
    plane.clock.jump(jiff::SignedDuration::from_secs(-1));
    assert_eq!(plane.call("GET", &path, None).await.status, 200);
    let past = plane.call("GET", &format!("{path}?end=1"), None).await;
    assert_eq!((past.status.as_u16(), past.body), (200, json!([])));
    plane.clock.jump(jiff::SignedDuration::from_secs(1));
    // The sample is from a second before the start as it is shown now.
    plane.clock.set_wall(jiff::SignedDuration::from_secs(1));
    let found = plane.call("GET", &path, None).await;
    assert_eq!(found.body.as_array().map(Vec::is_empty), Some(false), "{found:?}");
}

#[tokio::test]
async fn the_newest_samples_of_many() {
    let plane = Plane::new().await;
    let (one, two) = (plane.sandbox().await, plane.sandbox().await);
    let path = format!("/sandboxes/metrics?sandbox_ids={one},{two},{ABSENT}");
    let answer = until("both samples", async || {
        let answer = plane.call("GET", &path, None).await;
        (answer.body["sandboxes"].as_object()?.len() == 2).then_some(answer)
    })
    .await;
    assert_eq!(answer.body["sandboxes"][&one]["cpuCount"], 2);
    let foreign = plane.call_with(&plane.other_key, "GET", &path, None).await;
    assert_eq!(foreign.body, json!({"sandboxes": {}}));
    plane.call("GET", "/sandboxes/metrics", None).await.error(400);
    plane.call("GET", &format!("/sandboxes/metrics?sandbox_ids={one},{one}"), None).await.error(400);
    let many = vec!["x"; 101].join(",");
    plane.call("GET", &format!("/sandboxes/metrics?sandbox_ids={many}"), None).await.error(400);
}

#[tokio::test]
async fn neither_is_shown_to_another_team_or_of_nobody() {
    let plane = Plane::new().await;
    let id = plane.sandbox().await;
    for path in ["/sandboxes/{}/logs", "/v2/sandboxes/{}/logs", "/sandboxes/{}/metrics"] {
        let ours = path.replace("{}", &id);
        assert_eq!(plane.call("GET", &ours, None).await.status, 200, "{path}");
        let foreign = plane.call_with(&plane.other_key, "GET", &ours, None).await;
        let absent = plane.call("GET", &path.replace("{}", ABSENT), None).await;
        assert_eq!(foreign.error(404).replace(&id, ABSENT), absent.error(404), "{path}");
    }
}
