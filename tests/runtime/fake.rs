//! The fake engine against the contract, and what only it can do.

use std::{sync::Arc, time::Duration};

use firkin::{
    id::{BuildId, OsEntropy},
    runtime::{
        engine::Engine as _,
        fake::{FakeEngine, Service},
    },
    sandbox::{ENVD_PORT, Resources},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::contract::{self, Control, LONG, Subject};

fn subject(engine: &FakeEngine) -> Subject {
    let (echoing, counted) = (engine.clone(), engine.clone());
    let (written, kept) = (engine.clone(), engine.clone());
    Subject {
        engine: Arc::new(engine.clone()),
        build: BuildId::generate(&OsEntropy),
        resources: Resources { cpu_count: 1, memory_mb: 128, disk_mb: 256 },
        echo: Box::new(move |_, port| {
            echoing.listen(port, Service::Echo);
            Box::pin(async {})
        }),
        write: Box::new(move |_, id, name, text| {
            assert!(written.write_file(id, name, text.as_bytes()));
            Box::pin(async {})
        }),
        read: Box::new(move |_, id, name| {
            let content = kept.files(id).and_then(|files| files.get(name).cloned());
            Box::pin(async move { content.map(|content| String::from_utf8(content).unwrap()) })
        }),
        census: Box::new(move || counted.live().iter().map(ToString::to_string).collect()),
    }
}

#[tokio::test]
async fn the_contract_holds() {
    let engine = FakeEngine::new();
    engine.faults(|faults| faults.create_delay = Duration::from_millis(3));
    contract::hold(&subject(&engine)).await;
}

#[tokio::test]
async fn the_contract_holds_over_a_slow_link() {
    let engine = FakeEngine::new();
    engine.faults(|faults| faults.answer_delay = Duration::from_millis(5));
    contract::hold(&subject(&engine)).await;
}

#[tokio::test]
async fn a_cut_breaks_all_streams_with_an_error_and_the_next_opens() {
    let engine = FakeEngine::new();
    let subject = subject(&engine);
    let (id, machine) = subject.machine().await;
    engine.listen(8000, Service::Echo);
    let mut stream = contract::open(&*machine, 8000).await;
    contract::exchange(&mut stream, b"before").await;
    assert!(engine.cut(id));
    timeout(LONG, stream.read_u8()).await.expect("in time").expect_err("a cut is no end");
    contract::exchange(&mut contract::open(&*machine, 8000).await, b"after").await;

    let stream = contract::open(&*machine, 8000).await;
    assert!(engine.cut_after(id, 100_000));
    let sent = vec![7; 1 << 20];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move { writer.write_all(&sent).await });
    let mut received = Vec::new();
    timeout(LONG, reader.read_to_end(&mut received)).await.expect("in time").expect_err("cut within");
    assert!(received.len() < 100_000);
    timeout(LONG, writing).await.expect("in time").unwrap().expect_err("the writer hears of it too");
}

#[tokio::test]
async fn envd_answers_and_keeps_its_token() {
    let engine = FakeEngine::new();
    let subject = subject(&engine);
    let (id, machine) = subject.machine().await;
    let _control = Control::attach(&*machine, id).await;
    let health = ask(&*machine, ENVD_PORT, "GET /health HTTP/1.1\r\n").await;
    assert!(health.starts_with("HTTP/1.1 204"), "{health}");
    let envs = ask(&*machine, ENVD_PORT, "GET /envs HTTP/1.1\r\n").await;
    assert!(envs.contains(r#"{"KEY":"value"}"#), "{envs}");
    let unknown = ask(&*machine, ENVD_PORT, "POST /init HTTP/1.1\r\n").await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
}

#[tokio::test]
async fn the_http_service_tells_and_upgrades() {
    let engine = FakeEngine::new();
    engine.listen(8000, Service::Http);
    let (_, machine) = subject(&engine).machine().await;
    let told = ask(&*machine, 8000, "GET /x?y=1 HTTP/1.1\r\nx-test: yes\r\n").await;
    assert!(told.contains(r#"["x-test","yes"]"#) && told.contains(r#""uri":"/x?y=1""#), "{told}");

    let mut stream = contract::open(&*machine, 8000).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(LONG, stream.read_u8()).await.expect("in time").unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    contract::exchange(&mut stream, b"raw bytes").await;
}

#[tokio::test]
async fn a_record_of_another_run_is_not_adopted() {
    let engine = FakeEngine::new();
    let (id, machine) = subject(&engine).machine().await;
    let mut foreign = machine.record();
    assert!(engine.adopt(id, &foreign).await.unwrap().is_some());
    foreign["generation"] = 2.into();
    assert!(engine.adopt(id, &foreign).await.unwrap().is_none());
}

async fn ask(machine: &dyn firkin::runtime::engine::Machine, port: u16, head: &str) -> String {
    let mut stream = contract::open(machine, port).await;
    stream.write_all(format!("{head}host: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
    answer
}
