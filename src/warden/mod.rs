//! The root helper: the only process that mounts, clones and writes cgroups.
//!
//! ```text
//!   serve (root) --prepare--> directories, lock, instance --fork--> warden (root, for good)
//!                                                            \----> gateway --drop_privileges--> ordinary user
//!   warden: poll loop <--- packets, descriptors ---> gateway
//!        gateway's socket closes: half-made machines are undone, live ones stay, the warden ends
//!        Shutdown:                the same, after ending the machines if asked to
//! ```
//! The warden is single-threaded and never blocks for long: launches are polled, long work (the
//! `base` build, removing trees) runs in forked workers. It owns every machine's processes,
//! cgroups, socket and directory, from before the machine exists until all of them are gone;
//! the gateway owns none of that and only ever names a machine by its sandbox id. Everything the
//! gateway says is checked again here: a compromised gateway can make and end machines of its
//! own instance, and nothing else.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

pub mod base;
mod cgroup;
mod confine;
mod dial;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod image;
pub mod import;
mod instance;
mod launch;
mod machine;
mod overrun;
mod packet;
mod prepare;
mod privilege;
pub mod probe;
mod rubbish;
mod seccomp;
mod serve;
mod slot;
mod slots;
mod steer;
mod storage;
mod syscall;
mod worker;

pub use prepare::{Prepared, prepare};
pub use privilege::drop_privileges;
pub(crate) use worker::{close_others, fork_into, ignore};

/// Why the warden cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WardenError {
    /// Sandboxes need namespaces, mounts and cgroups.
    #[error(
        "firkin serve must be started as root: it drops to an ordinary user by itself once its helper runs"
    )]
    NotRoot,
    /// The data directory cannot be used.
    #[error("data directory {path}: {reason}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Another server has this data directory.
    #[error(
        "data directory {0} is in use by another firkin server; stop that one or choose another --data-dir"
    )]
    Busy(PathBuf),
    /// All instance numbers of this host are taken.
    #[error("this host already runs {0} firkin servers, the most there may be; stop one of them")]
    NoInstance(u32),
    /// The host refused a step.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Names the step at which a kernel call failed.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, WardenError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, WardenError> {
        self.map_err(|error| WardenError::Step { step, source: error.into() })
    }
}

/// Splits the process: the child becomes the warden and never returns from here; the parent gets
/// its end of the socket and goes on as the gateway. `guest` and `sudo` are the binaries for the
/// machines. Call it in a process with one thread.
pub fn fork(prepared: &Prepared, guest: &[u8], sudo: &[u8]) -> Result<OwnedFd, WardenError> {
    if guest.is_empty() {
        let source = io::Error::other("this build carries no guest binary; build it with `make serve`");
        return Err(WardenError::Step { step: "load the guest", source });
    }
    let guest = seal(guest).at("seal the guest's binary")?;
    let (gateway, warden) = packet::pair().at("make the helper's socket")?;
    // Only its own end is open in each process: the end of one is how the other notices.
    let mut ends = Some((gateway, warden));
    worker::fork_into(|| {
        let Some((gateway, warden)) = ends.take() else { return 1 };
        drop(gateway);
        match live(prepared, warden, guest, sudo) {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(%error, "the helper cannot start");
                1
            }
        }
    })
    .at("fork the helper")?;
    let Some((gateway, _)) = ends else {
        return Err(io::Error::other("the socket is gone")).at("fork the helper");
    };
    Ok(gateway)
}

/// The warden's life.
fn live(prepared: &Prepared, socket: OwnedFd, guest: OwnedFd, sudo: &[u8]) -> Result<(), WardenError> {
    use nix::sys::signal::Signal;
    // A signal to the whole group ends the gateway, and the gateway's end is what ends the warden.
    rustix::process::setsid().at("leave the gateway's session")?;
    let mut keep = prepared.descriptors().to_vec();
    keep.extend([socket.as_fd(), guest.as_fd()]);
    worker::close_others(&keep).at("close what is the gateway's")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        worker::ignore(signal).at("ignore signals")?;
    }
    rustix::thread::set_name(c"firkin-warden").at("take a name")?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).at("raise the limit of files")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    serve::Warden::start(prepared, socket, guest, sudo).at("start the helper")?.run();
    Ok(())
}

/// How often a busy file is sealed again, and after how long.
const SEAL_TRIES: u32 = 50;
const SEAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The guest's binary as a file without a name that nobody can change.
fn seal(binary: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;

    use rustix::{
        fs::{MemfdFlags, Mode, OFlags, SealFlags},
        io::Errno,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("firkin-guest", flags)?);
    file.write_all(binary)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    // Busy: the kernel still holds a page of it for a moment, whatever for.
    let mut tries = 0;
    while let Err(error) = rustix::fs::fcntl_add_seals(&file, seals) {
        if error != Errno::BUSY || tries == SEAL_TRIES {
            return Err(error.into());
        }
        tries += 1;
        std::thread::sleep(SEAL_PAUSE);
    }
    // Opened anew: the kernel runs no file that somebody has open for writing.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(prepare::proc_path(file.as_fd()), flags, Mode::empty())?)
}
