//! The launcher: from a plan to a running first process of a machine.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use uuid::Uuid;

use super::slot::Slot;
use crate::{id::SandboxId, sandbox::Resources};

/// One step of a launch, for logs and for tests that make it fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making the namespaces of a slot.
    Slot,
    /// Starting the stager.
    Fork,
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
pub(crate) struct Launcher {}

/// A launch under way. Dropped unfinished, it is undone.
#[derive(Debug)]
#[must_use]
pub(crate) struct Launching {
    done: OwnedFd,
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

// === impl Launcher ===

impl Launcher {
    /// Compiles the system call filter.
    pub(crate) fn new() -> Result<Self, LaunchError> {
        Ok(Self {})
    }

    /// Starts a launch and does not wait for it. Any number may be under way.
    pub(crate) fn start(&self, plan: &LaunchPlan<'_>) -> Result<Launching, LaunchError> {
        let _ = plan;
        Err(LaunchError::Step { step: Step::Fork, source: io::ErrorKind::Unsupported.into() })
    }
}

// === impl Launching ===

impl Launching {
    /// The outcome of a launch that polled as readable or hung up. The stager is reaped; after an error nothing of
    /// the machine is left (its cgroups, socket and directory are the caller's).
    pub(crate) fn finish(self) -> Result<Launched, LaunchError> {
        Err(LaunchError::Step { step: Step::Fork, source: io::ErrorKind::Unsupported.into() })
    }
}

impl AsFd for Launching {
    /// Readable or hung up (`POLLIN | POLLHUP`) when [`Launching::finish`] will not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}
