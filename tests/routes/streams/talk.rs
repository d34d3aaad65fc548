//! What clients and processes say to each other: lanes of input and signals, numbers, what is lost.

use std::time::Duration;

use serde_json::json;

use super::{Rig, envd::coded};

#[tokio::test]
async fn a_signal_and_a_size_pass_input_that_the_process_does_not_take() {
    let rig = Rig::start().await;
    let (mut socket, process, _) = rig.process().await;
    rig.envd.takes(false);
    for text in ["one", "two"] {
        socket.say(&json!({ "type": "input", "data": coded(text) })).await;
    }
    socket.say(&json!({ "type": "closeInput" })).await;
    socket.say(&json!({ "type": "resize", "cols": 100, "rows": 40 })).await;
    socket.say(&json!({ "type": "signal", "signal": "SIGKILL" })).await;
    assert_eq!(rig.envd.input().await, "one");
    let (procedure, size) = rig.envd.called().await;
    assert_eq!((procedure.as_str(), &size["pty"]["size"]["cols"]), ("process.Process/Update", &json!(100)));
    let (procedure, signal) = rig.envd.called().await;
    assert_eq!(
        (procedure.as_str(), &signal["signal"]),
        ("process.Process/SendSignal", &json!("SIGNAL_SIGKILL"))
    );
    rig.envd.takes(true);
    assert_eq!(rig.envd.input().await, "two");
    assert_eq!(rig.envd.called().await.0, "process.Process/CloseStdin");
    process.exit().await;
    assert_eq!(socket.until("exit").await["exitCode"], 3);
}

#[tokio::test]
async fn input_does_not_pass_the_size_before_it() {
    let rig = Rig::start().await;
    let (mut socket, _process, _) = rig.process().await;
    for round in 0..20 {
        socket.say(&json!({ "type": "resize", "cols": round, "rows": 40 })).await;
        socket.say(&json!({ "type": "input", "data": coded("stty size\n") })).await;
        assert_eq!(rig.envd.called().await.1["pty"]["size"]["cols"], json!(round));
        assert_eq!(rig.envd.input().await, "stty size\n");
    }
}

#[tokio::test]
async fn input_beyond_what_may_wait_is_refused_and_a_signal_is_still_heard() {
    let rig = Rig::with(|bounds| bounds.untaken = Duration::from_millis(100)).await;
    let (mut socket, _process, _) = rig.process().await;
    rig.envd.takes(false);
    let large = "x".repeat(100 << 10);
    for _ in 0..4 {
        socket.say(&json!({ "type": "input", "data": coded(&large) })).await;
    }
    socket.say(&json!({ "type": "signal", "signal": "SIGTERM" })).await;
    for _ in 0..2 {
        let refused = socket.next().await;
        assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("resource_exhausted")));
        assert!(refused["message"].as_str().unwrap().contains("102400 bytes"), "{refused}");
    }
    assert_eq!(rig.envd.input().await.len(), 32 << 10, "input goes on in small calls");
    assert_eq!(rig.envd.called().await.0, "process.Process/SendSignal");
    rig.envd.takes(true);
    let mut taken = 32 << 10;
    while taken < 200 << 10 {
        taken += rig.envd.input().await.len();
    }
    assert_eq!(taken, 200 << 10, "what had room is whole");
    socket.say(&json!({ "type": "input", "data": coded("again") })).await;
    assert_eq!(rig.envd.input().await, "again");
}

#[tokio::test]
async fn input_that_may_wait_is_not_refused() {
    let rig = Rig::with(|bounds| bounds.untaken = Duration::from_millis(1)).await;
    let (mut socket, process, _) = rig.process().await;
    rig.envd.takes(false);
    let large = "x".repeat(100 << 10);
    for _ in 0..6 {
        socket.say(&json!({ "type": "input", "data": coded(&large), "wait": true })).await;
    }
    socket.say(&json!({ "type": "closeInput", "wait": true })).await;
    assert_eq!(rig.envd.input().await.len(), 32 << 10);
    // A signal on a connection of its own is heard meanwhile.
    let mut other = rig.keyed(&rig.path(&format!("processes?pid={}", process.pid))).await;
    other.until("attached").await;
    other.say(&json!({ "type": "signal", "signal": "SIGTERM" })).await;
    assert_eq!(rig.envd.called().await.0, "process.Process/SendSignal");
    rig.envd.takes(true);
    let mut taken = 32 << 10;
    while taken < 600 << 10 {
        taken += rig.envd.input().await.len();
    }
    assert_eq!(taken, 600 << 10);
    assert_eq!(rig.envd.called().await.0, "process.Process/CloseStdin");
    process.exit().await;
    assert_eq!(socket.next().await["type"], "exit", "nothing was refused");
}

