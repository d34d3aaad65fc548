//! One WebSocket: follows a stream, passes on what the client says, and notices a client that
//! does not answer.
//!
//! Reading and writing run side by side and end together. A write that makes no progress, or a
//! silence after pings, cuts the connection off; the stream goes on without it. Every end that the
//! client can still hear is told in a close frame ([`Ending`]).

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Bounds, Connection,
    ending::Ending,
    lanes::{Speaker, lanes},
    message::{ClientMessage, Refusal, StreamMessage},
    processes::Attachment,
    ring::{Follower, Step},
};

/// The largest message of a client.
const MAX_MESSAGE: usize = 1 << 20;
/// Answers to a client's messages that wait.
const REPLIES: usize = 16;

/// What is said to a client besides the stream's own messages.
#[derive(Debug)]
pub(super) enum Reply {
    /// A message was not obeyed.
    Error(Refusal),
    /// The connection ends.
    End(Ending),
}

/// Limits of what is read and buffered.
pub(super) fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).write_buffer_size(0)
}

/// The first message, which says what to start.
pub(super) async fn first(socket: &mut WebSocket, connection: &Connection) -> Result<ClientMessage, Refusal> {
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
    tokio::select! {
        first = timeout(connection.bounds.first_word, first) => first
            .unwrap_or_else(|_| Err(Refusal::new("deadline_exceeded", "there was no first message"))),
        () = connection.closing.cancelled() => Err(Refusal::new("unavailable", "the server is stopping")),
    }
}

/// Serves what is attached to, or says why there is nothing.
pub(super) async fn run(
    socket: WebSocket,
    connection: Connection,
    attaching: impl Future<Output = Result<Attachment, Refusal>>,
) {
    let attached = tokio::select! {
        attached = timeout(connection.bounds.first_word, attaching) => attached.unwrap_or_else(|_| {
            Err(Refusal::new("deadline_exceeded", "the sandbox's services did not answer in time"))
        }),
        () = connection.closing.cancelled() => Err(Refusal::new("unavailable", "the server is stopping")),
    };
    match attached {
        Ok(attachment) => Box::pin(serve(socket, attachment, connection)).await,
        Err(refusal) => refuse(socket, refusal, connection).await,
    }
}

/// Says why nothing comes, and closes.
pub(super) async fn refuse(mut socket: WebSocket, refusal: Refusal, connection: Connection) {
    let ending =
        if connection.closing.is_cancelled() { Ending::Stopping } else { Ending::Refused(refusal.clone()) };
    let said = async {
        let _ = socket.send(Message::Text(refusal.message(None).text())).await;
        let _ = socket.send(ending.frame()).await;
        // Its answer to the close frame: a socket that is dropped with unread bytes in it takes what
        // the client has not read along.
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _ = timeout(connection.bounds.farewell, said).await;
}

/// Serves an attachment until the stream or the client ends.
async fn serve(socket: WebSocket, attachment: Attachment, connection: Connection) {
    let Attachment { envd, pid, pty, opening, follower, .. } = attachment;
    let bounds = connection.bounds;
    let (sink, mut source) = socket.split();
    let (replies, answers) = mpsc::channel(REPLIES);
    let (speaker, lanes) = match pid {
        Some(pid) => {
            let (speaker, lanes) = lanes(envd, pid, pty, replies.clone(), &bounds);
            (Some(speaker), Some(lanes))
        }
        None => (None, None),
    };
    let gone = CancellationToken::new();
    let talking = async {
        tokio::select! {
            () = write(sink, opening, follower, answers, &bounds) => {}
            () = read(&mut source, speaker, replies, &bounds) => {}
        }
        gone.cancel();
        // Answers to close frames, ours and the client's. A socket that is dropped with unread bytes
        // in it takes what the client has not read along.
        let answered = async { while let Some(Ok(_)) = source.next().await {} };
        let _ = timeout(bounds.farewell, answered).await;
    };
    let passing = async {
        if let Some(lanes) = lanes {
            Box::pin(lanes.run()).await;
        }
    };
    // What a client said before it went is still passed on, for a while.
    let patience = async {
        gone.cancelled().await;
        tokio::select! {
            () = sleep(bounds.farewell) => {}
            () = connection.closing.cancelled() => {}
        }
    };
    let passing = async {
        tokio::select! {
            () = passing => {}
            () = patience => {}
        }
    };
    tokio::join!(talking, passing);
}

/// Sends what there is until the stream ends, the client takes nothing, or somebody says so.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    opening: Vec<StreamMessage>,
    mut follower: Follower,
    mut answers: mpsc::Receiver<Reply>,
    bounds: &Bounds,
) {
    let mut ping = interval(bounds.ping);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut opening = opening.into_iter();
    loop {
        let message = if let Some(message) = opening.next() {
            Message::Text(message.text())
        } else {
            tokio::select! {
                Some(answer) = answers.recv() => match answer {
                    Reply::Error(refusal) => Message::Text(refusal.message(None).text()),
                    Reply::End(ending) => ending.frame(),
                },
                step = follower.next() => match step {
                    Step::Message(_, text) => Message::Text(text),
                    Step::Lost(from, to) => {
                        Message::Text(StreamMessage::Lost { from, to: Some(to) }.text())
                    }
                    Step::End(ending) => ending.frame(),
                },
                _ = ping.tick() => Message::Ping(bytes::Bytes::new()),
            }
        };
        let last = matches!(message, Message::Close(_));
        let sent = timeout(bounds.unread, sink.send(message)).await;
        if last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// Takes what a client says until it goes. The silence of one that waits for its process does not
/// count.
async fn read(
    source: &mut SplitStream<WebSocket>,
    mut speaker: Option<Speaker>,
    replies: mpsc::Sender<Reply>,
    bounds: &Bounds,
) {
    loop {
        let Ok(next) = timeout(bounds.silence, source.next()).await else {
            let _ = replies.send(Reply::End(Ending::Silent)).await;
            // Whoever tells it ends us.
            return std::future::pending().await;
        };
        let said = match next {
            Some(Ok(Message::Text(text))) => match (parse(&text), &mut speaker) {
                (Ok(message), Some(speaker)) => speaker.say(message).await,
                (Ok(_), None) => Err(Refusal::new("invalid_argument", "a watch takes no messages")),
                (Err(refusal), _) => Err(refusal),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Binary(_))) => Err(Refusal::new("invalid_argument", "messages are JSON texts")),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
        if let Err(refusal) = said {
            let _ = replies.send(Reply::Error(refusal)).await;
        }
    }
}

fn parse(text: &str) -> Result<ClientMessage, Refusal> {
    serde_json::from_str(text).map_err(|error| Refusal::new("invalid_argument", error.to_string()))
}
