//! The content of a file, copied with its holes and summed up on the way.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use rustix::{
    fs::{self, SeekFrom},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

/// Bytes read at once.
pub(super) const CHUNK: usize = 1 << 20;
/// Blocks of zeroes of this size are no content: whether they are holes is the file system's matter.
const BLOCK: usize = 4096;
const ZEROES: [u8; BLOCK] = [0; BLOCK];

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    /// Bytes that are not in holes.
    pub(super) bytes: u64,
    /// SHA-256 of the blocks that are not all zeroes, each after its offset and length.
    pub(super) hash: [u8; 32],
}

/// Reads a file, and copies it when there is a file to copy to: by sharing its blocks where the
/// file system can, else what is not in holes.
pub(super) fn copy(from: &File, to: Option<&File>, buffer: &mut [u8]) -> io::Result<Content> {
    let size = from.metadata()?.len();
    let shared = to.is_some_and(|to| fs::ioctl_ficlone(to, from).is_ok());
    let to = to.filter(|_| !shared);
    let mut hash = Sha256::new();
    let mut content = Content { bytes: 0, hash: [0; 32] };
    let mut at = 0;
    while at < size {
        let (start, end) = match fs::seek(from, SeekFrom::Data(at)) {
            // Whole blocks, wherever the file system lets a hole begin.
            Ok(start) => {
                let end = fs::seek(from, SeekFrom::Hole(start))?.next_multiple_of(BLOCK as u64);
                (start - start % BLOCK as u64, end.min(size))
            }
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(error) => return Err(error.into()),
        };
        let mut next = start;
        while next < end {
            let most = buffer.len().min(usize::try_from(end - next).unwrap_or(usize::MAX));
            let count = fill(from, &mut buffer[..most], next)?;
            if count == 0 {
                break;
            }
            add(&mut hash, next, &buffer[..count]);
            if let Some(to) = to {
                to.write_all_at(&buffer[..count], next)?;
            }
            content.bytes += count as u64;
            next += count as u64;
        }
        at = end.max(at + 1);
    }
    if let Some(to) = to {
        to.set_len(size)?;
    }
    content.hash = hash.finalize().into();
    Ok(content)
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
