//! What a driver is told, and in which order: what was put off comes before what is new.

use std::collections::VecDeque;

use tokio::sync::{mpsc, oneshot};

use super::{EndCause, relief::Relief};
use crate::{
    id::{BuildId, SandboxId},
    runtime::{
        queue::Request,
        registry::{Connected, LifeError},
    },
    sandbox::{Egress, SandboxRecord},
};

/// Commands that wait for one driver.
const QUEUE: usize = 32;
/// Commands that wait for the end of a change; more are refused.
const PUT_OFF: usize = 256;

/// Who waits for a pause.
pub(super) type PauseReply = oneshot::Sender<Result<(), LifeError>>;
type Reply = oneshot::Sender<Result<(SandboxRecord, Connected), LifeError>>;

/// What a driver is told.
pub(in crate::runtime) enum Command {
    /// A request that is answered with the record, and with how the sandbox was found.
    Ask { request: Request, reply: Reply },
    /// Pause it.
    Pause { manner: Manner, reply: PauseReply },
    /// Make this image of it.
    Seal { build: BuildId, reply: oneshot::Sender<Result<SandboxRecord, LifeError>> },
    /// Replace its way out.
    SetEgress { egress: Egress, reply: oneshot::Sender<Result<(), LifeError>> },
    /// The host is short of memory: give some back; `to_disk`: all of it.
    Relieve { to_disk: bool, reply: oneshot::Sender<Relief> },
    /// The reaper: look at your deadline.
    Expired,
    /// End it.
    End(EndCause),
}

/// How a sandbox is to be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) struct Manner {
    /// Its processes shall go on afterwards; else only its disk is kept.
    pub(in crate::runtime) memory: bool,
    /// Only if its guest answers.
    pub(in crate::runtime) healthy: bool,
}

/// The commands of one driver.
pub(in crate::runtime) struct Inbox {
    fresh: mpsc::Receiver<Command>,
    put_off: VecDeque<Command>,
}

// === impl Command ===

impl Command {
    /// What the policy is asked.
    pub(in crate::runtime) fn request(&self) -> Request {
        match self {
            Self::Ask { request, .. } => *request,
            Self::Pause { .. } => Request::Pause,
            Self::Seal { .. } => Request::Snapshot,
            Self::SetEgress { .. } => Request::SetEgress,
            Self::Relieve { .. } => Request::Relieve,
            Self::Expired => Request::Expire,
            Self::End(_) => Request::End,
        }
    }

    /// Resolves when nobody waits for the answer any more.
    pub(super) async fn abandoned(&mut self) {
        match self {
            Self::Ask { reply, .. } => reply.closed().await,
            Self::Pause { reply, .. } | Self::SetEgress { reply, .. } => reply.closed().await,
            Self::Seal { reply, .. } => reply.closed().await,
            Self::Relieve { reply, .. } => reply.closed().await,
            Self::Expired | Self::End(_) => std::future::pending().await,
        }
    }

    /// Answers with an error. What nobody waits for is dropped.
    pub(super) fn refuse(self, error: LifeError) {
        match self {
            Self::Ask { reply, .. } => drop(reply.send(Err(error))),
            Self::Pause { reply, .. } | Self::SetEgress { reply, .. } => drop(reply.send(Err(error))),
            Self::Seal { reply, .. } => drop(reply.send(Err(error))),
            Self::Relieve { reply, .. } => drop(reply.send(Relief::Nothing)),
            Self::Expired | Self::End(_) => {}
        }
    }
}

// === impl Inbox ===

impl Inbox {
    /// A queue, and the way into it.
    pub(in crate::runtime) fn new() -> (mpsc::Sender<Command>, Self) {
        let (sender, fresh) = mpsc::channel(QUEUE);
        (sender, Self { fresh, put_off: VecDeque::new() })
    }

    /// The next command. None: the registry is gone, and nothing waits.
    pub(super) async fn next(&mut self) -> Option<Command> {
        match self.put_off.pop_front() {
            Some(command) => Some(command),
            None => self.fresh.recv().await,
        }
    }

    /// Who else waits for the pause that comes next: those whose pauses were put off right behind it.
    pub(super) fn more_pauses(&mut self) -> Vec<PauseReply> {
        let mut replies = Vec::new();
        let is_pause = |command: &mut Command| matches!(command, Command::Pause { .. });
        while let Some(Command::Pause { reply, .. }) = self.put_off.pop_front_if(is_pause) {
            replies.push(reply);
        }
        replies
    }

    /// The next command that was not put off.
    pub(super) async fn fresh(&mut self) -> Option<Command> {
        self.fresh.recv().await
    }

    /// Keeps a command for later.
    pub(super) fn put_off(&mut self, command: Command, id: SandboxId) {
        if self.put_off.len() >= PUT_OFF {
            return command.refuse(LifeError::Transitioning(id));
        }
        self.put_off.push_back(command);
    }
}
