//! Removing and measuring trees that sandboxes wrote.
//!
//! Such a tree may be deeper than any path is long, hold any name, and point anywhere: it is
//! walked by descriptors only, no link is ever followed, and the depth of the walk is bounded.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::storage;

/// Directories open at once on the way down.
const DEPTH: usize = 64;
/// Hard links remembered, so that each file counts once.
const LINKS: usize = 1 << 20;

/// Removes everything in a directory.
pub(super) fn empty(top: BorrowedFd<'_>) -> io::Result<()> {
    let mut lifted = 0_u64;
    loop {
        let mut deep = false;
        clear(top, top, 0, &mut lifted, &mut deep)?;
        // What was too deep now lies at the top.
        if !deep {
            return Ok(());
        }
    }
}

fn clear(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    lifted: &mut u64,
    deep: &mut bool,
) -> io::Result<()> {
    for (name, kind) in entries(directory)? {
        let removed = if kind == FileType::Directory {
            // Subvolumes are the server's own, right below a machine's directory.
            if depth == 1 && subvolume(directory, &name)? {
                continue;
            }
            if depth + 1 < DEPTH {
                let inner = open(directory, &name)?;
                clear(top, inner.as_fd(), depth + 1, lifted, deep)?;
                rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR)
            } else {
                *deep = true;
                *lifted += 1;
                rustix::fs::renameat(directory, &name, top, format!("deep.{lifted}"))
            }
        } else {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty())
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a subvolume with all that it holds. False: the directory is none.
fn subvolume(directory: BorrowedFd<'_>, name: &CString) -> io::Result<bool> {
    let inode = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        stat => stat?.st_ino,
    };
    storage::remove(directory, name.to_bytes(), inode)
}

/// Bytes that a machine's writable layers hold on disk, without what lies deeper than a walk goes.
pub(super) fn usage(room: BorrowedFd<'_>) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for (name, kind) in entries(room).unwrap_or_default() {
        if kind == FileType::Directory
            && name.to_bytes().starts_with(b"upper")
            && let Ok(upper) = open(room, &name)
        {
            add(upper.as_fd(), 0, &mut seen, &mut bytes);
        }
    }
    bytes
}

fn add(directory: BorrowedFd<'_>, depth: usize, seen: &mut HashSet<u64>, bytes: &mut u64) {
    // The tree changes under the walk: what vanishes is not counted.
    for (name, kind) in entries(directory).unwrap_or_default() {
        let Ok(stat) = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let counted = stat.st_nlink > 1
            && kind != FileType::Directory
            && seen.len() < LINKS
            && !seen.insert(stat.st_ino);
        if !counted {
            *bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        if kind == FileType::Directory
            && depth + 1 < DEPTH
            && let Ok(inner) = open(directory, &name)
        {
            add(inner.as_fd(), depth + 1, seen, bytes);
        }
    }
}

/// All names at once, so that the directory may change meanwhile.
fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        entries.push((entry.file_name().to_owned(), kind));
    }
    Ok(entries)
}

fn open(parent: BorrowedFd<'_>, name: &CString) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_hostile_tree_goes_and_nothing_else() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let top = fs::File::open(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        fs::hard_link(outside.path().join("kept"), dir.path().join("hard")).unwrap();
        // Deeper than a path can be written.
        let mut at: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o700)).unwrap();
            at = open(at.as_fd(), &c"deeper".to_owned()).unwrap();
        }
        drop(at);
        empty(top.as_fd()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "x");
    }

    #[test]
    fn usage_counts_uppers_and_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let room = fs::File::open(dir.path()).unwrap();
        for half in ["upper0", "work0"] {
            fs::create_dir(dir.path().join(half)).unwrap();
            fs::write(dir.path().join(half).join("file"), vec![1; 100_000]).unwrap();
        }
        fs::hard_link(dir.path().join("upper0/file"), dir.path().join("upper0/again")).unwrap();
        fs::File::open(dir.path().join("upper0/file")).unwrap().sync_all().unwrap();
        let bytes = usage(room.as_fd());
        assert!((100_000..150_000).contains(&bytes), "{bytes}");
    }
}
