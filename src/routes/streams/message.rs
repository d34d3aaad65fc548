//! What goes over a stream, in JSON: one object a message, told apart by `type`.

use std::collections::BTreeMap;

use axum::extract::ws::Utf8Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::runtime::registry::{CallError, LifeError};

/// The size of a terminal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub(crate) struct TerminalSize {
    /// Columns.
    pub(super) cols: u16,
    /// Rows.
    pub(super) rows: u16,
}

/// Starts a process.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StartProcess {
    /// The program.
    pub(super) cmd: String,
    /// Its arguments.
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// Its own environment.
    #[serde(default)]
    pub(super) envs: BTreeMap<String, String>,
    /// Its directory; the user's home when absent.
    pub(super) cwd: Option<String>,
    /// Its user; the sandbox's default user when absent.
    pub(super) user: Option<String>,
    /// Whether its standard input is open.
    #[serde(default)]
    pub(super) stdin: bool,
    /// A name for later requests.
    pub(super) tag: Option<String>,
    /// A terminal of this size instead of pipes.
    pub(super) pty: Option<TerminalSize>,
}

/// What a client says over a WebSocket. `start` is the first message to `/processes` when its
/// query names no process, and no message anywhere else.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum ClientMessage {
    /// Starts a process.
    Start(StartProcess),
    /// Bytes for its standard input or terminal, passed on in order, and after the signals and sizes
    /// that were sent before them. What a process does not take waits, 256 KiB of it; when
    /// it takes nothing for 5 s more is refused with `resource_exhausted`, until the rest is taken.
    Input {
        /// The bytes in base64.
        data: String,
        /// Wait for the process instead of being refused; what is said later on this connection,
        /// signals included, waits with it.
        #[serde(default)]
        wait: bool,
    },
    /// Ends its standard input, after the input before it.
    CloseInput {
        /// As for `input`.
        #[serde(default)]
        wait: bool,
    },
    /// Changes its terminal's size. Does not wait for input.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Signals it. Does not wait for input.
    Signal {
        /// `SIGTERM` or `SIGKILL`.
        signal: String,
    },
}

/// What the server says. Messages with a `seq` are kept for a while: who comes back with
/// `?after=SEQ` gets those after it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum StreamMessage {
    /// First: what this connection follows.
    Attached {
        /// Names this stream of numbers; another one begins with 1 again.
        stream: String,
        /// The process; absent for files.
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// These messages were asked for and are gone.
    Lost {
        /// The first of them.
        from: u64,
        /// The last of them; absent when that is not known.
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// Bytes from standard output, in base64.
    Stdout {
        /// Its number.
        seq: u64,
        /// The bytes.
        data: String,
    },
    /// Bytes from standard error, in base64.
    Stderr {
        /// Its number.
        seq: u64,
        /// The bytes.
        data: String,
    },
    /// Bytes from the terminal, in base64.
    Pty {
        /// Its number.
        seq: u64,
        /// The bytes.
        data: String,
    },
    /// The process has ended; nothing follows.
    Exit {
        /// Its number.
        seq: u64,
        /// -1 when a signal ended it.
        exit_code: i32,
        /// False when a signal ended it.
        exited: bool,
        /// `exit status 0`, `signal: killed`, ...
        status: String,
        /// The status again when it is a failure.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Something changed below a watched directory.
    File {
        /// Its number.
        seq: u64,
        /// `create`, `write`, `remove`, `rename` or `chmod`.
        event: String,
        /// The path, relative to the watched directory.
        name: String,
    },
    /// Something failed. With a `seq` it ends the stream; without, it answers a client's message.
    Error {
        /// Its number.
        #[serde(skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// Connect's code: `not_found`, `invalid_argument`, ...
        code: String,
        /// What is wrong, for people.
        message: String,
    },
    /// The last of server-sent events, in place of a WebSocket's close frame: why nothing follows.
    Closed {
        /// 1000 it has ended, 1001 the server stops, 1008 refused, 1011 it broke; 4000 the sandbox has
        /// ended, 4001 the client did not read, 4002 did not answer to pings, 4003 nobody followed.
        code: u16,
        /// For people.
        reason: String,
    },
}

/// Why a stream does not begin, or a client's message was not obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Connect's code.
    pub(super) code: String,
    /// For people.
    pub(super) message: String,
}

// === impl StreamMessage ===

impl StreamMessage {
    /// As it is sent.
    pub(super) fn text(&self) -> Utf8Bytes {
        // Strings and numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default().into()
    }
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    pub(super) fn message(self, seq: Option<u64>) -> StreamMessage {
        StreamMessage::Error { seq, code: self.code, message: self.message }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { code, message } => Self { code, message },
            CallError::Ended => Self::new("not_found", "the sandbox has ended"),
            error => Self::new("unavailable", error.to_string()),
        }
    }
}

impl From<LifeError> for Refusal {
    fn from(error: LifeError) -> Self {
        match error {
            LifeError::NotFound(_) => Self::new("not_found", error.to_string()),
            LifeError::ShuttingDown => Self::new("unavailable", error.to_string()),
            _ => Self::new("unavailable", "the sandbox cannot be reached now"),
        }
    }
}