#[tokio::test]
async fn what_a_client_said_before_it_went_is_passed_on() {
    let rig = Rig::start().await;
    let (mut socket, process, _) = rig.process().await;
    rig.envd.takes(false);
    for text in ["one", "two"] {
        socket.say(&json!({ "type": "input", "data": coded(text) })).await;
    }
    socket.say(&json!({ "type": "closeInput" })).await;
    socket.0.close(None).await.unwrap();
    assert_eq!(rig.envd.input().await, "one");
    rig.envd.takes(true);
    assert_eq!(rig.envd.input().await, "two");
    assert_eq!(rig.envd.called().await.0, "process.Process/CloseStdin");
    rig.settled(1, 0).await;
    assert!(process.stdout("nobody looks").await, "the stream goes on");
}

#[tokio::test]
async fn who_comes_back_goes_on_after_the_number_that_was_seen() {
    let rig = Rig::start().await;
    let (mut socket, process, stream) = rig.process().await;
    for text in ["one", "two", "three"] {
        assert!(process.stdout(text).await);
    }
    let first = socket.until("stdout").await;
    assert_eq!((&first["seq"], &first["data"]), (&json!(1), &json!(coded("one"))));
    drop(socket);
    let path = rig.path(&format!("processes?pid={}&stream={stream}&after=1", process.pid));
    let mut back = rig.keyed(&path).await;
    assert_eq!(back.next().await["stream"], json!(stream));
    for (number, text) in [(2, "two"), (3, "three")] {
        let message = back.next().await;
        assert_eq!((&message["seq"], &message["data"]), (&json!(number), &json!(coded(text))));
    }
    let last = format!("{stream}:2");
    let path = rig.path(&format!("processes?pid={}", process.pid));
    let fields = [("x-api-key", rig.plane.key.as_str()), ("last-event-id", last.as_str())];
    let mut events = rig.events(&path, &fields).await;
    events.until(&format!("id: {stream}:3\n")).await;
    assert!(!events.text.contains(&format!("id: {stream}:2\n")));
    let mut fresh = rig.keyed(&path).await;
    fresh.until("attached").await;
    process.stdout("four").await;
    assert_eq!(fresh.next().await["seq"], 4, "without a number: from now on");
    process.exit().await;
    assert_eq!(back.until("exit").await["seq"], 5);
    events.until(r#"{"type":"closed","code":1000,"reason":"the stream has ended"}"#).await;
    let mut late = rig.keyed(&format!("{path}&stream={stream}&after=4")).await;
    assert_eq!(late.until("exit").await["seq"], 5, "an end can be read for a while");
}

#[tokio::test]
async fn what_the_ring_no_longer_has_is_told() {
    let rig = Rig::start().await;
    let (socket, process, stream) = rig.process().await;
    drop(socket);
    rig.settled(1, 0).await;
    let text = "x".repeat(30 << 10);
    for _ in 0..10 {
        assert!(process.stdout(&text).await, "nobody holds the process back");
    }
    let path = rig.path(&format!("processes?pid={}&stream={stream}&after=0", process.pid));
    let mut back = rig.keyed(&path).await;
    assert_eq!(back.next().await["type"], "attached");
    let lost = back.next().await;
    assert_eq!((&lost["type"], &lost["from"]), (&json!("lost"), &json!(1)));
    let last_lost = lost["to"].as_u64().unwrap();
    assert!((1..10).contains(&last_lost), "{lost}");
    for number in last_lost + 1..=10 {
        assert_eq!(back.next().await["seq"], number);
    }
    // Numbers of a stream that is not known here mean nothing: everything may be lost.
    let path = rig.path(&format!("processes?pid={}&stream=00000000000000ff&after=7", process.pid));
    let mut other = rig.keyed(&path).await;
    assert_eq!(other.next().await["type"], "attached");
    let lost = other.next().await;
    assert_eq!((&lost["from"], lost.get("to")), (&json!(8), None));
}

#[tokio::test]
async fn a_bad_message_is_answered_and_changes_nothing() {
    let rig = Rig::start().await;
    let (mut socket, _process, _) = rig.process().await;
    for bad in [
        json!({ "type": "dance" }),
        json!({ "type": "start", "cmd": "again" }),
        json!({ "type": "signal", "signal": "SIGHUP" }),
        json!({ "type": "input", "data": "%" }),
        json!([]),
    ] {
        socket.say(&bad).await;
        assert_eq!(socket.until("error").await["code"], "invalid_argument", "{bad}");
    }
    socket.say(&json!({ "type": "input", "data": coded("still here") })).await;
    assert_eq!(rig.envd.input().await, "still here");
}
