//! What a machine is launched from in these tests, and the process of its own that each of them runs in.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    mount::MountPropagationFlags,
    process::{Pid, Signal},
};
use uuid::Uuid;

use super::super::{
    LaunchError, LaunchMount, LaunchPlan, Launched, Launcher, Launching, StatsFiles, trial::At,
};
use crate::{
    sandbox::Resources,
    warden::{slot::Slot, syscall, worker::fork_into},
};

/// Far from the ranges of any instance.
pub(super) const BASE: u32 = 0x3000_0000;
const PATIENCE: Duration = Duration::from_secs(20);
const TEST_TIME: Duration = Duration::from_mins(2);
static TURN: Mutex<()> = Mutex::new(());

/// A machine's files: an image with a shell, and an empty writable layer.
pub(super) struct Bench {
    pub(super) slot: Slot,
    /// Image directories with their mount points.
    pub(super) images: Vec<(&'static str, Vec<OwnedFd>)>,
    pub(super) disk: OwnedFd,
    pub(super) guest: OwnedFd,
    pub(super) listener: UnixListener,
    pub(super) work: File,
    pub(super) dir: tempfile::TempDir,
}

/// Runs a test as the warden would: root, one thread, mounts of its own.
pub(super) fn alone(test: fn(&[u8])) {
    let Ok(shell) = fs::read("/bin/busybox") else {
        println!("skipped: install busybox-static to run the launcher's tests");
        return;
    };
    // One after the other: a fork while another test panics would inherit the panic's lock.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut said, says) = io::pipe().unwrap();
    let child = fork_into(|| {
        let outcome = syscall::unshare_mounts()
            .and_then(|()| {
                Ok(rustix::mount::mount_change(
                    "/",
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
                )?)
            })
            .map_err(|error| format!("run the tests as root: {error}"))
            .and_then(|()| catch_unwind(AssertUnwindSafe(|| test(&shell))).map_err(|panic| words(&panic)));
        let Err(message) = outcome else { return 0 };
        let _ = (&says).write_all(message.as_bytes());
        1
    })
    .unwrap();
    drop(says);
    if !happens(said.as_fd(), TEST_TIME) {
        let _ = rustix::process::kill_process(child, Signal::KILL);
        super::super::reap(child);
        panic!("not done in {TEST_TIME:?}");
    }
    let mut message = String::new();
    said.read_to_string(&mut message).unwrap();
    let status = super::super::reap(child).unwrap();
    assert_eq!(status.exit_status(), Some(0), "{message}");
}

fn words(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

pub(super) fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn memfd(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(rustix::fs::memfd_create("firkin-guest", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    // An executable that is open for writing is busy.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
}

// === impl Bench ===

impl Bench {
    pub(super) fn new(shell: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["image/bin", "image/etc", "image/tmp", "disk/ru", "disk/rw", "disk/uu", "disk/uw"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("image/bin/busybox"), shell).unwrap();
        fs::set_permissions(at("image/bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(at("image/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("image/etc/lower"), "lower\n").unwrap();
        Self {
            slot: Slot::make(3, BASE).unwrap(),
            images: vec![("", vec![directory(&at("image"))])],
            disk: directory(&at("disk")),
            guest: memfd(shell),
            listener: UnixListener::bind(at("link.sock")).unwrap(),
            work: File::create(at("work.procs")).unwrap(),
            dir,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn start(&self, launcher: &Launcher) -> Result<Launching, LaunchError> {
        let mounts: Vec<LaunchMount<'_>> = self
            .images
            .iter()
            .zip([("ru", "rw"), ("uu", "uw")])
            .map(|((at, lowers), (upper, work))| LaunchMount { at, lowers, upper, work })
            .collect();
        launcher.start(&LaunchPlan {
            sandbox: "i0123456789abcdefghij".parse().unwrap(),
            slot: &self.slot,
            disk: self.disk.as_fd(),
            mounts: &mounts,
            guest: self.guest.as_fd(),
            listener: self.listener.as_fd(),
            guest_cgroups: &[],
            work_cgroups: &[self.work.as_fd()],
            stats: StatsFiles::default(),
            hostname: "machine",
            boot_id: Uuid::from_u128(7),
            resources: Resources { cpu_count: 1, memory_mb: 512, disk_mb: 1024 },
        })
    }

    /// Runs a script as the machine's first process and returns what it wrote.
    pub(super) fn script(&self, script: &str) -> String {
        self.script_at(script, None)
    }

    pub(super) fn script_at(&self, script: &str, at: Option<At>) -> String {
        let mut launcher = Launcher::new().unwrap();
        let script = format!("/bin/busybox --install -s /bin; export PATH=/bin; exec >/out 2>&1; {script}");
        launcher.trial.arguments = Some(arguments(&["sh", "-c", &script]));
        launcher.trial.at = at;
        let machine = finish(self.start(&launcher).unwrap()).unwrap();
        assert!(machine.start_time > 0);
        await_end(&machine);
        fs::read_to_string(self.path("disk/ru/out")).unwrap_or_default()
    }
}

pub(super) fn arguments(texts: &[&str]) -> Vec<CString> {
    texts.iter().map(|text| CString::new(*text).unwrap()).collect()
}

/// Whether a descriptor becomes readable or hangs up in time.
fn happens(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left =
            nix::poll::PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
        let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, left) {
            Ok(events) => return events > 0,
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) fn await_event(fd: BorrowedFd<'_>) {
    assert!(happens(fd, PATIENCE), "nothing happened in {PATIENCE:?}");
}

pub(super) fn finish(launching: Launching) -> Result<Launched, LaunchError> {
    await_event(launching.as_fd());
    launching.finish()
}

pub(super) fn await_end(machine: &Launched) {
    await_event(machine.pidfd.as_fd());
    super::super::reap(Pid::from_raw(machine.pid).unwrap());
}

/// Commands as a script that says of each whether it succeeded.
pub(super) fn attempts(commands: &[&str]) -> String {
    let attempts =
        commands.iter().map(|command| format!("({command}) >/dev/null 2>&1 && echo yes || echo no"));
    attempts.collect::<Vec<_>>().join("\n")
}
