//! The requests of btrfs that the storage driver is made of: subvolumes, snapshots and their limits.
//!
//! All of them take an open directory and one name below it; none follows a link.
#![expect(unsafe_code, reason = "the file system is asked by ioctl, which no crate wraps")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What `statfs` says of the file system's kind.
const MAGIC: i64 = 0x9123_683e;
/// The inode number of every subvolume's top.
const TOP: u64 = 256;
/// The longest name that the requests below take.
const LONGEST_NAME: usize = 255;
/// Requests are numbered within this type.
const TYPE: u64 = 0x94;
/// Ways that an argument goes, as the number of a request tells them.
const WRITE: u64 = 1;
const READ: u64 = 2;
/// Of a snapshot: nobody can change it.
const READ_ONLY: u64 = 1 << 1;
/// Of a subvolume's own flags.
const IS_READ_ONLY: u64 = 1;
/// Of a limit: the bytes that the subvolume refers to.
const MAX_REFERRED: u64 = 1;
/// The tree of quotas, and the kind of its items that count.
const QUOTA_TREE: u64 = 8;
const QGROUP_INFO: u32 = 242;
/// Ways of counting: each extent belongs to the subvolume that wrote it, or to all that refer to it.
const SIMPLE_QUOTA: u64 = 4;
const FULL_QUOTA: u64 = 1;

/// An argument as the kernel has it: whole words at known places.
#[repr(C, align(8))]
struct Argument<const N: usize>([u8; N]);

/// Tells a read-only snapshot from any other, and from itself if it was written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::warden) struct Identity {
    /// Its UUID, in hex.
    uuid: String,
    /// The transaction of its last change.
    generation: u64,
}

// === impl Argument ===

impl<const N: usize> Argument<N> {
    fn new() -> Self {
        Self([0; N])
    }

    fn word(mut self, at: usize, word: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        self
    }

    fn half(mut self, at: usize, half: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&half.to_ne_bytes());
        self
    }

    fn name(mut self, at: usize, name: &[u8]) -> io::Result<Self> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(&b'/') || name.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0[at..at + name.len()].copy_from_slice(name);
        Ok(self)
    }

    fn get(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[at..at + 8]);
        u64::from_ne_bytes(word)
    }

    /// Makes the request of this number, whose argument is of this size.
    fn ask(&mut self, of: BorrowedFd<'_>, number: u64, ways: u64) -> io::Result<()> {
        let request = (ways << 30) | ((N as u64) << 16) | (TYPE << 8) | number;
        // SAFETY: the number tells the kernel the size of the argument, of which it reads and writes
        // no more; the argument outlives the call and is aligned as the kernel's structs are.
        let result = unsafe { libc::ioctl(of.as_raw_fd(), request as _, self.0.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Whether a directory is on this file system.
pub(super) fn is(directory: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(directory).is_ok_and(|stat| stat.f_type == MAGIC)
}

/// Whether a directory is the top of a subvolume.
pub(in crate::warden) fn is_subvolume(directory: BorrowedFd<'_>) -> bool {
    is(directory) && rustix::fs::fstat(directory).is_ok_and(|stat| stat.st_ino == TOP)
}

/// Whether a directory of this inode number may be the top of a subvolume.
pub(in crate::warden) fn may_be_subvolume(inode: u64) -> bool {
    inode == TOP
}

/// Makes an empty subvolume.
pub(super) fn create(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Argument::<4096>::new().name(8, name.as_bytes())?.ask(parent, 14, WRITE)
}

/// Makes a read-only snapshot of a subvolume as it is now.
pub(in crate::warden) fn snapshot(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let source = u64::from(source.as_raw_fd().unsigned_abs());
    let argument = Argument::<4096>::new().word(0, source).word(16, READ_ONLY);
    argument.name(56, name.as_bytes())?.ask(parent, 23, WRITE)
}

/// Removes a subvolume with all that it holds; its space comes back in the background.
pub(in crate::warden) fn destroy(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match Argument::<4096>::new().name(8, name)?.ask(parent, 15, WRITE) {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        destroyed => destroyed,
    }
}

/// A subvolume's number, which is also that of its quota group.
fn number(subvolume: BorrowedFd<'_>) -> io::Result<u64> {
    let mut argument = Argument::<4096>::new().word(8, TOP);
    argument.ask(subvolume, 18, READ | WRITE)?;
    Ok(argument.get(0))
}

/// Limits what a subvolume may hold, in bytes. `ENOTCONN`: nothing is counted on this file system.
pub(super) fn limit(subvolume: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let argument = Argument::<48>::new().word(0, number(subvolume)?).word(8, MAX_REFERRED);
    argument.word(16, bytes).ask(subvolume, 43, READ)
}

/// What a subvolume holds, in bytes, as of the last transaction.
pub(super) fn usage(subvolume: BorrowedFd<'_>) -> io::Result<u64> {
    // A search: tree, smallest and largest key, items wanted; then what was found.
    const KEY: usize = 104;
    const HEADER: usize = 32;
    let number = number(subvolume)?;
    let search = Argument::<4096>::new().word(0, QUOTA_TREE).word(24, number).word(32, number);
    let mut search = search.word(48, u64::MAX).half(56, QGROUP_INFO).half(60, QGROUP_INFO).half(64, 1);
    search.ask(subvolume, 17, READ | WRITE)?;
    let found = u32::from_ne_bytes([search.0[64], search.0[65], search.0[66], search.0[67]]);
    if found == 0 || search.get(KEY + 16) != number {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(u64::from_le(search.get(KEY + HEADER + 8)))
}

/// Begins to count what subvolumes hold, in the cheapest way that the kernel has.
pub(super) fn enable_quota(top: BorrowedFd<'_>) -> io::Result<()> {
    let enable = |way| Argument::<16>::new().word(0, way).ask(top, 40, READ | WRITE);
    enable(SIMPLE_QUOTA).or_else(|_| enable(FULL_QUOTA))
}

/// Tells a read-only snapshot. None: somebody made it writable.
pub(in crate::warden) fn identity(subvolume: BorrowedFd<'_>) -> io::Result<Option<Identity>> {
    // struct btrfs_ioctl_get_subvol_info_args
    const FLAGS: usize = 8 + 256 + 3 * 8;
    const UUID: usize = FLAGS + 8;
    const LAST_CHANGE: usize = UUID + 3 * 16;
    let mut argument = Argument::<504>::new();
    argument.ask(subvolume, 60, READ)?;
    let identity =
        Identity { uuid: hex::encode(&argument.0[UUID..UUID + 16]), generation: argument.get(LAST_CHANGE) };
    Ok((argument.get(FLAGS) & IS_READ_ONLY != 0).then_some(identity))
}
