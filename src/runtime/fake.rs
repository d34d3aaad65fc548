//! An engine in process, for tests: machines are tasks, their link is one muxed stream, as a
//! virtio-serial channel would be, and everything that can go wrong can be made to.
//!
//! ```text
//! FakeEngine (clones share one host)   Body: what "runs on the host", outlives a gateway
//!   create/adopt -> FakeMachine -----> Body: guest, frozen flag, ended token
//!                     FakeLink --mux--- Wire (cuts, byte budget) ---mux--> guest's services
//! ```
//! The host is in the engine's shared part: dropping a registry and making a new one on a clone
//! of the engine is a gateway that restarts while its machines go on.

mod clock;
mod disk;
mod guest;
mod machine;
mod service;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;

pub use self::{
    clock::HeldClock,
    disk::FakeFiles,
    guest::GuestView,
    service::{Handler, Service},
};
use tokio::sync::oneshot;

use self::{
    disk::{FakeDisk, Images},
    machine::{Body, FakeMachine},
};
use crate::{
    id::{BuildId, SandboxId},
    runtime::engine::{
        Ability, Capabilities, Disk, DiskSpace, Engine, EngineError, ImageUse, Machine, MachineRecord,
        MachineSpec,
    },
    sandbox::ENVD_PORT,
};

/// What is to go wrong, from now on, in all machines of one engine.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// How long a create takes.
    pub create_delay: Duration,
    /// Every create fails with this reason, after its delay.
    pub create_error: Option<String>,
    /// How long it takes to make an image of a sandbox.
    pub seal_delay: Duration,
    /// So many of those fail before one works.
    pub seal_failures: u32,
    /// They all fail for want of room, after their delay.
    pub disk_full: bool,
    /// What a frozen machine gives back, in bytes.
    pub reclaimable: u64,
    /// How long a stop takes.
    pub stop_delay: Duration,
    /// So many stops fail before one works.
    pub stop_failures: u32,
    /// How long it takes to throw away what is left of a sandbox.
    pub discard_delay: Duration,
    /// So many freezes fail before one works.
    pub freeze_failures: u32,
    /// So many adoptions fail before one works.
    pub adopt_failures: u32,
    /// Guests take so long to answer a handshake.
    pub answer_delay: Duration,
    /// Guests accept the control stream, and never answer on it.
    pub mute: bool,
    /// What machines say that they use, in bytes.
    pub memory_bytes: u64,
    /// The disk has this size and free space, in bytes; none: it is large and empty.
    pub disk: Option<(u64, u64)>,
    /// Nobody knows how large the disk is.
    pub disk_unknown: bool,
    /// Guests answer an init with this error.
    pub init_error: Option<String>,
}

/// The engine. Clones share their machines.
#[derive(Clone)]
pub struct FakeEngine {
    host: Arc<Host>,
}

/// What all clones of an engine share: the "host" on which the machines run.
pub(in crate::runtime::fake) struct Host {
    machines: Mutex<HashMap<SandboxId, Arc<Body>>>,
    /// Disks without a machine.
    kept: Mutex<BTreeMap<SandboxId, FakeDisk>>,
    images: Mutex<Images>,
    services: Mutex<BTreeMap<u16, Service>>,
    faults: Mutex<Faults>,
    /// Whose memory was taken back, in order.
    reclaims: Mutex<Vec<SandboxId>>,
}

/// Releases a machine whose create did not come to its end.
struct Unfinished {
    body: Option<Arc<Body>>,
    kept: bool,
}

