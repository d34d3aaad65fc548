//! What a client says to its process, in two lanes: signals and sizes pass the input that the
//! process does not take; input never passes them.
//!
//! ```text
//!   Speaker --input, bounded by bytes--> input lane ---one call after another--> envd
//!           `--signals, sizes---------> control lane --one call after another--> envd
//! ```
//! The speaker never waits for the process for longer than [`Bounds::untaken`] without progress: then
//! input beyond what waits already is refused, so that the connection's next signal is heard; but a
//! client that says `wait`, as one with a pipe does, has asked for just that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use super::{
    Bounds,
    message::{ClientMessage, Refusal},
    socket::Reply,
};
use crate::runtime::registry::EnvdClient;

/// The most input that waits, in bytes; a larger message waits alone.
const MAX_WAITING: u32 = 256 << 10;
/// What a message costs besides its bytes.
const OVERHEAD: u32 = 256;
/// The bytes of input that one call carries.
const CHUNK: usize = 32 << 10;
/// Signals and sizes that wait.
const CONTROLS: usize = 16;

/// The near end of the lanes: takes what the client says. Dropping it ends them, after what waits.
#[derive(Debug)]
pub(super) struct Speaker {
    input: mpsc::UnboundedSender<Input>,
    control: mpsc::Sender<Call>,
    room: Arc<Semaphore>,
    taken: Arc<AtomicU64>,
    untaken: Duration,
    /// Input was refused, and what waits has not been taken since.
    stuck: bool,
    /// How many signals and sizes were said.
    said: u64,
    pid: u32,
}

/// The far end: passes on what was said.
#[derive(Debug)]
pub(super) struct Lanes {
    input: mpsc::UnboundedReceiver<Input>,
    control: mpsc::Receiver<Call>,
    obeyed: watch::Sender<u64>,
    taken: Arc<AtomicU64>,
    envd: EnvdClient,
    pid: u32,
    pty: bool,
    replies: mpsc::Sender<Reply>,
}

