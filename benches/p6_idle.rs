//! P6 and P15: what a thousand idle sandboxes take, and what the next create costs beside the first.

use std::{
    fs, io,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::support::{
    client::{Client, Sandbox},
    memory::{self, Size},
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

/// How many are alive at once, but for what `FIRKIN_BENCH_SANDBOXES` says.
const ALIVE: usize = 1_000;
/// Creates at the same time while the number grows.
const AT_ONCE: usize = 8;
const WARM_UP: usize = 10;
/// They live until they are killed.
const LIFE: Duration = Duration::from_hours(1);
/// Until memory that was given back is counted as free.
const SETTLED: Duration = Duration::from_secs(3);

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let alive =
        std::env::var("FIRKIN_BENCH_SANDBOXES").ok().and_then(|text| text.parse().ok()).unwrap_or(ALIVE);
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let first = create_and_kill(&mut client, &server).await?;
    let before = Usage::now(&server)?;

    let begin = Instant::now();
    let sandboxes = fill(&server, alive).await.with_context(|| server.log())?;
    let took = begin.elapsed();
    tokio::time::sleep(SETTLED).await;
    let after = Usage::now(&server)?;
    let guests = memory::guests(&sandboxes)?;
    let running = client.running().await?;
    ensure!(running == alive, "{running} of {alive} run");
    for sandbox in &sandboxes {
        client.health(sandbox).await?;
    }
    let last = create_and_kill(&mut client, &server).await?;
    kill(&server, sandboxes).await?;
    tokio::time::sleep(SETTLED).await;
    let back = Usage::now(&server)?;
    let reference = sleepers(alive)?;
    report.figure("P6", "time to create 1,000 sandboxes, 8 at a time", "s", took.as_secs_f64(), "-");
    Idle { alive, before, after, back, guests, reference }.tell(report)?;
    let metric = Metric {
        promise: "P15",
        name: "create beside 1,000 idle sandboxes (FIRKIN_BENCH_SANDBOXES)",
        reference: "create beside none",
        start: "POST /sandboxes is written to a kept-alive loopback connection",
        end: "its 201 is read",
        excluded: "SDK, connection set-up, the kill between two creates",
        target: "<= 1.5 x",
    };
    report.pair(metric, &last.0, &first.0);
    let metric = Metric {
        name: "kill beside 1,000 idle sandboxes",
        reference: "kill beside none",
        start: "DELETE is written",
        end: "its 204 is read",
        target: "-",
        ..metric
    };
    report.pair(metric, &last.1, &first.1);
    Ok(())
}

// === impl Idle ===

impl Idle {
    fn tell(&self, report: &mut Report) -> anyhow::Result<()> {
        let Self { alive, before, after, back, guests, reference } = self;
        report.figure("P6", "idle sandboxes alive at once", "", count(*alive)?, "1000");
        for (what, sum, target) in [
            ("fall of MemAvailable", before.available - after.available, "<= 1.5 MiB"),
            ("the kernel's own part: slabs, stacks, page tables", after.kernel - before.kernel, "-"),
            ("rise of MemAvailable when they end", back.available - after.available, "-"),
            ("the same fall, as many sleeping processes in namespaces of their own", *reference, "-"),
        ] {
            report.figure("P6", &format!("{what}, each"), "MiB", sum / count(*alive)?, target);
        }
        for (what, mean, target) in [
            ("private memory of a guest and its helper", guests.private, "<= 400 KiB"),
            ("proportional size of a guest and its helper", guests.proportional, "-"),
            ("private memory of the gateway", (after.gateway - before.gateway) / count(*alive)?, "-"),
            ("private memory of the server's helper", (after.warden - before.warden) / count(*alive)?, "-"),
        ] {
            report.figure("P6", &format!("{what}, each"), "KiB", mean * 1024.0, target);
        }
        for (what, sum, target) in [
            ("descriptors of the gateway", after.descriptors - before.descriptors, "<= 8"),
            ("descriptors of the server's helper", after.warden_descriptors - before.warden_descriptors, "-"),
        ] {
            report.figure("P6", &format!("{what}, each"), "", sum / count(*alive)?, target);
        }
        Ok(())
    }
}

fn count(number: usize) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(number)?))
}

