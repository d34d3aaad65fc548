//! A warden with a data directory of its own, and the engine on top of it.

use std::{
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use firkin::{
    id::{BuildId, OsEntropy, SandboxId},
    runtime::{
        engine::{Disk, MachineSpec},
        namespace::{NamespaceEngine, WardenClient},
    },
    sandbox::Resources,
    warden,
};

use crate::support::host::{Scope, status};

/// Forking a process of many threads is only safe one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A data directory that outlives its servers.
pub(crate) struct Data {
    pub(crate) dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A running warden with its gateway's side.
pub(crate) struct Server {
    pub(crate) engine: Arc<NamespaceEngine>,
    pub(crate) client: WardenClient,
    pub(crate) scope: Scope,
    pub(crate) gateway_uid: u32,
}

/// Where the host's packages are on the same file system, so that `base` can be linked, and where an
/// ordinary user may walk: a checkout may lie in a home that is closed.
const DATA: &str = "/var/lib";

// === impl Data ===

impl Data {
    /// `None`: not root, and these tests cannot run.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new().prefix("firkin-test-").tempdir_in(DATA).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { dir, _turn: turn })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts a warden on the directory. Must be called inside a runtime.
    pub(crate) async fn serve(&self) -> Server {
        let (socket, scope, gateway_uid, run_dir) = self.fork();
        let (engine, client) = NamespaceEngine::connect(socket, &run_dir).await.unwrap();
        Server { engine, client, scope, gateway_uid }
    }

    /// An image with nothing in it but mount points: the tests' guest needs no file.
    pub(crate) fn image(&self) -> BuildId {
        let build = BuildId::generate(&OsEntropy);
        let image = self.path().join("templates").join(build.to_string());
        for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr"] {
            std::fs::create_dir_all(image.join("root").join(name)).unwrap();
        }
        let manifest =
            format!(r#"{{"format":1,"build":"{build}","kind":"imported","fingerprint":null,"notice":null}}"#);
        std::fs::write(image.join("image.json"), manifest).unwrap();
        build
    }

    pub(crate) fn fork(&self) -> (OwnedFd, Scope, u32, PathBuf) {
        let prepared = warden::prepare(&self.path(), None).unwrap();
        let scope = Scope { data_dir: self.path(), instance: prepared.instance() };
        let socket = warden::fork(&prepared, &guest(), &[]).unwrap();
        (socket, scope, prepared.gateway_uid(), prepared.run_dir())
    }
}

/// The warden's process id: the child of this process that bears its name.
pub(crate) fn pid() -> u32 {
    let own = std::process::id().to_string();
    let child = |pid: &u32| {
        status(*pid, "PPid:") == [own.as_str()]
            && status(*pid, "Name:") == ["firkin-warden"]
            && status(*pid, "State:").first().is_some_and(|state| state != "Z")
    };
    let look = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(child)
    };
    for _ in 0..200 {
        if let Some(pid) = look() {
            return pid;
        }
        // It takes its name a moment after it was forked.
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("no warden runs");
}

/// Ends a server and all its machines, as an operator would, and waits for the end.
pub(crate) fn shut_down(socket: &OwnedFd) {
    let socket = UnixDatagram::from(socket.try_clone().unwrap());
    socket.set_nonblocking(false).unwrap();
    socket.send(br#"{"seq":1,"call":{"call":"shutdown","stop_machines":true}}"#).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
}

/// A test that failed half way leaves machines: they are ended as an operator would end them.
impl Drop for Data {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if !std::thread::panicking() || !mounts.contains(&*self.path().to_string_lossy()) {
            return;
        }
        let Ok(prepared) = warden::prepare(&self.path(), None) else { return };
        let Ok(socket) = warden::fork(&prepared, &guest(), &[]) else { return };
        drop(prepared);
        shut_down(&socket);
    }
}

/// The tests' own guest, compiled once: what is tested here is the host's side.
fn guest() -> Vec<u8> {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    let compile = || {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-guest");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/warden/fake_guest.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let done = Command::new(rustc)
            .args([
                "--edition",
                "2024",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "strip=symbols",
                source,
                "-o",
            ])
            .arg(&program)
            .status()
            .unwrap();
        assert!(done.success());
        std::fs::read(program).unwrap()
    };
    GUEST.get_or_init(compile).clone()
}

/// A machine of the build, small.
pub(crate) fn spec(build: BuildId) -> MachineSpec {
    MachineSpec {
        sandbox: SandboxId::generate(&OsEntropy),
        generation: 1,
        build,
        resources: Resources { cpu_count: 1, memory_mb: 256, disk_mb: 512 },
        hostname: "e2b.local".to_owned(),
        disk: Disk::New,
    }
}
