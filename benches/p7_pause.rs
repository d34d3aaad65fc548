//! P7: pause and resume of a sandbox with its memory, beside its freezer moved by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::support::{
    client::{Client, Sandbox},
    memory,
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

const PATIENCE: Duration = Duration::from_secs(5);
const WARM_UP: usize = 5;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    let freezer = Freezer::of(&sandbox)?;
    let (mut pauses, mut resumes) = (Series::default(), Series::default());
    let (mut by_hand, mut back_by_hand) = (Series::default(), Series::default());
    for round in 0..WARM_UP + samples(100) {
        let begin = Instant::now();
        client.pause(&sandbox).await.with_context(|| server.log())?;
        let to_pause = begin.elapsed();
        let begin = Instant::now();
        client.resume(&sandbox).await.with_context(|| server.log())?;
        let to_resume = begin.elapsed();
        client.health(&sandbox).await?;
        let frozen = freezer.put(true)?;
        let thawed = freezer.put(false)?;
        client.health(&sandbox).await?;
        if round >= WARM_UP {
            pauses.add(to_pause);
            resumes.add(to_resume);
            by_hand.add(frozen);
            back_by_hand.add(thawed);
        }
    }
    client.kill(&sandbox).await?;
    let metric = Metric {
        promise: "P7",
        name: "pause of an idle sandbox, memory kept",
        reference: "its cgroup frozen by hand: written, and read until it says so",
        start: "POST .../pause is written to a kept-alive loopback connection",
        end: "its 204 is read",
        excluded: "SDK, connection set-up",
        target: "<= 2 x, <= 6 ms",
    };
    report.pair(metric, &pauses, &by_hand);
    let metric = Metric {
        name: "resume of the same",
        reference: "the same cgroup thawed by hand",
        start: "POST .../connect is written",
        end: "its 201 is read",
        ..metric
    };
    report.pair(metric, &resumes, &back_by_hand);
    Ok(())
}

/// The cgroup that holds all of a machine.
struct Freezer {
    write: PathBuf,
    read: PathBuf,
    words: [(&'static str, &'static str); 2],
}

// === impl Freezer ===

impl Freezer {
    fn of(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let membership = fs::read_to_string(format!("/proc/{}/cgroup", memory::guest(sandbox)?))?;
        let group = |line: &str, root: &str| -> Option<PathBuf> {
            // The guest may be in an inner group of its own.
            let path = Path::new(line.rsplit(':').next()?);
            let named = |path: &&Path| path.file_name().is_some_and(|name| name == sandbox.id.as_str());
            let path = path.ancestors().find(named)?;
            Some(Path::new(root).join(path.strip_prefix("/").unwrap_or(path)))
        };
        let unified = membership.lines().find(|line| line.starts_with("0::"));
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            if let Some(group) = unified.and_then(|line| group(line, root))
                && group.join("cgroup.freeze").exists()
            {
                return Ok(Self {
                    write: group.join("cgroup.freeze"),
                    read: group.join("cgroup.events"),
                    words: [("0", "frozen 0"), ("1", "frozen 1")],
                });
            }
        }
        let line = membership.lines().find(|line| line.contains(":freezer:"));
        let group = line.and_then(|line| group(line, "/sys/fs/cgroup/freezer")).context("no freezer")?;
        let state = group.join("freezer.state");
        ensure!(state.exists(), "no {}", state.display());
        let words = [("THAWED", "THAWED"), ("FROZEN", "FROZEN")];
        Ok(Self { write: state.clone(), read: state, words })
    }

    fn put(&self, frozen: bool) -> anyhow::Result<Duration> {
        let (order, wanted) = self.words[usize::from(frozen)];
        let begin = Instant::now();
        fs::write(&self.write, order)?;
        while !fs::read_to_string(&self.read)?.lines().any(|line| line == wanted) {
            ensure!(begin.elapsed() < PATIENCE, "{} does not become {wanted}", self.read.display());
        }
        Ok(begin.elapsed())
    }
}
