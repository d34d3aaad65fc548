//! Launches for real, as root, in a temporary directory.

use std::{ffi::CString, io};

use super::Step;

/// What a test changes about a launch.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Runs in the launch's process when the step begins; an error makes the step fail.
    pub(super) at: Option<(Step, fn() -> io::Result<()>)>,
    /// In place of the guest's arguments.
    pub(super) arguments: Option<Vec<CString>>,
}

// === impl Trial ===

impl Trial {
    pub(super) fn begin(&self, step: Step) -> io::Result<()> {
        match self.at {
            Some((at, act)) if at == step => act(),
            _ => Ok(()),
        }
    }
}

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use uuid::Uuid;

use super::{LaunchError, LaunchMount, LaunchPlan, Launched, Launcher, Launching, StatsFiles};
use crate::{sandbox::Resources, warden::slot::Slot};

/// Far from the ranges of any instance.
const BASE: u32 = 0x3000_0000;
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine's files: an image with a shell, and an empty writable layer.
struct Bench {
    dir: tempfile::TempDir,
    slot: Slot,
    lowers: Vec<OwnedFd>,
    disk: OwnedFd,
    guest: OwnedFd,
    listener: UnixListener,
}

fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn memfd(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(rustix::fs::memfd_create("firkin-guest", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    // An executable that is open for writing is busy.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    File::open(path).unwrap().into()
}

// === impl Bench ===

impl Bench {
    /// None (and a word on it) where the host has no static shell to put into an image.
    fn new(index: u32) -> Option<Self> {
        let Ok(shell) = fs::read("/bin/busybox") else {
            println!("skipped: install busybox-static to run the launcher's tests");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["image/bin", "image/etc", "image/proc", "image/tmp", "disk/ru", "disk/rw"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("image/bin/busybox"), &shell).unwrap();
        fs::set_permissions(at("image/bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(at("image/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("image/etc/lower"), "lower\n").unwrap();
        Some(Self {
            slot: Slot::make(index, BASE + index * 65_536).unwrap(),
            lowers: vec![directory(&at("image"))],
            disk: directory(&at("disk")),
            guest: memfd(&shell),
            listener: UnixListener::bind(at("link.sock")).unwrap(),
            dir,
        })
    }

    fn start(&self, launcher: &Launcher) -> Result<Launching, LaunchError> {
        let mounts = [LaunchMount { at: "", lowers: &self.lowers, upper: "ru", work: "rw" }];
        launcher.start(&LaunchPlan {
            sandbox: "i0123456789abcdefghij".parse().unwrap(),
            slot: &self.slot,
            disk: self.disk.as_fd(),
            mounts: &mounts,
            guest: self.guest.as_fd(),
            listener: self.listener.as_fd(),
            guest_cgroups: &[],
            work_cgroups: &[],
            stats: StatsFiles::default(),
            hostname: "machine",
            boot_id: Uuid::from_u128(7),
            resources: Resources { cpu_count: 1, memory_mb: 512, disk_mb: 1024 },
        })
    }

    /// Runs a script as the machine's first process and returns what it wrote to `/out`.
    fn script(&self, script: &str) -> String {
        let mut launcher = Launcher::new().unwrap();
        launcher.trial.arguments = Some(shell(script));
        let machine = finish(self.start(&launcher).unwrap()).unwrap();
        await_end(machine);
        fs::read_to_string(self.dir.path().join("disk/ru/out")).unwrap_or_default()
    }
}

fn shell(script: &str) -> Vec<CString> {
    let script = format!("/bin/busybox --install -s /bin; export PATH=/bin; exec >/out 2>&1; {script}");
    ["sh", "-c", script.as_str()].map(|text| CString::new(text).unwrap()).to_vec()
}

/// Waits until a descriptor is readable or hung up.
fn await_event(fd: BorrowedFd<'_>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = nix::poll::PollTimeout::try_from(left).unwrap();
        let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, left) {
            Ok(0) => panic!("nothing happened in {PATIENCE:?}"),
            Ok(_) => return,
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn finish(launching: Launching) -> Result<Launched, LaunchError> {
    await_event(launching.as_fd());
    launching.finish()
}

fn await_end(machine: Launched) {
    await_event(machine.pidfd.as_fd());
    super::reap(rustix::process::Pid::from_raw(machine.pid).unwrap());
}

#[test]
fn a_script_runs() {
    let Some(bench) = Bench::new(1) else { return };
    println!("{}", bench.script("id; ls -la / /dev /proc/self/fd; cat /proc/mounts /proc/self/status /proc/meminfo; hostname; nproc; ip a; cat /proc/self/maps; ls -l /proc/self/; cat /proc/sys/kernel/random/boot_id; cat /proc/cgroups /proc/self/cgroup /proc/self/mountinfo; ulimit -a;free"));
}
