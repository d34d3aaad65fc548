//! How connections end, that it is told why, and that nothing is left of them.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::{Rig, tasks, until, within};

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_close_frame_says_why() {
    let rig = Rig::start().await;
    let reason = |code: u64, text: &str| (code, text.to_owned());

    let (mut socket, process, _) = rig.process().await;
    process.exit().await;
    assert_eq!(socket.closed().await, reason(1000, "the stream has ended"));

    let (mut socket, process, _) = rig.process().await;
    drop(process);
    let (code, text) = socket.closed().await;
    assert_eq!(code, 1011);
    assert!(text.starts_with("unavailable: "), "{text}");

    let mut socket = rig.keyed(&rig.path("files/watch?path=/tmp")).await;
    let watch = rig.envd.opened("filesystem.Filesystem/WatchDir").await;
    watch.file("seen").await;
    assert_eq!(socket.until("file").await["name"], "seen");
    watch.fail("internal", "too many changes").await;
    assert_eq!(socket.closed().await, reason(1011, "internal: too many changes"));

    let mut socket = rig.keyed(&rig.path("processes")).await;
    socket.say(&json!({ "type": "closeInput" })).await;
    assert_eq!(socket.closed().await, reason(1008, "invalid_argument: the first message is start"));

    let (mut socket, _process, _) = rig.process().await;
    rig.plane.call("DELETE", &format!("/sandboxes/{}", rig.sandbox), None).await;
    assert_eq!(socket.until("error").await["code"], "not_found");
    assert_eq!(socket.closed().await, reason(4000, "the sandbox has ended"));
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_leaves_nothing() {
    let mut rig = Rig::start().await;
    let (mut socket, process, _) = rig.process().await;
    let mut waiting = rig.keyed(&rig.path("processes")).await;
    let path = rig.path(&format!("processes?pid={}", process.pid));
    let mut events = rig.events(&path, &[("x-api-key", &rig.plane.key)]).await;
    events.until("attached").await;
    rig.shutdown.cancel();
    rig.plane.state.streams.close();
    assert_eq!(socket.closed().await, (1001, "the server is stopping".to_owned()));
    assert_eq!(waiting.closed().await, (1001, "the server is stopping".to_owned()));
    events.until(r#"{"type":"closed","code":1001,"reason":"the server is stopping"}"#).await;
    drop((socket, waiting, events));
    within(&mut rig.serving).await.unwrap();
    rig.settled(0, 0).await;
    process.abandoned().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_task_and_no_permit() {
    let rig = Rig::with(|bounds| {
        bounds.abandoned = SHORT;
        bounds.farewell = SHORT;
    })
    .await;
    let before = tasks();
    let (socket, process, _) = rig.process().await;
    let path = rig.path(&format!("processes?pid={}", process.pid));
    let mut events = rig.events(&path, &[("x-api-key", &rig.plane.key)]).await;
    events.until("attached").await;
    let silent = rig.keyed(&rig.path("processes")).await;
    rig.settled(1, 3).await;
    assert!(tasks() > before);
    drop((socket, events, silent));
    rig.settled(1, 0).await;
    process.abandoned().await;
    drop(process);
    rig.settled(0, 0).await;
    until("no task is left", || tasks() <= before).await;
}

#[tokio::test]
async fn pings_keep_a_quiet_client_and_a_silent_one_is_let_go_of() {
    let rig = Rig::with(|bounds| {
        bounds.ping = SHORT / 4;
        bounds.silence = SHORT;
    })
    .await;
    let (mut quiet, process, _) = rig.process().await;
    let path = rig.path(&format!("processes?pid={}", process.pid));
    // Nobody reads from this one, so that nothing answers the pings.
    let mut silent = rig.keyed(&path).await;
    rig.settled(1, 2).await;
    let mut pings = 0;
    let answering = async {
        // Twice the silence that would be too long.
        while pings < 8 {
            if let Some(Ok(Message::Ping(_))) = quiet.0.next().await {
                pings += 1;
                quiet.0.flush().await.unwrap();
            }
        }
    };
    within(answering).await;
    assert_eq!(silent.closed().await, (4002, "the client did not answer to pings".to_owned()));
    drop(silent);
    rig.settled(1, 1).await;
    process.exit().await;
    quiet.until("exit").await;
}

/// Output until the stream's followers hold it back and are cut off, and then a little.
async fn flood(process: &super::Process) {
    let text = "x".repeat(32 << 10);
    for _ in 0..600 {
        assert!(within(process.stdout(&text)).await);
    }
}

#[tokio::test]
async fn a_websocket_that_does_not_read_is_cut_off_and_holds_nothing() {
    let rig = Rig::with(|bounds| {
        bounds.unread = SHORT;
        bounds.farewell = SHORT;
    })
    .await;
    let (mut slow, process, _) = rig.process().await;
    let path = rig.path(&format!("processes?pid={}", process.pid));
    let mut reading = rig.keyed(&path).await;
    rig.settled(1, 2).await;
    let last = async {
        let mut last = 0;
        while last < 600 {
            last = reading.until("stdout").await["seq"].as_u64().unwrap();
        }
    };
    tokio::join!(flood(&process), last);
    rig.settled(1, 1).await;
    let mut got = 0;
    while slow.next().await["type"] == "stdout" {
        got += 1;
    }
    assert!(got < 600, "the slow one got everything");
    process.exit().await;
    reading.until("exit").await;
}

#[tokio::test]
async fn events_that_nobody_reads_end_with_their_connection() {
    let rig = Rig::with(|bounds| bounds.unread = SHORT).await;
    let (mut reading, process, _) = rig.process().await;
    let path = rig.path(&format!("processes?pid={}", process.pid));
    let mut slow = rig.events(&path, &[("x-api-key", &rig.plane.key)]).await;
    rig.settled(1, 2).await;
    let last = async { while reading.until("stdout").await["seq"] != 600 {} };
    tokio::join!(flood(&process), last);
    rig.settled(1, 1).await;
    // What is in the sockets can still be read, and then the connection is over.
    let mut rest = Vec::new();
    let _ = within(slow.socket.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains(r#""seq":600"#));
    process.exit().await;
    reading.until("exit").await;
}

#[tokio::test]
async fn connections_are_bounded_and_free_again() {
    let rig = Rig::with(|bounds| bounds.connections = 2).await;
    let path = rig.path("files/watch?path=/tmp");
    let key = ("x-api-key", rig.plane.key.as_str());
    let first = rig.keyed(&path).await;
    let second = rig.events(&path, &[key]).await;
    assert_eq!(second.status, 200);
    assert_eq!(rig.open(&path, &[key]).await.err(), Some(429));
    assert_eq!(rig.events(&path, &[key]).await.status, 429);
    drop(first);
    until("a place", || rig.plane.state.streams.usage().connections == 1).await;
    assert!(rig.open(&path, &[key]).await.is_ok());
}

#[tokio::test]
async fn a_crowded_sandbox_ends_what_nobody_follows_and_refuses_else() {
    let rig = Rig::with(|bounds| bounds.streams_of_sandbox = 2).await;
    let (first, _idle, _) = rig.process().await;
    drop(first);
    rig.settled(1, 0).await;
    let (_second, _kept, _) = rig.process().await;
    let (_third, _newer, _) = rig.process().await;
    rig.settled(2, 2).await;
    let mut refused = rig.keyed(&rig.path("processes")).await;
    refused.say(&json!({ "type": "start", "cmd": "cat" })).await;
    assert_eq!(
        refused.closed().await,
        (1008, "resource_exhausted: too many open streams of this sandbox".to_owned())
    );
    let answer = rig.plane.call("GET", &rig.path("files/watch?path=/tmp"), None).await;
    assert_eq!(answer.error(429), "too many open streams of this sandbox");
    rig.settled(2, 2).await;
}

#[tokio::test]
async fn neither_a_client_nor_an_envd_that_says_nothing_holds_a_place_for_long() {
    let rig = Rig::with(|bounds| bounds.first_word = SHORT).await;
    let mut quiet = rig.keyed(&rig.path("processes")).await;
    assert_eq!(quiet.closed().await, (1008, "deadline_exceeded: there was no first message".to_owned()));
    drop(quiet);
    let hang: firkin::runtime::fake::Handler = std::sync::Arc::new(|link| {
        Box::pin(async move {
            let _link = link;
            std::future::pending::<()>().await;
        })
    });
    rig.plane.engine.listen(firkin::sandbox::ENVD_PORT, firkin::runtime::fake::Service::Custom(hang));
    let mut waiting = rig.keyed(&rig.path("terminal")).await;
    let reason = "deadline_exceeded: the sandbox's services did not answer in time";
    assert_eq!(waiting.closed().await, (1008, reason.to_owned()));
    drop(waiting);
    rig.settled(0, 0).await;
}
