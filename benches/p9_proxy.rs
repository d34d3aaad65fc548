//! P9: a server in a sandbox, asked through the proxy, through nginx, and without either.
//!
//! Back end and nginx are in the sandbox's net namespace, where nobody but the proxy gets without
//! entering it: each way has the back end's loopback hop, and both proxies have one more.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use crate::support::{
    client::{Client, Sandbox},
    mebibytes,
    net::Namespace,
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

const BACK_END: u16 = 8000;
const ECHO: u16 = 8001;
const NGINX: u16 = 8002;
const MIB: u64 = 1 << 20;
/// One read of a receiver.
const BLOCK: usize = 256 << 10;
const SMALL: &str = "0123456789abcdef0123456789abcdef";
/// Connections that ask at once, and what each asks in a sample.
const CONNECTIONS: usize = 32;
const REQUESTS: usize = 64;
const WARM_UP: usize = 20;
/// A client's text message of eight bytes, masked with zeroes: what it carries is what is seen.
const MESSAGE: &[u8] = b"\x81\x88\0\0\0\0ping-123";
/// The key of the specification's example, and the answer to it.
const KEY: &str = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &str = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// A way to the back end: where connections are made, and what is asked on them.
struct Way<'a> {
    place: Place<'a>,
    /// Fields of every request: the proxy's routing.
    fields: [String; 2],
    ports: [u16; 2],
}

enum Place<'a> {
    Inside(&'a Namespace),
    Outside(&'a Server),
}

/// Figures of one metric, in the order of the ways.
type Figures = [Series; 3];

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start()?;
    let mut client = Client::connect(&server).await?;
    let (sandbox, _) = client.create().await.with_context(|| server.log())?;
    let namespace = Namespace::of(&sandbox)?;
    let size = mebibytes(64) * MIB;
    let files = server.home().join("files");
    let _back_end = back_end(&namespace, server.home(), &files, size)?;
    echo(namespace.listen(ECHO)?);
    let _nginx = nginx(&namespace, server.home())?;
    let ways = [
        Way { place: Place::Outside(&server), fields: routing(&server, &sandbox), ports: [0; 2] },
        Way { place: Place::Inside(&namespace), fields: local(), ports: [NGINX; 2] },
        Way { place: Place::Inside(&namespace), fields: local(), ports: [BACK_END, ECHO] },
    ];
    small(report, &ways)?;
    many(report, &ways).await?;
    large(report, &ways, size)?;
    web_socket(report, &ways)?;
    client.kill(&sandbox).await?;
    fs::remove_dir_all(&files)?;
    Ok(())
}

fn back_end(
    namespace: &Namespace,
    home: &Path,
    files: &Path,
    size: u64,
) -> anyhow::Result<impl Sized + use<>> {
    fs::create_dir_all(files)?;
    fs::write(files.join("large"), vec![b'x'; usize::try_from(size)?])?;
    let servers = format!(
        "server {{ listen 127.0.0.1:{BACK_END}; root {}; location = /small {{ return 200 {SMALL}; }} }}",
        files.display()
    );
    namespace.nginx(home, BACK_END, &servers)
}

/// As it comes, so without upstream keep-alive; but it may not spill to disk what it could pass on.
fn nginx(namespace: &Namespace, home: &Path) -> anyhow::Result<impl Sized + use<>> {
    let servers = format!(
        "server {{ listen 127.0.0.1:{NGINX}; proxy_max_temp_file_size 0;\n\
         location / {{ proxy_pass http://127.0.0.1:{BACK_END}; }}\n\
         location /echo {{ proxy_pass http://127.0.0.1:{ECHO}; proxy_http_version 1.1;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }}"
    );
    namespace.nginx(home, NGINX, &servers)
}

/// Shakes hands and gives back what comes. Its threads end with their connections, or with the program.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            thread::spawn(move || answer_echo(socket));
        }
    });
}

