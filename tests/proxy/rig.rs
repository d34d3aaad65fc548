//! A gateway on a free port, fake machines behind it, and clients that show every byte.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::Router;
use firkin::{
    id::{BuildId, OsEntropy, SandboxId},
    proxy::gateway::{self, Gateway, Settings},
    runtime::{
        engine::{Disk, Engine as _, MachineSpec},
        fake::{FakeEngine, Handler, Service},
        link::LinkStream,
        registry::{NotRunning, Target},
    },
    sandbox::Resources,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const DOMAIN: &str = "firkin.localhost";

type Known = Arc<Mutex<HashMap<SandboxId, Result<Target, NotRunning>>>>;

/// A gateway with its machines.
pub(super) struct Rig {
    pub(super) engine: FakeEngine,
    pub(super) address: SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: JoinHandle<()>,
    known: Known,
}

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let known = Known::default();
        let mut settings = Settings::new(format!("{DOMAIN}:3000"));
        change(&mut settings);
        let looked_up = Arc::clone(&known);
        let lookup = Arc::new(move |id: &SandboxId| {
            looked_up.lock().unwrap().get(id).cloned().unwrap_or(Err(NotRunning::NotFound))
        });
        let routes = Router::new().route("/health", axum::routing::get(|| async { "the routes" }));
        let gateway = Gateway::with_lookup(lookup, routes, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(gateway::serve(listener, gateway, shutdown.clone()));
        Self { engine: FakeEngine::new(), address, shutdown, serving, known }
    }

    /// A running sandbox.
    pub(super) async fn sandbox(&self) -> SandboxId {
        let id = SandboxId::generate(&OsEntropy);
        self.run(id, 1).await;
        id
    }

    /// Gives the sandbox a new machine of this generation; an earlier one's run is over.
    pub(super) async fn run(&self, id: SandboxId, generation: u64) {
        let spec = MachineSpec {
            sandbox: id,
            generation,
            build: BuildId::generate(&OsEntropy),
            resources: Resources { cpu_count: 1, memory_mb: 128, disk_mb: 128 },
            hostname: "machine".to_owned(),
            disk: Disk::New,
        };
        let machine = self.engine.create(spec).await.unwrap();
        let target = Target {
            id,
            generation,
            link: machine.link(),
            traffic_access_token: None,
            mask_request_host: None,
            https_ports: Arc::from([]),
            ended: CancellationToken::new(),
        };
        self.known.lock().unwrap().insert(id, Ok(target));
    }

    pub(super) fn change(&self, id: SandboxId, change: impl FnOnce(&mut Target)) {
        change(self.known.lock().unwrap().get_mut(&id).unwrap().as_mut().unwrap());
    }

    pub(super) fn becomes(&self, id: SandboxId, state: NotRunning) {
        self.known.lock().unwrap().insert(id, Err(state));
    }

    /// As the registry does it: gone from the look-up, the run's token fired, then the machine ended.
    pub(super) fn kill(&self, id: SandboxId) {
        if let Some(Ok(target)) = self.known.lock().unwrap().remove(&id) {
            target.ended.cancel();
        }
        self.engine.exit(id);
    }

    /// Something listens on a port of every machine.
    pub(super) fn listen<F, R>(&self, port: u16, serve: F)
    where
        F: Fn(LinkStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |stream| Box::pin(serve(stream)));
        self.engine.listen(port, Service::Custom(handler));
    }

    /// Something on a port tells in JSON what it was asked.
    pub(super) fn tell(&self, port: u16) {
        self.engine.listen(port, Service::Http);
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request's bytes as they are and reads the answer until the connection ends.
    pub(super) async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect().await;
        socket.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        within(socket.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// `GET` with these fields (whole lines) on a host, on a connection of its own.
    pub(super) async fn get(&self, host: &str, path: &str, fields: &[&str]) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        let lines = fields.iter().flat_map(|line| [*line, "\r\n"]);
        let request: String = std::iter::once(head.as_str()).chain(lines).chain(["\r\n"]).collect();
        Answer::read(&self.raw(request).await)
    }
}

impl Answer {
    pub(super) fn read(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// What a telling server says that it got: the values of a field.
    pub(super) fn told(&self, field: &str) -> Vec<String> {
        self.json()["headers"]
            .as_array()
            .unwrap_or_else(|| panic!("nothing told: {self:?}"))
            .iter()
            .filter(|pair| pair[0] == field)
            .map(|pair| pair[1].as_str().unwrap().to_owned())
            .collect()
    }
}

/// `{port}-{id}` below the own domain.
pub(super) fn host(port: u16, id: SandboxId) -> String {
    format!("{port}-{id}.{DOMAIN}")
}

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it took too long")
}

/// Reads until the text is there; panics where the stream ends before.
pub(super) async fn read_until<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, text: &str) -> String {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    within(async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let count = stream.read(&mut buffer).await.expect("the stream works");
            assert!(count > 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..count]);
        }
    })
    .await;
    String::from_utf8(read).unwrap()
}

/// Reads one request head on a machine's side.
pub(super) async fn read_head(stream: &mut LinkStream) -> String {
    read_until(stream, "\r\n\r\n").await
}
