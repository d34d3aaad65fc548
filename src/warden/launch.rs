//! The launcher: from a plan to a running first process of a machine.
//!
//! ```text
//!   warden --fork--> stager (host root)                  clones and idmaps the layers, stages them,
//!      |                |                                becomes the slot's root
//!      |                +--clone3, warden's child--> machine's first process (root of the slot)
//!      |                     new mount, pid, uts, ipc and cgroup namespaces: overlay, kernel files,
//!      |                     pivot_root, limits, capabilities, filter --execveat--> guest
//!      +--- polls a pipe that closes when both are done ---> finish: reap the stager, Launched or an error
//! ```
//! Several launches may be under way: they share nothing but the [`Launcher`], which is constant.
//! The owner of both processes is [`Launching`]: finished with an error, or dropped, it kills and
//! reaps what there is of them, and with the processes go their mounts and namespaces. How far
//! they came and why they stopped is in one page of memory that the three share; the pipe carries
//! nothing, its end is the event. A warden that is killed in the middle leaves at most one
//! process in the machine's cgroup, where the next warden's sweep finds it.
//!
//! Why two processes: the layers are staged in a mount namespace that belongs to the host's user
//! namespace and inherited by one that belongs to the slot's. The kernel locks every mount that is
//! inherited that way, and its read-only flag: nothing in the machine, not even its first
//! process before it gives up `CAP_SYS_ADMIN`, can write to a layer, uncover or unmount it.
//!
//! Until `pivot_root` no name that an image or a user chose is looked up except beneath a
//! descriptor and without following links; afterwards there is no host to find.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use uuid::Uuid;

use super::{
    seccomp::{Filter, FilterError},
    slot::Slot,
    syscall::Shared,
    worker::fork_bound,
};
use crate::{id::SandboxId, sandbox::Resources};

mod first;
mod kernel_files;
mod stager;
#[cfg(test)]
mod tests;
mod trial;

use trial::Trial;

/// One step of a launch, in their order: for logs, and for tests that make each of them fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Step {
    /// Making the namespaces of a slot; before any launch.
    Slot,
    /// Starting the stager.
    Fork,
    /// Stager: joining the guest's cgroups.
    Cgroups,
    /// Stager: cloning the layers with the slot's id mapping.
    Layers,
    /// Stager: its own mount namespace, with the layers in it.
    Stage,
    /// Stager: becoming the slot's root.
    Enter,
    /// Stager: starting the first process.
    Clone,
    /// First process: mounting the overlays.
    Overlays,
    /// First process: making proc, sysfs and the other kernel file systems.
    KernelFiles,
    /// First process: leaving the host's file system.
    Pivot,
    /// First process: attaching the kernel file systems.
    Attach,
    /// First process: hiding and write-protecting parts of them.
    Masks,
    /// First process: host name, limits, session, processors.
    Settings,
    /// First process: giving up all descriptors but the guest's.
    Descriptors,
    /// First process: giving up capabilities.
    Capabilities,
    /// First process: the system call filter.
    Filter,
    /// First process: becoming the guest.
    Exec,
}

/// Why a machine did not start. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The kernel refused a step.
    #[error("launch step {step:?}: {source}")]
    Step {
        /// The step.
        step: Step,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A process of the launch was killed from outside.
    #[error("the launch was killed at step {0:?}")]
    Killed(Step),
    /// The system call filter does not compile.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// One overlay of the machine's file system.
#[derive(Debug)]
pub(crate) struct LaunchMount<'a> {
    /// Where it is mounted: empty for the root, else a top-level directory such as `usr`.
    pub(crate) at: &'static str,
    /// Read-only layers, top first: directories, `O_PATH` is enough.
    pub(crate) lowers: &'a [OwnedFd],
    /// The writable layer: a directory of [`LaunchPlan::disk`].
    pub(crate) upper: &'a str,
    /// Overlay's work directory: a directory of [`LaunchPlan::disk`], empty.
    pub(crate) work: &'a str,
}

