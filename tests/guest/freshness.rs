//! The gate: closed until a checkout is what it shall be, opened by the guest's own task or from outside.

use std::{os::unix::net::UnixStream, path::Path, process::Command};

use serde_json::{Value, json};

use super::agent::{Agent, exchange, hear, init};

/// A bare repository and a clone of it that lacks its last commit.
struct Repositories {
    dir: tempfile::TempDir,
    newest: String,
}

impl Repositories {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Self { dir, newest: String::new() };
        made.git(".", &["init", "--quiet", "--bare", "--initial-branch=main", "origin.git"]);
        made.git(".", &["clone", "--quiet", "origin.git", "author"]);
        made.git("author", &["checkout", "--quiet", "-B", "main"]);
        made.commit("one");
        made.git(".", &["clone", "--quiet", "origin.git", "checkout"]);
        made.commit("two");
        let newest = made.git("author", &["rev-parse", "HEAD"]);
        Self { newest, ..made }
    }

    fn commit(&self, text: &str) {
        std::fs::write(self.dir.path().join("author/file"), text).unwrap();
        self.git("author", &["add", "file"]);
        self.git("author", &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", text]);
        self.git("author", &["push", "--quiet", "origin", "main"]);
    }

    fn git(&self, dir: &str, arguments: &[&str]) -> String {
        let output =
            Command::new("git").current_dir(self.dir.path().join(dir)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn checkout(&self) -> String {
        self.dir.path().join("checkout").to_str().unwrap().to_owned()
    }
}

fn gated(checkout: Option<&str>, gates_processes: bool) -> Value {
    let mut init = init(None);
    init["init"]["freshness"] = json!({"branch": "main", "target": "origin/main", "checkout": checkout,
        "gates_processes": gates_processes, "phase": "restored", "reason": null});
    init
}

fn gate(control: &mut UnixStream, phase: &str) -> Value {
    let message =
        hear(control, |message| message["type"] == "freshness" && message["freshness"]["phase"] == phase);
    message["freshness"].clone()
}

fn verdict(control: &mut UnixStream, verdict: &Value) -> Value {
    exchange(control, &json!({"type": "freshness", "seq": 5, "verdict": verdict}))["error"].clone()
}

fn filesystem(agent: &Agent, method: &str, message: &Value) -> (u16, String) {
    let path = format!("/filesystem.Filesystem/{method}");
    let headers = [("content-type", "application/json"), ("content-encoding", "identity")];
    let answer = agent.request("POST", &path, &headers, message.to_string().as_bytes());
    (answer.status, String::from_utf8(answer.text()).unwrap())
}

fn upload(agent: &Agent, path: &Path) -> (u16, String) {
    let headers = [("content-type", "application/octet-stream")];
    let answer = agent.request("POST", &format!("/files?path={}", path.display()), &headers, b"text");
    (answer.status, String::from_utf8(answer.text()).unwrap())
}

#[test]
fn the_guest_fetches_checks_out_and_resets_and_then_files_may_be_changed() {
    let repositories = Repositories::new();
    let agent = Agent::unknown();
    let mut control = agent.control();
    exchange(&mut control, &gated(Some(&repositories.checkout()), false));
    assert_eq!(gate(&mut control, "ready")["target"], "origin/main");
    assert_eq!(repositories.git("checkout", &["rev-parse", "HEAD"]), repositories.newest);
    assert_eq!(upload(&agent, &repositories.dir.path().join("x")).0, 200);
    assert_eq!(verdict(&mut control, &json!({"action": "run"})), Value::Null, "done is done");
    let mut second = agent.control();
    assert_eq!(gate(&mut second, "ready")["reason"], Value::Null, "whoever attaches is told");
    exchange(&mut second, &gated(Some(&repositories.checkout()), false));
    assert_eq!(upload(&agent, &repositories.dir.path().join("y")).0, 200, "the same sandbox keeps its gate");
}

#[test]
fn changes_are_refused_by_name_until_somebody_says_that_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::unknown();
    let mut control = agent.control();
    exchange(&mut control, &gated(None, false));
    gate(&mut control, "syncing");
    let file = dir.path().join("file");
    std::fs::write(&file, "old").unwrap();
    let path = file.to_str().unwrap();
    for (operation, (status, text)) in [
        ("mkdir", filesystem(&agent, "MakeDir", &json!({"path": dir.path().join("new")}))),
        ("move", filesystem(&agent, "Move", &json!({"source": path, "destination": "/x"}))),
        ("remove", filesystem(&agent, "Remove", &json!({"path": path}))),
    ] {
        assert_eq!(status, 400, "{text}");
        for part in [operation, "failed_precondition", "main", "Syncing"] {
            assert!(text.contains(part), "{operation}: {text}");
        }
    }
    let (status, text) = upload(&agent, &file);
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("write") && text.contains("Syncing"), "{text}");
    let compose = json!({"source_paths": [path], "destination": "/x"}).to_string();
    let headers = [("content-type", "application/json")];
    assert_eq!(agent.request("POST", "/files/compose", &headers, compose.as_bytes()).status, 409);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(filesystem(&agent, "Stat", &json!({"path": path})).0, 200, "reads are not gated");
    assert_eq!(agent.request("GET", &format!("/files?path={path}"), &[], b"").status, 200);
    assert!(agent.shell("true", &[]).iter().any(|event| event.get("end").is_some()), "nor processes");

    assert_ne!(verdict(&mut control, &json!({"action": "run"})), Value::Null, "it has no checkout");
    assert_eq!(verdict(&mut control, &json!({"action": "complete", "target": "abc"})), Value::Null);
    assert_eq!(gate(&mut control, "ready")["target"], "abc");
    assert_eq!(filesystem(&agent, "Remove", &json!({"path": path})).0, 200);
    assert_eq!(upload(&agent, &file).0, 200);
}

