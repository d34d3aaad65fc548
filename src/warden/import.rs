//! Root file systems from outside become images.

use std::{io::Read, os::fd::BorrowedFd};

use super::image::ImageError;
use crate::{id::BuildId, wire::warden::ImageInfo};

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

/// Copies a root file system from a directory. Call it as root, in a process with one thread.
pub fn import_dir(
    store: BorrowedFd<'_>,
    rootfs: BorrowedFd<'_>,
    import: &Import<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    let _ = (store, rootfs, import, progress);
    Err(ImageError::Refused("this version does not import directories yet".to_owned()))
}

/// Unpacks a root file system from a tar archive, plain or gzip. Call it as root, in a process
/// with one thread.
pub fn import_tar(
    store: BorrowedFd<'_>,
    archive: impl Read,
    import: &Import<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    let _ = (store, archive, import, progress);
    Err(ImageError::Refused("this version does not import archives yet".to_owned()))
}
