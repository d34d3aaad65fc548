//! A process of a sandbox, over a WebSocket: what is typed or piped goes in, what it says comes out.
//!
//! ```text
//!   stdin --thread--> \                          / --thread--> stdout, stderr
//!   window's size ----- WebSocket <--> the server
//!   signals ----------- another WebSocket to the same process
//! ```
//! Signals have a connection of their own: the server reads the next message when the process has
//! taken the input before it, which may be never.

use std::{
    cell::Cell,
    convert::Infallible,
    future::pending,
    io::{self, Read as _},
    pin::pin,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{
    NOBODY_READS,
    client::{Client, Socket, escaped},
    message::{Exit, Said, Say, Start},
    output::{Channel, Output},
    printable, terminal,
};

/// The most bytes of one message of input.
const CHUNK: usize = 32 << 10;
/// Messages that wait to be sent.
const WAITING: usize = 4;
/// How long the process is given to be told that nobody listens any more.
const FAREWELL: Duration = Duration::from_secs(5);
/// A wait for the reader of the output after which the server may have lost its patience.
const SLOW: Duration = Duration::from_secs(20);

/// A process that this program follows.
pub(super) struct Session<'a> {
    client: &'a Client,
    /// Escaped.
    id: String,
    socket: Socket,
    pid: u32,
    /// From the beginning: none is missed between the terminal's new mode and [`Session::run`].
    signals: Signals,
}

/// Where input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing is said.
    None,
    /// Standard input, and its end.
    Pipe,
    /// The terminal, raw: its keys, its size.
    Terminal,
}

// === impl Session ===

impl<'a> Session<'a> {
    /// Starts a process.
    pub(super) async fn start(client: &'a Client, id: &str, start: Start) -> anyhow::Result<Self> {
        let id = escaped(id);
        let mut socket = client.websocket(&format!("/sandboxes/{id}/processes")).await?;
        say(&mut socket, &Say::Start(start)).await?;
        Self::attached(client, id, socket).await
    }

    /// Opens a login shell, or the terminal that the query names.
    pub(super) async fn terminal(client: &'a Client, id: &str, query: &str) -> anyhow::Result<Self> {
        let id = escaped(id);
        let socket = client.websocket(&format!("/sandboxes/{id}/terminal?{query}")).await?;
        Self::attached(client, id, socket).await
    }

    async fn attached(client: &'a Client, id: String, mut socket: Socket) -> anyhow::Result<Self> {
        loop {
            match hear(&mut socket).await? {
                Said::Attached { pid } => {
                    return Ok(Self { client, id, socket, pid, signals: Signals::new()? });
                }
                Said::Error { message, .. } => bail!("{}", printable(&message)),
                _ => {}
            }
        }
    }

    /// Passes on both ways until the process ends; gives its exit code as a shell would.
    pub(super) async fn run(self, input: Input) -> anyhow::Result<u8> {
        let Self { client, id, socket, pid, mut signals } = self;
        let path = format!("/sandboxes/{id}/processes?pid={pid}");
        let control = Control { client, path, hung_up: Cell::new(None) };
        let (sink, stream) = socket.split();
        let (output, mut written) = Output::start();
        let deaf = CancellationToken::new();
        let (queue, waiting) = mpsc::channel(WAITING);
        if input != Input::None {
            read_input(queue.clone(), input);
        }
        let receiving = pin!(receive(stream, output, pid, &deaf));
        let mut sending = pin!(send(sink, waiting, &deaf));
        let resizing = pin!(resize(queue, input));
        let exit = tokio::select! {
            exit = receiving => exit?,
            failed = &mut written => return control.abandoned(failed).await,
            given_up = control.obey(&mut signals, input) => return Ok(given_up),
            never = &mut sending => match never {},
            never = resizing => match never {},
        };
        let code = control.hung_up.get().unwrap_or_else(|| exit.shell_code());
        // What is said last may wait for a reader; who does not want to wait says so.
        tokio::select! {
            failed = &mut written => match failed.unwrap_or(Ok(())) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(NOBODY_READS),
                Err(error) => Err(error).context("standard output"),
                Ok(()) => Ok(code),
            },
            code = signals.next() => Ok(code),
        }
    }
}

/// Hands on what the process says until it ends.
async fn receive(
    mut stream: SplitStream<Socket>,
    output: Output,
    pid: u32,
    deaf: &CancellationToken,
) -> anyhow::Result<Exit> {
    // Whether this program kept the server waiting for as long as it bears.
    let mut slow = false;
    loop {
        let said = hear(&mut stream).await.with_context(|| {
            let slow = if slow { "what reads the output stopped for too long; " } else { "" };
            format!("{slow}the process goes on in the sandbox as {pid}, or the sandbox has ended")
        })?;
        let before = Instant::now();
        match said {
            Said::Stdout { data } | Said::Pty { data } => output.put(Channel::Stdout, data).await,
            Said::Stderr { data } => output.put(Channel::Stderr, data).await,
            Said::Exit(exit) => return Ok(exit),
            Said::Error { seq: Some(_), message } => bail!("{}", printable(&message)),
            Said::Lost {} => bail!("output was lost: what reads it was too slow for too long"),
            // The process takes no more input, as when a reader closes a pipe.
            Said::Error { seq: None, .. } => deaf.cancel(),
            Said::Attached { .. } | Said::Other => {}
        }
        slow |= before.elapsed() >= SLOW;
    }
}

