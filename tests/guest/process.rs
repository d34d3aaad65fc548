//! `process.Process` as a client sees it (contract/sandbox 3).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::agent::{Agent, base64, ended, failure, output, shell, started};

#[test]
fn a_command_tells_start_output_and_end() {
    let agent = Agent::start();
    let events = agent.shell("echo out; echo err >&2; exit 3", &[]);
    assert!(events[0]["start"]["pid"].is_u64());
    assert_eq!((output(&events, "stdout").as_str(), output(&events, "stderr").as_str()), ("out\n", "err\n"));
    assert_eq!(
        ended(&events),
        &json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"})
    );
    let events = agent.shell("true", &[]);
    assert_eq!(ended(&events), &json!({"exited": true, "status": "exit status 0"}), "zero is omitted");
    let events = agent.shell("kill -9 $$", &[]);
    assert_eq!(
        ended(&events),
        &json!({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"})
    );
}

#[test]
fn unknown_programs_end_as_under_a_shell() {
    let agent = Agent::start();
    let run = |cmd: &str| {
        let request = json!({"process": {"cmd": cmd}, "stdin": false});
        agent.stream("Start", &request, &[]).collect::<Vec<_>>()
    };
    let events = run("no-such-program");
    assert_eq!(ended(&events)["exitCode"], 127);
    assert_eq!(output(&events, "stderr"), "nice: 'no-such-program': No such file or directory\n");
    assert_eq!(ended(&run("/etc/passwd"))["exitCode"], 126);
    assert_eq!(ended(&run("true"))["exited"], true);
}

#[test]
fn environment_directory_and_user_are_the_requests() {
    let agent = Agent::start();
    let mut request = shell("echo $FOO $HOME $USER $LOGNAME $E2B_SANDBOX_ID $X; pwd; id -u");
    request["process"]["envs"] = json!({"X": "y", "FOO": "request"});
    request["process"]["cwd"] = json!("/tmp");
    let events: Vec<Value> = agent.stream("Start", &request, &[]).collect();
    assert_eq!(output(&events, "stdout"), "request /root root root i0123456789abcdefghij y\n/tmp\n0\n");

    let as_user = |name: &str| format!("Basic {}", base64(&format!("{name}:")));
    request["process"]["cwd"] = json!("/");
    let events: Vec<Value> =
        agent.stream("Start", &request, &[("authorization", &as_user("nobody"))]).collect();
    assert!(output(&events, "stdout").ends_with("/\n65534\n"), "{events:?}");
    let events: Vec<Value> =
        agent.stream("Start", &request, &[("authorization", &as_user("root123"))]).collect();
    assert_eq!(failure(&events), ("unauthenticated", "invalid username: 'root123'"));
}

#[test]
fn directories_that_cannot_be_are_the_requests_fault() {
    let agent = Agent::start();
    for (cwd, text) in [
        ("/no/such", "cwd '/no/such' does not exist"),
        ("/etc/passwd", "error starting process '/bin/sh': fork/exec /bin/sh: not a directory"),
    ] {
        let mut request = shell("true");
        request["process"]["cwd"] = json!(cwd);
        let events: Vec<Value> = agent.stream("Start", &request, &[]).collect();
        assert_eq!(failure(&events), ("invalid_argument", text));
    }
}

#[test]
fn the_time_limit_is_the_processes_life() {
    let agent = Agent::start();
    let mut frames = agent.stream("Start", &shell("exec sleep 60"), &[("connect-timeout-ms", "200")]);
    let pid = started(&mut frames);
    let events: Vec<Value> = frames.collect();
    assert_eq!(failure(&events), ("deadline_exceeded", "context deadline exceeded"));
    let events: Vec<Value> = agent.stream("Connect", &json!({"process": {"pid": pid}}), &[]).collect();
    assert_eq!(ended(&events)["status"], "signal: killed");
    assert_eq!(ended(&agent.shell("sleep 0.3", &[("connect-timeout-ms", "0")]))["exited"], true);
    assert_eq!(failure(&agent.shell("true", &[("connect-timeout-ms", "1x")])).0, "invalid_argument");
}

#[test]
fn input_reaches_the_process_until_it_is_closed() {
    let agent = Agent::start();
    // It stays when its input ends, so that closing twice is not a race with its exit.
    let config = json!({"cmd": "/bin/sh", "args": ["-c", "cat; exec sleep 60"]});
    let mut frames = agent.stream("Start", &json!({"process": config, "tag": "cat"}), &[]);
    let pid = started(&mut frames);
    let process = json!({"tag": "cat"});
    let send =
        |kind: &str| agent.call("SendInput", &json!({"process": process, "input": {kind: base64("hello")}}));
    assert_eq!(send("stdin").0, 200);
    assert_eq!(frames.next().unwrap(), json!({"data": {"stdout": base64("hello")}}));
    assert_eq!(send("pty").1["code"], "internal");
    assert_eq!(agent.call("SendInput", &json!({"process": process, "input": {}})).1["code"], "unimplemented");
    let list = agent.call("List", &json!({})).1;
    assert_eq!(list, json!({"processes": [{"config": config, "pid": pid, "tag": "cat"}]}));
    for _ in 0..2 {
        assert_eq!(agent.call("CloseStdin", &json!({"process": process})).0, 200);
    }
    let kill = json!({"process": process, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(agent.call("SendSignal", &kill).0, 200);
    assert_eq!(ended(&frames.collect::<Vec<_>>())["status"], "signal: killed");
    assert_eq!(agent.call("List", &json!({})).1, json!({}));
    let (status, error) = send("stdin");
    assert_eq!((status, error["message"].as_str()), (404, Some("process with tag cat not found")));
}

#[test]
fn input_can_be_streamed() {
    let agent = Agent::start();
    let request = json!({"process": {"cmd": "/bin/sh", "args": ["-c", "read a; read b; echo $b $a"]}});
    let mut frames = agent.stream("Start", &request, &[]);
    let process = json!({"pid": started(&mut frames)});
    let data = |text: &str| json!({"data": {"input": {"stdin": base64(text)}}});
    let messages =
        [json!({"start": {"process": process}}), data("one\n"), json!({"keepalive": {}}), data("two\n")];
    let answers: Vec<Value> = agent.stream_of("StreamInput", &messages, &[]).collect();
    assert_eq!(answers.last(), Some(&json!({"end": {}})));
    assert_eq!(output(&frames.collect::<Vec<_>>(), "stdout"), "two one\n");
    let answers: Vec<Value> = agent.stream_of("StreamInput", &[data("lost")], &[]).collect();
    assert_eq!(failure(&answers).0, "invalid_argument");
}

#[test]
fn binary_messages_are_served_too() {
    let agent = Agent::start();
    let mut frames = agent.stream("Start", &json!({"process": {"cmd": "cat"}, "tag": "cat"}), &[]);
    started(&mut frames);
    let proto = [("content-type", "application/proto")];
    let answer = agent.request("POST", "/process.Process/List", &proto, b"");
    assert_eq!(answer.status, 200);
    let body = answer.text();
    assert!(body.windows(3).any(|window| window == b"cat"), "{body:?}");
    // process { tag: "cat" }
    let answer = agent.request("POST", "/process.Process/CloseStdin", &proto, b"\x0a\x05\x12\x03cat");
    assert_eq!(answer.status, 200);
    assert_eq!(ended(&frames.collect::<Vec<_>>())["exited"], true);
}

#[test]
fn the_end_waits_for_whoever_holds_the_output_but_not_after_a_signal() {
    let agent = Agent::start();
    let begin = Instant::now();
    agent.shell("sleep 0.5 & echo gone", &[]);
    assert!(begin.elapsed() >= Duration::from_millis(500));

    let mut frames = agent.stream("Start", &shell("sleep 3 & exec sleep 60"), &[]);
    let process = json!({"pid": started(&mut frames)});
    let signal = |name: Value| agent.call("SendSignal", &json!({"process": process, "signal": name}));
    assert_eq!(signal(json!(1)).1["code"], "unimplemented");
    let begin = Instant::now();
    assert_eq!(signal(json!("SIGNAL_SIGTERM")).0, 200);
    let events: Vec<Value> = frames.collect();
    assert_eq!(ended(&events)["status"], "signal: terminated");
    assert!(begin.elapsed() < Duration::from_secs(2), "the background child is not waited for");
}

#[test]
fn a_client_that_goes_away_changes_nothing() {
    let agent = Agent::start();
    let mut request = shell("sleep 0.3; head -c 300000 /dev/zero; sleep 0.3; echo last");
    request["tag"] = json!("left");
    let mut frames = agent.stream("Start", &request, &[]);
    let pid = started(&mut frames);
    drop(frames);
    let mut again = agent.stream("Connect", &json!({"process": {"tag": "left"}}), &[]);
    assert_eq!(started(&mut again), pid);
    let events: Vec<Value> = again.collect();
    assert!(output(&events, "stdout").ends_with("last\n"));
    assert_eq!(ended(&events)["exited"], true);
    let late: Vec<Value> = agent.stream("Connect", &json!({"process": {"pid": pid}}), &[]).collect();
    assert_eq!(late.len(), 3, "start, end, end of stream: nothing is played again");
    let events: Vec<Value> = agent.stream("Connect", &json!({"process": {"tag": "other"}}), &[]).collect();
    assert_eq!(failure(&events), ("not_found", "process with tag other not found"));
}

#[test]
fn every_subscriber_hears_everything_in_pieces_of_32_kib() {
    const BYTES: usize = 1 << 20;
    let agent = Agent::start();
    let request =
        json!({"process": {"cmd": "/bin/sh", "args": ["-c", format!("read x; head -c {BYTES} /dev/zero")]}});
    let mut first = agent.stream("Start", &request, &[]);
    let process = json!({"pid": started(&mut first)});
    let mut second = agent.stream("Connect", &json!({"process": process}), &[]);
    started(&mut second);
    agent.call("SendInput", &json!({"process": process, "input": {"stdin": base64("\n")}}));
    let reader = std::thread::spawn(move || second.collect::<Vec<_>>());
    for events in [first.collect::<Vec<_>>(), reader.join().unwrap()] {
        assert_eq!(output(&events, "stdout").len(), BYTES);
        let longest = events.iter().filter_map(|event| event["data"]["stdout"].as_str()).map(str::len).max();
        assert!(longest.unwrap() <= (32 << 10) / 3 * 4 + 4);
    }
}

#[test]
fn a_terminal_is_one_stream_with_a_size() {
    let agent = Agent::start();
    let mut request = shell("stty size; read x; stty size; tty; exit 2");
    request["pty"] = json!({"size": {"cols": 80, "rows": 24}});
    let mut frames = agent.stream("Start", &request, &[]);
    let process = json!({"pid": started(&mut frames)});
    assert_eq!(agent.call("CloseStdin", &json!({"process": process})).1["code"], "unknown");
    let first = frames.next().unwrap();
    assert_eq!(output(&[first], "pty"), "24 80\r\n");
    let update = json!({"process": process, "pty": {"size": {"cols": 100, "rows": 30}}});
    assert_eq!(agent.call("Update", &update).0, 200);
    agent.call("SendInput", &json!({"process": process, "input": {"pty": base64("\n")}}));
    let events: Vec<Value> = frames.collect();
    let text = output(&events, "pty");
    assert!(text.contains("30 100\r\n/dev/pts/"), "{text}");
    assert_eq!(ended(&events)["exitCode"], 2);
}

#[test]
fn an_idle_stream_is_kept_alive() {
    let agent = Agent::start();
    let events = agent.stream("Start", &shell("sleep 1.5"), &[("keepalive-ping-interval", "1")]);
    let events: Vec<Value> = events.collect();
    assert_eq!(events[1], json!({"keepalive": {}}));
}

#[test]
fn a_selector_that_selects_nothing_is_unimplemented() {
    let agent = Agent::start();
    assert_eq!(agent.call("SendSignal", &json!({"signal": 9})).0, 501);
    assert_eq!(agent.call("SendSignal", &json!({"process": {"pid": 999_999}, "signal": 9})).0, 404);
    let events: Vec<Value> = agent.stream("Connect", &json!({}), &[]).collect();
    assert_eq!(failure(&events).0, "unimplemented");
}
