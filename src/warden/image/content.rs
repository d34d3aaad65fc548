//! The content of a file: copied with its holes, or summed up.

use std::{fs::File, io, ops::ControlFlow, os::unix::fs::FileExt as _};

use rustix::{
    fs::{self, SeekFrom, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

/// Bytes read at once.
pub(super) const CHUNK: usize = 1 << 20;
/// Blocks of zeroes of this size are no content: whether they are holes is the file system's matter.
const BLOCK: usize = 4096;
const ZEROES: [u8; BLOCK] = [0; BLOCK];
/// The unit of `st_blocks`.
const SECTOR: u64 = 512;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    /// Bytes that are not in holes.
    pub(super) bytes: u64,
    /// SHA-256 of the blocks that are not all zeroes, each after its offset and length.
    pub(super) hash: [u8; 32],
}

/// Copies a file into an empty one: by sharing its blocks where the file system can (`shares` is what
/// is known of that), else what is not in holes.
pub(super) fn copy(
    from: &File,
    to: &File,
    stat: &Stat,
    shares: &mut bool,
    buffer: &mut [u8],
) -> io::Result<()> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 {
        return Ok(());
    }
    if *shares {
        match fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => *shares = false,
            // Of this file only: its blocks cannot be shared, or there is no room to say so.
            Err(_) => {}
        }
    }
    if is_whole(stat, size) && size <= buffer.len() as u64 {
        let count = fill(from, buffer, 0)?;
        return to.write_all_at(&buffer[..count], 0);
    }
    segments(from, size, |start, end| in_kernel(from, to, start, end, buffer))?;
    to.set_len(size)
}

/// Whether a file has no holes.
fn is_whole(stat: &Stat, size: u64) -> bool {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(SECTOR) >= size
}

/// Copies a piece without it passing through here, if the kernel can.
fn in_kernel(from: &File, to: &File, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let length = usize::try_from(end - read).unwrap_or(usize::MAX);
        match fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return pieces(from, read, end, buffer, |at, piece| to.write_all_at(piece, at));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads a file and sums it up.
pub(super) fn sum(from: &File, stat: &Stat, buffer: &mut [u8]) -> io::Result<Content> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut hash = Sha256::new();
    let mut content = Content::default();
    // Not by the number of its blocks, which a file system may change behind a layer's back.
    segments(from, size, |start, end| {
        pieces(from, start, end, buffer, |at, piece| {
            add(&mut hash, at, piece);
            content.bytes += piece.len() as u64;
            Ok(())
        })
    })?;
    content.hash = hash.finalize().into();
    Ok(content)
}

/// The pieces of a file that are not holes, in whole blocks, wherever the file system lets a hole begin.
fn segments(from: &File, size: u64, mut each: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let (start, end) = match segment(from, at, size)? {
            ControlFlow::Continue(segment) => segment,
            ControlFlow::Break(()) => return Ok(()),
        };
        each(start, end)?;
        at = end.max(at + 1);
    }
    Ok(())
}

fn segment(from: &File, at: u64, size: u64) -> io::Result<ControlFlow<(), (u64, u64)>> {
    match fs::seek(from, SeekFrom::Data(at)) {
        Ok(start) => {
            let end = fs::seek(from, SeekFrom::Hole(start))?.next_multiple_of(BLOCK as u64);
            Ok(ControlFlow::Continue((start - start % BLOCK as u64, end.min(size))))
        }
        Err(Errno::NXIO) => Ok(ControlFlow::Break(())),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(ControlFlow::Continue((at, size))),
        Err(error) => Err(error.into()),
    }
}

/// Reads from `start` to `end`, a buffer at a time.
fn pieces(
    from: &File,
    start: u64,
    end: u64,
    buffer: &mut [u8],
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut next = start;
    while next < end {
        let most = buffer.len().min(usize::try_from(end - next).unwrap_or(usize::MAX));
        let count = fill(from, &mut buffer[..most], next)?;
        if count == 0 {
            break;
        }
        each(next, &buffer[..count])?;
        next += count as u64;
    }
    Ok(())
}

/// Reads as much as there is for the buffer.
fn fill(from: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read_at(&mut buffer[count..], at + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn add(hash: &mut Sha256, start: u64, bytes: &[u8]) {
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if *block != ZEROES[..block.len()] {
            hash.update((start + (number * BLOCK) as u64).to_le_bytes());
            hash.update((block.len() as u64).to_le_bytes());
            hash.update(block);
        }
    }
}
