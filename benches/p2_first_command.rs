//! P2: create to the first answered command by the official Python SDK, beside the SDK's own cost.
//!
//! The SDK's cost is what it needs against a stub that answers at once, with the same bytes as
//! the real server. `FIRKIN_PYTHON` names a Python that has the SDK.

use std::{
    env,
    io::BufReader,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{
    Router,
    body::Body,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse as _,
    routing::{delete, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    client::Client,
    report::{Metric, Report, Series},
    samples,
    server::{Running, Server},
};

const WARM_UP: usize = 5;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let python = env::var_os("FIRKIN_PYTHON").context("FIRKIN_PYTHON names no Python that has the SDK")?;
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, answer) = client.create().await.with_context(|| server.log())?;
    client.kill(&sandbox).await?;
    let stub = start_stub(answer).await?;

    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/p2_driver.py");
    let mut driver = Command::new(python)
        .arg(driver)
        .arg((WARM_UP + samples(100)).to_string())
        .args([&server.key, &format!("http://{}", server.address), &format!("http://{stub}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)?;
    let output = driver.0.stdout.take().context("its output is a pipe")?;
    // The stub runs on this thread's runtime, so the driver is read on another.
    let lines = tokio::task::spawn_blocking(move || read(BufReader::new(output))).await??;
    let ended = driver.0.wait()?;
    ensure!(ended.success(), "the driver failed: {ended}\n{}", server.log());

    let (mut real, mut own) = (Series::default(), Series::default());
    for (server, took) in lines.into_iter().skip(2 * WARM_UP) {
        if server == "real" { real.add(took) } else { own.add(took) }
    }
    let metric = Metric {
        promise: "P2",
        name: "Python SDK: create and first commands.run",
        reference: "the same calls against a stub that answers at once",
        start: "Sandbox.create() is called",
        end: "commands.run(\"echo hi\") has returned",
        excluded: "interpreter start, imports, kill",
        target: "p50 <= stub + 15 ms",
    };
    report.pair(metric, &real, &own);
    Ok(())
}

fn read(output: impl std::io::BufRead) -> anyhow::Result<Vec<(String, Duration)>> {
    let mut lines = Vec::new();
    for line in output.lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let took = line["ms"].as_f64().context("a time in each line")?;
        let server = line["server"].as_str().context("a server in each line")?.to_owned();
        lines.push((server, Duration::from_secs_f64(took / 1e3)));
    }
    Ok(lines)
}

/// Serves the real server's create answer and the events of `echo hi`; returns its address.
async fn start_stub(answer: Value) -> anyhow::Result<std::net::SocketAddr> {
    let create = move || {
        let body = answer.to_string();
        async move { (StatusCode::CREATED, [(CONTENT_TYPE, "application/json")], body) }
    };
    let start = |_read: axum::body::Bytes| async {
        let events = [
            (0, json!({ "event": { "start": { "pid": 42 } } })),
            (0, json!({ "event": { "data": { "stdout": "aGkK" } } })),
            (0, json!({ "event": { "end": { "exited": true, "status": "exit status 0" } } })),
            (2, json!({})),
        ];
        let frames: Vec<u8> = events.iter().flat_map(|(flags, event)| frame(*flags, event)).collect();
        ([(CONTENT_TYPE, "application/connect+json")], Body::from(frames)).into_response()
    };
    let router = Router::new()
        .route("/sandboxes", post(create.clone()))
        .route("/v2/sandboxes", post(create))
        .route("/sandboxes/{id}", delete(|| async { StatusCode::NO_CONTENT }))
        .route("/process.Process/Start", post(start));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(address)
}

fn frame(flags: u8, event: &Value) -> Vec<u8> {
    let message = event.to_string();
    let length = u32::try_from(message.len()).unwrap_or_default();
    [&[flags][..], &length.to_be_bytes(), message.as_bytes()].concat()
}