/// Files of the machine's cgroups that the guest reads to tell how much it uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StatsFiles<'a> {
    /// `memory.current` or v1's `memory.usage_in_bytes`.
    pub(crate) memory_current: Option<BorrowedFd<'a>>,
    /// `memory.stat`.
    pub(crate) memory_stat: Option<BorrowedFd<'a>>,
    /// `cpu.stat` or v1's `cpuacct.usage`.
    pub(crate) cpu_usage: Option<BorrowedFd<'a>>,
    /// Whether these are files of cgroup v2.
    pub(crate) v2: bool,
}

/// All that a machine is made of. No path is in it: what it needs of the host is open already.
#[derive(Debug)]
pub(crate) struct LaunchPlan<'a> {
    /// Whose machine.
    pub(crate) sandbox: SandboxId,
    /// Its namespaces and ids.
    pub(crate) slot: &'a Slot,
    /// The machine's directory, with the upper and work directories owned by host root.
    pub(crate) disk: BorrowedFd<'a>,
    /// Its overlays, the root first.
    pub(crate) mounts: &'a [LaunchMount<'a>],
    /// The guest: a sealed memfd.
    pub(crate) guest: BorrowedFd<'a>,
    /// The link: a listening unix socket.
    pub(crate) listener: BorrowedFd<'a>,
    /// `cgroup.procs` files, open for writing: the groups of the guest itself.
    pub(crate) guest_cgroups: &'a [BorrowedFd<'a>],
    /// `cgroup.procs` files, open for writing: the groups of what the guest runs.
    pub(crate) work_cgroups: &'a [BorrowedFd<'a>],
    /// What the guest may read of its use.
    pub(crate) stats: StatsFiles<'a>,
    /// The host name inside, at most 64 bytes.
    pub(crate) hostname: &'a str,
    /// What the machine shows as its boot id.
    pub(crate) boot_id: Uuid,
    /// The size.
    pub(crate) resources: Resources,
}

/// What every launch of one warden shares: made once, before the first launch.
#[derive(Debug)]
pub(crate) struct Launcher {
    filter: Filter,
    trial: Trial,
}

/// A launch under way. Dropped unfinished, it is undone.
#[derive(Debug)]
#[must_use]
pub(crate) struct Launching {
    done: OwnedFd,
    track: Shared<Track>,
    stager: Option<Pid>,
}

/// A machine's first process, which has become the guest.
#[derive(Debug)]
pub(crate) struct Launched {
    /// On the host; a child of the warden that launched it.
    pub(crate) pid: i32,
    /// Readable when it ended.
    pub(crate) pidfd: OwnedFd,
    /// In clock ticks since the host's boot (field 22 of `/proc/PID/stat`).
    pub(crate) start_time: u64,
}

/// How far a launch has come: written by its processes, read by the warden when they are done.
#[derive(Debug, Default)]
struct Track {
    /// The first process on the host, 0 before there is one.
    pid: AtomicI32,
    /// The present [`Step`].
    step: AtomicU32,
    /// Why it failed, 0 if it did not.
    errno: AtomicI32,
}

/// What the launch's own processes work with.
struct Launch<'a> {
    plan: &'a LaunchPlan<'a>,
    launcher: &'a Launcher,
    track: &'a Track,
    /// The end of the pipe that must stay open until the guest runs.
    done: BorrowedFd<'a>,
    arguments: Vec<CString>,
}

// === impl Step ===

impl Step {
    const ALL: [Self; 17] = [
        Self::Slot,
        Self::Fork,
        Self::Cgroups,
        Self::Layers,
        Self::Stage,
        Self::Enter,
        Self::Clone,
        Self::Overlays,
        Self::KernelFiles,
        Self::Pivot,
        Self::Attach,
        Self::Masks,
        Self::Settings,
        Self::Descriptors,
        Self::Capabilities,
        Self::Filter,
        Self::Exec,
    ];

    fn failed(self, source: impl Into<io::Error>) -> LaunchError {
        LaunchError::Step { step: self, source: source.into() }
    }
}

// === impl Track ===

impl Track {
    fn step(&self) -> Step {
        usize::try_from(self.step.load(Ordering::Acquire))
            .ok()
            .and_then(|step| Step::ALL.get(step).copied())
            .unwrap_or(Step::Fork)
    }

    fn fail(&self, error: &io::Error) {
        self.errno.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
    }
}

// === impl Launch ===

impl Launch<'_> {
    /// Says that a step begins.
    fn begin(&self, step: Step) -> io::Result<()> {
        self.track.step.store(step as u32, Ordering::Release);
        self.launcher.trial.begin(step)
    }
}

