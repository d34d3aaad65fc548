//! Root file systems from outside become images.
//!
//! What comes in is hostile. It is unpacked by a child process that has no network, no other
//! file system than the draft (its root is the draft's own layer), no capability but those that
//! give files their owners, and no way to gain one; and in there only through
//! `Tree`, which follows no link. The child is killed with its parent; what it leaves is a
//! draft, which the next maker removes. Setuid files stay setuid: they are so only inside a
//! machine, where ids are mapped; ids outside of the mapped range, devices, sockets, pipes,
//! capabilities of files and overlay marks do not come in.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::thread::CapabilitySet;

use super::{
    confine::{self, Refusal, at},
    image::{Doing as _, Draft, ImageError, Tree},
};
use crate::{
    id::BuildId,
    wire::warden::{ImageInfo, ImageKind},
};

mod archive;
mod complete;
mod directory;
#[cfg(test)]
mod tests;

/// Ids at or above this have no owner in a machine.
const IDS: u64 = 65_536;
/// Entries between two lines of progress.
const PROGRESS: u64 = 20_000;

/// How much an import may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of files, and of the unpacked archive.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

/// What an import is to become.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// The new image's id: a random one.
    pub build: BuildId,
    /// The `sudo` for a tree that has none.
    pub sudo: &'a [u8],
    /// How much it may bring.
    pub limits: Limits,
}

/// What has come in so far.
struct Intake<'a> {
    limits: Limits,
    bytes: u64,
    entries: u64,
    skipped: u64,
    progress: &'a mut dyn FnMut(&str),
}

/// Copies a root file system from a directory. Call it as root, in a process with one thread.
pub fn import_dir(
    store: BorrowedFd<'_>,
    rootfs: BorrowedFd<'_>,
    import: &Import<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    take_in(store, import, progress, |tree, intake| directory::copy(rootfs, tree, intake))
}

/// Unpacks a root file system from a tar archive, plain or gzip. Call it as root, in a process
/// with one thread.
pub fn import_tar(
    store: BorrowedFd<'_>,
    archive: impl Read,
    import: &Import<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    take_in(store, import, progress, |tree, intake| archive::unpack(archive, tree, intake))
}

fn take_in(
    store: BorrowedFd<'_>,
    import: &Import<'_>,
    progress: &mut dyn FnMut(&str),
    unpack: impl FnOnce(&mut Tree, &mut Intake<'_>) -> Result<(), Refusal>,
) -> Result<ImageInfo, ImageError> {
    let draft = Draft::begin(store, import.build)?;
    let tree = draft.layer("root")?;
    let top = tree.as_fd().try_clone_to_owned().doing(|| "keep the draft open".to_owned())?;
    let notice = confine::run(top.as_fd(), CapabilitySet::empty(), progress, |progress| {
        let mut tree = tree;
        let mut intake = Intake { limits: import.limits, bytes: 0, entries: 0, skipped: 0, progress };
        unpack(&mut tree, &mut intake)?;
        complete::complete(&mut tree, import.sudo, intake.skipped)
    })?;
    draft.finish(ImageKind::Imported, None, notice)
}

// === impl Intake ===

impl Intake<'_> {
    /// Counts one entry and its bytes; refuses what is over the limits.
    fn count(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > self.limits.entries || self.bytes > self.limits.bytes {
            let Limits { bytes, entries } = self.limits;
            return Err(Refusal::Content(format!("it holds more than {bytes} bytes or {entries} entries")));
        }
        if self.entries.is_multiple_of(PROGRESS) {
            (self.progress)(&format!("{} files, {} MiB", self.entries, self.bytes >> 20));
        }
        Ok(())
    }
}

/// An owner, if a machine has it.
fn owner(path: &[u8], id: u64) -> Result<u32, Refusal> {
    u32::try_from(id).ok().filter(|_| id < IDS).ok_or_else(|| {
        let path = String::from_utf8_lossy(path);
        Refusal::Content(format!("{path} belongs to id {id}; machines have ids up to {}", IDS - 1))
    })
}
