//! P8: a snapshot of a sandbox with 2,000 changed files, beside `cp -a` of the same files, per
//! storage driver; and for how long the sandbox stands still.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::{
    client::{Client, Sandbox},
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

/// What is written: 2,000 files of 4 KiB.
const WRITE: &str =
    "mkdir /home/user/t && head -c 8192000 /dev/urandom | split -b 4096 -a 4 - /home/user/t/f && sync";
/// Says something about every two milliseconds: what a sandbox that stands still does not do.
const TICK: &str = "while sleep 0.002; do echo; done";
/// How long after a snapshot the ticker is listened to.
const AFTER: Duration = Duration::from_millis(100);

/// One driver's figures, and what is promised of it.
struct Promise {
    flags: &'static [&'static str],
    whole: &'static str,
    still: &'static str,
    target: &'static str,
    still_target: &'static str,
}

const PROMISES: [Promise; 2] = [
    Promise {
        flags: &["--storage", "plain"],
        whole: "snapshot of 2,000 changed files, plain",
        still: "standing still for it, plain",
        target: "<= 1.2 x cp -a",
        still_target: "<= 1 x cp -a",
    },
    Promise {
        flags: &["--storage", "btrfs"],
        whole: "snapshot of 2,000 changed files, btrfs",
        still: "standing still for it, btrfs",
        target: "<= 0.1 x cp -a",
        still_target: "<= 0.1 x cp -a",
    },
];

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    for promise in &PROMISES {
        measure(report, promise).await?;
    }
    Ok(())
}

async fn measure(report: &mut Report, promise: &Promise) -> anyhow::Result<()> {
    let server = match Server::start_with(promise.flags) {
        Ok(server) => server,
        Err(error) if promise.flags.contains(&"btrfs") => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default();
            report.figure("P8", &format!("btrfs is not measured: {reason}"), "", 0.0, promise.target);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    client.run(&sandbox, &shell(WRITE)).await?;
    let (upper, copies) = places(&server, &sandbox)?;
    let mut ticker = ticker(&server, &sandbox).await?;
    let (mut whole, mut still, mut copying) = (Series::default(), Series::default(), Series::default());
    for round in 0..samples(40) {
        while ticker.try_recv().is_ok() {}
        let begin = Instant::now();
        client.snapshot(&sandbox).await.with_context(|| server.log())?;
        whole.add(begin.elapsed());
        still.add(longest_gap(&mut ticker).await);
        let copy = copies.join(format!("copy-{round}"));
        let begin = Instant::now();
        let made = Command::new("cp").arg("-a").arg(&upper).arg(&copy).status()?;
        copying.add(begin.elapsed());
        ensure!(made.success(), "cp -a failed");
        fs::remove_dir_all(&copy)?;
    }
    client.kill(&sandbox).await?;
    let metric = Metric {
        promise: "P8",
        name: promise.whole,
        reference: "cp -a of the same files to the same file system",
        start: "POST /sandboxes/{id}/snapshots is written to a kept-alive loopback connection",
        end: "its 201 is read: the image is on the disk",
        excluded: "SDK, connection set-up; the reference brings nothing to the disk",
        target: promise.target,
    };
    report.pair(metric, &whole, &copying);
    let metric = Metric {
        name: promise.still,
        start: "the last sign of a process that gives one about every 2 ms",
        end: "its next one",
        target: promise.still_target,
        ..metric
    };
    report.pair(metric, &still, &copying);
    Ok(())
}

fn shell(line: &str) -> serde_json::Value {
    json!({ "process": { "cmd": "/bin/sh", "args": ["-c", line] } })
}

/// Where the sandbox's files are on the host, and where there is room for copies of them.
fn places(server: &Server, sandbox: &Sandbox) -> anyhow::Result<(PathBuf, PathBuf)> {
    let data = server.home().join("data");
    let machine = data.join("machines").join(&sandbox.id);
    let found =
        [machine.join("disk/upper0"), machine.join("upper0")].into_iter().find(|upper| upper.is_dir());
    let pool = data.join("templates/.pool");
    let copies = if pool.is_dir() { pool } else { server.home().to_owned() };
    let upper = found.context("the sandbox has a writable layer")?;
    ensure!(count(&upper.join("home/user/t"))? == 2000, "the sandbox has written its files");
    Ok((upper, copies))
}

fn count(directory: &Path) -> anyhow::Result<usize> {
    Ok(fs::read_dir(directory)?.count())
}

/// When a process of the sandbox gave a sign.
async fn ticker(server: &Server, sandbox: &Sandbox) -> anyhow::Result<mpsc::Receiver<Instant>> {
    let mut client = Client::connect(server).await?;
    let mut frames = client.start(sandbox, &shell(TICK)).await?;
    let (sender, signs) = mpsc::channel(1 << 16);
    tokio::spawn(async move {
        // Its connection lives as long as its stream.
        let _client = client;
        while let Ok(Some(_)) = frames.next_text().await {
            if sender.send(Instant::now()).await.is_err() {
                return;
            }
        }
    });
    Ok(signs)
}

/// The longest time without a sign since the channel was emptied.
async fn longest_gap(signs: &mut mpsc::Receiver<Instant>) -> Duration {
    let end = Instant::now() + AFTER;
    let (mut last, mut longest) = (None, Duration::ZERO);
    while let Ok(Some(sign)) = tokio::time::timeout_at(end.into(), signs.recv()).await {
        if let Some(last) = last.replace(sign) {
            longest = longest.max(sign - last);
        }
    }
    longest
}