fn answer_echo(mut socket: TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    head(&mut reader)?;
    write!(
        socket,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n{ACCEPT}\r\n"
    )?;
    let mut message = [0; MESSAGE.len()];
    // Its end is the client's.
    while reader.read_exact(&mut message).is_ok() {
        socket.write_all(&message)?;
    }
    Ok(())
}

/// The fields that lead to the back end and to the echo.
fn routing(server: &Server, sandbox: &Sandbox) -> [String; 2] {
    [BACK_END, ECHO].map(|port| {
        let fields: Vec<String> = sandbox
            .routing(&port.to_string())
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!("host: {}\r\n{}", server.address, fields.concat())
    })
}

fn local() -> [String; 2] {
    ["host: localhost\r\n", "host: localhost\r\n"].map(str::to_owned)
}

/// Reads a head to its end.
fn head(reader: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the connection ended within a head: {head}");
    }
    Ok(head.to_ascii_lowercase())
}

fn content_length(head: &str) -> anyhow::Result<u64> {
    let field = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(field.with_context(|| format!("no length: {head}"))?.trim().parse()?)
}

// === impl Way ===

impl Way<'_> {
    fn connect(&self, which: usize) -> anyhow::Result<TcpStream> {
        let socket = match self.place {
            Place::Inside(namespace) => namespace.connect(self.ports[which])?,
            Place::Outside(server) => TcpStream::connect(&server.address)?,
        };
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    fn request(&self, path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\n{}\r\n", self.fields[0])
    }

    /// A WebSocket whose handshake is over.
    fn open(&self) -> anyhow::Result<BufReader<TcpStream>> {
        let mut socket = self.connect(1)?;
        write!(
            socket,
            "GET /echo HTTP/1.1\r\n{}connection: upgrade\r\nupgrade: websocket\r\n{KEY}\r\n",
            self.fields[1]
        )?;
        let mut reader = BufReader::new(socket);
        let head = head(&mut reader)?;
        ensure!(head.starts_with("http/1.1 101") && head.contains(&ACCEPT.to_ascii_lowercase()), "{head}");
        Ok(reader)
    }
}

/// Asks for a path on a kept-alive connection; the body's length must be this.
fn ask(reader: &mut BufReader<TcpStream>, request: &str, size: u64) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    reader.get_mut().write_all(request.as_bytes())?;
    let head = head(reader)?;
    ensure!(head.starts_with("http/1.1 200") && content_length(&head)? == size, "{head}");
    let (mut left, mut block) = (size, vec![0; BLOCK]);
    while left > 0 {
        let most = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        let read = reader.read(&mut block[..most])?;
        ensure!(read > 0, "{left} bytes did not come");
        left -= read as u64;
    }
    Ok(begin.elapsed())
}

