//! P11: much standard output through Process.Start, beside the same program's through a pipe.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::support::{
    client::{Client, Sandbox},
    mebibytes,
    memory::Growth,
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

const MIB: u64 = 1 << 20;
/// What the guest reads at a time.
const CHUNK: usize = 32 << 10;
const FIELD: &[u8] = b"\"stdout\":\"";

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    let size = mebibytes(64) * MIB;
    let (mut streams, mut pipes) = (Series::default(), Series::default());
    let growth = Growth::begin(&server, &sandbox)?;
    for _ in 0..samples(30) {
        streams.add(stream(&mut client, &sandbox, size).await?);
        pipes.add(pipe(size)?);
    }
    let (gateway, guest) = growth.end()?;
    client.kill(&sandbox).await?;
    let metric = Metric {
        promise: "P11",
        name: "standard output through Process.Start in JSON (FIRKIN_BENCH_MIB, else 64 MiB)",
        reference: "the same program's read from a pipe",
        start: "the request is written to a kept-alive loopback connection; the program is spawned",
        end: "the end-of-stream frame is read; the program is reaped",
        excluded: "the client's base64 decoding (lengths are counted)",
        target: "<= 4 x (0.25 of its bytes/s)",
    };
    report.pair(metric, &streams, &pipes);
    report.figure("P11", "growth of the gateway's resident size", "MiB", gateway, "< 64 MiB");
    report.figure("P11", "growth of the guest's resident size", "MiB", guest, "< 64 MiB");
    Ok(())
}

async fn stream(client: &mut Client, sandbox: &Sandbox, size: u64) -> anyhow::Result<Duration> {
    let process = json!({
        "process": { "cmd": "/usr/bin/head", "args": ["-c", size.to_string(), "/dev/zero"] }, "stdin": false,
    });
    let begin = Instant::now();
    let mut frames = client.start(sandbox, &process).await?;
    let mut length = 0;
    while let Some(message) = frames.next_text().await? {
        length += decoded_length(&message);
    }
    let took = begin.elapsed();
    ensure!(length == size, "{length} of {size} bytes came");
    Ok(took)
}

/// How many bytes of output the message holds.
fn decoded_length(message: &[u8]) -> u64 {
    let Some(start) = message.windows(FIELD.len()).position(|window| window == FIELD) else { return 0 };
    let text = &message[start + FIELD.len()..];
    // The text ends close to the message's end.
    let length = text.iter().rposition(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte));
    let text = &text[..length.map_or(0, |last| last + 1)];
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    (text.len() / 4 * 3 - padding) as u64
}

fn pipe(size: u64) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut child = Command::new("/usr/bin/head")
        .args(["-c", &size.to_string(), "/dev/zero"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("its output is a pipe")?;
    let (mut length, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        match output.read(&mut chunk)? {
            0 => break,
            read => length += read as u64,
        }
    }
    ensure!(child.wait()?.success() && length == size, "{length} of {size} bytes came");
    Ok(begin.elapsed())
}