/// What was seen, in the order of the program.
struct Idle {
    alive: usize,
    before: Usage,
    after: Usage,
    back: Usage,
    guests: Size,
    /// The fall that the reference makes, in MiB.
    reference: f64,
}

/// What may change with the number of sandboxes, memory in MiB.
struct Usage {
    available: f64,
    kernel: f64,
    gateway: f64,
    warden: f64,
    descriptors: f64,
    warden_descriptors: f64,
}

// === impl Usage ===

impl Usage {
    fn now(server: &Server) -> anyhow::Result<Self> {
        let (gateway, warden) = (server.pid(), server.helper()?);
        Ok(Self {
            available: memory::available()?,
            kernel: memory::kernel()?,
            gateway: Size::of(gateway)?.private,
            warden: Size::of(warden)?.private,
            descriptors: descriptors(gateway)?,
            warden_descriptors: descriptors(warden)?,
        })
    }
}

fn descriptors(pid: u32) -> io::Result<f64> {
    let count = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(f64::from(u32::try_from(count).unwrap_or(u32::MAX)))
}

async fn create_and_kill(client: &mut Client, server: &Server) -> anyhow::Result<(Series, Series)> {
    let (mut creates, mut kills) = (Series::default(), Series::default());
    for round in 0..WARM_UP + samples(100) {
        let begin = Instant::now();
        let (sandbox, _) = client.create().await.with_context(|| server.log())?;
        let to_create = begin.elapsed();
        let begin = Instant::now();
        client.kill(&sandbox).await?;
        let to_kill = begin.elapsed();
        if round >= WARM_UP {
            creates.add(to_create);
            kills.add(to_kill);
        }
    }
    Ok((creates, kills))
}

async fn fill(server: &Server, alive: usize) -> anyhow::Result<Vec<Sandbox>> {
    let mut makers = JoinSet::new();
    for maker in 0..AT_ONCE {
        let mut client = Client::connect(server).await?;
        let share = (maker..alive).step_by(AT_ONCE).count();
        makers.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..share {
                made.push(client.create_for(LIFE).await?.0);
            }
            Ok::<_, anyhow::Error>(made)
        });
    }
    let mut sandboxes = Vec::new();
    while let Some(made) = makers.join_next().await {
        sandboxes.extend(made??);
    }
    Ok(sandboxes)
}

async fn kill(server: &Server, sandboxes: Vec<Sandbox>) -> anyhow::Result<()> {
    let mut killers = JoinSet::new();
    let share = sandboxes.len().div_ceil(AT_ONCE);
    for part in sandboxes.chunks(share) {
        let (mut client, part) = (Client::connect(server).await?, part.to_vec());
        killers.spawn(async move {
            for sandbox in &part {
                client.kill(sandbox).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(killed) = killers.join_next().await {
        killed??;
    }
    Ok(())
}

/// By how many MiB `MemAvailable` falls for so many processes that sleep in namespaces of their own.
fn sleepers(count: usize) -> anyhow::Result<f64> {
    let before = memory::available()?;
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..count {
        let child = Command::new("unshare")
            .args(["--user", "--net", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--map-root-user"])
            .args(["--fork", "--kill-child", "--", "sleep", "600"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        children.push(child.context("the reference needs unshare")?);
    }
    std::thread::sleep(SETTLED);
    let fall = before - memory::available()?;
    let living =
        children.iter_mut().filter_map(|child| matches!(child.try_wait(), Ok(None)).then_some(())).count();
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    ensure!(living == count, "only {living} of the reference's {count} processes live");
    Ok(fall)
}
