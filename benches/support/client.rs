//! A plain client: one kept-alive connection, JSON in and out, Connect streams frame by frame.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::server::Server;

/// The flag of a stream's last frame.
const END_OF_STREAM: u8 = 2;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    address: String,
    key: String,
}

/// A connection that many requests share, in HTTP/2 without TLS. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Multiplexed {
    sender: http2::SendRequest<Full<Bytes>>,
    address: String,
}

/// A sandbox, as far as requests to it need it.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    token: Option<String>,
}

/// The frames of a Connect stream.
#[derive(Debug)]
pub(crate) struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

// === impl Client ===

impl Client {
    pub(crate) async fn connect(server: &Server) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(&server.address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, address: server.address.clone(), key: server.key.clone() })
    }

    async fn send(
        &mut self,
        request: http::request::Builder,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        self.sender.ready().await?;
        let request = request.header("host", &self.address).body(Full::new(body))?;
        Ok(self.sender.send_request(request).await?)
    }

    /// Asks the control plane; the answer must have this status.
    async fn ask(
        &mut self,
        request: http::request::Builder,
        body: Option<Value>,
        wanted: StatusCode,
    ) -> anyhow::Result<Bytes> {
        let request = request.header("x-api-key", &self.key);
        let answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.send(request, body.to_string().into()).await?
            }
            None => self.send(request, Bytes::new()).await?,
        };
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == wanted, "{status} instead of {wanted}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Makes a sandbox of `base` for two minutes; its answer's status must be 201.
    pub(crate) async fn create(&mut self) -> anyhow::Result<(Sandbox, Value)> {
        self.create_for(Duration::from_mins(2)).await
    }

    /// The same for as long as this.
    pub(crate) async fn create_for(&mut self, timeout: Duration) -> anyhow::Result<(Sandbox, Value)> {
        let body = json!({ "templateID": "base", "timeout": timeout.as_secs() });
        let answer = self.ask(Request::post("/sandboxes"), Some(body), StatusCode::CREATED).await?;
        let body: Value = serde_json::from_slice(&answer)?;
        let id = body["sandboxID"].as_str().context("a create answer has a sandboxID")?.to_owned();
        let token = body["envdAccessToken"].as_str().map(str::to_owned);
        Ok((Sandbox { id, token }, body))
    }

    /// The value of a metric, by its whole name with labels.
    pub(crate) async fn metric(&mut self, admin_token: &str, sample: &str) -> anyhow::Result<f64> {
        let request = Request::get("/metrics").header("x-admin-token", admin_token);
        let answer = self.send(request, Bytes::new()).await?;
        let page = answer.into_body().collect().await?.to_bytes();
        let page = String::from_utf8_lossy(&page);
        let value = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {sample} in {page}"))?.parse()?)
    }

    /// Ends a sandbox.
    pub(crate) async fn kill(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let request = Request::delete(format!("/sandboxes/{}", sandbox.id));
        self.ask(request, None, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Freezes it.
    pub(crate) async fn pause(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let request = Request::post(format!("/sandboxes/{}/pause", sandbox.id));
        self.ask(request, None, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Lets it go on.
    pub(crate) async fn resume(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let request = Request::post(format!("/v2/sandboxes/{}/connect", sandbox.id));
        self.ask(request, Some(json!({ "timeout": 120 })), StatusCode::CREATED).await.map(drop)
    }

    /// How many sandboxes run.
    pub(crate) async fn running(&mut self) -> anyhow::Result<usize> {
        self.sender.ready().await?;
        let request = Request::get("/v2/sandboxes?limit=1&state=running").header("x-api-key", &self.key);
        let answer = self.send(request, Bytes::new()).await?;
        let total = answer.headers().get("x-total-running").context("no total")?.to_str()?.parse()?;
        answer.into_body().collect().await?;
        Ok(total)
    }

    /// Asks envd's health.
    pub(crate) async fn health(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let request = sandbox
            .routing("49983")
            .into_iter()
            .fold(Request::get("/health"), |request, (name, value)| request.header(name, value));
        self.ask(request, None, StatusCode::NO_CONTENT).await.map(drop)
    }

    /// Makes a snapshot of a sandbox; its answer's status must be 201.
    pub(crate) async fn snapshot(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let request = Request::post(format!("/sandboxes/{}/snapshots", sandbox.id))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json");
        let answer = self.send(request, "{}".into()).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::CREATED, "snapshot: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    fn rpc(sandbox: &Sandbox, method: &str, kind: &str) -> http::request::Builder {
        let request = Request::post(format!("/process.Process/{method}"))
            .header("content-type", kind)
            .header("connect-protocol-version", "1");
        sandbox
            .routing("49983")
            .into_iter()
            .fold(request, |request, (name, value)| request.header(name, value))
    }

    /// Starts a process; its events are the frames.
    pub(crate) async fn start(&mut self, sandbox: &Sandbox, process: &Value) -> anyhow::Result<Frames> {
        self.stream(sandbox, "Start", process).await
    }

    /// Joins a process that runs; its events from now on are the frames.
    pub(crate) async fn join(&mut self, sandbox: &Sandbox, pid: &Value) -> anyhow::Result<Frames> {
        self.stream(sandbox, "Connect", &json!({ "process": { "pid": pid } })).await
    }

    async fn stream(&mut self, sandbox: &Sandbox, method: &str, message: &Value) -> anyhow::Result<Frames> {
        let request = Self::rpc(sandbox, method, "application/connect+json");
        let answer = self.send(request, envelope(message)?).await?;
        Frames::of(method, answer)
    }

    /// Runs a command to its end, which must be exit code 0.
    pub(crate) async fn run(&mut self, sandbox: &Sandbox, process: &Value) -> anyhow::Result<()> {
        let mut frames = self.start(sandbox, process).await?;
        let mut ended = false;
        while let Some(event) = frames.next().await? {
            let end = &event["event"]["end"];
            ended |= end["exited"] == true && end["exitCode"].is_null();
        }
        ensure!(ended, "the command did not end with 0");
        Ok(())
    }

    /// A unary call of the process service.
    pub(crate) async fn call(
        &mut self,
        sandbox: &Sandbox,
        method: &str,
        message: &Value,
    ) -> anyhow::Result<()> {
        let request = Self::rpc(sandbox, method, "application/json");
        let answer = self.send(request, message.to_string().into()).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{method}: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// A message of a stream.
fn envelope(message: &Value) -> anyhow::Result<Bytes> {
    let message = message.to_string();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
    body.extend_from_slice(message.as_bytes());
    Ok(body.into())
}

// === impl Multiplexed ===

impl Multiplexed {
    pub(crate) async fn connect(server: &Server) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(&server.address).await?;
        socket.set_nodelay(true)?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (sender, connection) = handshake.await?;
        tokio::spawn(connection);
        Ok(Self { sender, address: server.address.clone() })
    }

    /// Starts a process; its events are the frames.
    pub(crate) async fn start(&self, sandbox: &Sandbox, process: &Value) -> anyhow::Result<Frames> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let uri = format!("http://{}/process.Process/Start", self.address);
        let request = Client::rpc(sandbox, "Start", "application/connect+json")
            .uri(uri)
            .body(Full::new(envelope(process)?))?;
        Frames::of("Start", sender.send_request(request).await?)
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// The headers that lead a request to one of its ports.
    pub(crate) fn routing<'a>(&'a self, port: &'a str) -> Vec<(&'static str, &'a str)> {
        let token = self.token.as_deref().map(|token| ("x-access-token", token));
        [("e2b-sandbox-id", self.id.as_str()), ("e2b-sandbox-port", port)].into_iter().chain(token).collect()
    }
}

// === impl Frames ===

impl Frames {
    fn of(method: &str, answer: Response<Incoming>) -> anyhow::Result<Self> {
        ensure!(answer.status() == StatusCode::OK, "{method}: {}", answer.status());
        Ok(Self { body: answer.into_body(), buffer: BytesMut::new() })
    }

    /// The next message; none after the stream's end, which must be without error.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        Ok(self.next_text().await?.map(|text| serde_json::from_slice(&text)).transpose()?)
    }

    /// The same, unparsed.
    pub(crate) async fn next_text(&mut self) -> anyhow::Result<Option<BytesMut>> {
        loop {
            if let Some((flags, text)) = self.take()? {
                if flags & END_OF_STREAM == 0 {
                    return Ok(Some(text));
                }
                let message: Value = serde_json::from_slice(&text)?;
                ensure!(message.get("error").is_none(), "the stream failed: {message}");
                // Read to the end, so that the connection can serve the next request.
                while self.body.frame().await.is_some() {}
                return Ok(None);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => bail!("the stream broke off"),
            }
        }
    }

    fn take(&mut self) -> anyhow::Result<Option<(u8, BytesMut)>> {
        let &[flags, a, b, c, d, ..] = &self.buffer[..] else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some((flags, self.buffer.split_to(length))))
    }
}
