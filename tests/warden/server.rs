//! A warden with a data directory of its own, and the engine on top of it.

use std::{
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firkin::{
    id::{BuildId, OsEntropy, SandboxId},
    runtime::{
        engine::MachineSpec,
        namespace::{NamespaceEngine, WardenClient},
    },
    sandbox::Resources,
    warden,
};

use crate::support::host::Scope;

/// Forking a process of many threads is only safe one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A data directory that outlives its servers.
pub struct Data {
    pub dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A running warden with its gateway's side.
pub struct Server {
    pub engine: Arc<NamespaceEngine>,
    pub client: WardenClient,
    pub scope: Scope,
    pub gateway_uid: u32,
}

// === impl Data ===

impl Data {
    /// `None`: not root, and these tests cannot run.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the host's packages are on the same file system, so that `base` can be linked.
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::Builder::new().prefix("warden-").tempdir_in(target).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { dir, _turn: turn })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts a warden on the directory. Must be called inside a runtime.
    pub async fn serve(&self) -> Server {
        let (socket, scope, gateway_uid, run_dir) = self.fork();
        let (engine, client) = NamespaceEngine::connect(socket, &run_dir).await.unwrap();
        Server { engine, client, scope, gateway_uid }
    }

    pub fn fork(&self) -> (OwnedFd, Scope, u32, PathBuf) {
        let prepared = warden::prepare(&self.path()).unwrap();
        let scope = Scope { data_dir: self.path(), instance: prepared.instance() };
        let guest = std::fs::read(guest()).unwrap();
        let socket = warden::fork(&prepared, &guest, &[]).unwrap();
        (socket, scope, prepared.gateway_uid(), prepared.run_dir())
    }
}

/// The guest that was built for this run, else a program that only ends.
fn guest() -> PathBuf {
    let built =
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/guest/x86_64-unknown-linux-gnu/guest/firkin-guest");
    let built = PathBuf::from(built);
    if built.is_file() { built } else { PathBuf::from("/bin/true") }
}

/// A machine of the build, small.
pub fn spec(build: BuildId) -> MachineSpec {
    MachineSpec {
        sandbox: SandboxId::generate(&OsEntropy),
        generation: 1,
        build,
        resources: Resources { cpu_count: 1, memory_mb: 256, disk_mb: 512 },
        hostname: "e2b.local".to_owned(),
    }
}
