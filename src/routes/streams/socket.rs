//! One WebSocket: follows a stream, passes on what the client says, and notices a client that
//! does not answer.
//!
//! Reading and writing run side by side and end together. A write that makes no progress, or a
//! silence after pings, cuts the connection off; the stream goes on without it.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    message::{ClientMessage, Refusal, StreamMessage},
    processes::Attachment,
    ring::{Follower, Step},
};
use crate::runtime::registry::EnvdClient;

/// How often the client is pinged.
const PING: Duration = Duration::from_secs(20);
/// How long a client may be silent, or not read.
const SILENCE: Duration = Duration::from_mins(1);
/// How long the first message may take.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// The largest message of a client.
const MAX_MESSAGE: usize = 1 << 20;
/// Answers to a client's messages that wait.
const REPLIES: usize = 16;

/// Limits of what is read and buffered.
pub(super) fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).write_buffer_size(0)
}

/// The first message, which says what to start.
pub(super) async fn first(socket: &mut WebSocket) -> Result<ClientMessage, Refusal> {
    let first = async {
        while let Some(Ok(message)) = socket.recv().await {
            match message {
                Message::Text(text) => return parse(&text),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Close(_) => break,
            }
        }
        Err(Refusal::new("invalid_argument", "the first message is a JSON object: start"))
    };
    timeout(FIRST_WORD, first)
        .await
        .unwrap_or_else(|_| Err(Refusal::new("deadline_exceeded", "there was no first message")))
}

/// Says why nothing comes, and closes.
pub(super) async fn refuse(mut socket: WebSocket, refusal: Refusal) {
    let said = async {
        let _ = socket.send(Message::Text(refusal.message(None).text())).await;
        let _ = socket.send(goodbye(close_code::POLICY, "the stream was refused")).await;
    };
    let _ = timeout(SILENCE, said).await;
}

/// Serves an attachment until the stream or the client ends.
pub(super) async fn serve(socket: WebSocket, attachment: Attachment) {
    let Attachment { envd, pid, pty, opening, follower, .. } = attachment;
    let (sink, source) = socket.split();
    let (replies, answers) = mpsc::channel(REPLIES);
    let listener = pid.map(|pid| Listener { envd, pid, pty });
    tokio::select! {
        () = write(sink, opening, follower, answers) => {}
        () = read(source, listener, replies) => {}
    }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    opening: Vec<StreamMessage>,
    mut follower: Follower,
    mut answers: mpsc::Receiver<Utf8Bytes>,
) {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut opening = opening.into_iter();
    loop {
        let message = if let Some(message) = opening.next() {
            Message::Text(message.text())
        } else {
            tokio::select! {
                Some(answer) = answers.recv() => Message::Text(answer),
                step = follower.next() => match step {
                    Some(Step::Message(_, text)) => Message::Text(text),
                    Some(Step::Lost(from, to)) => {
                        Message::Text(StreamMessage::Lost { from, to: Some(to) }.text())
                    }
                    None => goodbye(close_code::NORMAL, "the stream has ended"),
                },
                _ = ping.tick() => Message::Ping(bytes::Bytes::new()),
            }
        };
        let last = matches!(message, Message::Close(_));
        let sent = timeout(SILENCE, sink.send(message)).await;
        if last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// Obeys a client that speaks; the silence of one that waits for envd does not count.
async fn read(
    mut source: SplitStream<WebSocket>,
    mut listener: Option<Listener>,
    replies: mpsc::Sender<Utf8Bytes>,
) {
    while let Ok(Some(Ok(message))) = timeout(SILENCE, source.next()).await {
        let text = match message {
            Message::Text(text) => text,
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Binary(_) => {
                let refusal = Refusal::new("invalid_argument", "messages are JSON texts");
                let _ = replies.send(refusal.message(None).text()).await;
                continue;
            }
            Message::Close(_) => return,
        };
        let obeyed = match (parse(&text), &mut listener) {
            (Ok(message), Some(listener)) => listener.obey(message).await,
            (Ok(_), None) => Err(Refusal::new("invalid_argument", "a watch takes no messages")),
            (Err(refusal), _) => Err(refusal),
        };
        if let Err(refusal) = obeyed {
            let _ = replies.send(refusal.message(None).text()).await;
        }
    }
}

fn goodbye(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

fn parse(text: &str) -> Result<ClientMessage, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal::new("invalid_argument", error.to_string()))
}

/// The process that a client speaks to.
struct Listener {
    envd: EnvdClient,
    pid: u32,
    pty: bool,
}

// === impl Listener ===

impl Listener {
    async fn obey(&mut self, message: ClientMessage) -> Result<(), Refusal> {
        let process = json!({ "pid": self.pid });
        let (procedure, request) = match message {
            ClientMessage::Start(_) => {
                return Err(Refusal::new("invalid_argument", "this stream has its process already"));
            }
            ClientMessage::Input { data } => {
                if BASE64.decode(&data).is_err() {
                    return Err(Refusal::new("invalid_argument", "input: data is not base64"));
                }
                let kind = if self.pty { "pty" } else { "stdin" };
                ("SendInput", json!({ "process": process, "input": { kind: data } }))
            }
            ClientMessage::CloseInput => ("CloseStdin", json!({ "process": process })),
            ClientMessage::Resize { cols, rows } => {
                let size = json!({ "cols": cols, "rows": rows });
                ("Update", json!({ "process": process, "pty": { "size": size } }))
            }
            ClientMessage::Signal { signal } => match signal.as_str() {
                "SIGTERM" | "SIGKILL" => {
                    let signal = format!("SIGNAL_{signal}");
                    ("SendSignal", json!({ "process": process, "signal": signal }))
                }
                other => {
                    return Err(Refusal::new(
                        "invalid_argument",
                        format!(
                            "signal {other:?}: SIGTERM and SIGKILL can be sent; a terminal takes control characters"
                        ),
                    ));
                }
            },
        };
        let _: Value = self.envd.call(&format!("process.Process/{procedure}"), &request).await?;
        Ok(())
    }
}
