//! Where a stream's messages come from: envd's own streams, in proto3's JSON, turned into ours.

use serde::Deserialize;
use serde_json::json;

use super::{
    ending::Ending,
    message::{Refusal, StartProcess, StreamMessage},
};
use crate::runtime::registry::{CallError, EnvdClient, Messages};

/// One of envd's streams, past its first message.
#[derive(Debug)]
pub(super) struct Source {
    messages: Messages,
    kind: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Process,
    Files,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProcessMessage {
    event: ProcessEvent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProcessEvent {
    start: Option<Started>,
    data: Option<Data>,
    end: Option<End>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Started {
    pid: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    stdout: Option<String>,
    stderr: Option<String>,
    pty: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct End {
    exit_code: i32,
    exited: bool,
    status: String,
    error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WatchMessage {
    filesystem: Option<FileEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileEvent {
    name: String,
    r#type: String,
}

/// How a process is named.
#[derive(Debug, Clone)]
pub(super) enum Selector {
    Pid(u32),
    Tag(String),
}

// === impl Selector ===

impl Selector {
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Pid(pid) => json!({ "pid": pid }),
            Self::Tag(tag) => json!({ "tag": tag }),
        }
    }
}

// === impl Source ===

impl Source {
    /// Starts a process; gives its pid and its output.
    pub(super) async fn start(envd: &EnvdClient, start: &StartProcess) -> Result<(u32, Self), CallError> {
        let mut request = json!({
            "process": { "cmd": start.cmd, "args": start.args, "envs": start.envs },
            "stdin": start.stdin,
        });
        if let Some(cwd) = &start.cwd {
            request["process"]["cwd"] = json!(cwd);
        }
        if let Some(tag) = &start.tag {
            request["tag"] = json!(tag);
        }
        if let Some(size) = start.pty {
            request["pty"] = json!({ "size": size });
        }
        Self::process(envd.open("process.Process/Start", &request).await?).await
    }

    /// Follows a process that runs already.
    pub(super) async fn connect(envd: &EnvdClient, selector: &Selector) -> Result<(u32, Self), CallError> {
        let request = json!({ "process": selector.json() });
        Self::process(envd.open("process.Process/Connect", &request).await?).await
    }

    async fn process(mut messages: Messages) -> Result<(u32, Self), CallError> {
        let first: Option<ProcessMessage> = messages.next().await?;
        let Some(ProcessEvent { start: Some(started), .. }) = first.map(|message| message.event) else {
            return Err(CallError::Broken("a process's stream did not begin with its start".to_owned()));
        };
        Ok((started.pid, Self { messages, kind: What::Process }))
    }

    /// Watches a directory.
    pub(super) async fn watch(envd: &EnvdClient, path: &str, recursive: bool) -> Result<Self, CallError> {
        let request = json!({ "path": path, "recursive": recursive });
        let mut messages = envd.open("filesystem.Filesystem/WatchDir", &request).await?;
        match messages.next::<serde_json::Value>().await? {
            Some(first) if first.get("start").is_some() => Ok(Self { messages, kind: What::Files }),
            _ => Err(CallError::Broken("a watch did not begin with its start".to_owned())),
        }
    }

    /// The next message, and why it is the last one if it is. Failures are last messages too.
    /// Cancel-safe.
    pub(super) async fn next(&mut self, seq: u64) -> (StreamMessage, Option<Ending>) {
        loop {
            let next = match self.kind {
                What::Process => self.messages.next().await.map(|next| next.map(|next| process(next, seq))),
                What::Files => self.messages.next().await.map(|next| next.map(|next| file(next, seq))),
            };
            match next {
                // Keepalives and what later versions may send.
                Ok(Some(None)) => {}
                Ok(Some(Some(message))) => {
                    let last = matches!(message, StreamMessage::Exit { .. }).then_some(Ending::Over);
                    return (message, last);
                }
                Ok(None) => {
                    let refusal = Refusal::new("unavailable", "the stream has ended");
                    return (refusal.clone().message(Some(seq)), Some(Ending::Broken(refusal)));
                }
                Err(error) => {
                    let gone = matches!(error, CallError::Ended);
                    let refusal = Refusal::from(error);
                    let last = if gone { Ending::SandboxEnded } else { Ending::Broken(refusal.clone()) };
                    return (refusal.message(Some(seq)), Some(last));
                }
            }
        }
    }
}

fn process(message: ProcessMessage, seq: u64) -> Option<StreamMessage> {
    let ProcessEvent { data, end, .. } = message.event;
    if let Some(End { exit_code, exited, status, error }) = end {
        return Some(StreamMessage::Exit { seq, exit_code, exited, status, error });
    }
    let Data { stdout, stderr, pty } = data?;
    stdout
        .map(|data| StreamMessage::Stdout { seq, data })
        .or_else(|| stderr.map(|data| StreamMessage::Stderr { seq, data }))
        .or_else(|| pty.map(|data| StreamMessage::Pty { seq, data }))
}

fn file(message: WatchMessage, seq: u64) -> Option<StreamMessage> {
    let FileEvent { name, r#type } = message.filesystem?;
    let event = r#type.strip_prefix("EVENT_TYPE_").unwrap_or(&r#type).to_ascii_lowercase();
    Some(StreamMessage::File { seq, event, name })
}
