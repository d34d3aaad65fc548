//! The gateway's end of a guest's control stream: init, requests with answers, the guest's log
//! and what it says of its gate.
//!
//! ```text
//!   attach: open, Init, Done  ->  attended  --stream broke-->  away  --backoff, new nonce, Init-->  attended
//! ```
//! One task a sandbox attends to the stream, from the first attachment until the [`Control`] is
//! dropped. A cut stream is opened again with a fresh nonce: requests that wait for an answer
//! then fail, requests that come meanwhile wait. Whether the machine is gone is not decided here.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{codec::FramedRead, task::AbortOnDropHandle};

use super::{
    link::{GuestLink, LinkError, LinkStream},
    logs::{LogLine, LogRing},
    world::World,
};
use crate::{
    sandbox::{SandboxRecord, freshness::Freshness},
    wire::control::{FromGuest, Init, MAX_MESSAGE, ToGuest},
};

mod frames;
mod ready;

use frames::Frames;
pub(super) use ready::Ready;

/// How long the guest has to answer a request, and to take one from the stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that wait for their turn, and for their answer.
const QUEUE: usize = 32;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// An attachment that lasted this long was a good one: the next backoff is short again.
const GOOD: Duration = Duration::from_secs(10);
/// Between two things that are heard of a gate: what a guest says in between is passed over.
const BETWEEN_TOLD: Duration = Duration::from_millis(100);

/// Why the guest did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the control stream broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the control stream ended")]
    Ended,
    #[error("the guest sent what is no control message")]
    Garbled,
    #[error("the guest refused: {0}")]
    Refused(String),
    #[error("the guest did not answer in {0:?}")]
    Silent(Duration),
    #[error("too many requests wait for the guest")]
    Busy,
}

/// Who a guest is, for every attachment anew.
#[derive(Debug)]
pub(super) struct Identity {
    world: Arc<World>,
    record: SandboxRecord,
}

/// A live control stream. Dropping it ends the attachment, not the machine.
#[derive(Debug)]
pub(super) struct Control {
    asker: Asker,
    gate: watch::Receiver<Option<Freshness>>,
    told_at: Option<Instant>,
    _attendant: AbortOnDropHandle<()>,
}

/// Where goes what a guest says by itself.
#[derive(Debug)]
struct Ears {
    logs: Arc<LogRing>,
    gate: watch::Sender<Option<Freshness>>,
}

/// Asks the guest over its control stream, for as long as that lives.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    requests: mpsc::Sender<Asked>,
}

type Reply = oneshot::Sender<Result<(), ControlError>>;

struct Asked {
    request: Box<dyn FnOnce(u64) -> ToGuest + Send>,
    reply: Reply,
}

/// One attachment.
struct Session {
    frames: FramedRead<ReadHalf<LinkStream>, Frames>,
    writer: WriteHalf<LinkStream>,
    next_seq: u64,
    waiting: HashMap<u64, Reply>,
}

/// What the attendant works with.
struct Attendant {
    link: Arc<dyn GuestLink>,
    identity: Identity,
    ears: Ears,
}

// === impl Identity ===

impl Identity {
    pub(super) fn new(world: Arc<World>, record: &SandboxRecord) -> Self {
        Self { world, record: record.clone() }
    }

    fn init(&self) -> Init {
        let spec = &self.record.spec;
        let mut entropy = [0; 32];
        self.world.entropy.fill(&mut entropy);
        Init {
            sandbox_id: self.record.id,
            template_id: spec.template.as_str().to_owned(),
            env_vars: spec.env_vars.clone(),
            access_token: spec.secure.then(|| self.world.tokens.envd(self.record.id)),
            default_user: "user".to_owned(),
            default_workdir: None,
            now_unix_ns: self.now_ns(),
            disk_bytes: u64::from(spec.resources.disk_mb) << 20,
            entropy: STANDARD.encode(entropy),
            freshness: self.record.freshness.clone().map(Box::new),
        }
    }

    fn now_ns(&self) -> i64 {
        i64::try_from(self.world.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }
}

// === impl Control ===

impl Control {
    /// The first attachment: returns when the guest has taken its init. The caller bounds the time.
    pub(super) async fn attach(
        link: Arc<dyn GuestLink>,
        identity: Identity,
        logs: Arc<LogRing>,
    ) -> Result<Self, ControlError> {
        let attendant = Attendant { link, identity, ears: Ears::new(logs) };
        let session = attendant.open().await?;
        Ok(Self::start(attendant, Some(session)))
    }

    /// For a machine whose guest does not answer now: goes on trying in the background.
    pub(super) fn attach_later(link: Arc<dyn GuestLink>, identity: Identity, logs: Arc<LogRing>) -> Self {
        Self::start(Attendant { link, identity, ears: Ears::new(logs) }, None)
    }

    fn start(attendant: Attendant, session: Option<Session>) -> Self {
        let (requests, asked) = mpsc::channel(QUEUE);
        let gate = attendant.ears.gate.subscribe();
        let task = tokio::spawn(attendant.attend(session, asked));
        let attendant = AbortOnDropHandle::new(task);
        Self { asker: Asker { requests }, gate, told_at: None, _attendant: attendant }
    }

    /// For those who ask while the driver owns the stream.
    pub(super) fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// What the guest says of its gate, when it says something else than before. Cancel-safe.
    pub(super) async fn told(&mut self) -> Freshness {
        if let Some(at) = self.told_at {
            sleep_until(at + BETWEEN_TOLD).await;
        }
        loop {
            if self.gate.changed().await.is_err() {
                // Nobody attends any more.
                std::future::pending::<()>().await;
            }
            if let Some(freshness) = self.gate.borrow_and_update().clone() {
                self.told_at = Some(Instant::now());
                return freshness;
            }
        }
    }
}

// === impl Asker ===

impl Asker {
    /// Is the guest there?
    pub(super) async fn ping(&self) -> Result<(), ControlError> {
        self.ask(|seq| ToGuest::Ping { seq }).await
    }

