//! The control client against guests that answer late, out of order, too much or nonsense.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

use super::*;
use crate::{
    clock::SystemClock,
    id::{BuildId, OsEntropy, SandboxId, TeamId, TemplateId},
    runtime::{
        fake::FakeEngine,
        reaper::Reaper,
        token::TokenKey,
        world::{Limits, World},
    },
    sandbox::{Resources, SandboxSpec, SandboxState},
    store::memory::MemoryStore,
    wire::link::Nonce,
};

const LONG: Duration = Duration::from_secs(20);

/// A link whose every attachment hands the far end to the test.
#[derive(Debug)]
struct Scripted {
    guests: mpsc::UnboundedSender<DuplexStream>,
    opened: AtomicU32,
}

#[async_trait]
impl GuestLink for Scripted {
    async fn open(&self, port: u16) -> Result<LinkStream, LinkError> {
        Err(LinkError::PortClosed { port })
    }

    async fn open_control(&self, _nonce: Nonce) -> Result<(LinkStream, u32), LinkError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (near, far) = duplex(1 << 16);
        self.guests.send(far).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok((Box::new(near), 1))
    }
}

/// The far end, by hand.
struct Guest(DuplexStream);

impl Guest {
    async fn hear(&mut self) -> ToGuest {
        let length = timeout(LONG, self.0.read_u32()).await.unwrap().unwrap();
        let mut json = vec![0; length as usize];
        self.0.read_exact(&mut json).await.unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    async fn say(&mut self, message: &FromGuest) {
        let json = serde_json::to_vec(message).unwrap();
        self.raw(u32::try_from(json.len()).unwrap(), &json).await;
    }

    async fn raw(&mut self, length: u32, bytes: &[u8]) {
        self.0.write_all(&[length.to_be_bytes().as_slice(), bytes].concat()).await.unwrap();
    }

    async fn done(&mut self, seq: u64) {
        self.say(&FromGuest::Done { seq, error: None }).await;
    }

    /// Takes the init.
    async fn greet(&mut self) -> Init {
        let ToGuest::Init { seq, init } = self.hear().await else { panic!("init comes first") };
        self.done(seq).await;
        *init
    }
}

fn stage() -> (Arc<Scripted>, mpsc::UnboundedReceiver<DuplexStream>, Identity, Arc<LogRing>) {
    let world = Arc::new(World {
        engine: Arc::new(FakeEngine::new()),
        store: Arc::new(MemoryStore::new()),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
        tokens: TokenKey::new([1; 32]),
        limits: Limits::default(),
        boots: tokio::sync::Semaphore::new(1),
        admission: crate::runtime::admission::Admission::new(Limits::default().admission),
        pool: Arc::default(),
        reaper: Arc::new(Reaper::default()),
        held: Arc::default(),
        closing: tokio_util::sync::CancellationToken::new(),
        fault: std::sync::OnceLock::new(),
        inside: std::sync::OnceLock::new(),
        traces: crate::runtime::traces::Traces::default(),
        past: crate::runtime::past::Past::default(),
    });
    let now = world.now();
    let record = SandboxRecord {
        id: SandboxId::generate(&OsEntropy),
        spec: SandboxSpec {
            team: TeamId::generate(&OsEntropy),
            template: TemplateId::generate(&OsEntropy),
            alias: None,
            build: BuildId::generate(&OsEntropy),
            resources: Resources { cpu_count: 1, memory_mb: 128, disk_mb: 256 },
            timeout_s: 15,
            lifecycle: crate::sandbox::Lifecycle::default(),
            metadata: std::collections::BTreeMap::new(),
            env_vars: std::collections::BTreeMap::new(),
            secure: false,
            allow_internet_access: None,
            network: None,
        },
        state: SandboxState::Creating,
        generation: 1,
        started_at: now,
        end_at: now,
        machine: None,
        unresponsive: false,
        freshness: None,
    };
    let (guests, come) = mpsc::unbounded_channel();
    let link = Arc::new(Scripted { guests, opened: AtomicU32::new(0) });
    (link, come, Identity::new(world, &record), Arc::new(LogRing::default()))
}

async fn next(come: &mut mpsc::UnboundedReceiver<DuplexStream>) -> Guest {
    Guest(timeout(LONG, come.recv()).await.unwrap().unwrap())
}

async fn attached() -> (Arc<Control>, Guest, mpsc::UnboundedReceiver<DuplexStream>, Arc<LogRing>) {
    let (link, mut come, identity, logs) = stage();
    let attaching = tokio::spawn(Control::attach(link, identity, Arc::clone(&logs)));
    let mut guest = next(&mut come).await;
    let init = guest.greet().await;
    assert_eq!((init.access_token, init.default_user.as_str()), (None, "user"));
    let control = timeout(LONG, attaching).await.unwrap().unwrap().unwrap();
    (Arc::new(control), guest, come, logs)
}

fn ping(control: &Arc<Control>) -> tokio::task::JoinHandle<Result<(), ControlError>> {
    let asker = control.asker();
    tokio::spawn(async move { asker.ping().await })
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let (control, mut guest, _come, _logs) = attached().await;
    let mut asked = VecDeque::new();
    for _ in 0..3 {
        let waiting = ping(&control);
        let ToGuest::Ping { seq } = guest.hear().await else { panic!("a ping") };
        asked.push_back((seq, waiting));
    }
    guest.done(999).await;
    while let Some((seq, waiting)) = asked.pop_back() {
        assert!(!waiting.is_finished());
        if seq == 3 {
            guest.say(&FromGuest::Done { seq, error: Some("no".to_owned()) }).await;
            let refused = timeout(LONG, waiting).await.unwrap().unwrap();
            assert!(matches!(refused, Err(ControlError::Refused(reason)) if reason == "no"));
        } else {
            guest.done(seq).await;
            timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn nonsense_and_too_long_messages_end_the_attachment_and_a_new_one_serves() {
    let (control, mut guest, mut come, _logs) = attached().await;
    let waiting = ping(&control);
    guest.hear().await;
    guest.raw(7, b"garbage").await;
    assert!(timeout(LONG, waiting).await.unwrap().unwrap().is_err());
    let mut guest = next(&mut come).await;
    guest.greet().await;
    guest.raw(MAX_MESSAGE + 1, &[]).await;
    let mut guest = next(&mut come).await;
    guest.greet().await;
    let waiting = ping(&control);
    let ToGuest::Ping { seq } = guest.hear().await else { panic!("a ping") };
    guest.done(seq).await;
    timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_that_floods_its_log_does_not_fill_the_gateway() {
    let (control, mut guest, _come, logs) = attached().await;
    for number in 0..3000_i64 {
        let message = format!("{number} {}", "x".repeat(1000));
        guest
            .say(&FromGuest::Log {
                level: "info".to_owned(),
                logger: "process".to_owned(),
                message,
                fields: std::collections::BTreeMap::new(),
                unix_ns: number,
            })
            .await;
    }
    let waiting = ping(&control);
    let ToGuest::Ping { seq } = guest.hear().await else { panic!("a ping") };
    guest.done(seq).await;
    timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
    let lines = logs.lines();
    assert!(lines.len() > 100 && lines.len() <= crate::runtime::logs::MAX_LINES);
    assert_eq!(lines.last().unwrap().unix_ns, 2999);
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_is_named_and_a_dead_link_is_tried_less_and_less_often() {
    let (control, mut guest, come, _logs) = attached().await;
    let waiting = ping(&control);
    guest.hear().await;
    let silent = waiting.await.unwrap();
    assert!(matches!(silent, Err(ControlError::Silent(_))));

    let (link, closed, identity, logs) = stage();
    drop((control, guest, come, closed));
    let _control = Control::attach_later(Arc::clone(&link) as Arc<dyn GuestLink>, identity, logs);
    sleep(Duration::from_mins(1)).await;
    let tried = link.opened.load(Ordering::Relaxed);
    assert!((10..30).contains(&tried), "{tried} attempts in a minute");
}
