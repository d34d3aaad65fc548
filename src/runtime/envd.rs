//! A client of one sandbox's envd: the Connect protocol in JSON, over the link, with its token.
//!
//! What the guest sends is hostile: every message is bounded, and nothing is read ahead of whoever
//! asked for it. A client belongs to one run of its sandbox; all its streams end with that run.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{task::AbortHandle, time::timeout};

use super::registry::Target;
use crate::sandbox::ENVD_PORT;

/// How long a stream through the link may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a broken stream may be the first sign of the sandbox's end.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// The largest message of a stream. A chunk of output is 32 KiB, in base64.
const MAX_MESSAGE: usize = 128 << 10;
/// The largest answer of a call.
const MAX_ANSWER: usize = 1 << 20;
/// Bytes that a connection reads ahead.
const READ_AHEAD: usize = 64 << 10;
/// How often envd shows that an idle stream lives, in seconds (contract/sandbox 3).
const KEEPALIVE_S: u32 = 50;
/// The flag of the last envelope of a stream.
const END: u8 = 2;

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// envd refused, in Connect's words.
    #[error("{code}: {message}")]
    Refused {
        /// Connect's code: `not_found`, `invalid_argument`, ...
        code: String,
        /// envd's text.
        message: String,
    },
    /// The run is over.
    #[error("the sandbox has ended")]
    Ended,
    /// envd cannot be reached, or does not speak as it should.
    #[error("the sandbox's services do not answer as they should: {0}")]
    Broken(String),
}

/// A client. It keeps one connection for its calls; each stream has its own.
pub struct EnvdClient {
    target: Target,
    token: Option<String>,
    user: Option<String>,
    /// How long a call may take; none: as long as the run lasts.
    patience: Option<Duration>,
    idle: Option<Connection>,
}

/// The answers of one streaming call. Dropping it closes its connection.
#[derive(Debug)]
pub struct Messages {
    target: Target,
    body: Incoming,
    buffer: BytesMut,
    over: bool,
    _connection: Connection,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

/// An error as Connect writes it.
#[derive(Debug, Deserialize)]
struct Fault {
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Default, Deserialize)]
struct EndOfStream {
    error: Option<Fault>,
}

// === impl EnvdClient ===

impl EnvdClient {
    /// A client of this run; `token` is what its envd wants.
    pub(super) fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token, user: None, patience: Some(CALL_TIMEOUT), idle: None }
    }

    /// Acts as this user of the sandbox from now on; none: its default user.
    pub fn act_as(&mut self, user: Option<String>) {
        self.user = user;
    }

    /// Another client of the same run, token and user, whose calls do not wait for this one's.
    pub fn sibling(&self) -> Self {
        Self {
            target: self.target.clone(),
            token: self.token.clone(),
            user: self.user.clone(),
            patience: self.patience,
            idle: None,
        }
    }

    /// Lets calls take as long as the run lasts: input waits until its process reads it.
    pub fn wait(&mut self) {
        self.patience = None;
    }

    /// The run that it belongs to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// One question, one answer. `procedure` is `process.Process/SendInput` and the like. Calls of
    /// one client are made one after the other; a dropped call may have been obeyed.
    pub async fn call<T: DeserializeOwned>(
        &mut self,
        procedure: &str,
        message: &impl Serialize,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(message).map_err(broken)?;
        let request = self.request(procedure, "application/json", body.into())?;
        let target = self.target.clone();
        let exchange = async {
            let mut connection = match self.idle.take().filter(|kept| kept.sender.is_ready()) {
                Some(kept) => kept,
                None => Connection::open(&target).await?,
            };
            let answer = read(connection.sender.send_request(request).await.map_err(broken)?).await?;
            self.idle = Some(connection);
            Ok(answer)
        };
        let patience = self.patience;
        let answer = until_end(&self.target.clone(), async {
            let Some(patience) = patience else { return exchange.await };
            timeout(patience, exchange)
                .await
                .unwrap_or_else(|_| Err(CallError::Broken("the call took too long".to_owned())))
        })
        .await?;
        serde_json::from_slice(&answer).map_err(broken)
    }

    /// One question, many answers.
    pub async fn open(&self, procedure: &str, message: &impl Serialize) -> Result<Messages, CallError> {
        let message = serde_json::to_vec(message).map_err(broken)?;
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).map_err(broken)?);
        body.put_slice(&message);
        let request = self.request(procedure, "application/connect+json", body.freeze())?;
        until_end(&self.target, async {
            let mut connection = Connection::open(&self.target).await?;
            let response = connection.sender.send_request(request).await.map_err(broken)?;
            if response.status() != StatusCode::OK {
                read(response).await?;
                return Err(CallError::Broken("a stream was answered without one".to_owned()));
            }
            Ok(Messages {
                target: self.target.clone(),
                body: response.into_body(),
                buffer: BytesMut::new(),
                over: false,
                _connection: connection,
            })
        })
        .await
    }

    fn request(&self, procedure: &str, form: &str, body: Bytes) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::post(format!("/{procedure}"))
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, form)
            .header("connect-protocol-version", "1")
            .header("keepalive-ping-interval", KEEPALIVE_S);
        if let Some(token) = &self.token {
            request = request.header("x-access-token", token);
        }
        if let Some(user) = &self.user {
            let encoded = BASE64.encode(format!("{user}:"));
            request = request.header(header::AUTHORIZATION, format!("Basic {encoded}"));
        }
        request.body(Full::new(body)).map_err(broken)
    }
}

