//! The namespace engine: machines made by the warden on this host's kernel.
//!
//! The engine holds nothing of a machine but its name and the way to its socket: everything that
//! must be released belongs to the warden. A create whose caller went away is therefore undone
//! by one message, and a gateway that dies loses nothing but its connections.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use self::{client::WeakClient, link::NamespaceLink};
use crate::{
    id::{BuildId, SandboxId},
    runtime::{
        engine::{
            Ability, Capabilities, Disk, DiskSpace, Engine, EngineError, ImageUse, Machine, MachineRecord,
            MachineSpec, MachineStats,
        },
        link::GuestLink,
    },
    wire::warden::{self, Call, Cause, CreateMachine, Event, MachineInfo, Reply},
};

mod client;
pub(in crate::runtime) mod link;
mod sockets;

pub use client::{ClientError, WardenClient};

/// Makes machines through the warden.
#[derive(Debug)]
pub struct NamespaceEngine {
    client: WardenClient,
    run: Arc<OwnedFd>,
    exits: Arc<Exits>,
    creating: Arc<Creating>,
}

/// Creates under way, and those whose caller went away and that are being undone: a second one
/// for the same sandbox waits for their end.
#[derive(Debug, Default)]
struct Creating {
    sandboxes: Mutex<HashMap<SandboxId, CancellationToken>>,
}

/// Who waits for which machine's end.
#[derive(Debug, Default)]
struct Exits {
    live: Mutex<HashMap<(SandboxId, u64), CancellationToken>>,
}

/// What finds a machine again: the warden keeps the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    generation: u64,
    pid: i32,
    start_time: u64,
}

struct NamespaceMachine {
    info: MachineInfo,
    client: WardenClient,
    link: Arc<NamespaceLink>,
    exits: Arc<Exits>,
    ended: CancellationToken,
}

// === impl NamespaceEngine ===

