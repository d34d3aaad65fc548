//! P13: from the start of the server to its first answer, beside nginx; its size on disk and in memory.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::support::{
    report::{Metric, Report, Series},
    samples,
    server::{Home, Running, binary},
};

const PATIENCE: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_micros(200);
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    // The first start builds the base template, and is no part of the promise.
    let home = Home::new()?;
    let port = free_port()?;
    let first = home.spawn(&format!("127.0.0.1:{port}"), Stdio::null())?;
    first_answer(port)?;
    let (resident, private) = memory(first.0.id())?;
    drop(first);

    let (mut own, mut nginx) = (Series::default(), Series::default());
    for _ in 0..samples(30) {
        let port = free_port()?;
        let begin = Instant::now();
        let server = home.spawn(&format!("127.0.0.1:{port}"), Stdio::null())?;
        first_answer(port)?;
        own.add(begin.elapsed());
        drop(server);

        let port = free_port()?;
        let begin = Instant::now();
        let server = start_nginx(&home, port)?;
        first_answer(port)?;
        nginx.add(begin.elapsed());
        drop(server);
    }
    let metric = Metric {
        promise: "P13",
        name: "start to the first 200",
        reference: "nginx, one server with `return 200`",
        start: "the process is spawned",
        end: "the first 200 is read",
        excluded: "the first start of a data directory, which builds the base template",
        target: "<= 3 x",
    };
    report.pair(metric, &own, &nginx);
    let size = fs::metadata(binary()?)?.len();
    report.figure("P13", "binary", "MiB", mib(size), "<= 25 MB");
    report.figure("P13", "resident, gateway and helper, no sandbox", "MiB", mib(resident), "<= 25 MB");
    report.figure("P13", "of it not shared (PSS)", "MiB", mib(private), "-");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Asks until somebody answers 200.
fn first_answer(port: u16) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) {
            // The listener may be there before the server: then this waits for it.
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = [0; 12];
            if socket.read_exact(&mut answer).is_ok()
                && (&answer[9..12] == b"200" || &answer[9..12] == b"204")
            {
                return Ok(());
            }
        }
        std::thread::sleep(POLL);
    }
    bail!("no answer on port {port}")
}

fn start_nginx(home: &Home, port: u16) -> anyhow::Result<Running> {
    let directory = home.path();
    let configuration = directory.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 1; pid {0}/nginx.pid; error_log {0}/nginx.log;\n\
         events {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:{port}; return 200 ok; }} }}\n",
        directory.display()
    );
    fs::write(&configuration, text)?;
    let child = Command::new("nginx")
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("nginx is the reference of P13: install nginx-light")?;
    Ok(Running(child))
}

/// Resident and proportional bytes of a process and its children.
fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let (mut resident, mut proportional) = (0, 0);
    let mut processes = vec![pid];
    while let Some(pid) = processes.pop() {
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let figure = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default()
                * 1024
        };
        resident += figure("Rss:");
        proportional += figure("Pss:");
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok((resident, proportional))
}
