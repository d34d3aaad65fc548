//! Where sandboxes' writable layers and the images made of them lie: the storage contract, and the
//! two drivers that keep it.
//!
//! ```text
//!   machines/<sandbox>/        plain: upper0 work0 [upper1 work1], directories
//!                      disk/   btrfs: the same in a subvolume, with a limit
//!   seal                       plain: a copy while the machine stands still   (image::seal)
//!                              btrfs: a read-only snapshot of the subvolume
//! ```
//! | method | plain | btrfs |
//! | --- | --- | --- |
//! | [`Driver::new_upper`] | directories; the size is measured and told, nothing enforces it | a subvolume; the kernel refuses what is over its size with `EDQUOT` |
//! | seal, [`btrfs::snapshot`] | as long as the copy of what was written | a transaction, whatever was written |
//! | [`usage`] | a walk | one look, as of the last transaction |
//! | [`remove`] | name by name | one request |
//!
//! What a disk is shows on the disk itself, so machines and images of either driver go on under the
//! other one.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, Mode},
    io::Errno,
};

use super::{machine::room, rubbish};
use crate::wire::warden::StorageDriver;

pub(in crate::warden) mod btrfs;
mod pool;
#[cfg(test)]
mod tests;

pub(in crate::warden) use pool::MOUNT as POOL;

/// In a machine's directory: the subvolume that holds its layers.
pub(in crate::warden) const DISK: &str = "disk";
/// For attempts.
const PROBE: &str = ".probe-storage";
const PROBE_COPY: &str = ".probe-storage-copy";

/// How new disks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Directories of any file system.
    Plain,
    /// Subvolumes.
    Btrfs {
        /// Whether the file system counts what they hold, and so can limit it.
        limits: bool,
    },
}

// === impl Driver ===

impl Driver {
    /// Makes an empty disk in a machine's directory: a pair of layers for each mount. `size`: what may
    /// be written to it, in bytes.
    pub(in crate::warden) fn new_upper(
        self,
        room: BorrowedFd<'_>,
        mounts: usize,
        size: Option<u64>,
    ) -> io::Result<()> {
        let Self::Btrfs { limits } = self else { return room::layers(room, mounts) };
        btrfs::create(room, DISK)?;
        let disk = room::open(room, DISK)?;
        room::layers(disk.as_fd(), mounts)?;
        match size {
            Some(size) if limits => btrfs::limit(disk.as_fd(), size),
            _ => Ok(()),
        }
    }

    /// As `firkin doctor` and the log name it.
    pub(in crate::warden) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Btrfs { limits: true } => "btrfs, with limits",
            Self::Btrfs { limits: false } => "btrfs, without limits",
        }
    }
}

/// Bytes of a disk, if that is known without a walk through it.
pub(in crate::warden) fn usage(disk: BorrowedFd<'_>) -> Option<u64> {
    if btrfs::is_subvolume(disk) { btrfs::usage(disk).ok() } else { None }
}

/// Whether the kernel keeps a disk within its size.
pub(in crate::warden) fn is_limited(disk: BorrowedFd<'_>) -> bool {
    usage(disk).is_some()
}

/// Removes a directory that may be a subvolume, in one request. False: it is none.
pub(in crate::warden) fn remove(parent: BorrowedFd<'_>, name: &[u8], inode: u64) -> io::Result<bool> {
    if !btrfs::may_be_subvolume(inode) || !btrfs::is(parent) {
        return Ok(false);
    }
    btrfs::destroy(parent, name).map(|()| true)
}

/// A place for machines, and how disks are made in it. `store`: the images; `machines`: DATA/machines
/// itself, on which the place is to be mounted if it is another one.
pub(in crate::warden) fn choose(
    store: BorrowedFd<'_>,
    machines: BorrowedFd<'_>,
    wanted: Option<StorageDriver>,
) -> Result<(Driver, Option<OwnedFd>), String> {
    let pool = pool::exists(store);
    if wanted == Some(StorageDriver::Plain) {
        return if pool {
            Err("it holds sandboxes on btrfs (templates/pool.img); choose --storage auto".to_owned())
        } else {
            Ok((Driver::Plain, None))
        };
    }
    if !pool {
        match attempt(machines, store) {
            Ok(driver) => return Ok((driver, None)),
            Err(_) if wanted.is_none() => return Ok((Driver::Plain, None)),
            Err(_) => {}
        }
        pool::possible().map_err(|reason| format!("--storage btrfs is not possible: {reason}"))?;
        let others = room::names(machines).map_err(|error| error.to_string())?;
        if !others.is_empty() {
            return Err(
                "it holds sandboxes on plain storage; end them, then choose --storage btrfs".to_owned()
            );
        }
    }
    let failed = |error: io::Error| format!("its btrfs (templates/pool.img) cannot be used: {error}");
    let place = pool::open(store).map_err(failed)?;
    let images = room::open(store, POOL).map_err(failed)?;
    let driver = attempt(place.as_fd(), images.as_fd()).map_err(failed)?;
    Ok((driver, Some(place)))
}

/// What `firkin doctor` says: what is used for a data directory here, and what more is possible.
pub(in crate::warden) fn probe(directory: BorrowedFd<'_>) -> (Driver, Result<(), String>) {
    match attempt(directory, directory) {
        Ok(driver) => (driver, Ok(())),
        Err(_) => (Driver::Plain, pool::possible()),
    }
}

/// Makes a subvolume, limits it, and makes a snapshot of it: all that is needed.
fn attempt(machines: BorrowedFd<'_>, images: BorrowedFd<'_>) -> io::Result<Driver> {
    if !btrfs::is(machines) || !btrfs::is(images) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let clear =
        || btrfs::destroy(machines, PROBE.as_bytes()).and(btrfs::destroy(images, PROBE_COPY.as_bytes()));
    clear()?;
    let tried = (|| {
        btrfs::create(machines, PROBE)?;
        let subvolume = room::open(machines, PROBE)?;
        let limits = btrfs::limit(subvolume.as_fd(), 1 << 30).and_then(|()| btrfs::usage(subvolume.as_fd()));
        btrfs::snapshot(subvolume.as_fd(), images, PROBE_COPY)?;
        let copy = room::open(images, PROBE_COPY)?;
        btrfs::identity(copy.as_fd())?.ok_or(io::ErrorKind::Unsupported)?;
        Ok(Driver::Btrfs { limits: limits.is_ok() })
    })();
    clear()?;
    tried
}

/// Opens a directory of the server's own, made if need be.
fn directory(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => room::open(parent, name),
        Err(error) => Err(error.into()),
    }
}

/// Bytes of a disk, by a walk if need be.
pub(in crate::warden) fn measure(disk: BorrowedFd<'_>) -> u64 {
    usage(disk).unwrap_or_else(|| rubbish::usage(disk))
}