// === impl Launcher ===

impl Launcher {
    /// Compiles the system call filter.
    pub(crate) fn new() -> Result<Self, LaunchError> {
        Ok(Self { filter: Filter::native()?, trial: Trial::default() })
    }

    /// Starts a launch and does not wait for it. Any number may be under way.
    pub(crate) fn start(&self, plan: &LaunchPlan<'_>) -> Result<Launching, LaunchError> {
        let arguments = self.arguments(plan).map_err(|source| Step::Fork.failed(source))?;
        let track = Shared::<Track>::new().map_err(|source| Step::Fork.failed(source))?;
        track.step.store(Step::Fork as u32, Ordering::Release);
        let (done, running) = io::pipe().map_err(|source| Step::Fork.failed(source))?;
        let stager = fork_bound(|| {
            let launch = Launch { plan, launcher: self, track: &track, done: running.as_fd(), arguments };
            match stager::run(&launch) {
                Ok(()) => 0,
                Err(error) => {
                    track.fail(&error);
                    1
                }
            }
        })
        .map_err(|source| Step::Fork.failed(source))?;
        Ok(Launching { done: done.into(), track, stager: Some(stager) })
    }

    /// The guest's arguments: name, sandbox, and as JSON which of its descriptors is what. The
    /// numbers follow [`first`]'s order of descriptors.
    fn arguments(&self, plan: &LaunchPlan<'_>) -> io::Result<Vec<CString>> {
        if let Some(arguments) = &self.trial.arguments {
            return Ok(arguments.clone());
        }
        let numbers = first::Numbers::of(plan);
        let boot = serde_json::json!({
            "listener": numbers.listener,
            "work_cgroups": numbers.work_cgroups,
            "stats": {
                "memory_current": numbers.memory_current,
                "memory_stat": numbers.memory_stat,
                "cpu_usage": numbers.cpu_usage,
                "v2": plan.stats.v2,
            },
            "memory_mb": plan.resources.memory_mb,
            "cpu_count": plan.resources.cpu_count,
        });
        let texts = ["firkin-guest".to_owned(), plan.sandbox.to_string(), boot.to_string()];
        texts.into_iter().map(|text| CString::new(text).map_err(io::Error::from)).collect()
    }
}

// === impl Launching ===

impl Launching {
    /// The outcome of a launch that polled as hung up. The stager is reaped; after an error
    /// nothing of the machine is left (its cgroups, socket and directory are the caller's).
    pub(crate) fn finish(mut self) -> Result<Launched, LaunchError> {
        if let Some(stager) = self.stager.take() {
            reap(stager);
        }
        let step = self.track.step();
        let errno = self.track.errno.load(Ordering::Acquire);
        if errno != 0 {
            return Err(step.failed(io::Error::from_raw_os_error(errno)));
        }
        // The pipe also closes when a process is killed: before the last step, or after it, when
        // the first process is a zombie.
        let Some(pid) = self.first().filter(|_| step == Step::Exec) else {
            return Err(LaunchError::Killed(step));
        };
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|source| Step::Exec.failed(source))?;
        let start_time = start_time(pid).map_err(|source| Step::Exec.failed(source))?;
        self.track.pid.store(0, Ordering::Release);
        Ok(Launched { pid: pid.as_raw_nonzero().get(), pidfd, start_time })
    }

    fn first(&self) -> Option<Pid> {
        Pid::from_raw(self.track.pid.load(Ordering::Acquire))
    }
}

impl AsFd for Launching {
    /// Hung up (`POLLHUP`, which poll reports unasked) when [`Launching::finish`] will not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        // In this order: a stager that is gone cannot make a first process any more.
        if let Some(stager) = self.stager {
            let _ = rustix::process::kill_process(stager, Signal::KILL);
            reap(stager);
        }
        if let Some(first) = self.first() {
            let _ = rustix::process::kill_process(first, Signal::KILL);
            reap(first);
        }
    }
}

/// Waits for a child that ends by itself or was killed.
fn reap(pid: Pid) -> Option<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(found) => return found.map(|(_, status)| status),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
fn start_time(pid: Pid) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // The second field is the program's name and may hold anything, so count from its end: state is field 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
