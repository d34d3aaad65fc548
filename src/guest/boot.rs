//! From the first instruction to serving.
//!
//! ```text
//! descriptors closed on exec -> zygote forked (no thread, no runtime yet) -> runtime
//!   -> reaper -> spawner -> link
//! ```
//! In a machine the launcher executes this program as pid 1, with `/dev/null` for standard
//! streams, an empty environment and the descriptors that its second argument names. For
//! development `firkin-guest --listen PATH` runs it as an ordinary process instead.
//! If this returns, the machine ends.
#![expect(unsafe_code, reason = "takes over the descriptors that the launcher left open")]

use std::{
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixListener as StdListener,
    },
    path::PathBuf,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Deserialize;
use tokio::{net::UnixListener, runtime};

use crate::{
    guest::{
        accept, freshness,
        process::Processes,
        reap::Reaper,
        serve, shed,
        spawner::{Spawner, Zygote},
        state::{Guest, Machine},
        users::Users,
    },
    id::SandboxId,
};

/// Where programs look for the marks of a sandbox.
const MARKS: &str = "/run/e2b";
/// File operations that run at a time; more wait.
const BLOCKING_THREADS: usize = 8;
const BLOCKING_STACK: usize = 256 << 10;

/// What keeps a guest from serving.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Neither of the two ways to be called.
    #[error("usage: firkin-guest SANDBOX_ID JSON (by the launcher), or firkin-guest --listen PATH")]
    Usage,
    /// The launcher's second argument.
    #[error("the launcher's description of the machine: {0}")]
    Description(#[from] serde_json::Error),
    /// The kernel refused something that a guest cannot do without.
    #[error("{0}: {1}")]
    Kernel(&'static str, io::Error),
}

/// The launcher's description of the machine. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
struct Description {
    listener: RawFd,
    #[serde(default)]
    work_cgroups: Vec<RawFd>,
    #[serde(default)]
    stats: Stats,
    #[serde(default)]
    memory_mb: u64,
    #[serde(default)]
    cpu_count: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stats {
    memory_current: Option<RawFd>,
    memory_stat: Option<RawFd>,
    cpu_usage: Option<RawFd>,
    v2: bool,
}

struct Start {
    listener: StdListener,
    groups: Vec<OwnedFd>,
    machine: Machine,
    marks: Option<PathBuf>,
}

/// Runs the guest; returns only on failure or when the link's socket is gone.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<(), BootError> {
    let start = Start::from_arguments(arguments)?;
    let reaper = Reaper::default();
    let zygote = Zygote::fork(&start.groups).map_err(|error| BootError::Kernel("fork the spawner", error))?;
    shed::keep();
    raise_open_files().map_err(|error| BootError::Kernel("raise the limit of files", error))?;
    runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK)
        .build()
        .map_err(|error| BootError::Kernel("start the runtime", error))?
        .block_on(serve_machine(start, zygote, reaper))
        .map_err(|error| BootError::Kernel("serve the link", error))
}

/// The guest holds several descriptors a process and stream: its own limit is the hard one.
fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

async fn serve_machine(start: Start, zygote: Zygote, reaper: Reaper) -> io::Result<()> {
    let in_machine = start.marks.is_some();
    let guest = Guest::new(start.machine, Users::default(), start.marks);
    if in_machine {
        guest.attach_meminfo();
    }
    let spawner = Spawner::start(zygote, start.groups.into(), reaper.clone())?;
    let processes = Processes::new(spawner, reaper.clone(), guest.clone());
    start.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(start.listener)?;
    tokio::spawn(freshness::run(guest.clone(), processes.clone()));
    let envd = serve::router(guest.clone(), processes);
    tokio::select! {
        ended = accept::run(listener, guest, envd) => ended,
        // Without the reaper no process would ever end.
        ended = reaper.run() => ended,
    }
}

// === impl Start ===

impl Start {
    fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Result<Self, BootError> {
        let arguments: Vec<String> = arguments.into_iter().skip(1).collect();
        match arguments.as_slice() {
            [flag, path] if flag == "--listen" => Self::as_ordinary_process(path),
            [id, description] if id.parse::<SandboxId>().is_ok() => {
                Self::as_first_process(serde_json::from_str(description)?)
            }
            _ => Err(BootError::Usage),
        }
    }

    fn as_first_process(description: Description) -> Result<Self, BootError> {
        let stats = description.stats;
        let optional = |fd: Option<RawFd>| fd.map(adopt).transpose();
        let machine = Machine {
            memory_mb: description.memory_mb,
            cpu_count: description.cpu_count,
            memory_current: optional(stats.memory_current)?,
            memory_stat: optional(stats.memory_stat)?,
            cpu_usage: optional(stats.cpu_usage)?,
            v2: stats.v2,
        };
        Ok(Self {
            listener: StdListener::from(adopt(description.listener)?),
            groups: description.work_cgroups.into_iter().map(adopt).collect::<Result<_, _>>()?,
            machine,
            marks: Some(PathBuf::from(MARKS)),
        })
    }

    fn as_ordinary_process(path: &str) -> Result<Self, BootError> {
        let listener =
            StdListener::bind(path).map_err(|error| BootError::Kernel("bind the socket", error))?;
        // Orphans come here, as they come to a first process.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|errno| BootError::Kernel("become a subreaper", errno.into()))?;
        Ok(Self { listener, groups: Vec::new(), machine: Machine::default(), marks: None })
    }
}

/// Takes a descriptor that the launcher named, and keeps it from the user's processes.
fn adopt(fd: RawFd) -> Result<OwnedFd, BootError> {
    let refused = |error| BootError::Kernel("use a descriptor of the launcher", error);
    if fd <= libc::STDERR_FILENO {
        return Err(refused(io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: the launcher leaves exactly the named descriptors to us, and each is named once;
    // one that is not open fails in the next line, before it is used.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(owned),
        Err(errno) => {
            // Not open, so there is nothing to close.
            std::mem::forget(owned);
            Err(refused(errno.into()))
        }
    }
}