// === impl FakeEngine ===

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeEngine {
    /// An engine on a host of its own; envd answers on its port in every machine.
    pub fn new() -> Self {
        let services = BTreeMap::from([(ENVD_PORT, Service::Envd)]);
        Self {
            host: Arc::new(Host {
                machines: Mutex::default(),
                kept: Mutex::default(),
                images: Mutex::default(),
                services: Mutex::new(services),
                faults: Mutex::default(),
                reclaims: Mutex::default(),
            }),
        }
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.host.faults.lock());
    }

    /// Something listens on this port in every machine; known machines included.
    pub fn listen(&self, port: u16, service: Service) {
        self.host.services.lock().insert(port, service);
    }

    /// Nothing listens on this port any more.
    pub fn unlisten(&self, port: u16) {
        self.host.services.lock().remove(&port);
    }

    /// The machines that exist, whatever the gateway believes.
    pub fn live(&self) -> Vec<SandboxId> {
        let mut ids: Vec<SandboxId> = self.host.machines.lock().keys().copied().collect();
        ids.sort();
        ids
    }

    /// The machine ends by itself, and its disk stays. False: there is none.
    pub fn exit(&self, sandbox: SandboxId) -> bool {
        self.host.body(sandbox).map(|body| body.end(true)).is_some()
    }

    /// Whether time stands still in the machine.
    pub fn frozen(&self, sandbox: SandboxId) -> bool {
        self.host.body(sandbox).is_some_and(|body| body.is_frozen())
    }

    /// Where the host API of a machine listens. None: nowhere.
    pub fn host_api(&self, sandbox: SandboxId) -> Option<std::net::SocketAddr> {
        self.host.body(sandbox).and_then(|body| *body.host_api.lock())
    }

    /// Whose memory was taken back, in order.
    pub fn reclaims(&self) -> Vec<SandboxId> {
        self.host.reclaims.lock().clone()
    }

    /// The disks that are kept without a machine.
    pub fn disks(&self) -> Vec<SandboxId> {
        self.host.kept.lock().keys().copied().collect()
    }

    /// Cuts the machine's link once; it can be opened again. False: there is none.
    pub fn cut(&self, sandbox: SandboxId) -> bool {
        self.host.body(sandbox).is_some_and(|body| body.cut())
    }

    /// Cuts the machine's link after so many more bytes in either direction. False: there is none.
    pub fn cut_after(&self, sandbox: SandboxId, bytes: u64) -> bool {
        self.host.body(sandbox).is_some_and(|body| body.cut_after(bytes))
    }

    /// What the guest of a machine knows.
    pub fn guest(&self, sandbox: SandboxId) -> Option<GuestView> {
        self.host.body(sandbox).map(|body| body.guest.view())
    }

    /// The guest writes a line to its log. False: no machine, or nobody attached.
    pub fn guest_log(&self, sandbox: SandboxId, message: &str) -> bool {
        self.host.body(sandbox).is_some_and(|body| body.guest.log(message))
    }
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FakeEngine").field("live", &self.live()).finish()
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            freeze: Ability::Present,
            memory_snapshot: Ability::Missing("the machines of the fake engine have no memory"),
            survive_gateway: Ability::Present,
        }
    }

    fn disk(&self) -> Result<DiskSpace, EngineError> {
        let faults = self.host.faults();
        if faults.disk_unknown {
            return Err(EngineError::Host { step: "measure the disk", reason: "injected".to_owned() });
        }
        let (total, free) = faults.disk.unwrap_or((1 << 40, 1 << 40));
        Ok(DiskSpace { total, free })
    }

    async fn create(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, EngineError> {
        let faults = self.host.faults();
        let body = self.host.start(&spec)?;
        let kept = spec.disk == Disk::Kept;
        let mut unfinished = Unfinished { body: Some(Arc::clone(&body)), kept };
        tokio::time::sleep(faults.create_delay).await;
        if let Some(reason) = faults.create_error {
            return Err(EngineError::Host { step: "create", reason });
        }
        unfinished.body = None;
        Ok(Arc::new(FakeMachine::new(body)))
    }

    async fn adopt(
        &self,
        sandbox: SandboxId,
        record: &MachineRecord,
    ) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        if self.host.take(|faults| &mut faults.adopt_failures) {
            return Err(EngineError::Host { step: "adopt", reason: "injected".to_owned() });
        }
        let found = self.host.body(sandbox).filter(|body| &body.record() == record);
        Ok(found.map(|body| Arc::new(FakeMachine::new(body)) as Arc<dyn Machine>))
    }

    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<dyn Machine>>, EngineError> {
        let found = self.host.body(sandbox);
        Ok(found.map(|body| Arc::new(FakeMachine::new(body)) as Arc<dyn Machine>))
    }

    async fn kept(&self) -> Result<Vec<SandboxId>, EngineError> {
        Ok(self.disks())
    }

    async fn seal(
        &self,
        sandbox: SandboxId,
        build: BuildId,
        copied: oneshot::Sender<()>,
    ) -> Result<(), EngineError> {
        self.host.seal(sandbox, build).await?;
        let _ = copied.send(());
        Ok(())
    }

    async fn images(&self) -> Result<Vec<ImageUse>, EngineError> {
        Ok(self.image_uses())
    }

    async fn remove_image(&self, build: BuildId) -> Result<bool, EngineError> {
        Ok(self.host.remove_image(build))
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), EngineError> {
        tokio::time::sleep(self.host.faults().discard_delay).await;
        self.host.kept.lock().remove(&sandbox);
        Ok(())
    }

    async fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<SandboxId>, EngineError> {
        let ended: Vec<SandboxId> = self.live().into_iter().filter(|id| !keep.contains(id)).collect();
        for id in &ended {
            self.exit(*id);
        }
        self.host.kept.lock().retain(|id, _| keep.contains(id));
        Ok(ended)
    }
}

