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

use std::{io, os::fd::OwnedFd, path::PathBuf};

pub mod base;
mod cgroup;
pub mod image;
pub mod import;
mod instance;
mod launch;
mod packet;
mod prepare;
mod privilege;
mod slot;
mod worker;

pub use prepare::{Prepared, prepare};
pub use privilege::drop_privileges;

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
    let _ = (prepared, guest, sudo);
    Err(WardenError::Step { step: "fork the helper", source: io::ErrorKind::Unsupported.into() })
}