/// One call to envd.
#[derive(Debug)]
struct Call(&'static str, Value);

#[derive(Debug)]
struct Input {
    /// None: the end of the input.
    data: Option<Vec<u8>>,
    /// So many signals and sizes come before it.
    after: u64,
    _room: OwnedSemaphorePermit,
}

/// The lanes of a process; failures are told as `replies`.
pub(super) fn lanes(
    envd: EnvdClient,
    pid: u32,
    pty: bool,
    replies: mpsc::Sender<Reply>,
    bounds: &Bounds,
) -> (Speaker, Lanes) {
    // Bounded by the permits that its messages hold.
    let (input, inputs) = mpsc::unbounded_channel();
    let (control, controls) = mpsc::channel(CONTROLS);
    let taken = Arc::new(AtomicU64::new(0));
    let speaker = Speaker {
        input,
        control,
        room: Arc::new(Semaphore::new(MAX_WAITING as usize)),
        taken: Arc::clone(&taken),
        untaken: bounds.untaken,
        stuck: false,
        said: 0,
        pid,
    };
    let obeyed = watch::Sender::new(0);
    (speaker, Lanes { input: inputs, control: controls, obeyed, taken, envd, pid, pty, replies })
}

// === impl Speaker ===

impl Speaker {
    /// Takes a message; it is passed on in its lane's order.
    pub(super) async fn say(&mut self, message: ClientMessage) -> Result<(), Refusal> {
        let process = json!({ "pid": self.pid });
        let call = match message {
            ClientMessage::Start(_) => {
                return Err(Refusal::new("invalid_argument", "this stream has its process already"));
            }
            ClientMessage::Input { data, wait } => {
                let data = BASE64
                    .decode(&data)
                    .map_err(|_| Refusal::new("invalid_argument", "input: data is not base64"))?;
                return self.put(Some(data), wait).await;
            }
            ClientMessage::CloseInput { wait } => return self.put(None, wait).await,
            ClientMessage::Resize { cols, rows } => {
                let size = json!({ "cols": cols, "rows": rows });
                Call("Update", json!({ "process": process, "pty": { "size": size } }))
            }
            ClientMessage::Signal { signal } => match signal.as_str() {
                "SIGTERM" | "SIGKILL" => {
                    let signal = format!("SIGNAL_{signal}");
                    Call("SendSignal", json!({ "process": process, "signal": signal }))
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
        // A lane ends after its speaker only.
        if self.control.send(call).await.is_ok() {
            self.said += 1;
        }
        Ok(())
    }

    async fn put(&mut self, data: Option<Vec<u8>>, wait: bool) -> Result<(), Refusal> {
        let bytes = data.as_ref().map_or(0, Vec::len);
        let cost = u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(OVERHEAD).min(MAX_WAITING);
        let room = if wait {
            Arc::clone(&self.room).acquire_many_owned(cost).await.ok()
        } else {
            self.room(cost).await
        };
        let room = room.ok_or_else(|| {
            Refusal::new(
                "resource_exhausted",
                format!("{bytes} bytes of input are not passed on: the process does not take what waits"),
            )
        })?;
        let _ = self.input.send(Input { data, after: self.said, _room: room });
        Ok(())
    }

    /// Room for so much input; none when the process takes nothing.
    async fn room(&mut self, cost: u32) -> Option<OwnedSemaphorePermit> {
        if self.stuck && self.room.available_permits() < MAX_WAITING as usize {
            return None;
        }
        self.stuck = false;
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            let room = timeout(self.untaken, Arc::clone(&self.room).acquire_many_owned(cost));
            match room.await {
                Ok(room) => return room.ok(),
                Err(_) if self.taken.load(Ordering::Relaxed) > before => {}
                Err(_) => {
                    self.stuck = true;
                    return None;
                }
            }
        }
    }
}

// === impl Lanes ===

impl Lanes {
    /// Passes on what is said until the speaker is gone and nothing waits.
    pub(super) async fn run(self) {
        let Self { mut input, mut control, obeyed, taken, envd, pid, pty, replies } = self;
        let mut seen = obeyed.subscribe();
        let mut writer = envd.sibling();
        // A process may read when it likes; the connection's own bounds end the wait.
        writer.wait();
        let inputs = async {
            while let Some(Input { data, after, _room }) = input.recv().await {
                // The sender is gone when there is nothing left to obey.
                let _ = seen.wait_for(|obeyed| *obeyed >= after).await;
                if let Err(refusal) = write(&mut writer, pid, pty, data, &taken).await {
                    let _ = replies.send(Reply::Error(refusal)).await;
                }
            }
        };
        let mut envd = envd;
        let controls = async {
            while let Some(Call(procedure, request)) = control.recv().await {
                let done: Result<Value, _> =
                    envd.call(&format!("process.Process/{procedure}"), &request).await;
                if let Err(error) = done {
                    let _ = replies.send(Reply::Error(error.into())).await;
                }
                obeyed.send_modify(|count| *count += 1);
            }
        };
        tokio::join!(inputs, controls);
    }
}

/// Passes input on in calls of a bounded size.
async fn write(
    envd: &mut EnvdClient,
    pid: u32,
    pty: bool,
    data: Option<Vec<u8>>,
    taken: &AtomicU64,
) -> Result<(), Refusal> {
    let process = json!({ "pid": pid });
    let Some(data) = data else {
        let _: Value = envd.call("process.Process/CloseStdin", &json!({ "process": process })).await?;
        return Ok(());
    };
    let kind = if pty { "pty" } else { "stdin" };
    // No bytes are a call too: envd says whether there is an input at all.
    let mut rest = data.as_slice();
    loop {
        let (chunk, later) = rest.split_at(rest.len().min(CHUNK));
        let request = json!({ "process": process, "input": { kind: BASE64.encode(chunk) } });
        let _: Value = envd.call("process.Process/SendInput", &request).await?;
        taken.fetch_add(1, Ordering::Relaxed);
        if later.is_empty() {
            return Ok(());
        }
        rest = later;
    }
}