// === impl Host ===

impl Host {
    pub(in crate::runtime::fake) fn faults(&self) -> Faults {
        self.faults.lock().clone()
    }

    /// Counts an injected failure down. True: this time it fails.
    pub(in crate::runtime::fake) fn take(&self, counter: impl FnOnce(&mut Faults) -> &mut u32) -> bool {
        let mut faults = self.faults.lock();
        let left = counter(&mut faults);
        let fails = *left > 0;
        *left = left.saturating_sub(1);
        fails
    }

    pub(in crate::runtime::fake) fn service(&self, port: u16) -> Option<Service> {
        self.services.lock().get(&port).cloned()
    }

    pub(in crate::runtime::fake) fn forget(&self, sandbox: SandboxId, generation: u64, keep_disk: bool) {
        let mut machines = self.machines.lock();
        if machines.get(&sandbox).is_some_and(|body| body.generation == generation)
            && let Some(body) = machines.remove(&sandbox)
            && keep_disk
        {
            self.kept.lock().insert(sandbox, body.disk.lock().clone());
        }
    }

    pub(in crate::runtime::fake) fn reclaimed(&self, sandbox: SandboxId) -> u64 {
        self.reclaims.lock().push(sandbox);
        self.faults().reclaimable
    }

    fn body(&self, sandbox: SandboxId) -> Option<Arc<Body>> {
        self.machines.lock().get(&sandbox).cloned()
    }

    fn start(self: &Arc<Self>, spec: &MachineSpec) -> Result<Arc<Body>, EngineError> {
        let weak: Weak<Self> = Arc::downgrade(self);
        let mut machines = self.machines.lock();
        if machines.contains_key(&spec.sandbox) {
            return Err(EngineError::Host {
                step: "create",
                reason: format!("sandbox {} has a machine already", spec.sandbox),
            });
        }
        let mut kept = self.kept.lock();
        let disk = match spec.disk {
            // A disk is of use only on the image that it was written on.
            Disk::Kept => kept.get(&spec.sandbox).filter(|disk| disk.build == spec.build).cloned(),
            Disk::New => Some(self.images.lock().disk(spec.build)?),
        };
        let disk = disk.ok_or(EngineError::NoDisk(spec.sandbox))?;
        kept.remove(&spec.sandbox);
        let body = Arc::new(Body::new(spec, disk, weak));
        machines.insert(spec.sandbox, Arc::clone(&body));
        Ok(body)
    }
}

// === impl Unfinished ===

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            body.end(self.kept);
        }
    }
}
