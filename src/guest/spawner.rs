//! Makes processes in the machine's work group while the guest stays outside it.
//!
//! ```text
//! guest (own cgroup) --order, stdio--> zygote (work cgroups) --clone(CLONE_PARENT)--> process
//!        ^                                   |                                            |
//!        +------------- pid or failed step --+        child of the guest, in the work cgroups
//! ```
//! The zygote is a small single-threaded copy of the guest, forked before the runtime starts. A
//! memory or fork bomb of user code is confined to the work cgroups and cannot take down the
//! guest; it may take the zygote, which is then forked again by the next order. `CLONE_PARENT`
//! makes the guest the parent of what the zygote makes, so that the [`Reaper`] sees its end.
//!
//! One task owns the zygote's socket and serves orders one after another. An order that the
//! zygote may have taken is never repeated: a command must not run twice.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::guest::reap::{Birth, Child, Reaper};

mod birth;
mod zygote;

pub(crate) use birth::Step;

/// Orders that may wait; further ones wait in their own tasks.
const QUEUE: usize = 16;
/// A zygote that is silent for so long is stopped or stuck, and replaced.
const PATIENCE: Duration = Duration::from_secs(10);
const REPLY_BYTES: usize = 12;

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Program and arguments; the program is searched in the `PATH` of `env`.
    pub(crate) argv: Vec<String>,
    /// The whole environment, `NAME=value` each.
    pub(crate) env: Vec<String>,
    /// Where it starts.
    pub(crate) cwd: String,
    /// As whom.
    pub(crate) uid: u32,
    /// The primary group.
    pub(crate) gid: u32,
    /// All groups.
    pub(crate) groups: Vec<u32>,
    /// Whether the standard input is the process's controlling terminal.
    pub(crate) tty: bool,
    /// Whether it stays in the guest's own groups, outside those of the user's work.
    pub(crate) system: bool,
}

/// Standard input, output and error of the new process.
pub(crate) type Stdio = [OwnedFd; 3];

/// Why no process was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// A step between clone and exec failed. A command that cannot be executed is no such
    /// failure: it ends with status 126 or 127, as under a shell.
    #[error("{step:?}: {errno}")]
    Step {
        /// Which step.
        step: Step,
        /// Why.
        errno: Errno,
    },
    /// Text with a NUL byte in it, or an empty command.
    #[error("the command, its arguments, environment and directory must not contain NUL bytes")]
    Malformed,
    /// The zygote ended or hung while it had the order; it is replaced for the next one.
    #[error("the spawner ended while it worked on this command: {0}; try again")]
    Lost(io::Error),
}

/// Gives orders to the zygote.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<Errand>,
}

type Errand = (Order, Stdio, oneshot::Sender<Result<Child, SpawnError>>);

/// A zygote that is forked, with its socket.
#[derive(Debug)]
pub(crate) struct Zygote {
    pid: i32,
    socket: StdStream,
}

/// The descriptors by which a process joins the work cgroups.
pub(crate) type WorkGroups = Arc<[OwnedFd]>;

// === impl Zygote ===

impl Zygote {
    /// Forks one. Without a runtime around it this is safe at any time; with one it relies on
    /// the C library's fork handlers, and the child touches nothing of the runtime.
    pub(crate) fn fork(groups: &[OwnedFd]) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        let pid = zygote::fork(&theirs, groups)?;
        Ok(Self { pid, socket: ours })
    }
}

// === impl Spawner ===

impl Spawner {
    /// Starts the task that owns the zygote. Needs a runtime.
    pub(crate) fn start(zygote: Zygote, groups: WorkGroups, reaper: Reaper) -> io::Result<Self> {
        let (orders, mut queue) = mpsc::channel::<Errand>(QUEUE);
        let zygote = Attached::new(zygote, reaper.expect())?;
        let mut lines = Lines { work: Line { zygote, groups, reaper }, system: None };
        tokio::spawn(async move {
            while let Some((order, stdio, reply)) = queue.recv().await {
                // Whoever asked waits in a task of its own that is not dropped with a client.
                let _ = reply.send(lines.spawn(&order, &stdio).await);
            }
        });
        Ok(Self { orders })
    }

