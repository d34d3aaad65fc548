//! The engine contract: what makes machines, and what a machine can do.
//!
//! ```text
//!            create                    stop
//!   (none) ---------> live <-> frozen ------> gone        exited() resolves at "gone"
//!      ^     adopt      \________________________^
//!      |                 '---- shelve ----> (none), disk kept ---discard--> gone
//!      '------- create with Disk::Kept -------'
//! ```
//! An engine holds no policy. Its callers (one driver a sandbox) never call two methods of one
//! machine at the same time, except `stats`, `link` and `exited`, which may be called at any time.
//! Every test of this contract runs against every engine.

use std::{fmt, net::TcpListener, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    id::{BuildId, SandboxId},
    runtime::link::GuestLink,
    sandbox::Resources,
};

/// What a new machine is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Whose machine.
    pub sandbox: SandboxId,
    /// Which of the sandbox's machines; unique in the sandbox's life.
    pub generation: u64,
    /// The image.
    pub build: BuildId,
    /// The size.
    pub resources: Resources,
    /// The host name inside.
    pub hostname: String,
    /// What its writable disk starts from.
    pub disk: Disk,
}

/// What a machine's writable disk starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// Nothing but the image. A disk that was kept is given up.
    New,
    /// The disk that the sandbox's last machine left; without one there is no machine.
    Kept,
}

/// What the engine needs to find a machine again after a restart. Opaque to everybody else.
pub type MachineRecord = serde_json::Value;

/// What a machine uses; each figure is the machine's own, never the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineStats {
    /// CPU time used since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, in bytes.
    pub memory_bytes: u64,
    /// Of it, page cache, in bytes.
    pub cache_bytes: u64,
    /// The limit, in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes in its writable layer.
    pub disk_bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Processes that were ended because the disk was far over its size.
    pub writers_ended: u64,
}

/// The file system that machines write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Its size, in bytes.
    pub total: u64,
    /// What ordinary users may still write, in bytes.
    pub free: u64,
}

/// An image, and what it lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageUse {
    /// The image.
    pub build: BuildId,
    /// The image below it.
    pub parent: Option<BuildId>,
    /// Whether `seal` made it.
    pub sealed: bool,
}

/// An ability that not every engine has, with the reason where it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// The engine can.
    Present,
    /// It cannot, because of this.
    Missing(&'static str),
}

/// What an engine can do beyond making and ending machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Freeze and thaw.
    pub freeze: Ability,
    /// Snapshots that hold memory.
    pub memory_snapshot: Ability,
    /// Machines that outlive the gateway.
    pub survive_gateway: Ability,
}

/// Why an engine could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The machine is gone.
    #[error("the machine is gone")]
    Gone,
    /// The engine does not have this ability.
    #[error("{ability} is not available with the {engine} engine: {reason}")]
    Unsupported {
        /// The engine.
        engine: &'static str,
        /// What was asked.
        ability: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// No room: ids, memory, descriptors.
    #[error("no capacity: {0}")]
    Capacity(String),
    /// The host's disk is full; nothing was made.
    #[error("the host's disk is full")]
    DiskFull,
    /// No disk was kept for the sandbox.
    #[error("no disk of sandbox {0} was kept")]
    NoDisk(SandboxId),
    /// The build has no image on this host.
    #[error("build {0} has no image on this host")]
    NoImage(BuildId),
    /// The host could not do it; nothing is left behind.
    #[error("{step}: {reason}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// What the host said.
        reason: String,
    },
}

/// Makes machines.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// The engine's name in configuration, logs and answers.
    fn name(&self) -> &'static str;

    /// What it can do on this host. Constant after start.
    fn capabilities(&self) -> Capabilities;

    /// How much room there is on disk. Cheap.
    fn disk(&self) -> Result<DiskSpace, EngineError>;

    /// Makes a machine whose link accepts. All or nothing, also when the returned future is
    /// dropped: what was made is then released in the background.
    async fn create(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, EngineError>;

    /// Finds the machine of an earlier gateway. `Ok(None)`: it is gone for good and holds nothing.
    async fn adopt(
        &self,
        sandbox: SandboxId,
        record: &MachineRecord,
    ) -> Result<Option<Arc<dyn Machine>>, EngineError>;

    /// The machine of a sandbox, whoever made it. For those whose record names none.
    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<dyn Machine>>, EngineError>;

    /// The sandboxes whose disk is kept while they have no machine.
    async fn kept(&self) -> Result<Vec<SandboxId>, EngineError>;

    /// Makes image `build` of a sandbox's disk as it is now, on top of the image that it runs on.
    /// Legal when its machine is frozen, or when it has none and its disk was kept. When `copied`
    /// hears of it the machine may go on, be ended, or be sealed again, while the image is made
    /// durable; when this returns the image is there. All or nothing; one that is dropped may still
    /// leave its image, which `images` names.
    async fn seal(
        &self,
        sandbox: SandboxId,
        build: BuildId,
        copied: oneshot::Sender<()>,
    ) -> Result<(), EngineError>;

    /// The images of this host.
    async fn images(&self) -> Result<Vec<ImageUse>, EngineError>;

    /// Removes an image; one that is not there is already removed. False: a machine, a kept disk or
    /// another image uses it, and nothing was done.
    async fn remove_image(&self, build: BuildId) -> Result<bool, EngineError>;

    /// Gives up the disk of a sandbox that has no machine. Idempotent.
    async fn discard(&self, sandbox: SandboxId) -> Result<(), EngineError>;

    /// Ends every machine of this engine that is not in `keep`, adopted or not, with all it
    /// holds, and gives up the disks that were kept for others. Called once at start, after
    /// adoption. Returns whose machines were ended.
    async fn sweep(&self, keep: &[SandboxId]) -> Result<Vec<SandboxId>, EngineError>;
}

/// One isolated environment. Dropping the last handle does not end it: `stop` does. One that ends
/// by itself, live or frozen, leaves its disk as after `shelve`, until it is discarded or swept.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// What finds it again after a restart.
    fn record(&self) -> MachineRecord;

    /// The way in. Cheap; streams opened through it break when the machine ends.
    fn link(&self) -> Arc<dyn GuestLink>;

    /// Ends the machine: everything in it is killed at once, after at most `grace` for the guest
    /// to hear of it (zero: none). Idempotent. When it returns `Ok`, no process of the machine is
    /// left and its capacity can be given away; files may still be on their way out.
    async fn stop(&self, grace: Duration) -> Result<(), EngineError>;

    /// Ends the machine as `stop` does, without grace, but keeps its disk for the sandbox's next
    /// machine. Idempotent.
    async fn shelve(&self) -> Result<(), EngineError>;

    /// Stops time for all processes; memory stays. A no-op when frozen.
    async fn freeze(&self) -> Result<(), EngineError>;

    /// Lets a frozen machine go on. Legal when frozen; a no-op when live.
    async fn thaw(&self) -> Result<(), EngineError>;

    /// Takes memory back as far as nothing is lost: caches, and what can go to swap. Legal when
    /// frozen. Returns how many bytes came back. May be dropped half-way.
    async fn reclaim(&self) -> Result<u64, EngineError>;

    /// A socket that listens in the machine where programs look for the host API (192.0.2.1:80), for
    /// as long as it is open. One at a time.
    async fn host_socket(&self) -> Result<TcpListener, EngineError>;

    /// What it uses now.
    async fn stats(&self) -> Result<MachineStats, EngineError>;

    /// Resolves when the machine is gone, by itself or by `stop`. May be awaited by many.
    async fn exited(&self);
}
