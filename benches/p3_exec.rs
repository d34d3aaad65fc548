//! P3: `commands.run("true")` without the SDK, beside the same shell spawned in the same machine.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{
    client::{Client, Frames, Sandbox},
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

/// Spawns the shell for each line that it reads, and prints how long it took, in nanoseconds.
const SPAWNER: &str = r"
import os, sys, time
for line in sys.stdin:
    begin = time.perf_counter_ns()
    child = os.posix_spawn('/bin/bash', ['/bin/bash', '-l', '-c', 'true'], os.environ)
    os.waitpid(child, 0)
    print(time.perf_counter_ns() - begin, flush=True)
";
const WARM_UP: usize = 10;

/// The reference's process: it lives in the machine that is measured.
struct Spawner {
    frames: Frames,
    client: Client,
    sandbox: Sandbox,
    pid: u64,
}

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    let mut spawner = Spawner::start(&server, &sandbox).await?;
    let command = json!({
        "process": { "cmd": "/bin/bash", "args": ["-l", "-c", "true"] }, "stdin": false,
    });
    let (mut runs, mut spawns) = (Series::default(), Series::default());
    for round in 0..WARM_UP + samples(500) {
        let begin = Instant::now();
        client.run(&sandbox, &command).await?;
        let took = begin.elapsed();
        let reference = spawner.spawn().await?;
        if round >= WARM_UP {
            runs.add(took);
            spawns.add(reference);
        }
    }
    client.kill(&sandbox).await?;
    let metric = Metric {
        promise: "P3",
        name: "Process.Start of `bash -l -c true`",
        reference: "the same spawned and reaped by a process in the same sandbox",
        start: "the request is written to a kept-alive loopback connection",
        end: "the end-of-stream frame is read",
        excluded: "SDK, connection set-up",
        target: "<= 1.4 x",
    };
    report.pair(metric, &runs, &spawns);
    Ok(())
}

// === impl Spawner ===

impl Spawner {
    async fn start(server: &Server, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let process = json!({
            "process": { "cmd": "/usr/bin/python3", "args": ["-c", SPAWNER] }, "stdin": true,
        });
        let mut frames = Client::connect(server).await?.start(sandbox, &process).await?;
        let first = frames.next().await?.context("a start event comes first")?;
        let pid = first["event"]["start"]["pid"].as_u64().context("a start event has a pid")?;
        Ok(Self { frames, client: Client::connect(server).await?, sandbox: sandbox.clone(), pid })
    }

    async fn spawn(&mut self) -> anyhow::Result<Duration> {
        let input = json!({
            "process": { "pid": self.pid }, "input": { "stdin": BASE64_STANDARD.encode("go\n") },
        });
        self.client.call(&self.sandbox, "SendInput", &input).await?;
        let mut text = String::new();
        while !text.ends_with('\n') {
            let event = self.frames.next().await?.context("the spawner has ended")?;
            let data = event["event"]["data"]["stdout"].as_str().unwrap_or_default();
            text.push_str(&String::from_utf8(BASE64_STANDARD.decode(data)?)?);
        }
        Ok(Duration::from_nanos(text.trim().parse()?))
    }
}