impl fmt::Debug for EnvdClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EnvdClient").field("sandbox", &self.target.id).finish_non_exhaustive()
    }
}

// === impl Messages ===

impl Messages {
    /// The next answer; none after the last one. Cancel-safe.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        let target = self.target.clone();
        until_end(&target, self.read()).await
    }

    async fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CallError> {
        while !self.over {
            if let Some((flags, message)) = self.envelope()? {
                if flags & END == 0 {
                    return serde_json::from_slice(&message).map(Some).map_err(broken);
                }
                self.over = true;
                let end: EndOfStream = serde_json::from_slice(&message).map_err(broken)?;
                return end.error.map_or(Ok(None), |fault| Err(fault.into()));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Err(CallError::Broken("a stream ended before its end".to_owned())),
            }
        }
        Ok(None)
    }

    fn envelope(&mut self) -> Result<Option<(u8, Bytes)>, CallError> {
        let Some((head, rest)) = self.buffer.split_at_checked(5) else { return Ok(None) };
        let (flags, length) = (head[0], (&head[1..]).get_u32() as usize);
        if length > MAX_MESSAGE {
            return Err(CallError::Broken(format!("a message of {length} bytes")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some((flags, self.buffer.split_to(length).freeze())))
    }
}

// === impl Connection ===

impl Connection {
    async fn open(target: &Target) -> Result<Self, CallError> {
        let stream =
            timeout(OPEN_TIMEOUT, target.link.open(ENVD_PORT)).await.map_err(broken)?.map_err(broken)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_AHEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let ended = target.ended.clone();
        // A failure reaches whoever waits for the answer.
        let driver = tokio::spawn(async move { ended.run_until_cancelled(connection).await });
        Ok(Self { sender, driver: driver.abort_handle() })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Tells a sandbox that has ended from an envd that does not answer.
async fn until_end<T>(
    target: &Target,
    work: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let done = tokio::select! {
        () = target.ended.cancelled() => Err(CallError::Ended),
        done = work => done,
    };
    match done {
        // The bytes stop before the registry hears of the machine's end.
        Err(CallError::Broken(reason)) => match timeout(LAST_WORDS, target.ended.cancelled()).await {
            Ok(()) => Err(CallError::Ended),
            Err(_) => Err(CallError::Broken(reason)),
        },
        done => done,
    }
}

/// The body of an answer, or the refusal that it is.
async fn read(response: Response<Incoming>) -> Result<Bytes, CallError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<Fault>(&body) {
        Ok(fault) => Err(fault.into()),
        Err(_) => Err(CallError::Broken(format!("envd answered {status}"))),
    }
}

fn broken(error: impl fmt::Display) -> CallError {
    CallError::Broken(error.to_string())
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> Self {
        Self::Refused { code: fault.code, message: fault.message }
    }
}

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