impl NamespaceEngine {
    /// Takes the gateway's end of the warden's socket. `run_dir` is the directory of the
    /// machines' sockets ([`crate::warden::Prepared::run_dir`]). Call it inside the runtime.
    #[expect(clippy::unused_async, reason = "only a runtime can register the socket")]
    pub async fn connect(socket: OwnedFd, run_dir: &Path) -> Result<(Arc<Self>, WardenClient), EngineError> {
        let host = |step, error: std::io::Error| EngineError::Host { step, reason: error.to_string() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run = rustix::fs::open(run_dir, flags, Mode::empty())
            .map_err(|error| host("open the directory of sockets", error.into()))?;
        let client = WardenClient::new(socket).map_err(|error| host("watch the helper's socket", error))?;
        let exits = Arc::new(Exits::default());
        tokio::spawn(watch(client.downgrade(), client.events(), Arc::downgrade(&exits)));
        let engine =
            Arc::new(Self { client: client.clone(), run: Arc::new(run), exits, creating: Arc::default() });
        Ok((engine, client))
    }

    fn machine(&self, info: MachineInfo) -> Arc<dyn Machine> {
        let ended = self.exits.of(info.sandbox, info.generation);
        let link = NamespaceLink::new(info.sandbox, info.socket.clone(), Arc::clone(&self.run), &self.client);
        Arc::new(NamespaceMachine {
            info,
            client: self.client.clone(),
            link: Arc::new(link),
            exits: Arc::clone(&self.exits),
            ended,
        })
    }
}

#[async_trait]
impl Engine for NamespaceEngine {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            freeze: Ability::Present,
            memory_snapshot: Ability::Missing("a shared kernel cannot write a machine's memory to disk"),
            survive_gateway: Ability::Present,
        }
    }

    fn disk(&self) -> Result<DiskSpace, EngineError> {
        // The sockets' directory is in the data directory, as everything that machines write.
        let error = |error: std::io::Error| EngineError::Host {
            step: "measure the data directory",
            reason: error.to_string(),
        };
        disk_space(self.run.as_fd()).map_err(error)
    }

    async fn create(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, EngineError> {
        let (sandbox, generation, build) = (spec.sandbox, spec.generation, spec.build);
        let turn = self.creating.turn(sandbox).await;
        // Registered before the warden knows of it, so that no exit is missed.
        let _ = self.exits.of(sandbox, generation);
        let call = Call::CreateMachine(CreateMachine {
            sandbox,
            generation,
            build,
            resources: spec.resources,
            hostname: spec.hostname,
            kept_disk: spec.disk == Disk::Kept,
        });
        let (client, exits) = (self.client.clone(), Arc::clone(&self.exits));
        let (hand_over, made) = oneshot::channel();
        // Its own task: the caller may go away at any time, the machine must not be left behind.
        tokio::spawn(async move {
            let _turn = turn;
            let answer = client.call(call).await;
            let created = answer.is_ok();
            if !created {
                exits.end(sandbox, generation);
            }
            if hand_over.send(answer).is_err() && created {
                let keep_disk = spec.disk == Disk::Kept;
                let _ = client.call(Call::StopMachine { sandbox, keep_disk }).await;
                exits.end(sandbox, generation);
            }
        });
        match made.await {
            Ok(Ok((Reply::Machine(info), _))) => Ok(self.machine(info)),
            Ok(Ok(_)) | Err(_) => Err(ClientError::Unexpected.during("make the machine")),
            Ok(Err(ClientError::Refused { cause: Cause::NoImage, .. })) => Err(EngineError::NoImage(build)),
            Ok(Err(ClientError::Refused { cause: Cause::NoDisk, .. })) => Err(EngineError::NoDisk(sandbox)),
            Ok(Err(error)) => Err(error.during("make the machine")),
        }
    }

    async fn adopt(
        &self,
        sandbox: SandboxId,
        record: &MachineRecord,
    ) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        let Ok(record) = serde_json::from_value::<Record>(record.clone()) else { return Ok(None) };
        let ended = self.exits.of(sandbox, record.generation);
        let found = self.client.machine(sandbox).await.map_err(|error| error.during("find the machine"))?;
        let found = found.filter(|info| Record::of(info) == record);
        if found.is_none() {
            self.exits.end(sandbox, record.generation);
        }
        // It may have ended between the list and now: then the event has been heard.
        Ok(found.filter(|_| !ended.is_cancelled()).map(|info| self.machine(info)))
    }

    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        let found = self.client.machine(sandbox).await.map_err(|error| error.during("find the machine"))?;
        Ok(found.map(|info| self.machine(info)))
    }

    async fn kept(&self) -> Result<Vec<SandboxId>, EngineError> {
        self.client.kept().await.map_err(|error| error.during("list kept disks"))
    }

    async fn seal(
        &self,
        sandbox: SandboxId,
        build: BuildId,
        copied: oneshot::Sender<()>,
    ) -> Result<(), EngineError> {
        let answer = self.client.seal(sandbox, build, copied).await;
        answer.map(drop).map_err(|error| error.during("make an image of the sandbox"))
    }

    async fn images(&self) -> Result<Vec<ImageUse>, EngineError> {
        let images = self.client.images().await.map_err(|error| error.during("list images"))?;
        let known = |image: warden::ImageUse| ImageUse {
            build: image.build,
            parent: image.parent,
            sealed: image.sealed,
        };
        Ok(images.into_iter().map(known).collect())
    }

    async fn remove_image(&self, build: BuildId) -> Result<bool, EngineError> {
        match self.client.call(Call::RemoveImage { build }).await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { cause: Cause::InUse, .. }) => Ok(false),
            Err(error) => Err(error.during("remove an image")),
        }
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), EngineError> {
        let call = Call::StopMachine { sandbox, keep_disk: false };
        self.client.call(call).await.map(drop).map_err(|error| error.during("give up a kept disk"))
    }

    async fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<SandboxId>, EngineError> {
        for sandbox in self.kept().await?.into_iter().filter(|sandbox| !keep.contains(sandbox)) {
            self.discard(sandbox).await?;
        }
        let live = self.client.machines().await.map_err(|error| error.during("list machines"))?;
        let orphans: Vec<MachineInfo> =
            live.into_iter().filter(|info| !keep.contains(&info.sandbox)).collect();
        let ends = orphans.iter().map(async |info| {
            self.client.call(Call::StopMachine { sandbox: info.sandbox, keep_disk: false }).await?;
            // Somebody may hold a handle of it all the same.
            self.exits.end(info.sandbox, info.generation);
            Ok(info.sandbox)
        });
        let ended: Result<_, ClientError> = futures_util::future::join_all(ends).await.into_iter().collect();
        ended.map_err(|error| error.during("end an orphaned machine"))
    }
}

/// The size and free space of a directory's file system.
pub fn disk_space(directory: BorrowedFd<'_>) -> std::io::Result<DiskSpace> {
    let space = rustix::fs::fstatvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    Ok(DiskSpace { total: bytes(space.f_blocks), free: bytes(space.f_bavail) })
}

// === impl Creating ===

impl Creating {
    /// Waits until no create of the sandbox is under way. The turn ends when it is dropped.
    async fn turn(self: &Arc<Self>, sandbox: SandboxId) -> Turn {
        loop {
            let busy = match self.sandboxes.lock().entry(sandbox) {
                Entry::Occupied(other) => other.get().clone(),
                Entry::Vacant(free) => {
                    free.insert(CancellationToken::new());
                    return Turn { creating: Arc::clone(self), sandbox };
                }
            };
            busy.cancelled().await;
        }
    }
}

/// The right to make a sandbox's machine.
struct Turn {
    creating: Arc<Creating>,
    sandbox: SandboxId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(token) = self.creating.sandboxes.lock().remove(&self.sandbox) {
            token.cancel();
        }
    }
}

// === impl NamespaceMachine ===

impl NamespaceMachine {
    async fn tell(&self, step: &'static str, call: Call) -> Result<Reply, EngineError> {
        match self.client.call(call).await {
            Ok((reply, _)) => Ok(reply),
            Err(_) if self.ended.is_cancelled() => Err(EngineError::Gone),
            Err(error) => Err(error.during(step)),
        }
    }
}

