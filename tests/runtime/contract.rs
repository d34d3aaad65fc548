//! The contract of engines, machines and links, as functions over any engine.
//!
//! An engine's own test file makes a [`Subject`] and calls [`hold`] (or single functions). Every
//! wait is bounded; each refusal is shown beside what is allowed.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use firkin::{
    id::{BuildId, OsEntropy, SandboxId},
    runtime::{
        engine::{Ability, Disk, Engine, EngineError, ImageUse, Machine, MachineSpec},
        link::{GuestLink, LinkError, LinkStream},
    },
    sandbox::Resources,
    wire::{
        control::{FromGuest, Init, ToGuest},
        link::{GENERATION, Nonce},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::timeout,
};

/// The longest wait for anything that must happen.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// How long nothing must happen.
const WHILE: Duration = Duration::from_millis(300);

pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Makes something echo on a port of a machine.
pub(crate) type Echo = Box<dyn Fn(Arc<dyn Machine>, u16) -> Later<()> + Send + Sync>;

/// Writes a text to a file of a machine's disk.
pub(crate) type Write =
    Box<dyn Fn(Arc<dyn Machine>, SandboxId, &'static str, &'static str) -> Later<()> + Send + Sync>;
/// Reads such a text; none: there is no such file.
pub(crate) type Read =
    Box<dyn Fn(Arc<dyn Machine>, SandboxId, &'static str) -> Later<Option<String>> + Send + Sync>;

/// An engine, and what a test needs that the contract does not give.
pub(crate) struct Subject {
    /// The engine.
    pub(crate) engine: Arc<dyn Engine>,
    /// A build that has an image.
    pub(crate) build: BuildId,
    /// The size of the machines.
    pub(crate) resources: Resources,
    /// Makes something listen in a machine that sends every byte back and, when it has read to
    /// the end, ends its own direction too.
    pub(crate) echo: Echo,
    /// Writes and reads files.
    pub(crate) write: Write,
    pub(crate) read: Read,
    /// What machines of this engine hold on the host now, named so that a difference can be read.
    pub(crate) census: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Runs the whole contract, one part after the other.
pub(crate) async fn hold(subject: &Subject) {
    let before = (subject.census)();
    streams_reach_ports_and_closed_ones_say_so(subject).await;
    half_close_ends_one_direction(subject).await;
    streams_do_not_mix(subject).await;
    a_stop_is_final_idempotent_and_heard_by_all(subject).await;
    the_control_stream_obeys_the_newest_attachment(subject).await;
    a_frozen_machine_stands_still(subject).await;
    a_machine_is_found_again_until_it_ends(subject).await;
    a_shelved_machine_leaves_its_disk_for_the_next(subject).await;
    an_image_is_made_of_a_disk_and_goes_when_nothing_lies_on_it(subject).await;
    unchanged(subject, &before).await;
    a_create_that_is_dropped_leaves_nothing(subject).await;
    unchanged(subject, &before).await;
    // Last: it ends every machine that is not kept.
    a_sweep_ends_all_but_the_kept(subject).await;
    unchanged(subject, &before).await;
}

impl Subject {
    pub(crate) fn spec(&self, sandbox: SandboxId) -> MachineSpec {
        MachineSpec {
            sandbox,
            generation: 1,
            build: self.build,
            resources: self.resources,
            hostname: sandbox.to_string(),
            disk: Disk::New,
        }
    }

    /// A new machine.
    pub(crate) async fn machine(&self) -> (SandboxId, Arc<dyn Machine>) {
        let id = SandboxId::generate(&OsEntropy);
        let machine = timeout(LONG, self.engine.create(self.spec(id))).await.expect("in time").unwrap();
        (id, machine)
    }

    /// A new machine whose guest has its init and where something echoes on the port.
    async fn echoing(&self, port: u16) -> (SandboxId, Arc<dyn Machine>, Control) {
        let (id, machine) = self.machine().await;
        let control = Control::attach(&*machine, id).await;
        timeout(LONG, (self.echo)(Arc::clone(&machine), port)).await.expect("in time");
        (id, machine, control)
    }
}

pub(crate) async fn streams_reach_ports_and_closed_ones_say_so(subject: &Subject) {
    let (_, machine, _control) = subject.echoing(8000).await;
    let mut stream = open(&*machine, 8000).await;
    exchange(&mut stream, b"there and back").await;
    let closed = timeout(LONG, machine.link().open(8001)).await.expect("in time");
    assert!(matches!(closed, Err(LinkError::PortClosed { port: 8001 })), "a closed port is named");
    exchange(&mut stream, b"still there").await;
    stop(&*machine).await;
}

pub(crate) async fn half_close_ends_one_direction(subject: &Subject) {
    let (_, machine, _control) = subject.echoing(8000).await;
    let mut stream = open(&*machine, 8000).await;
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(LONG, stream.read_to_end(&mut answer)).await.expect("in time").unwrap();
    assert_eq!(answer, b"last words");
    stop(&*machine).await;
}

pub(crate) async fn streams_do_not_mix(subject: &Subject) {
    let (_, machine, _control) = subject.echoing(8000).await;
    let mut streams = JoinSet::new();
    for number in 0..64_u8 {
        let link = machine.link();
        streams.spawn(async move {
            let mut stream = link.open(8000).await.unwrap();
            for round in 0..8 {
                exchange(&mut stream, &vec![number ^ round; 4096]).await;
            }
        });
    }
    timeout(LONG, streams.join_all()).await.expect("in time");
    stop(&*machine).await;
}

pub(crate) async fn a_stop_is_final_idempotent_and_heard_by_all(subject: &Subject) {
    let (_, machine, _control) = subject.echoing(8000).await;
    assert!(machine.stats().await.is_ok());
    let mut stream = open(&*machine, 8000).await;
    exchange(&mut stream, b"alive").await;
    let mut waiters = JoinSet::new();
    for _ in 0..3 {
        let machine = Arc::clone(&machine);
        waiters.spawn(async move { machine.exited().await });
    }
    timeout(WHILE, machine.exited()).await.expect_err("it runs");
    stop(&*machine).await;
    stop(&*machine).await;
    timeout(LONG, waiters.join_all()).await.expect("everybody hears of it");
    timeout(LONG, machine.exited()).await.expect("also who comes later");
    let mut rest = Vec::new();
    // An end or an error, both are a break; what must not be is a stream that waits for ever.
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("open streams break");
    assert!(timeout(LONG, machine.link().open(8000)).await.expect("in time").is_err());
    assert!(matches!(machine.stats().await, Err(EngineError::Gone)));
}

pub(crate) async fn the_control_stream_obeys_the_newest_attachment(subject: &Subject) {
    let (id, machine) = subject.machine().await;
    let mut first = Control::attach(&*machine, id).await;
    first.ask(|seq| ToGuest::Ping { seq }).await;
    let mut second = Control::attach(&*machine, id).await;
    second.ask(|seq| ToGuest::Ping { seq }).await;
    timeout(LONG, first.ended()).await.expect("the earlier attachment ends");
    second.ask(|seq| ToGuest::Ping { seq }).await;
    stop(&*machine).await;
    timeout(LONG, second.ended()).await.expect("it ends with the machine");
}

pub(crate) async fn a_frozen_machine_stands_still(subject: &Subject) {
    if let Ability::Missing(reason) = subject.engine.capabilities().freeze {
        let (_, machine) = subject.machine().await;
        assert!(!reason.is_empty(), "a missing ability has a reason");
        assert!(matches!(machine.freeze().await, Err(EngineError::Unsupported { .. })));
        return stop(&*machine).await;
    }
    let (_, machine, _control) = subject.echoing(8000).await;
    let mut stream = open(&*machine, 8000).await;
    exchange(&mut stream, b"warm").await;
    timeout(LONG, machine.freeze()).await.expect("in time").unwrap();
    stream.write_all(b"cold").await.unwrap();
    let mut answer = [0; 4];
    timeout(WHILE, stream.read_exact(&mut answer)).await.expect_err("nothing moves");
    timeout(LONG, machine.thaw()).await.expect("in time").unwrap();
    timeout(LONG, stream.read_exact(&mut answer)).await.expect("it goes on").unwrap();
    assert_eq!(&answer, b"cold");
    timeout(LONG, machine.thaw()).await.expect("in time").expect("a no-op when live");
    timeout(LONG, machine.freeze()).await.expect("in time").unwrap();
    stop(&*machine).await;
    assert!(matches!(machine.freeze().await, Err(EngineError::Gone)));
}

pub(crate) async fn a_machine_is_found_again_until_it_ends(subject: &Subject) {
    let (id, machine, control) = subject.echoing(8000).await;
    let record = machine.record();
    drop((machine, control));
    let found = timeout(LONG, subject.engine.adopt(id, &record)).await.expect("in time").unwrap();
    let machine = found.expect("it runs, though no handle was left");
    assert_eq!(machine.record(), record);
    let mut control = Control::attach(&*machine, id).await;
    control.ask(|seq| ToGuest::Ping { seq }).await;
    exchange(&mut open(&*machine, 8000).await, b"as before").await;
    stop(&*machine).await;
    let found = timeout(LONG, subject.engine.adopt(id, &record)).await.expect("in time").unwrap();
    assert!(found.is_none(), "it is gone for good");
}

pub(crate) async fn a_shelved_machine_leaves_its_disk_for_the_next(subject: &Subject) {
    let engine = &subject.engine;
    let (id, machine) = subject.machine().await;
    let kept = async || timeout(LONG, engine.kept()).await.expect("in time").unwrap();
    assert!(timeout(LONG, engine.find(id)).await.expect("in time").unwrap().is_some());
    assert_eq!(kept().await, []);
    for _ in 0..2 {
        timeout(LONG, machine.shelve()).await.expect("in time").unwrap();
        timeout(LONG, machine.exited()).await.expect("it is an end");
        assert_eq!(kept().await, [id]);
    }
    assert!(timeout(LONG, engine.find(id)).await.expect("in time").unwrap().is_none());
    let next = MachineSpec { generation: 2, disk: Disk::Kept, ..subject.spec(id) };
    let machine = timeout(LONG, engine.create(next.clone())).await.expect("in time").unwrap();
    assert_eq!(kept().await, [], "it is in use again");
    // A create on a kept disk that is dropped leaves the disk.
    timeout(LONG, machine.shelve()).await.expect("in time").unwrap();
    for wait_us in [0, 200, 1_000, 5_000] {
        let creating = engine.create(MachineSpec { generation: 3, ..next.clone() });
        if let Ok(Ok(machine)) = timeout(Duration::from_micros(wait_us), creating).await {
            timeout(LONG, machine.shelve()).await.expect("in time").unwrap();
        }
        timeout(LONG, async {
            while kept().await != [id] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the disk is kept");
    }
    for _ in 0..2 {
        timeout(LONG, engine.discard(id)).await.expect("in time").unwrap();
        assert_eq!(kept().await, []);
    }
    let none = timeout(LONG, engine.create(next)).await.expect("in time");
    assert!(matches!(none, Err(EngineError::NoDisk(sandbox)) if sandbox == id));
    // A new disk gives up the kept one, and a sweep those of others.
    let (id, machine) = subject.machine().await;
    timeout(LONG, machine.shelve()).await.expect("in time").unwrap();
    let machine = timeout(LONG, engine.create(subject.spec(id))).await.expect("in time").unwrap();
    timeout(LONG, machine.shelve()).await.expect("in time").unwrap();
    timeout(LONG, engine.sweep(&[id])).await.expect("in time").unwrap();
    assert_eq!(kept().await, [id]);
    timeout(LONG, engine.sweep(&[])).await.expect("in time").unwrap();
    assert_eq!(kept().await, []);
}

pub(crate) async fn an_image_is_made_of_a_disk_and_goes_when_nothing_lies_on_it(subject: &Subject) {
    let engine = &subject.engine;
    let write = async |of: &(SandboxId, Arc<dyn Machine>), name, text| {
        timeout(LONG, (subject.write)(Arc::clone(&of.1), of.0, name, text)).await.expect("in time");
    };
    let read = async |of: &(SandboxId, Arc<dyn Machine>), name| {
        timeout(LONG, (subject.read)(Arc::clone(&of.1), of.0, name)).await.expect("in time")
    };
    let seal = async |id, build| {
        let unheard = tokio::sync::oneshot::channel().0;
        timeout(LONG, engine.seal(id, build, unheard)).await.expect("in time")
    };
    let remove = async |build| timeout(LONG, engine.remove_image(build)).await.expect("in time").unwrap();
    let known = async |build: BuildId| -> Option<ImageUse> {
        let images = timeout(LONG, engine.images()).await.expect("in time").unwrap();
        images.into_iter().find(|image| image.build == build)
    };
    let machine = async |build| {
        let id = SandboxId::generate(&OsEntropy);
        let spec = MachineSpec { build, ..subject.spec(id) };
        (id, timeout(LONG, engine.create(spec)).await.expect("in time").unwrap())
    };
    let (low, high) = (BuildId::generate(&OsEntropy), BuildId::generate(&OsEntropy));

    let first = machine(subject.build).await;
    write(&first, "a", "1").await;
    assert!(seal(first.0, low).await.is_err(), "it is not frozen");
    assert_eq!(known(low).await, None);
    first.1.freeze().await.unwrap();
    seal(first.0, low).await.unwrap();
    assert!(seal(first.0, low).await.is_err(), "the build is there already");
    let expected = ImageUse { build: low, parent: Some(subject.build), sealed: true };
    assert_eq!(known(low).await, Some(expected));
    first.1.thaw().await.unwrap();
    write(&first, "a", "2").await;

    let second = machine(low).await;
    assert_eq!(read(&second, "a").await.as_deref(), Some("1"), "as it was then");
    write(&second, "b", "x").await;
    assert!(!remove(low).await, "a machine lies on it");
    second.1.shelve().await.unwrap();
    assert!(!remove(low).await, "a kept disk lies on it");
    seal(second.0, high).await.unwrap();
    let again = MachineSpec { generation: 2, disk: Disk::Kept, build: low, ..subject.spec(second.0) };
    let wrong = MachineSpec { build: high, ..again.clone() };
    let refused = timeout(LONG, engine.create(wrong)).await.expect("in time");
    assert!(matches!(refused, Err(EngineError::NoDisk(_))), "a disk is of its own image");
    let back = (second.0, timeout(LONG, engine.create(again)).await.expect("in time").unwrap());
    assert_eq!(read(&back, "b").await.as_deref(), Some("x"), "the kept disk has it");
    stop(&*back.1).await;
    assert!(!remove(low).await, "an image lies on it");

    let third = machine(high).await;
    assert_eq!(read(&third, "a").await.as_deref(), Some("1"));
    assert_eq!(read(&third, "b").await.as_deref(), Some("x"));
    assert_eq!(read(&first, "a").await.as_deref(), Some("2"));
    assert_eq!(read(&first, "b").await, None);
    stop(&*first.1).await;
    stop(&*third.1).await;
    for build in [high, low, low] {
        assert!(remove(build).await);
        assert_eq!(known(build).await, None);
    }
    let gone = MachineSpec { build: low, ..subject.spec(first.0) };
    let refused = timeout(LONG, engine.create(gone)).await.expect("in time");
    assert!(matches!(refused, Err(EngineError::NoImage(build)) if build == low));
    assert!(matches!(seal(first.0, low).await, Err(EngineError::Gone)), "it has no disk");
    assert_eq!(known(low).await, None);
}

pub(crate) async fn a_create_that_is_dropped_leaves_nothing(subject: &Subject) {
    let before = (subject.census)();
    for wait_us in [0, 100, 500, 1_000, 2_000, 5_000, 10_000, 20_000] {
        let spec = subject.spec(SandboxId::generate(&OsEntropy));
        let creating = subject.engine.create(spec.clone());
        if let Ok(Ok(machine)) = timeout(Duration::from_micros(wait_us), creating).await {
            stop(&*machine).await;
        }
        unchanged(subject, &before).await;
        // The id is free again too.
        let machine = timeout(LONG, subject.engine.create(spec)).await.expect("in time").unwrap();
        stop(&*machine).await;
    }
}

pub(crate) async fn a_sweep_ends_all_but_the_kept(subject: &Subject) {
    let (kept, machine) = subject.machine().await;
    let (orphan, other) = subject.machine().await;
    let swept = timeout(LONG, subject.engine.sweep(&[kept])).await.expect("in time").unwrap();
    assert_eq!(swept, [orphan]);
    timeout(LONG, other.exited()).await.expect("it was ended");
    assert!(machine.stats().await.is_ok(), "the kept one runs");
    stop(&*machine).await;
    let swept = timeout(LONG, subject.engine.sweep(&[])).await.expect("in time").unwrap();
    assert_eq!(swept, [], "nothing is left to sweep");
}

/// A control stream, by hand.
pub(crate) struct Control {
    stream: LinkStream,
    next_seq: u64,
}

impl Control {
    pub(crate) async fn attach(machine: &dyn Machine, id: SandboxId) -> Self {
        let mut nonce = [0; 16];
        firkin::id::Entropy::fill(&OsEntropy, &mut nonce);
        let link = machine.link();
        let opened = timeout(LONG, link.open_control(Nonce(nonce))).await.expect("in time");
        let (stream, generation) = opened.expect("the control stream opens");
        assert!((1..=GENERATION).contains(&generation));
        let mut control = Self { stream, next_seq: 1 };
        control.ask(|seq| ToGuest::Init { seq, init: Box::new(init(id)) }).await;
        control
    }

    /// Says it and waits for the guest's Done.
    pub(crate) async fn ask(&mut self, message: impl FnOnce(u64) -> ToGuest) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let json = serde_json::to_vec(&message(seq)).unwrap();
        let length = u32::try_from(json.len()).unwrap();
        self.stream.write_all(&[&length.to_be_bytes(), json.as_slice()].concat()).await.unwrap();
        self.stream.flush().await.unwrap();
        loop {
            let heard = timeout(LONG, self.hear()).await.expect("the guest answers").expect("a message");
            if let FromGuest::Done { seq: answered, error } = heard {
                assert_eq!((answered, error), (seq, None));
                return;
            }
        }
    }

    /// Resolves when the stream has ended, one way or the other.
    async fn ended(&mut self) {
        while self.hear().await.is_some() {}
    }

    async fn hear(&mut self) -> Option<FromGuest> {
        let length = self.stream.read_u32().await.ok()?;
        let mut json = vec![0; length as usize];
        self.stream.read_exact(&mut json).await.ok()?;
        Some(serde_json::from_slice(&json).expect("a control message"))
    }
}

fn init(id: SandboxId) -> Init {
    Init {
        sandbox_id: id,
        template_id: "base".to_owned(),
        env_vars: [("KEY".to_owned(), "value".to_owned())].into(),
        access_token: None,
        default_user: "user".to_owned(),
        default_workdir: None,
        now_unix_ns: 1_700_000_000_000_000_000,
        disk_bytes: 0,
        entropy: "AAAAAAAAAAAAAAAAAAAAAA==".to_owned(),
        freshness: None,
    }
}

pub(crate) async fn open(machine: &dyn Machine, port: u16) -> LinkStream {
    let link: Arc<dyn GuestLink> = machine.link();
    timeout(LONG, link.open(port)).await.expect("in time").expect("the port is open")
}

pub(crate) async fn exchange(stream: &mut LinkStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; bytes.len()];
    timeout(LONG, stream.read_exact(&mut answer)).await.expect("in time").unwrap();
    assert_eq!(answer, bytes);
}

async fn stop(machine: &dyn Machine) {
    timeout(LONG, machine.stop(Duration::ZERO)).await.expect("in time").unwrap();
}

/// What is released in the background is gone within the bound.
async fn unchanged(subject: &Subject, before: &[String]) {
    let settled = timeout(LONG, async {
        while (subject.census)() != before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    if settled.await.is_err() {
        assert_eq!((subject.census)(), before, "something was left on the host");
    }
}
