//! A fake machine: the body that lives on the "host", the handle, and the link into it.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Host,
    disk::FakeDisk,
    guest::{self, Guest},
    wire::{Shears, wire},
};
use crate::{
    id::SandboxId,
    runtime::{
        engine::{EngineError, Machine, MachineRecord, MachineSpec, MachineStats},
        link::{GuestLink, LinkError, LinkStream, connect_control, connect_port},
        mux::{Mux, Side},
    },
    wire::link::Nonce,
};

/// What "runs": it outlives every handle, until it ends.
pub(super) struct Body {
    pub(super) sandbox: SandboxId,
    pub(super) generation: u64,
    pub(super) guest: Guest,
    pub(super) host: Weak<Host>,
    pub(super) ended: CancellationToken,
    pub(super) disk: Mutex<FakeDisk>,
    pub(super) host_api: Mutex<Option<SocketAddr>>,
    memory_mb: u32,
    frozen: watch::Sender<bool>,
    attached: Mutex<Option<Shears>>,
}

/// A handle.
pub(super) struct FakeMachine {
    body: Arc<Body>,
    link: Arc<FakeLink>,
}

/// The way in: one mux at a time, made again after a cut.
struct FakeLink {
    body: Arc<Body>,
    mux: Mutex<Option<Arc<Mux>>>,
}

// === impl Body ===

impl Body {
    pub(super) fn new(spec: &MachineSpec, disk: FakeDisk, host: Weak<Host>) -> Self {
        Self {
            sandbox: spec.sandbox,
            generation: spec.generation,
            guest: Guest::default(),
            host,
            ended: CancellationToken::new(),
            disk: Mutex::new(disk),
            host_api: Mutex::default(),
            memory_mb: spec.resources.memory_mb,
            frozen: watch::Sender::new(false),
            attached: Mutex::default(),
        }
    }

    pub(super) fn record(&self) -> MachineRecord {
        serde_json::json!({ "fake": self.sandbox, "generation": self.generation })
    }

    /// The end, by itself or by order.
    pub(super) fn end(&self, keep_disk: bool) {
        self.cut();
        // Whoever hears of the end finds the disk.
        if let Some(host) = self.host.upgrade() {
            host.forget(self.sandbox, self.generation, keep_disk);
        }
        self.ended.cancel();
    }

    pub(super) fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    pub(super) fn cut(&self) -> bool {
        self.attached.lock().take().map(|shears| shears.cut()).is_some()
    }

    pub(super) fn cut_after(&self, bytes: u64) -> bool {
        self.attached.lock().as_ref().map(|shears| shears.cut_after(bytes)).is_some()
    }

    /// Resolves when time runs in the machine.
    pub(super) async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender lives in `self`.
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }

    /// A new gateway on the machine's only channel; an earlier one loses it.
    fn plug(self: &Arc<Self>) -> io::Result<Mux> {
        if self.ended.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the machine is gone"));
        }
        let (near, far, shears) = wire();
        if let Some(earlier) = self.attached.lock().replace(shears) {
            earlier.cut();
        }
        tokio::spawn(guest::serve(Arc::clone(self), Mux::new(far, Side::Listener)));
        Ok(Mux::new(near, Side::Dialler))
    }

    fn alive(&self) -> Result<(), EngineError> {
        if self.ended.is_cancelled() { Err(EngineError::Gone) } else { Ok(()) }
    }
}

// === impl FakeMachine ===

impl FakeMachine {
    pub(super) fn new(body: Arc<Body>) -> Self {
        let link = Arc::new(FakeLink { body: Arc::clone(&body), mux: Mutex::default() });
        Self { body, link }
    }
}

impl fmt::Debug for FakeMachine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FakeMachine({}, {})", self.body.sandbox, self.body.generation)
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn record(&self) -> MachineRecord {
        self.body.record()
    }

    fn link(&self) -> Arc<dyn GuestLink> {
        Arc::clone(&self.link) as Arc<dyn GuestLink>
    }

    async fn stop(&self, _grace: Duration) -> Result<(), EngineError> {
        if let Some(host) = self.body.host.upgrade() {
            tokio::time::sleep(host.faults().stop_delay).await;
            if host.take(|faults| &mut faults.stop_failures) {
                return Err(EngineError::Host { step: "stop", reason: "injected".to_owned() });
            }
        }
        self.body.end(false);
        Ok(())
    }

    async fn shelve(&self) -> Result<(), EngineError> {
        if !self.body.ended.is_cancelled() {
            self.body.end(true);
        }
        Ok(())
    }

    async fn freeze(&self) -> Result<(), EngineError> {
        self.body.alive()?;
        if self.body.host.upgrade().is_some_and(|host| host.take(|faults| &mut faults.freeze_failures)) {
            return Err(EngineError::Host { step: "freeze", reason: "injected".to_owned() });
        }
        self.body.frozen.send_replace(true);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), EngineError> {
        self.body.alive()?;
        self.body.frozen.send_replace(false);
        Ok(())
    }

    async fn reclaim(&self) -> Result<u64, EngineError> {
        self.body.alive()?;
        if !self.body.is_frozen() {
            return Err(EngineError::Host {
                step: "take memory back",
                reason: "it is not frozen".to_owned(),
            });
        }
        Ok(self.body.host.upgrade().map_or(0, |host| host.reclaimed(self.body.sandbox)))
    }

    async fn host_socket(&self) -> Result<TcpListener, EngineError> {
        self.body.alive()?;
        let failed =
            |error: io::Error| EngineError::Host { step: "open the host API", reason: error.to_string() };
        // A task has no network of its own: the port is its.
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        *self.body.host_api.lock() = Some(socket.local_addr().map_err(failed)?);
        Ok(socket)
    }

    async fn stats(&self) -> Result<MachineStats, EngineError> {
        self.body.alive()?;
        // A task has no memory of its own: only what was given to it is known, and what a test says.
        Ok(MachineStats {
            memory_bytes: self.body.host.upgrade().map_or(0, |host| host.faults().memory_bytes),
            memory_limit_bytes: u64::from(self.body.memory_mb) << 20,
            ..MachineStats::default()
        })
    }

    async fn exited(&self) {
        self.body.ended.cancelled().await;
    }
}

// === impl FakeLink ===

impl FakeLink {
    async fn stream(&self) -> io::Result<crate::runtime::mux::MuxStream> {
        let mux = {
            let mut mux = self.mux.lock();
            match mux.as_ref().filter(|mux| !mux.is_gone()) {
                Some(mux) => Arc::clone(mux),
                None => Arc::clone(mux.insert(Arc::new(self.body.plug()?))),
            }
        };
        mux.open().await
    }
}

impl fmt::Debug for FakeLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FakeLink({}, {})", self.body.sandbox, self.body.generation)
    }
}

#[async_trait]
impl GuestLink for FakeLink {
    async fn open(&self, port: u16) -> Result<LinkStream, LinkError> {
        Ok(Box::new(connect_port(self.stream().await?, port).await?))
    }

    async fn open_control(&self, nonce: Nonce) -> Result<(LinkStream, u32), LinkError> {
        let (stream, generation) = connect_control(self.stream().await?, nonce).await?;
        Ok((Box::new(stream), generation))
    }
}