    /// One that has ended.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn refusing() -> Self {
        Self { orders: mpsc::channel(1).0 }
    }

    /// Makes a process and claims it.
    pub(crate) async fn spawn(&self, order: Order, stdio: Stdio) -> Result<Child, SpawnError> {
        let gone = || SpawnError::Lost(io::ErrorKind::BrokenPipe.into());
        let (reply, answer) = oneshot::channel();
        self.orders.send((order, stdio, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A zygote for each side of the machine; the rarely used one is forked by its first order.
struct Lines {
    work: Line,
    system: Option<Line>,
}

/// The task's end of the line to the zygote.
struct Line {
    zygote: Attached,
    groups: WorkGroups,
    reaper: Reaper,
}

struct Attached {
    /// Claimed, so that a late kill cannot hit another process that has its pid by then.
    process: Child,
    socket: UnixStream,
}

// === impl Attached ===

impl Attached {
    fn new(zygote: Zygote, birth: Birth) -> io::Result<Self> {
        zygote.socket.set_nonblocking(true)?;
        Ok(Self { process: birth.claim(zygote.pid), socket: UnixStream::from_std(zygote.socket)? })
    }

    /// The first bytes carry the descriptors; a zygote that is gone refuses them.
    async fn announce(&self, length: u32, stdio: &Stdio) -> io::Result<()> {
        let header = length.to_be_bytes();
        let fds = [stdio[0].as_raw_fd(), stdio[1].as_raw_fd(), stdio[2].as_raw_fd()];
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || {
                sendmsg::<()>(
                    self.socket.as_fd().as_raw_fd(),
                    &[io::IoSlice::new(&header)],
                    &[ControlMessage::ScmRights(&fds)],
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await?;
        if sent == header.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    async fn exchange(&mut self, body: &[u8]) -> io::Result<[u8; REPLY_BYTES]> {
        let mut reply = [0; REPLY_BYTES];
        self.socket.write_all(body).await?;
        self.socket.read_exact(&mut reply).await?;
        Ok(reply)
    }
}

// === impl Lines ===

impl Lines {
    async fn spawn(&mut self, order: &Order, stdio: &Stdio) -> Result<Child, SpawnError> {
        if !order.system {
            return self.work.spawn(order, stdio).await;
        }
        let line = match &mut self.system {
            Some(line) => line,
            none => none.insert(Line::outside(&self.work.reaper).map_err(SpawnError::Lost)?),
        };
        line.spawn(order, stdio).await
    }
}

// === impl Line ===

impl Line {
    /// A line to a zygote that joins no group: what it makes stays in the guest's.
    fn outside(reaper: &Reaper) -> io::Result<Self> {
        let birth = reaper.expect();
        let zygote = Attached::new(Zygote::fork(&[])?, birth)?;
        Ok(Self { zygote, groups: Arc::new([]), reaper: reaper.clone() })
    }

    async fn spawn(&mut self, order: &Order, stdio: &Stdio) -> Result<Child, SpawnError> {
        let body = serde_json::to_vec(order).map_err(|error| SpawnError::Lost(error.into()))?;
        let length = match u32::try_from(body.len()) {
            Ok(length) if body.len() <= zygote::MAX_ORDER => length,
            _ => return Err(SpawnError::Step { step: Step::Exec, errno: Errno::E2BIG }),
        };
        if self.zygote.announce(length, stdio).await.is_err() {
            // It ended since the last order and has not seen this one.
            self.replace().map_err(SpawnError::Lost)?;
            self.zygote.announce(length, stdio).await.map_err(SpawnError::Lost)?;
        }
        let birth = self.reaper.expect();
        let reply = timeout(PATIENCE, self.zygote.exchange(&body))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match reply {
            Ok(reply) => match zygote::read_reply(reply) {
                Ok(pid) => Ok(birth.claim(pid)),
                Err(None) => Err(SpawnError::Malformed),
                Err(Some((step, errno))) => Err(SpawnError::Step { step, errno }),
            },
            Err(error) => {
                drop(birth);
                self.replace().map_err(SpawnError::Lost)?;
                Err(SpawnError::Lost(error))
            }
        }
    }

    fn replace(&mut self) -> io::Result<()> {
        // It may have ended already.
        let _ = self.reaper.kill(self.zygote.process.pid, Signal::SIGKILL);
        let birth = self.reaper.expect();
        self.zygote = Attached::new(Zygote::fork(&self.groups)?, birth)?;
        Ok(())
    }
}
