//! P5: many commands at once over few connections, and none of them fails.
//!
//! Each command waits for a lock that another one holds, so that all are alive at the same time.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    client::{Client, Frames, Multiplexed, Sandbox},
    memory::Growth,
    report::Report,
    server::Server,
};

const COMMANDS: usize = 1_500;
/// With the two that make sandboxes and hold their locks, 102.
const CONNECTIONS: usize = 100;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    for sandboxes in [1, 10] {
        at_once(&server, sandboxes, report).await.with_context(|| server.log())?;
    }
    Ok(())
}

async fn at_once(server: &Server, count: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut client, mut other) = (Client::connect(server).await?, Client::connect(server).await?);
    let (mut sandboxes, mut locks) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (sandbox, _) = client.create().await?;
        let script = "exec 9>/tmp/lock; flock 9; echo held; read line";
        let mut held = start_shell(&mut other, &sandbox, script).await?;
        ensure!(held.1.next().await?.is_some_and(|event| !event["event"]["data"].is_null()), "no lock");
        locks.push(held);
        sandboxes.push(sandbox);
        other = Client::connect(server).await?;
    }
    let growth = Growth::begin(server, &sandboxes[0])?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Multiplexed::connect(server).await?);
    }
    let begin = Instant::now();
    let mut starts = JoinSet::new();
    for number in 0..COMMANDS {
        let connection = connections[number % CONNECTIONS].clone();
        let sandbox = sandboxes[number % count].clone();
        starts.spawn(async move {
            let script = format!("flock -s /tmp/lock echo {number}");
            let mut frames = connection.start(&sandbox, &shell(&script, false)).await?;
            let event = frames.next().await?.context("no event")?;
            ensure!(event["event"]["start"]["pid"].is_number(), "{event}");
            Ok::<_, anyhow::Error>((number, frames))
        });
    }
    let mut running = Vec::new();
    while let Some(started) = starts.join_next().await {
        running.push(started??);
    }
    let all_started = begin.elapsed();
    for ((pid, _), sandbox) in locks.iter().zip(&sandboxes) {
        let input = json!({ "process": { "pid": pid }, "input": { "stdin": "Cg==" } });
        client.call(sandbox, "SendInput", &input).await?;
    }
    let mut ends = JoinSet::new();
    for (number, frames) in running {
        ends.spawn(ended_with(number, frames));
    }
    while let Some(ended) = ends.join_next().await {
        ended??;
    }
    let all_ended = begin.elapsed();
    let (gateway, guest) = growth.end()?;
    let what = format!(
        "{COMMANDS} commands alive at once in {count} sandbox(es) over {} connections",
        CONNECTIONS + 2
    );
    report.figure("P5", &format!("errors of {what}"), "", 0.0, "0");
    report.figure("P5", &format!("{what}: all started"), "ms", all_started.as_secs_f64() * 1e3, "-");
    report.figure("P5", &format!("{what}: all ended"), "ms", all_ended.as_secs_f64() * 1e3, "-");
    report.figure("P5", "growth of the gateway's resident size", "MiB", gateway, "-");
    report.figure("P5", "growth of one guest's resident size", "MiB", guest, "-");
    for sandbox in &sandboxes {
        client.kill(sandbox).await?;
    }
    Ok(())
}

fn shell(script: &str, stdin: bool) -> Value {
    json!({ "process": { "cmd": "/bin/bash", "args": ["-c", script] }, "stdin": stdin })
}

/// Starts it with a pipe as its input; its pid, and what follows.
async fn start_shell(
    client: &mut Client,
    sandbox: &Sandbox,
    script: &str,
) -> anyhow::Result<(Value, Frames)> {
    let mut frames = client.start(sandbox, &shell(script, true)).await?;
    let event = frames.next().await?.context("no event")?;
    Ok((event["event"]["start"]["pid"].clone(), frames))
}

/// Its output is its number, its exit code 0.
async fn ended_with(number: usize, mut frames: Frames) -> anyhow::Result<()> {
    let (mut output, mut ended) = (String::new(), false);
    while let Some(event) = frames.next().await? {
        let event = &event["event"];
        if let Some(text) = event["data"]["stdout"].as_str() {
            output.push_str(text);
        }
        ended |= event["end"]["exited"] == true && event["end"]["exitCode"].is_null();
    }
    let wanted = base64(&format!("{number}\n"));
    ensure!(ended && output == wanted, "command {number}: {output}, ended well: {ended}");
    Ok(())
}

/// Of a few bytes, as the events carry them.
fn base64(text: &str) -> String {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}
