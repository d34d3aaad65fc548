//! The host API, asked as a program in a machine asks it.

use std::sync::Arc;

use firkin::{clock::Clock, routes::Inside};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Plane, until};

async fn plane() -> Plane {
    let plane = Plane::new().await;
    plane.clock.jump(SignedDuration::from_hours(24));
    let clock: Arc<dyn Clock> = Arc::clone(&plane.clock) as Arc<dyn Clock>;
    plane.state.registry.answer_inside(Arc::new(Inside::new(clock)));
    plane
}

/// Status and body.
async fn ask(plane: &Plane, sandbox: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let id = sandbox.parse().unwrap();
    let address = until("the host API", async || plane.engine.host_api(id)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // One that refuses a long body may hang up in the middle of it.
    let _ = stream.write_all(body.as_bytes()).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn lines(plane: &Plane, sandbox: &str) -> Vec<Value> {
    let answer = plane.call("GET", &format!("/v2/sandboxes/{sandbox}/logs"), None).await;
    answer.body["logs"].as_array().unwrap().clone()
}

#[tokio::test]
async fn the_socket_says_who_asks() {
    let plane = plane().await;
    let (one, other) = (plane.sandbox().await, plane.sandbox().await);
    for id in [&one, &other] {
        let (status, body) = ask(&plane, id, "GET", "/me", "").await;
        assert_eq!(status, 200);
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({ "sandboxID": id }));
    }
    let line = json!({ "message": "mine", "teamID": "forged", "n": 1 }).to_string();
    assert_eq!(ask(&plane, &one, "POST", "/logs", &line).await, (200, String::new()));
    let found = lines(&plane, &one).await;
    let mine = found.iter().find(|line| line["message"] == "mine").unwrap();
    assert_eq!((&mine["level"], &mine["fields"]["n"]), (&json!("info"), &json!("1")));
    assert_eq!(mine["fields"].get("teamID"), None, "the host knows that better");
    assert!(lines(&plane, &other).await.iter().all(|line| line["message"] != "mine"));
}

#[tokio::test]
async fn lines_of_others_and_of_earlier_runs_are_refused() {
    let plane = plane().await;
    let id = plane.sandbox().await;
    let before = (plane.clock.now() - SignedDuration::from_secs(1)).to_string();
    let after = (plane.clock.now() + SignedDuration::from_secs(1)).to_string();
    for (line, status) in [
        (json!({ "message": "a", "instanceID": &id, "timestamp": after }), 200),
        (json!({ "message": "b", "instanceID": "i00000000000000000000" }), 400),
        (json!({ "message": "c", "timestamp": before }), 400),
        (json!(["d"]), 400),
        (json!({ "message": "x".repeat(70_000) }), 413),
    ] {
        assert_eq!(ask(&plane, &id, "POST", "/logs", &line.to_string()).await.0, status, "{line:.80}");
    }
    plane.clock.set_wall(SignedDuration::from_hours(-1));
    assert_eq!(
        ask(&plane, &id, "POST", "/logs", r#"{"message":"e"}"#).await.0,
        200,
        "a clock that was set back"
    );
    let texts: Vec<Value> =
        lines(&plane, &id).await.into_iter().map(|line| line["message"].clone()).collect();
    assert!(
        texts.contains(&json!("a")) && !texts.contains(&json!("b")) && !texts.contains(&json!("c")),
        "{texts:?}"
    );
}

#[tokio::test]
async fn it_ends_with_the_machine() {
    let plane = plane().await;
    let id = plane.sandbox().await;
    assert_eq!(ask(&plane, &id, "GET", "/me", "").await.0, 200);
    let address = plane.engine.host_api(id.parse().unwrap()).unwrap();
    assert_eq!(plane.call("DELETE", &format!("/sandboxes/{id}"), None).await.status, 204);
    until("the socket closes", async || TcpStream::connect(address).await.is_err().then_some(())).await;
}
