//! Messages between the gateway and the warden, its only privileged helper.
//!
//! One JSON object a packet over a `SOCK_SEQPACKET` socket pair, at most [`MAX_PACKET`] bytes;
//! descriptors travel beside the packet that names them. The warden treats every packet as
//! hostile: a packet that does not parse is answered with [`Reply::Refused`] and has no effect, an id is only
//! ever an id of this instance, and no path crosses the boundary at all.

use serde::{Deserialize, Serialize};

use crate::{
    id::{BuildId, SandboxId},
    sandbox::Resources,
};

/// The largest packet, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// Descriptors of one packet.
pub const MAX_SOCKETS: usize = 16;

/// A request; answered by exactly one [`FromWarden::Answer`] of the same `seq`, in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the gateway.
    pub seq: u64,
    /// What to do.
    pub call: Call,
}

/// What the warden does for the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Makes a machine and starts its guest; its link accepts when the answer is here.
    /// Answered with [`Reply::Machine`].
    CreateMachine(CreateMachine),
    /// Ends a machine: kills every process, removes cgroups, socket and (unless kept) its
    /// writable layer. Idempotent; an unknown machine is already ended. Answered when the
    /// processes are gone; files are removed in the background.
    StopMachine {
        /// Whose machine.
        sandbox: SandboxId,
        /// Keep the writable layer for a later run.
        keep_disk: bool,
    },
    /// Stops every process of the machine without ending it.
    Freeze {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// Lets a frozen machine go on.
    Thaw {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// Takes memory of a frozen machine back, as far as nothing of it is lost: caches, and what can
    /// go to swap. Answered with [`Reply::Reclaimed`].
    Reclaim {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// Reads the machine's cgroups. Answered with [`Reply::Stats`].
    Stats {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// TCP sockets that live in the machine's network namespace, not yet connected, passed as
    /// descriptors. The caller connects them to a loopback address of the machine.
    PortSockets {
        /// Whose machine.
        sandbox: SandboxId,
        /// IPv6 instead of IPv4.
        v6: bool,
        /// How many, at least one and at most [`MAX_SOCKETS`].
        count: usize,
    },
    /// A TCP socket that listens in the machine's network namespace where programs look for the host
    /// API: 192.0.2.1, port 80. Passed as a descriptor. One a machine at a time.
    HostSocket {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// The machines of this instance that are alive, in the order of their ids, as many as fit
    /// one packet. Answered with [`Reply::Machines`].
    ListMachines {
        /// Only those after this one. None: from the first. An empty answer: there are no more.
        after: Option<SandboxId>,
    },
    /// The sandboxes that have a writable layer and no machine, in the order of their ids, as many
    /// as fit one packet. Answered with [`Reply::Kept`].
    ListKept {
        /// Only those after this one. None: from the first. An empty answer: there are no more.
        after: Option<SandboxId>,
    },
    /// The machine of a sandbox, if it is alive. Answered with [`Reply::Machines`] of one or none.
    FindMachine {
        /// Whose machine.
        sandbox: SandboxId,
    },
    /// The state of the `base` template: builds it when the host's packages changed or it was
    /// never built; progress comes as [`Event::Progress`]. Answered with [`Reply::Image`].
    EnsureBase,
    /// Whether a build is complete and fit for use; a snapshot is read whole and held against its
    /// record for that.
    /// Answered with [`Reply::Image`].
    CheckImage {
        /// The build.
        build: BuildId,
    },
    /// Makes an image of what a sandbox wrote, on top of the image that it runs on. Its machine is
    /// frozen, or it has none and its layer was kept, until [`Event::Copied`]. Answered with
    /// [`Reply::Image`].
    Seal {
        /// Whose layer.
        sandbox: SandboxId,
        /// The new image.
        build: BuildId,
    },
    /// The images of this instance, in the order of their builds, as many as fit one packet.
    /// Answered with [`Reply::Images`].
    ListImages {
        /// Only those after this one. None: from the first. An empty answer: there are no more.
        after: Option<BuildId>,
    },
    /// Removes a build that nothing uses any more: no machine, no kept layer, no other image.
    RemoveImage {
        /// The build.
        build: BuildId,
    },
    /// What this host offers. Answered with [`Reply::Probes`].
    Probe,
    /// End all machines (when asked) and then the warden itself.
    Shutdown {
        /// True: no machine survives.
        stop_machines: bool,
    },
}

/// What a new machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateMachine {
    /// Whose machine.
    pub sandbox: SandboxId,
    /// Which of the sandbox's machines this is.
    pub generation: u64,
    /// The image.
    pub build: BuildId,
    /// The size.
    pub resources: Resources,
    /// The host name inside.
    pub hostname: String,
    /// True: on the writable layer that was kept, which must be there. False: on an empty one.
    pub kept_disk: bool,
}

/// The warden's packets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "packet", rename_all = "snake_case")]
pub enum FromWarden {
    /// The answer to a request.
    Answer {
        /// The request.
        seq: u64,
        /// What came of it.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Done; descriptors, if the call gives any, are with this packet.
    Done,
    /// Refused or failed, with nothing left behind.
    Refused {
        /// For the log.
        reason: String,
        /// What kind of refusal it is.
        cause: Cause,
    },
    /// A machine.
    Machine(MachineInfo),
    /// Some machines.
    Machines {
        /// In the order of their ids.
        machines: Vec<MachineInfo>,
    },
    /// Sandboxes whose layer was kept.
    Kept {
        /// In the order of their ids.
        sandboxes: Vec<SandboxId>,
    },
    /// What a machine uses.
    Stats(MachineStats),
    /// Memory came back.
    Reclaimed {
        /// So much of it.
        bytes: u64,
    },
    /// An image.
    Image(ImageInfo),
    /// Some images.
    Images {
        /// In the order of their builds.
        images: Vec<ImageUse>,
    },
    /// What the host offers.
    Probes {
        /// One a feature.
        probes: Vec<ProbeResult>,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The request itself is wrong.
    Invalid,
    /// The sandbox has no live machine.
    NoMachine,
    /// The build has no complete image here.
    NoImage,
    /// No writable layer was kept for the sandbox.
    NoDisk,
    /// Something uses it.
    InUse,
    /// The host's disk is full.
    DiskFull,
    /// All ids are in use, or too many requests wait.
    Capacity,
    /// The host could not do it.
    Host,
}

/// What the gateway may know of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Whose machine.
    pub sandbox: SandboxId,
    /// Which of the sandbox's machines.
    pub generation: u64,
    /// The guest's process id on the host.
    pub pid: i32,
    /// The guest's start time in clock ticks since boot: tells a reused pid.
    pub start_time: u64,
    /// The name of the link's socket in the instance's run directory.
    pub socket: String,
    /// Whether it is frozen.
    pub frozen: bool,
}

/// What a machine uses, read from its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineStats {
    /// CPU time used since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, in bytes.
    pub memory_bytes: u64,
    /// Of it, page cache.
    pub cache_bytes: u64,
    /// The limit, in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes in its writable layer.
    pub disk_bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Processes that were ended because they wrote too much.
    #[serde(default)]
    pub writers_ended: u64,
}

/// One image as the warden has it on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its build id: for `base`, derived from the fingerprint of the host's packages.
    pub build: BuildId,
    /// Where it comes from.
    pub kind: ImageKind,
    /// For `base`: the fingerprint of the host's packages, in hex.
    pub fingerprint: Option<String>,
    /// True when it was made by this call.
    pub fresh: bool,
    /// One line for people on what it shows or lacks, if there is something to say.
    pub notice: Option<String>,
}

/// What an image lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// The image.
    pub build: BuildId,
    /// The image below it.
    pub parent: Option<BuildId>,
    /// Whether it was made of a sandbox.
    pub sealed: bool,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// Hard links to the host's packages (decision 0011).
    HostPackages,
    /// The live view of the host's /usr.
    HostView,
    /// An imported root file system.
    Imported,
    /// What a sandbox wrote, on top of another image.
    Snapshot,
}

/// How sandboxes' disks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageDriver {
    /// Directories of any file system: snapshots are copies, sizes are measured.
    Plain,
    /// Subvolumes of btrfs: snapshots and sizes are the file system's.
    Btrfs,
}

/// Something the gateway did not ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A machine's guest ended by itself; what it held is released, but its layer is kept.
    MachineExited {
        /// Whose machine.
        sandbox: SandboxId,
        /// Which of its machines.
        generation: u64,
    },
    /// A long request goes on.
    Progress {
        /// The request.
        seq: u64,
        /// What is being done, for people.
        text: String,
    },
    /// A seal has copied what it is made of: the machine may go on. The answer is still to come.
    Copied {
        /// The request.
        seq: u64,
    },
}

/// What `firkin doctor` prints of one feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The feature, in the kernel's words.
    pub feature: String,
    /// Whether it is there.
    pub present: bool,
    /// Whether sandboxes cannot run without it.
    pub required: bool,
    /// What will be used.
    pub used: String,
    /// What is lost without it, and what to do; empty when present.
    pub advice: String,
}
