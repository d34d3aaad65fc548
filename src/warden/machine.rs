//! One machine as its owner, the warden, knows it.
//!
//! ```text
//!   queued --begin--> Starting --launched, recorded--> Live --exit of pid 1, Stop--> Ending --> (forgotten)
//!                        \---------- failed, Stop -------------------------------^
//! ```
//! Everything that a machine holds (slot, cgroups, socket, directory, processes) is taken in
//! `begin` and given back in one place, when an Ending machine has no process left. The record
//! on disk is written after the processes exist and before anybody hears of them: a warden that
//! finds a directory without a valid record knows that nobody was ever promised that machine.

use std::{os::fd::OwnedFd, time::Instant};

use serde::{Deserialize, Serialize};

use super::launch::Launching;
use crate::{
    id::{BuildId, SandboxId},
    wire::warden::{Cause, MachineInfo},
};

pub(super) mod record;
pub(super) mod room;
mod table;

pub(super) use table::Machines;

/// What is known of a machine on disk: enough to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) sandbox: SandboxId,
    pub(super) generation: u64,
    pub(super) build: BuildId,
    /// Which id range its processes have.
    pub(super) slot: u32,
    /// Process 1 of the machine, as the host numbers it.
    pub(super) pid: i32,
    /// When it was started, in ticks since boot.
    pub(super) start_time: u64,
    /// Which boot that was.
    pub(super) boot_id: String,
    /// The images that it is mounted from, its own first; empty: an earlier version made it.
    #[serde(default)]
    pub(super) lineage: Vec<BuildId>,
    /// The size of its disk, in MiB; 0: not known.
    #[serde(default)]
    pub(super) disk_mb: u32,
}

/// A machine that holds something.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) record: Record,
    pub(super) phase: Phase,
    /// Names pid 1; with its token in the poll set.
    pub(super) process: Option<(OwnedFd, u64)>,
    /// Tells of empty and frozen; with its token in the poll set.
    pub(super) groups: Option<(OwnedFd, u64)>,
    pub(super) frozen: bool,
    /// Leads connections to the host API's socket.
    pub(super) steering: Option<OwnedFd>,
    /// What its disk held when that was last counted.
    pub(super) disk: Option<Counted>,
    /// Processes that were ended because they wrote too much.
    pub(super) writers_ended: u64,
}

/// One count of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) when: Instant,
    /// Bytes.
    pub(super) used: u64,
    /// What the host's file system had left then, in bytes.
    pub(super) host_free: u64,
}

/// Where a machine stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// A stager builds it.
    Starting(Starting),
    /// Its guest runs.
    Live {
        /// A freeze or thaw that waits for the kernel: its request, and what is wanted.
        settling: Option<(u64, bool)>,
    },
    /// It is on its way out.
    Ending(Ending),
}

/// A launch under way.
#[derive(Debug)]
pub(super) struct Starting {
    /// The request that it answers.
    pub(super) create: u64,
    pub(super) launching: Launching,
    /// In the poll set.
    pub(super) token: u64,
    /// Stops that came meanwhile.
    pub(super) stops: Vec<u64>,
    /// Whether they all keep the writable layer, and it was one that had been kept.
    pub(super) keep_disk: bool,
}

/// A teardown under way, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Stops to answer.
    pub(super) stops: Vec<u64>,
    /// A create to refuse.
    pub(super) create: Option<(u64, String, Cause)>,
    /// Whether the gateway must be told of it.
    pub(super) notify: bool,
    /// Whether the writable layer stays.
    pub(super) keep_disk: bool,
    /// The machine never lived: a layer that waited for it goes on waiting.
    pub(super) unborn: bool,
    /// Pid 1 has been seen to end, or never was.
    pub(super) exited: bool,
}

// === impl Record ===

impl Record {
    /// The name of the link's socket.
    pub(super) fn socket(&self) -> String {
        format!("{}.{}.sock", self.sandbox, self.generation)
    }

    /// The size of its disk, in bytes; 0: not known.
    pub(super) fn disk_size(&self) -> u64 {
        u64::from(self.disk_mb) << 20
    }

    /// The name of directory and cgroups.
    pub(super) fn name(&self) -> &str {
        self.sandbox.as_str()
    }
}

// === impl Machine ===

impl Machine {
    pub(super) fn new(record: Record, phase: Phase) -> Self {
        let steering = None;
        Self {
            record,
            phase,
            process: None,
            groups: None,
            frozen: false,
            steering,
            disk: None,
            writers_ended: 0,
        }
    }

    /// Whether it lives and waits for nothing.
    fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Live { settling: None })
    }

    /// Whether it may be shown to the gateway.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    pub(super) fn info(&self) -> MachineInfo {
        MachineInfo {
            sandbox: self.record.sandbox,
            generation: self.record.generation,
            pid: self.record.pid,
            start_time: self.record.start_time,
            socket: self.record.socket(),
            frozen: self.frozen,
        }
    }
}
