//! A root file system in a directory, copied file by file.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::{Intake, Refusal, at, owner};
use crate::warden::image::{
    Tree,
    tree::{Access, names},
};

/// First names of files that have several.
type Seen = HashMap<(u64, u64), Vec<u8>>;

/// Copies all below a directory. Other file systems mounted in it (/proc and the like) are left
/// out, with their mount points kept.
pub(super) fn copy(from: BorrowedFd<'_>, tree: &mut Tree, intake: &mut Intake<'_>) -> Result<(), Refusal> {
    let device = fs::fstat(from).map_err(at(b"."))?.st_dev;
    let mut seen = Seen::new();
    let mut waiting = vec![Vec::new()];
    let mut folders = Vec::new();
    while let Some(path) = waiting.pop() {
        let dir = open(from, &path, OFlags::DIRECTORY).map_err(at(&path))?;
        if fs::fstat(&dir).map_err(at(&path))?.st_dev != device {
            continue;
        }
        for name in names(dir.as_fd()).map_err(at(&path))? {
            let inner = if path.is_empty() { name.clone() } else { [path.as_slice(), b"/", &name].concat() };
            let stat = fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(&inner))?;
            if one(dir.as_fd(), &name, &inner, &stat, &mut seen, tree, intake)? {
                folders.push((inner.clone(), stat.st_mtime));
                waiting.push(inner);
            } else if is_dated(&stat) {
                tree.date(&inner, stat.st_mtime).map_err(at(&inner))?;
            }
        }
    }
    // What comes into a folder changes its date, so folders get theirs last.
    for (path, when) in folders {
        tree.date(&path, when).map_err(at(&path))?;
    }
    Ok(())
}

/// Whether it is of a kind that came in.
fn is_dated(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink)
}

/// Copies one entry; true when it is a directory to go into.
fn one(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    stat: &Stat,
    seen: &mut Seen,
    tree: &mut Tree,
    intake: &mut Intake<'_>,
) -> Result<bool, Refusal> {
    let access = Access {
        mode: stat.st_mode & 0o7777,
        uid: owner(path, stat.st_uid.into())?,
        gid: owner(path, stat.st_gid.into())?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            intake.count(0)?;
            tree.dir(path, access).map_err(at(path))?;
            return Ok(true);
        }
        FileType::Symlink => {
            intake.count(0)?;
            let target = fs::readlinkat(dir, name, Vec::new()).map_err(at(path))?;
            tree.symlink(path, target.as_bytes()).map_err(at(path))?;
            tree.own_link(path, access).map_err(at(path))?;
        }
        FileType::RegularFile => {
            if let Some(first) = seen.get(&(stat.st_dev, stat.st_ino)) {
                intake.count(0)?;
                tree.link_inside(path, first).map_err(at(path))?;
                return Ok(false);
            }
            intake.count(u64::try_from(stat.st_size).unwrap_or(u64::MAX))?;
            let file = File::from(open(dir, name, OFlags::NONBLOCK).map_err(at(path))?);
            tree.copy(path, &file, access).map_err(at(path))?;
            if stat.st_nlink > 1 {
                seen.insert((stat.st_dev, stat.st_ino), path.to_vec());
            }
        }
        _ => intake.skipped += 1,
    }
    Ok(false)
}

fn open(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let at = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat2(from, at, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}
