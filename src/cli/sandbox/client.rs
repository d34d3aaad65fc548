//! The API's client: one connection a request, JSON both ways, and errors that say what to do next.

use std::{fmt, io, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use super::{names, server::Server};

/// How long each address of the server may take to answer at all.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take: making a sandbox is the longest.
const ANSWER: Duration = Duration::from_mins(5);
/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;
/// The largest message of a WebSocket.
const MAX_MESSAGE: usize = 16 << 20;

/// A WebSocket.
pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A server to speak to.
#[derive(Debug)]
pub(super) struct Client {
    server: Server,
}

/// An answer with its headers.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) headers: HeaderMap,
    pub(super) body: T,
}

/// The server said no.
#[derive(Debug, thiserror::Error)]
pub(super) struct Refused {
    /// The HTTP status.
    pub(super) status: StatusCode,
    message: String,
}

/// A connection, plain or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A word of the user's as a part of a URL.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

// === impl Client ===

impl Client {
    pub(super) fn new(server: Server) -> Self {
        Self { server }
    }

    /// Asks for something. The path is escaped and may have a query.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Answer<T>> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Sends a request and reads its JSON answer; `()` for answers without a body.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<Answer<T>> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let mut request = self.request(method, path)?;
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let response = self.send(request).await?;
        let headers = response.headers().clone();
        let text = read(response.into_body()).await?;
        let text = if text.is_empty() { b"null".as_slice() } else { &text };
        let body = serde_json::from_slice(text).context(
            "the server's answer is not what this version understands: is it a firkin of the same version?",
        )?;
        Ok(Answer { headers, body })
    }

    /// Opens a WebSocket. The path is escaped and may have a query.
    pub(super) async fn websocket(&self, path: &str) -> anyhow::Result<Socket> {
        let key = generate_key();
        let request = self
            .request(Method::GET, path)?
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .body(Full::default())?;
        let response = self.send(request).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let accepted =
            accepted.is_some_and(|value| value.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
            bail!("{self} does not open a WebSocket: is there a proxy in between that does not know it?");
        }
        let stream = hyper::upgrade::on(response).await.context("the connection to the server broke")?;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .write_buffer_size(0);
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, Some(limits)).await)
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<http::request::Builder> {
        let authority = self.server.url.authority().context("the server has no address")?;
        Ok(Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server.prefix))
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, concat!("firkin/", env!("CARGO_PKG_VERSION")))
            .header("x-api-key", self.server.key.clone()))
    }

    /// The response's head, if it is no refusal.
    async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        let response = timeout(ANSWER, sender.send_request(request))
            .await
            .with_context(|| format!("{self} does not answer"))?
            .with_context(|| format!("{self} ended the connection without an answer"))?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let text = read(response.into_body()).await.unwrap_or_default();
        Err(Refused::new(status, &text).into())
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        let Server { host, port, .. } = &self.server;
        let mut failure = None;
        for address in names::resolve(host, *port).await? {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Keys that are typed go at once.
                    stream.set_nodelay(true)?;
                    return match &self.server.tls {
                        Some(config) => self.secure(stream, Arc::clone(config)).await,
                        None => Ok(Box::new(stream)),
                    };
                }
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => failure = failure.or(Some(io::ErrorKind::TimedOut.into())),
            }
        }
        let failure = failure.map_or_else(|| "no address".to_owned(), |error| error.to_string());
        bail!(
            "no server answers at {self} ({failure}): start one with `sudo firkin serve`, or name it with \
             --api-url or E2B_API_URL"
        )
    }

    async fn secure(
        &self,
        stream: TcpStream,
        config: Arc<rustls::ClientConfig>,
    ) -> anyhow::Result<Box<dyn Stream>> {
        let name = ServerName::try_from(self.server.host.clone())
            .with_context(|| format!("{:?} is no name that certificates have", self.server.host))?;
        let secured = timeout(CONNECT, TlsConnector::from(config).connect(name, stream))
            .await
            .with_context(|| format!("{self} does not speak TLS: is it http://?"))?;
        match secured {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if is_certificate(&error) => Err(error).with_context(|| {
                format!(
                    "the certificate of {self} is not trusted: eval \"$(sudo firkin ca env)\" on the \
                     server's machine, or give --ca-file with what `sudo firkin ca export` prints there"
                )
            }),
            Err(error) => Err(error).with_context(|| format!("no TLS with {self}: is it http://?")),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.server.url.to_string();
        formatter.write_str(text.trim_end_matches('/'))
    }
}

async fn read(body: Incoming) -> anyhow::Result<Bytes> {
    let text = timeout(ANSWER, Limited::new(body, MAX_ANSWER).collect()).await;
    match text.context("the server's answer does not end")? {
        Ok(text) => Ok(text.to_bytes()),
        Err(error) => bail!("the server's answer broke off: {error}"),
    }
}

fn is_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

// === impl Refused ===

impl Refused {
    /// A refusal by its status and its body, which should be `{"code", "message"}`.
    fn new(status: StatusCode, body: &[u8]) -> Self {
        let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let message = parsed.as_ref().and_then(|body| body["message"].as_str());
        let message = message.map_or_else(|| format!("the server answered {status}"), super::printable);
        Self { status, message }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if self.status == StatusCode::UNAUTHORIZED {
            formatter
                .write_str(" (E2B_API_KEY or --api-key; `sudo firkin key create` on the server makes one)")?;
        }
        Ok(())
    }
}

/// Whether the server does not know what was asked for.
pub(super) fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_the_servers_words_and_what_to_do() {
        let refused = Refused::new(StatusCode::NOT_FOUND, br#"{"code":404,"message":"no \u001bsuch"}"#);
        assert_eq!(refused.to_string(), "no \\u{1b}such");
        assert!(is_missing(&refused.into()));
        let refused = Refused::new(StatusCode::UNAUTHORIZED, b"<html>");
        let text = refused.to_string();
        assert!(text.contains("401") && text.contains("firkin key create"), "{text}");
        assert!(!is_missing(&refused.into()));
    }
}