    /// Tells the guest and waits for its answer.
    pub(super) async fn ask(
        &self,
        request: impl FnOnce(u64) -> ToGuest + Send + 'static,
    ) -> Result<(), ControlError> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { request: Box::new(request), reply };
        let exchange = async {
            self.requests.send(asked).await.map_err(|_| ControlError::Ended)?;
            answer.await.map_err(|_| ControlError::Ended)?
        };
        timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or(Err(ControlError::Silent(ANSWER_TIMEOUT)))
    }
}

// === impl Ears ===

impl Ears {
    fn new(logs: Arc<LogRing>) -> Self {
        Self { logs, gate: watch::Sender::new(None) }
    }
}

// === impl Attendant ===

impl Attendant {
    async fn open(&self) -> Result<Session, ControlError> {
        let (stream, _generation) = self.link.open_control(self.identity.world.nonce()).await?;
        let mut session = Session::new(stream);
        self.introduce(&mut session).await?;
        Ok(session)
    }

    async fn introduce(&self, session: &mut Session) -> Result<(), ControlError> {
        let init = Box::new(self.identity.init());
        let seq = session.say(|seq| ToGuest::Init { seq, init }).await?;
        session.done(seq, &self.ears).await
    }

    async fn attend(self, mut session: Option<Session>, mut asked: mpsc::Receiver<Asked>) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let attached = Instant::now();
            if let Some(session) = session.take() {
                let Err(error) = session.run(&self.ears, &mut asked).await else { return };
                let id = self.identity.record.id;
                tracing::debug!(sandbox.id = %id, %error, "control stream of {id} broke");
            }
            if attached.elapsed() > GOOD {
                backoff = FIRST_BACKOFF;
            }
            sleep(backoff).await;
            backoff = (2 * backoff).min(LONGEST_BACKOFF);
            session = match timeout(ANSWER_TIMEOUT, self.open()).await {
                Ok(Ok(session)) => Some(session),
                // Tried again until the machine ends; its end is the driver's to notice.
                Ok(Err(_)) | Err(_) => None,
            };
        }
    }
}

// === impl Session ===

impl Session {
    fn new(stream: LinkStream) -> Self {
        let (reader, writer) = split(stream);
        Self { frames: FramedRead::new(reader, Frames::new()), writer, next_seq: 1, waiting: HashMap::new() }
    }

    /// Until the stream breaks; `Ok` when nobody will ask any more.
    async fn run(mut self, ears: &Ears, asked: &mut mpsc::Receiver<Asked>) -> Result<(), ControlError> {
        loop {
            tokio::select! {
                heard = self.hear(ears) => {
                    if let Some((seq, outcome)) = heard?
                        && let Some(reply) = self.waiting.remove(&seq)
                    {
                        let _ = reply.send(outcome);
                    }
                }
                next = asked.recv() => {
                    let Some(Asked { request, reply }) = next else { return Ok(()) };
                    self.waiting.retain(|_, waiter| !waiter.is_closed());
                    if self.waiting.len() >= QUEUE {
                        let _ = reply.send(Err(ControlError::Busy));
                        continue;
                    }
                    let seq = self.say(request).await?;
                    self.waiting.insert(seq, reply);
                }
            }
        }
    }

    async fn say(&mut self, request: impl FnOnce(u64) -> ToGuest) -> Result<u64, ControlError> {
        let seq = self.next_seq;
        self.next_seq += 1;
        let json = serde_json::to_vec(&request(seq)).map_err(io::Error::other)?;
        let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_MESSAGE);
        let Some(length) = length else {
            return Err(ControlError::Refused("the message is longer than a control message".to_owned()));
        };
        let frame = [length.to_be_bytes().as_slice(), &json].concat();
        let sending = async {
            self.writer.write_all(&frame).await?;
            self.writer.flush().await
        };
        timeout(ANSWER_TIMEOUT, sending).await.map_err(|_| ControlError::Silent(ANSWER_TIMEOUT))??;
        Ok(seq)
    }

    /// Waits for the answer to a request, when nobody else waits for one.
    async fn done(&mut self, seq: u64, ears: &Ears) -> Result<(), ControlError> {
        loop {
            match self.hear(ears).await? {
                Some((answered, outcome)) if answered == seq => return outcome,
                _ => {}
            }
        }
    }

    /// The next message; what the guest says by itself is kept, answers returned. Cancel-safe.
    async fn hear(&mut self, ears: &Ears) -> Result<Option<(u64, Result<(), ControlError>)>, ControlError> {
        let frame = self.frames.next().await.ok_or(ControlError::Ended)??;
        match serde_json::from_slice(&frame).map_err(|_| ControlError::Garbled)? {
            FromGuest::Done { seq, error } => {
                Ok(Some((seq, error.map_or(Ok(()), |reason| Err(ControlError::Refused(reason))))))
            }
            FromGuest::Log { level, logger, message, fields, unix_ns } => {
                ears.logs.push(LogLine { level, logger, message, fields, unix_ns });
                Ok(None)
            }
            FromGuest::Freshness { freshness } => {
                ears.gate.send_if_modified(|gate| {
                    let news = gate.as_ref() != Some(&*freshness);
                    *gate = Some(*freshness);
                    news
                });
                Ok(None)
            }
        }
    }
}

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
#[cfg(test)]
mod tests;