#[test]
fn a_step_that_fails_closes_the_gate_with_its_words_and_it_can_be_run_again() {
    let repositories = Repositories::new();
    let agent = Agent::unknown();
    let mut control = agent.control();
    let origin = repositories.dir.path().join("origin.git");
    let away = repositories.dir.path().join("away.git");
    std::fs::rename(&origin, &away).unwrap();
    exchange(&mut control, &gated(Some(&repositories.checkout()), false));
    let reason = gate(&mut control, "failed")["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("git fetch: exit status ") && reason.contains("origin.git"), "{reason}");
    let (status, text) = upload(&agent, &repositories.dir.path().join("x"));
    assert!(status == 409 && text.contains("Failed"), "{status} {text}");
    std::fs::rename(&away, &origin).unwrap();
    assert_eq!(verdict(&mut control, &json!({"action": "run"})), Value::Null);
    gate(&mut control, "ready");
    assert_eq!(repositories.git("checkout", &["rev-parse", "HEAD"]), repositories.newest);
}

#[test]
fn a_verdict_ends_the_step_that_is_under_way() {
    let repositories = Repositories::new();
    repositories.git("checkout", &["remote", "set-url", "origin", "ssh://nowhere/x"]);
    let mark = repositories.dir.path().join("pid");
    let hang = format!("echo $$ > {}; exec sleep 1000; :", mark.display());
    repositories.git("checkout", &["config", "core.sshCommand", &hang]);
    let agent = Agent::unknown();
    let mut control = agent.control();
    exchange(&mut control, &gated(Some(&repositories.checkout()), true));
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let read = || std::fs::read_to_string(&mark).ok().filter(|text| text.ends_with('\n'));
    let pid = loop {
        if let Some(pid) = read() {
            break pid;
        }
        assert!(std::time::Instant::now() < patience, "the fetch begins");
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let refused = agent.shell("true", &[]);
    assert!(
        refused[0]["end"]["error"]["message"].as_str().unwrap().contains("starting a process"),
        "{refused:?}"
    );
    assert_eq!(verdict(&mut control, &json!({"action": "fail", "reason": "enough"})), Value::Null);
    assert_eq!(gate(&mut control, "failed")["reason"], "enough");
    let process = format!("/proc/{}", pid.trim());
    while Path::new(&process).exists() {
        assert!(std::time::Instant::now() < patience, "what the step had started ends with it");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(verdict(&mut control, &json!({"action": "complete"})), Value::Null);
    gate(&mut control, "ready");
    assert!(agent.shell("true", &[]).iter().any(|event| event.get("end").is_some()));
}