#[async_trait]
impl Machine for NamespaceMachine {
    fn record(&self) -> MachineRecord {
        serde_json::to_value(Record::of(&self.info)).unwrap_or_default()
    }

    fn link(&self) -> Arc<dyn GuestLink> {
        Arc::<NamespaceLink>::clone(&self.link)
    }

    async fn stop(&self, _grace: Duration) -> Result<(), EngineError> {
        // The guest hears of its end over the control stream, from its driver; here it is only ended.
        if self.ended.is_cancelled() {
            return Ok(());
        }
        self.tell("end the machine", Call::StopMachine { sandbox: self.info.sandbox, keep_disk: false })
            .await?;
        self.exits.end(self.info.sandbox, self.info.generation);
        Ok(())
    }

    async fn shelve(&self) -> Result<(), EngineError> {
        if self.ended.is_cancelled() {
            return Ok(());
        }
        self.tell("end the machine", Call::StopMachine { sandbox: self.info.sandbox, keep_disk: true })
            .await?;
        self.exits.end(self.info.sandbox, self.info.generation);
        Ok(())
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.tell("freeze the machine", Call::Freeze { sandbox: self.info.sandbox }).await.map(drop)
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.tell("thaw the machine", Call::Thaw { sandbox: self.info.sandbox }).await.map(drop)
    }

    async fn reclaim(&self) -> Result<u64, EngineError> {
        match self.tell("take memory back", Call::Reclaim { sandbox: self.info.sandbox }).await? {
            Reply::Reclaimed { bytes } => Ok(bytes),
            _ => Err(ClientError::Unexpected.during("take memory back")),
        }
    }

    async fn host_socket(&self) -> Result<TcpListener, EngineError> {
        let step = "open the host API";
        match self.client.call(Call::HostSocket { sandbox: self.info.sandbox }).await {
            Ok((_, mut sockets)) => {
                let socket = sockets.pop().ok_or_else(|| ClientError::Unexpected.during(step))?;
                Ok(socket.into())
            }
            Err(_) if self.ended.is_cancelled() => Err(EngineError::Gone),
            Err(error) => Err(error.during(step)),
        }
    }

    async fn stats(&self) -> Result<MachineStats, EngineError> {
        match self.tell("measure the machine", Call::Stats { sandbox: self.info.sandbox }).await? {
            Reply::Stats(stats) => Ok(MachineStats {
                cpu_ns: stats.cpu_ns,
                memory_bytes: stats.memory_bytes,
                cache_bytes: stats.cache_bytes,
                memory_limit_bytes: stats.memory_limit_bytes,
                disk_bytes: stats.disk_bytes,
                processes: stats.processes,
                writers_ended: stats.writers_ended,
            }),
            _ => Err(ClientError::Unexpected.during("measure the machine")),
        }
    }

    async fn exited(&self) {
        self.ended.cancelled().await;
    }
}

impl fmt::Debug for NamespaceMachine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("NamespaceMachine").field(&self.info).finish()
    }
}

// === impl Record ===

impl Record {
    fn of(info: &MachineInfo) -> Self {
        Self { generation: info.generation, pid: info.pid, start_time: info.start_time }
    }
}

// === impl Exits ===

impl Exits {
    fn of(&self, sandbox: SandboxId, generation: u64) -> CancellationToken {
        self.live.lock().entry((sandbox, generation)).or_default().clone()
    }

    fn end(&self, sandbox: SandboxId, generation: u64) {
        if let Some(token) = self.live.lock().remove(&(sandbox, generation)) {
            token.cancel();
        }
    }

    /// Ends what is not in the list.
    fn retain(&self, live: &[MachineInfo], before: &[(SandboxId, u64)]) {
        for (sandbox, generation) in before {
            if !live.iter().any(|info| (info.sandbox, info.generation) == (*sandbox, *generation)) {
                self.end(*sandbox, *generation);
            }
        }
    }
}

/// Tells machines that they are gone. A warden that is gone says nothing of its machines: they live on.
async fn watch(client: WeakClient, mut events: broadcast::Receiver<Event>, exits: Weak<Exits>) {
    loop {
        let event = events.recv().await;
        let Some(exits) = exits.upgrade() else { return };
        match event {
            Ok(Event::MachineExited { sandbox, generation }) => exits.end(sandbox, generation),
            Ok(_) => {}
            Err(RecvError::Closed) => return,
            // Some exits went unheard: compare with what is alive.
            Err(RecvError::Lagged(_)) => {
                let before: Vec<_> = exits.live.lock().keys().copied().collect();
                let Some(client) = client.upgrade() else { return };
                if let Ok(live) = client.machines().await {
                    exits.retain(&live, &before);
                }
            }
        }
    }
}

impl ClientError {
    fn during(self, step: &'static str) -> EngineError {
        match self {
            Self::Refused { cause: Cause::NoMachine, .. } => EngineError::Gone,
            Self::Refused { cause: Cause::Capacity, reason } => EngineError::Capacity(reason),
            Self::Refused { cause: Cause::DiskFull, .. } => EngineError::DiskFull,
            other => EngineError::Host { step, reason: other.to_string() },
        }
    }
}
