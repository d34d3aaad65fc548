//! What goes over a sandbox's streams (`openapi/control.json`, tag `streams`), as this client says
//! and understands it. What a newer server says besides is passed over.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::wire::signals::SIGNALS;

/// What is said to a process.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum Say {
    Start(Start),
    Input {
        #[serde(serialize_with = "in_base64")]
        data: Vec<u8>,
        /// What the process does not take waits, and is not refused.
        wait: bool,
    },
    CloseInput {
        wait: bool,
    },
    Resize(Size),
    Signal {
        signal: &'static str,
    },
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Size {
    pub(super) cols: u16,
    pub(super) rows: u16,
}

/// A process to start.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Start {
    pub(super) cmd: String,
    pub(super) args: Vec<String>,
    pub(super) envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    pub(super) stdin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pty: Option<Size>,
}

/// What a stream says.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Said {
    Attached {
        pid: u32,
    },
    Lost {},
    Stdout {
        #[serde(deserialize_with = "from_base64")]
        data: Vec<u8>,
    },
    Stderr {
        #[serde(deserialize_with = "from_base64")]
        data: Vec<u8>,
    },
    Pty {
        #[serde(deserialize_with = "from_base64")]
        data: Vec<u8>,
    },
    Exit(Exit),
    Error {
        /// There when it ends the stream; else it answers what was said.
        seq: Option<u64>,
        message: String,
    },
    #[serde(other)]
    Other,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Exit {
    #[serde(rename = "exitCode")]
    code: i32,
    exited: bool,
    status: String,
}

// === impl Exit ===

impl Exit {
    /// The exit code that a shell would show: the process's own, or 128 and the signal's number.
    pub(super) fn shell_code(&self) -> u8 {
        if self.exited {
            return u8::try_from(self.code & 0xff).unwrap_or(u8::MAX);
        }
        let signal = self.status.strip_prefix("signal: ").unwrap_or(&self.status);
        let signal = signal.strip_suffix(" (core dumped)").unwrap_or(signal);
        let number = match SIGNALS.iter().position(|name| *name == signal) {
            Some(index) => u8::try_from(index + 1).ok(),
            // The others are told by number: `signal 31`.
            None => signal.rsplit(' ').next().and_then(|number| number.parse().ok()),
        };
        number.and_then(|number| number.checked_add(128)).unwrap_or(u8::MAX)
    }
}

fn in_base64<S: serde::Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64.decode(text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_as_a_shell_tells_them() {
        let code = |code, exited, status: &str| Exit { code, exited, status: status.to_owned() }.shell_code();
        assert_eq!(code(0, true, "exit status 0"), 0);
        assert_eq!(code(255, true, "exit status 255"), 255);
        assert_eq!(code(-1, false, "signal: hangup"), 129);
        assert_eq!(code(-1, false, "signal: killed"), 137);
        assert_eq!(code(-1, false, "signal: segmentation fault (core dumped)"), 139);
        assert_eq!(code(-1, false, "signal: terminated"), 143);
        assert_eq!(code(-1, false, "signal: signal 31 (core dumped)"), 159);
        assert_eq!(code(-1, false, "something new"), 255);
    }

    #[test]
    fn messages_have_the_form_of_the_api() {
        let said = |text| serde_json::from_str::<Said>(text).unwrap();
        assert_eq!(said(r#"{"type":"attached","stream":"0a","pid":7}"#), Said::Attached { pid: 7 });
        assert_eq!(said(r#"{"type":"stdout","seq":1,"data":"aGk="}"#), Said::Stdout { data: b"hi".to_vec() });
        assert_eq!(said(r#"{"type":"unheard-of","x":1}"#), Said::Other);
        let Said::Exit(exit) = said(
            r#"{"type":"exit","seq":9,"exitCode":3,"exited":true,"status":"exit status 3","error":"x"}"#,
        ) else {
            panic!("an exit");
        };
        assert_eq!(exit.shell_code(), 3);
        let say = |say: Say| serde_json::to_value(say).unwrap();
        assert_eq!(
            say(Say::CloseInput { wait: true }),
            serde_json::json!({"type": "closeInput", "wait": true})
        );
        assert_eq!(
            say(Say::Input { data: b"hi".to_vec(), wait: false }),
            serde_json::json!({"type": "input", "data": "aGk=", "wait": false})
        );
        assert_eq!(
            say(Say::Resize(Size { cols: 1, rows: 2 })),
            serde_json::json!({"type": "resize", "cols": 1, "rows": 2})
        );
    }
}