fn small(report: &mut Report, ways: &[Way<'_>; 3]) -> anyhow::Result<()> {
    let mut connections = Vec::new();
    for way in ways {
        connections.push((BufReader::new(way.connect(0)?), way.request("/small")));
    }
    let mut figures = Figures::default();
    for round in 0..WARM_UP + samples(500) {
        for ((connection, request), series) in connections.iter_mut().zip(&mut figures) {
            let took = ask(connection, request, SMALL.len() as u64)?;
            if round >= WARM_UP {
                series.add(took);
            }
        }
    }
    let metric = Metric {
        promise: "P9",
        name: "one small answer of a server in the sandbox, through the proxy",
        reference: "the same through nginx without upstream keep-alive, in the same net namespace",
        start: "the request is written to a kept-alive loopback connection",
        end: "the body is read",
        excluded: "connection set-up of the client; the proxies' to the back end is in",
        target: "-",
    };
    tell(report, metric, &figures);
    Ok(())
}

async fn many(report: &mut Report, ways: &[Way<'_>; 3]) -> anyhow::Result<()> {
    let mut connections: [Vec<tokio::net::TcpStream>; 3] = <[Vec<_>; 3]>::default();
    for (way, connections) in ways.iter().zip(&mut connections) {
        for _ in 0..CONNECTIONS {
            let socket = way.connect(0)?;
            socket.set_nonblocking(true)?;
            connections.push(tokio::net::TcpStream::from_std(socket)?);
        }
    }
    let mut figures = Figures::default();
    for _ in 0..samples(30) {
        for ((way, connections), series) in ways.iter().zip(&mut connections).zip(&mut figures) {
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for socket in connections.drain(..) {
                tasks.spawn(ask_often(socket, way.request("/small")));
            }
            while let Some(socket) = tasks.join_next().await {
                connections.push(socket??);
            }
            series.add(begin.elapsed());
        }
    }
    let metric = Metric {
        promise: "P9",
        name: "2,048 small answers over 32 connections, through the proxy",
        reference: "the same through nginx without upstream keep-alive, in the same net namespace",
        start: "the first request is written",
        end: "the last body is read",
        excluded: "connection set-up of the client; the proxies' to the back end is in",
        target: "<= 1.11 x (0.9 of its requests/s)",
    };
    report.pair(metric, &figures[0], &figures[1]);
    Ok(())
}

async fn ask_often(
    mut socket: tokio::net::TcpStream,
    request: String,
) -> anyhow::Result<tokio::net::TcpStream> {
    let mut answer = Vec::with_capacity(1024);
    for _ in 0..REQUESTS {
        socket.write_all(request.as_bytes()).await?;
        answer.clear();
        while !answer.ends_with(SMALL.as_bytes()) {
            let read = socket.read_buf(&mut answer).await?;
            ensure!(read > 0, "broken off: {}", String::from_utf8_lossy(&answer));
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    Ok(socket)
}

fn large(report: &mut Report, ways: &[Way<'_>; 3], size: u64) -> anyhow::Result<()> {
    let mut figures = Figures::default();
    for _ in 0..samples(30) {
        for (way, series) in ways.iter().zip(&mut figures) {
            let mut connection = BufReader::with_capacity(BLOCK, way.connect(0)?);
            series.add(ask(&mut connection, &way.request("/large"), size)?);
        }
    }
    let metric = Metric {
        promise: "P9",
        name: "one large answer (FIRKIN_BENCH_MIB, else 64 MiB), through the proxy",
        reference: "the same through nginx without upstream keep-alive, in the same net namespace",
        start: "the request is written to a fresh loopback connection",
        end: "the body is read",
        excluded: "connection set-up of the client; the proxies' to the back end is in",
        target: "<= 1.11 x (0.9 of its bytes/s)",
    };
    report.pair(metric, &figures[0], &figures[1]);
    Ok(())
}

fn web_socket(report: &mut Report, ways: &[Way<'_>; 3]) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for way in ways {
        sockets.push(way.open()?);
    }
    let mut figures = Figures::default();
    let mut message = [0; MESSAGE.len()];
    for round in 0..WARM_UP + samples(500) {
        for (socket, series) in sockets.iter_mut().zip(&mut figures) {
            let begin = Instant::now();
            socket.get_mut().write_all(MESSAGE)?;
            socket.read_exact(&mut message)?;
            if round >= WARM_UP {
                series.add(begin.elapsed());
            }
            ensure!(message == MESSAGE, "the echo differs: {message:?}");
        }
    }
    let metric = Metric {
        promise: "P9",
        name: "echo of a small WebSocket message, through the proxy",
        reference: "the same through nginx, in the same net namespace",
        start: "the message is written",
        end: "the same message is read",
        excluded: "the handshake",
        target: "<= 1.11 x",
    };
    tell(report, metric, &figures);
    Ok(())
}

/// The proxy beside nginx, and what each adds to a direct dial.
fn tell(report: &mut Report, metric: Metric, [own, nginx, direct]: &Figures) {
    report.pair(metric, own, nginx);
    for (who, series, target) in [("the proxy", own, "<= 0.15 ms"), ("nginx", nginx, "-")] {
        if let Some(added) = series.above(direct) {
            report.figure("P9", &format!("added by {who} to a direct dial, p50"), "ms", added, target);
        }
    }
}
