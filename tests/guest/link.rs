//! Handshake, identity and access.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use serde_json::json;

use super::agent::{Agent, exchange, init};

#[test]
fn envd_waits_for_its_identity_and_then_for_its_token() {
    let agent = Agent::unknown();
    assert_eq!(agent.request("GET", "/health", &[], b"").status, 503);
    let mut control = agent.control();
    exchange(&mut control, &init(None));
    assert_eq!(agent.request("GET", "/health", &[], b"").status, 204);
    assert_eq!(agent.request("GET", "/envs", &[], b"").status, 200);

    exchange(&mut control, &init(Some("secret")));
    assert_eq!(agent.request("GET", "/health", &[], b"").status, 204, "health needs no token");
    assert_eq!(agent.request("GET", "/envs", &[("x-access-token", "secret")], b"").status, 200);
    for headers in [&[][..], &[("x-access-token", "secre")], &[("x-access-token", "secret2")]] {
        let answer = agent.request("GET", "/envs", headers, b"");
        assert_eq!(answer.status, 401);
        let body: serde_json::Value = serde_json::from_slice(&answer.text()).unwrap();
        assert_eq!(body["code"], 401, "envd's own errors carry a number");
    }
    let preflight = [("origin", "http://a"), ("access-control-request-method", "POST")];
    assert_eq!(agent.request("OPTIONS", "/envs", &preflight, b"").status, 204, "CORS comes before the token");
}

#[test]
fn a_new_attachment_ends_the_last() {
    let agent = Agent::start();
    let mut first = agent.control();
    let ping = json!({"type": "ping", "seq": 9});
    assert_eq!(exchange(&mut first, &ping)["seq"], 9);
    let (mut second, line) = agent.open(&format!("CONTROL 7 {}\n", "cd".repeat(16)));
    assert_eq!(line, "OK 1", "the lower generation wins");
    assert_eq!(exchange(&mut second, &ping)["seq"], 9);
    assert_eq!(first.read(&mut [0; 16]).unwrap(), 0, "the first was closed");
}

#[test]
fn ports_are_dialled_and_closed_ones_named() {
    let agent = Agent::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut stream, line) = agent.open(&format!("CONNECT {port}\n"));
    assert_eq!(line, "OK");
    let (mut accepted, _) = server.accept().unwrap();
    stream.write_all(b"ping").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut heard = String::new();
    accepted.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "ping", "half a close passes through");
    accepted.write_all(b"pong").unwrap();
    drop(accepted);
    heard.clear();
    stream.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "pong");
    drop(server);
    assert!(agent.open(&format!("CONNECT {port}\n")).1.starts_with("ERR "));
    assert!(agent.open("CONNECT 080\n").1.starts_with("ERR "));
}
