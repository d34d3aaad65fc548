//! P4: a hundred creates at once, beside as many one after the other and as many bubblewraps at once.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::support::{
    client::{Client, Sandbox},
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

const BURST: usize = 100;
const WARM_UP: usize = 2;
/// What a sandbox is more than this, bubblewrap is not asked for: an image of its own, a disk, limits.
const BUBBLEWRAP: [&str; 12] = [
    "--unshare-all",
    "--unshare-user",
    "--die-with-parent",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
    "--",
    "/bin/true",
];

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(Client::connect(&server).await?);
    }
    let (mut bursts, mut rows, mut wraps) = (Series::default(), Series::default(), Series::default());
    let (mut within, mut alone) = (Series::default(), Series::default());
    for round in 0..WARM_UP + samples(30) {
        let begin = Instant::now();
        let mut creates = JoinSet::new();
        for mut client in clients.drain(..) {
            creates.spawn(async move {
                let begin = Instant::now();
                let answer = client.create().await;
                (client, answer, begin.elapsed())
            });
        }
        let (mut sandboxes, mut single) = (Vec::new(), Vec::new());
        while let Some(created) = creates.join_next().await {
            let (client, answer, took) = created?;
            clients.push(client);
            sandboxes.push(answer.with_context(|| server.log())?.0);
            single.push(took);
        }
        let burst = begin.elapsed();
        kill_all(&mut clients, sandboxes).await?;

        let begin = Instant::now();
        let mut sandboxes = Vec::new();
        let mut ones = Vec::new();
        for client in &mut clients {
            let begin = Instant::now();
            sandboxes.push(client.create().await.with_context(|| server.log())?.0);
            ones.push(begin.elapsed());
        }
        let row = begin.elapsed();
        kill_all(&mut clients, sandboxes).await?;

        let wrap = bubblewraps()?;
        if round >= WARM_UP {
            bursts.add(burst);
            rows.add(row);
            wraps.add(wrap);
            within.extend(single);
            alone.extend(ones);
        }
    }
    let metric = Metric {
        promise: "P4",
        name: "100 creates at once, all of them",
        reference: "100 bubblewraps of all namespaces around true, started at once, all of them",
        start: "the first POST /sandboxes is written to a kept-alive loopback connection of its own",
        end: "the last 201 is read",
        excluded: "connection set-up, the kills",
        target: "<= 1 s; <= 1 x",
    };
    report.pair(metric, &bursts, &wraps);
    let metric = Metric { reference: "100 creates one after the other", target: "<= 1 s", ..metric };
    report.pair(metric, &bursts, &rows);
    let metric = Metric {
        name: "one create of these",
        reference: "one of those that come one after the other",
        start: "POST /sandboxes is written",
        end: "its 201 is read",
        target: "p99 <= 800 ms",
        ..metric
    };
    report.pair(metric, &within, &alone);
    Ok(())
}

async fn kill_all(clients: &mut Vec<Client>, sandboxes: Vec<Sandbox>) -> anyhow::Result<()> {
    let mut kills = JoinSet::new();
    for (mut client, sandbox) in clients.drain(..).zip(sandboxes) {
        kills.spawn(async move { client.kill(&sandbox).await.map(|()| client) });
    }
    while let Some(client) = kills.join_next().await {
        clients.push(client??);
    }
    Ok(())
}

fn bubblewraps() -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let started: Result<Vec<_>, _> =
        (0..BURST).map(|_| Command::new("bwrap").args(BUBBLEWRAP).stdin(Stdio::null()).spawn()).collect();
    for mut child in started.context("the reference needs bubblewrap")? {
        ensure!(child.wait()?.success(), "a bubblewrap failed");
    }
    Ok(begin.elapsed())
}
