//! Streams for browsers over real sockets: the real gateway and routes, and an envd that does what a
//! test says.

mod doors;
mod ends;
mod envd;
mod talk;

use std::{net::SocketAddr, time::Duration};

use firkin::{
    id::OsEntropy,
    proxy::gateway::{self, Gateway},
    routes::{self, Bounds, Streams, Usage},
    runtime::fake::Service,
    sandbox::ENVD_PORT,
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};
use tokio_util::sync::CancellationToken;

use self::envd::{Envd, Process};
use super::Plane;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with one sandbox.
struct Rig {
    plane: Plane,
    envd: Envd,
    sandbox: String,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

/// A browser's connection.
struct Socket(WebSocketStream<TcpStream>);

/// Server-sent events, as they come.
struct Events {
    socket: TcpStream,
    status: u16,
    text: String,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server within these bounds.
    async fn with(change: impl FnOnce(&mut Bounds)) -> Self {
        let mut plane = Plane::new().await;
        let mut bounds = Bounds::default();
        change(&mut bounds);
        plane.state.streams = Streams::with(&OsEntropy, bounds);
        let envd = Envd::default();
        plane.engine.listen(ENVD_PORT, Service::Custom(envd.handler()));
        let sandbox = plane.sandbox().await;
        let settings = gateway::Settings::new("firkin.test:3000");
        let router = routes::router(plane.state.clone());
        let gateway = Gateway::new(plane.state.registry.clone(), router, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(gateway::serve(listener, gateway, shutdown.clone()));
        Self { plane, envd, sandbox, address, shutdown, serving }
    }

    /// The path of a stream of the sandbox.
    fn path(&self, rest: &str) -> String {
        format!("/sandboxes/{}/{rest}", self.sandbox)
    }

    async fn ticket(&self, kind: &str) -> String {
        let path = self.path("tickets");
        let answer = self.plane.call("POST", &path, Some(json!({ "kind": kind }))).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body["ticket"].as_str().unwrap().to_owned()
    }

    /// Opens a WebSocket with these fields; or the status of the refusal.
    async fn open(&self, path: &str, fields: &[(&'static str, &str)]) -> Result<Socket, u16> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match within(client_async(request, socket)).await {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Opens a WebSocket with the team's key.
    async fn keyed(&self, path: &str) -> Socket {
        self.open(path, &[("x-api-key", &self.plane.key)]).await.unwrap()
    }

    /// A process that a WebSocket has started, and its stream's name.
    async fn process(&self) -> (Socket, Process, String) {
        let mut socket = self.keyed(&self.path("processes")).await;
        socket.say(&json!({ "type": "start", "cmd": "cat", "stdin": true })).await;
        let process = self.envd.opened("process.Process/Start").await;
        let attached = socket.next().await;
        assert_eq!((&attached["type"], &attached["pid"]), (&json!("attached"), &json!(process.pid)));
        let stream = attached["stream"].as_str().unwrap().to_owned();
        (socket, process, stream)
    }

    /// Asks for server-sent events.
    async fn events(&self, path: &str, fields: &[(&str, &str)]) -> Events {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in fields {
            request.extend([*name, ": ", *value, "\r\n"]);
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut events = Events { socket, status: 0, text: String::new() };
        events.until("\r\n\r\n").await;
        events.status = events.text.split(' ').nth(1).unwrap().parse().unwrap();
        events
    }

    /// Waits until so much is in use, and nothing more.
    async fn settled(&self, streams: usize, connections: usize) {
        let wanted = Usage { streams, connections };
        until(&format!("{wanted:?}"), || self.plane.state.streams.usage() == wanted).await;
    }
}

impl Socket {
    async fn say(&mut self, message: &Value) {
        within(self.0.send(Message::text(message.to_string()))).await.unwrap();
    }

    /// The next message; the end of the connection is `{"close": [code, reason]}`.
    async fn next(&mut self) -> Value {
        loop {
            match within(self.0.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => {
                    return json!({ "close": [u16::from(frame.code), frame.reason.as_str()] });
                }
                other => return json!({ "cut": format!("{other:?}") }),
            }
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
            assert!(message["type"].is_string(), "{kind} did not come: {message}");
        }
    }

    /// The code and reason of the close frame; everything before it is skipped.
    async fn closed(&mut self) -> (u64, String) {
        loop {
            let message = self.next().await;
            if let Some([code, reason]) = message["close"].as_array().map(Vec::as_slice) {
                return (code.as_u64().unwrap(), reason.as_str().unwrap().to_owned());
            }
            assert!(message["type"].is_string(), "the connection was cut: {message}");
        }
    }
}

impl Events {
    /// Reads until the text is there.
    async fn until(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.text.contains(text) {
            let read = within(self.socket.read(&mut buffer)).await.unwrap();
            assert!(read > 0, "ended before {text:?}: {}", self.text);
            self.text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it took too long")
}

/// Polls until it holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("{what}: did not come"));
}

/// How many tasks the runtime of this test has.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
