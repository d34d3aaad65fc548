//! A gateway that is killed with 200 sandboxes alive: how soon the next one serves all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::support::{
    client::{Client, Sandbox},
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

const ALIVE: usize = 200;
const LIFE: Duration = Duration::from_hours(1);

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut server = Server::start()?;
    let mut empty = Series::default();
    for _ in 0..samples(30) {
        empty.add(again(&mut server)?);
    }
    let mut client = Client::connect(&server).await?;
    let mut sandboxes = Vec::new();
    for _ in 0..ALIVE {
        let (sandbox, _) = client.create_for(LIFE).await.with_context(|| server.log())?;
        // It says again what it is told, as long as there is somebody who tells.
        let process = json!({ "process": { "cmd": "/bin/cat" }, "stdin": true });
        let mut frames = Client::connect(&server).await?.start(&sandbox, &process).await?;
        let event = frames.next().await?.context("no event")?;
        sandboxes.push((sandbox, event["event"]["start"]["pid"].clone()));
    }
    let (mut starts, mut rejoined) = (Series::default(), Series::default());
    for _ in 0..samples(30) {
        server.kill()?;
        let begin = Instant::now();
        server.start_again()?;
        starts.add(begin.elapsed());
        let mut client = Client::connect(&server).await?;
        let running = client.running().await?;
        ensure!(running == ALIVE, "{running} of {ALIVE} were found: {}", server.log());
        for (sandbox, pid) in &sandboxes {
            rejoin(&server, sandbox, pid).await.with_context(|| server.log())?;
        }
        rejoined.add(begin.elapsed());
    }
    let late = server.log().matches("does not answer yet").count();
    ensure!(late == 0, "{late} guests were not attached when a start was ready");
    let metric = Metric {
        promise: "restart",
        name: "start with 200 sandboxes alive to ready: all attached",
        reference: "start with none",
        start: "the server is spawned, right after SIGKILL of the one before",
        end: "its ready line is read",
        excluded: "-",
        target: "<= 2 s",
    };
    report.pair(metric, &starts, &empty);
    let metric = Metric {
        name: "the same, until a command in each was joined again, written to, and answered, one after the other",
        end: "the last answer is read",
        target: "-",
        ..metric
    };
    report.pair(metric, &rejoined, &empty);
    Ok(())
}

fn again(server: &mut Server) -> anyhow::Result<Duration> {
    server.kill()?;
    let begin = Instant::now();
    server.start_again()?;
    Ok(begin.elapsed())
}

/// Joins the command, says something to it and hears it.
async fn rejoin(server: &Server, sandbox: &Sandbox, pid: &Value) -> anyhow::Result<()> {
    let (mut listener, mut speaker) = (Client::connect(server).await?, Client::connect(server).await?);
    let mut frames = listener.join(sandbox, pid).await?;
    let event = frames.next().await?.context("no event")?;
    ensure!(event["event"]["start"]["pid"] == *pid, "another process: {event}");
    let input = json!({ "process": { "pid": pid }, "input": { "stdin": "aGkK" } });
    speaker.call(sandbox, "SendInput", &input).await?;
    let event = frames.next().await?.context("no answer")?;
    ensure!(event["event"]["data"]["stdout"] == "aGkK", "another answer: {event}");
    Ok(())
}
