//! P10: a large file up and down through /files, beside `dd` through a unix socket pair.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::support::{
    client::{Client, Sandbox},
    mebibytes,
    memory::Growth,
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

/// One write of a sender, and one read of a receiver: `dd`'s too.
const BLOCK: usize = 256 << 10;
const MIB: u64 = 1 << 20;

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    let size = mebibytes(128) * MIB;
    // On the disk that the sandbox's files are on.
    let file = server.home().join("reference");
    let (mut up, mut up_dd, mut down, mut down_dd) =
        (Series::default(), Series::default(), Series::default(), Series::default());
    let growth = Growth::begin(&server, &sandbox)?;
    for _ in 0..samples(30) {
        up.add(upload(&server, &sandbox, size)?);
        up_dd.add(dd(Path::new("/dev/zero"), &file, size)?);
        down.add(download(&server, &sandbox, size)?);
        down_dd.add(dd(&file, Path::new("/dev/null"), size)?);
    }
    let (gateway, guest) = growth.end()?;
    client.kill(&sandbox).await?;
    fs::remove_file(&file)?;
    let metric = Metric {
        promise: "P10",
        name: "upload of one file (FIRKIN_BENCH_MIB, else 128 MiB)",
        reference: "dd from /dev/zero through a unix socket pair into a file on the same disk",
        start: "the head is written to a fresh loopback connection",
        end: "the answer's status is read",
        excluded: "connection set-up, fsync",
        target: "<= 1.67 x (0.6 of its bytes/s)",
    };
    report.pair(metric, &up, &up_dd);
    let metric = Metric {
        name: "download of the same",
        reference: "dd from a file on the same disk through a unix socket pair into /dev/null",
        end: "the last byte is read",
        excluded: "connection set-up",
        ..metric
    };
    report.pair(metric, &down, &down_dd);
    report.figure("P10", "growth of the gateway's resident size", "MiB", gateway, "< 64 MiB");
    report.figure("P10", "growth of the guest's resident size", "MiB", guest, "< 64 MiB");
    Ok(())
}

/// Asks on a fresh connection; what follows the head is the caller's.
fn ask(server: &Server, sandbox: &Sandbox, method: &str, more: &str) -> anyhow::Result<(TcpStream, Instant)> {
    let mut socket = TcpStream::connect(&server.address)?;
    let begin = Instant::now();
    write!(socket, "{method} /files?path=large&username=user HTTP/1.1\r\nhost: {}\r\n", server.address)?;
    for (name, value) in sandbox.routing("49983") {
        write!(socket, "{name}: {value}\r\n")?;
    }
    write!(socket, "{more}\r\n")?;
    Ok((socket, begin))
}

/// The head of a response, whose status must be 200.
fn head(reader: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the connection ended within a head: {head}");
    }
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(head.to_ascii_lowercase())
}

fn upload(server: &Server, sandbox: &Sandbox, size: u64) -> anyhow::Result<Duration> {
    let fields = format!("content-type: application/octet-stream\r\ncontent-length: {size}\r\n");
    let (mut socket, begin) = ask(server, sandbox, "POST", &fields)?;
    let block = vec![0; BLOCK];
    for _ in 0..size / BLOCK as u64 {
        socket.write_all(&block)?;
    }
    head(&mut BufReader::new(socket))?;
    Ok(begin.elapsed())
}

fn download(server: &Server, sandbox: &Sandbox, size: u64) -> anyhow::Result<Duration> {
    let (socket, begin) = ask(server, sandbox, "GET", "accept-encoding: identity\r\n")?;
    let mut reader = BufReader::with_capacity(BLOCK, socket);
    let head = head(&mut reader)?;
    ensure!(head.contains(&format!("content-length: {size}\r\n")), "another length: {head}");
    let (mut left, mut block) = (size, vec![0; BLOCK]);
    while left > 0 {
        let read = reader.read(&mut block)? as u64;
        ensure!(read > 0 && read <= left, "{left} bytes did not come");
        left -= read;
    }
    Ok(begin.elapsed())
}

/// Two of them, joined by a socket pair.
fn dd(from: &Path, to: &Path, size: u64) -> anyhow::Result<Duration> {
    let (ours, theirs) = UnixStream::pair()?;
    let begin = Instant::now();
    // An upload, too, empties the file first.
    let (input, output) = (File::open(from)?, File::create(to)?);
    let stage = |stdin: Stdio, stdout: Stdio| {
        Command::new("dd")
            .args(["bs=256K", "iflag=fullblock", "status=none"])
            .arg(format!("count={}", size / BLOCK as u64))
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
    };
    let mut sender = stage(input.into(), OwnedFd::from(ours).into())?;
    let mut receiver = stage(OwnedFd::from(theirs).into(), output.into())?;
    ensure!(sender.wait()?.success() && receiver.wait()?.success(), "dd failed");
    Ok(begin.elapsed())
}