/// Sends what is queued, until the process does not listen.
async fn send(
    mut sink: SplitSink<Socket, Message>,
    mut waiting: mpsc::Receiver<Say>,
    deaf: &CancellationToken,
) -> Infallible {
    let sending = async {
        while let Some(message) = waiting.recv().await {
            // Whoever receives learns why the connection is gone.
            if sink.send(text(&message)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = deaf.cancelled() => {}
    }
    drop(waiting);
    pending().await
}

/// Tells every new size of the terminal.
async fn resize(queue: mpsc::Sender<Say>, input: Input) -> Infallible {
    if input == Input::Terminal
        && let Ok(mut changes) = signal(SignalKind::window_change())
    {
        while changes.recv().await.is_some() {
            if queue.send(Say::Resize(terminal::size())).await.is_err() {
                break;
            }
        }
    }
    pending().await
}

/// Reads standard input to its end, or until nobody takes it. The thread is not waited for.
fn read_input(queue: mpsc::Sender<Say>, input: Input) {
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut stdin = io::stdin().lock();
        loop {
            let data = match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => buffer[..length].to_vec(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if queue.blocking_send(Say::Input { data, wait: true }).is_err() {
                return;
            }
        }
        if input == Input::Pipe {
            let _ = queue.blocking_send(Say::CloseInput { wait: true });
        }
    });
}

/// The second connection to a process, for signals.
struct Control<'a> {
    client: &'a Client,
    path: String,
    /// The exit code of the signal that took the terminal away.
    hung_up: Cell<Option<u8>>,
}

// === impl Control ===

impl Control<'_> {
    /// Passes signals on: the first ends the process, the next kills it, and the third gives up. A
    /// terminal's process is killed at once, for a shell on a terminal ignores what ends others.
    /// Gives the exit code of the signal that was not passed on.
    async fn obey(&self, signals: &mut Signals, input: Input) -> u8 {
        let code = signals.next().await;
        if input == Input::Terminal {
            self.hung_up.set(Some(code));
            self.leave("SIGKILL").await;
            return code;
        }
        tokio::select! {
            never = self.tell("SIGTERM") => match never {},
            _ = signals.next() => {}
        }
        tokio::select! {
            never = self.tell("SIGKILL") => match never {},
            code = signals.next() => code,
        }
    }

    /// Nothing can be written any more: the process need not say more.
    async fn abandoned<E>(&self, failed: Result<io::Result<()>, E>) -> anyhow::Result<u8> {
        self.leave("SIGTERM").await;
        match failed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("standard output")
            }
            _ => Ok(NOBODY_READS),
        }
    }

    /// Sends a signal, but does not wait for long.
    async fn leave(&self, name: &'static str) {
        let _ = timeout(FAREWELL, self.deliver(name, true)).await;
    }

    /// Sends a signal and stays until the process has ended.
    async fn tell(&self, name: &'static str) -> Infallible {
        // The main connection tells what is wrong; the next signal is tried anew.
        let _ = self.deliver(name, false).await;
        pending().await
    }

    async fn deliver(&self, name: &'static str, brief: bool) -> anyhow::Result<()> {
        let mut socket = self.client.websocket(&self.path).await?;
        say(&mut socket, &Say::Signal { signal: name }).await?;
        if brief {
            // The server closes in turn when it has obeyed what was said before.
            socket.close(None).await?;
        }
        // What is said here is said on the main connection too, and held back until it is read.
        while hear(&mut socket).await.is_ok() {}
        Ok(())
    }
}

/// The signals that end this program.
struct Signals([(Signal, u8); 4]);

// === impl Signals ===

impl Signals {
    fn new() -> io::Result<Self> {
        let with = |kind: SignalKind| -> io::Result<(Signal, u8)> {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            Ok((signal(kind)?, 128 + number))
        };
        Ok(Self([
            with(SignalKind::interrupt())?,
            with(SignalKind::terminate())?,
            with(SignalKind::hangup())?,
            with(SignalKind::quit())?,
        ]))
    }

    /// The exit code of what the next signal ends. Cancel-safe.
    async fn next(&mut self) -> u8 {
        let [(first, interrupt), (second, terminate), (third, hangup), (fourth, quit)] = &mut self.0;
        tokio::select! {
            _ = first.recv() => *interrupt,
            _ = second.recv() => *terminate,
            _ = third.recv() => *hangup,
            _ = fourth.recv() => *quit,
        }
    }
}

fn text(message: &Say) -> Message {
    // Strings and numbers always have a JSON form.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

async fn say(socket: &mut Socket, message: &Say) -> anyhow::Result<()> {
    socket.send(text(message)).await.context("the connection to the server broke")
}

/// The next message. Cancel-safe.
async fn hear<S>(stream: &mut S) -> anyhow::Result<Said>
where
    S: futures_util::Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text)
                    .context("the server says what this version does not understand");
            }
            Some(Ok(Message::Close(Some(frame)))) => {
                bail!("the server ended the connection: {}", printable(&frame.reason))
            }
            Some(Ok(Message::Close(None))) | None => bail!("the server ended the connection"),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).context("the connection to the server broke"),
        }
    }
}
