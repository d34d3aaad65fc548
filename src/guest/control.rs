//! The control stream: the gateway introduces the machine and hears the guest's log.
//!
//! One attachment at a time: a new one ends the task of the last, because its gateway is gone or
//! the machine was restored. Messages are answered in order, each with one Done.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::{net::UnixStream, task::AbortHandle};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::{
    guest::{awake, shed, state::Guest},
    wire::{
        control::{FromGuest, Init, MAX_MESSAGE, ToGuest},
        link::Nonce,
    },
};

/// The present attachment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attachment(Arc<Mutex<Option<(Nonce, AbortHandle)>>>);

// === impl Attachment ===

impl Attachment {
    /// Serves this stream in place of the last one.
    pub(crate) fn replace(&self, guest: Guest, nonce: Nonce, stream: UnixStream) {
        let task = tokio::spawn(serve(guest, stream));
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, last)) = present.replace((nonce, task.abort_handle())) {
            last.abort();
        }
    }
}

/// Ends when the gateway hangs up or breaks the rules.
async fn serve(guest: Guest, stream: UnixStream) {
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_MESSAGE as usize).new_codec();
    let mut frames = Framed::new(stream, codec);
    let mut gate = guest.gate().watch();
    // A gate that is there is told once, and then its changes.
    gate.mark_changed();
    loop {
        let message = tokio::select! {
            frame = frames.next() => match frame {
                Some(Ok(frame)) => answer(&guest, &frame),
                _ => return,
            },
            line = guest.logs().next() => Some(line),
            // The sender lives in `guest`.
            Ok(()) = gate.changed() => {
                let present = gate.borrow_and_update().clone();
                present.map(|freshness| FromGuest::Freshness { freshness: Box::new(freshness) })
            }
        };
        let Some(message) = message else { continue };
        let Ok(bytes) = serde_json::to_vec(&message) else { continue };
        if frames.send(Bytes::from(bytes)).await.is_err() {
            return;
        }
    }
}

/// What names the answer, of a message that is otherwise unknown.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

pub(super) fn answer(guest: &Guest, frame: &[u8]) -> Option<FromGuest> {
    let (seq, error) = match serde_json::from_slice(frame) {
        Ok(ToGuest::Init { seq, init }) => (seq, introduce(guest, *init)),
        Ok(ToGuest::Freeze { seq }) => {
            shed::shed();
            awake::freeze();
            (seq, None)
        }
        Ok(ToGuest::Thaw { seq, .. }) => {
            awake::thaw();
            (seq, None)
        }
        Ok(ToGuest::Disk { seq, used_bytes }) => {
            guest.disk().tell(used_bytes);
            (seq, None)
        }
        Ok(ToGuest::Ping { seq }) => (seq, None),
        Ok(ToGuest::Freshness { seq, verdict }) => (seq, guest.gate().judge(verdict).err()),
        Err(error) => {
            let Numbered { seq } = serde_json::from_slice(frame).ok()?;
            (seq, Some(format!("this guest does not know the message: {error}")))
        }
    };
    Some(FromGuest::Done { seq, error })
}

/// The identity is taken in any case; the error names what else failed.
fn introduce(guest: &Guest, init: Init) -> Option<String> {
    let mut problems = Vec::new();
    // Whoever introduces a machine that was announced to be frozen has found it running.
    awake::thaw();
    match STANDARD.decode(&init.entropy) {
        // Every process may write here; it mixes in and counts for nothing.
        Ok(entropy) => {
            problems.extend(fs::write("/dev/urandom", entropy).err().map(|e| format!("entropy: {e}")));
        }
        Err(error) => problems.push(format!("entropy: {error}")),
    }
    if let Some(dir) = guest.marks() {
        problems.extend(mark(dir, &init).err().map(|error| format!("{}: {error}", dir.display())));
    }
    guest.introduce(init);
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// The files by which programs know that they run in a sandbox (contract/sandbox 5.5).
fn mark(dir: &Path, init: &Init) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    write(&dir.join(".E2B_SANDBOX"), "true")?;
    write(&dir.join(".E2B_SANDBOX_ID"), init.sandbox_id.as_str())?;
    write(&dir.join(".E2B_TEMPLATE_ID"), &init.template_id)
}

/// Writes a small file without ever waiting: root in the sandbox may have put a pipe in its place.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new();
    file.write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    file.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_in_place_of_a_mark_is_an_error_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("file"), "true").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "true");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        write(&pipe, "true").unwrap_err();
        std::os::unix::fs::symlink(dir.path().join("file"), dir.path().join("link")).unwrap();
        write(&dir.path().join("link"), "true").unwrap_err();
    }

    #[test]
    fn init_makes_the_guest_known_and_later_messages_are_refused_by_name() {
        let guest = Guest::default();
        let done = |text: &str| answer(&guest, text.as_bytes());
        assert_eq!(done(r#"{"type":"ping","seq":1}"#), Some(FromGuest::Done { seq: 1, error: None }));
        let init = r#"{"type":"init","seq":2,"new_field":1,"init":{"sandbox_id":"i0123456789abcdefghij","template_id":"t",
            "env_vars":{},"access_token":null,"default_user":"user","default_workdir":null,"now_unix_ns":0,"entropy":""}}"#;
        assert!(guest.identity().is_none());
        assert_eq!(done(init), Some(FromGuest::Done { seq: 2, error: None }));
        assert_eq!(guest.default_user(), "user");
        let Some(FromGuest::Done { seq: 3, error: Some(_) }) = done(r#"{"type":"novel","seq":3}"#) else {
            panic!("an unknown message is refused");
        };
        assert_eq!(done("{}"), None);
    }

    #[test]
    fn the_marks_tell_who_the_machine_is() {
        let dir = tempfile::tempdir().unwrap();
        let init = crate::guest::state::tests::init();
        mark(&dir.path().join("e2b"), &init).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("e2b").join(name)).unwrap();
        assert_eq!(read(".E2B_SANDBOX"), "true");
        assert_eq!(read(".E2B_SANDBOX_ID"), "i0123456789abcdefghij");
        assert_eq!(read(".E2B_TEMPLATE_ID"), "base");
    }
}
