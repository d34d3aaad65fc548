//! A sandbox's writable layer, copied as it is: it becomes a layer of an image.
//!
//! Kept are owners, modes, times, hard links, holes, whiteouts and all extended attributes, the
//! overlay's own marks and capabilities of files among them. Left out are sockets, pipes and
//! devices: nothing listens in an image.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps},
    io::Errno,
};

use super::{Intake, Refusal, at, owner};
use crate::warden::image::{
    Tree,
    tree::{self, Access, names, split},
};

/// The longest value of an extended attribute, and list of their names (`XATTR_SIZE_MAX`).
const LARGEST_XATTR: usize = 64 * 1024;

/// Copies all below a directory into a layer, and what the directory itself is.
pub(super) fn copy(from: BorrowedFd<'_>, tree: &mut Tree, intake: &mut Intake<'_>) -> Result<(), Refusal> {
    let mut seen = HashMap::new();
    let mut waiting = vec![Vec::new()];
    let mut folders = Vec::new();
    while let Some(path) = waiting.pop() {
        let dir = open(from, &path, OFlags::DIRECTORY).map_err(at(&path))?;
        let stat = fs::fstat(&dir).map_err(at(&path))?;
        intake.count(0)?;
        tree.dir(&path, access(&path, &stat)?).map_err(at(&path))?;
        let made = open(tree.as_fd(), &path, OFlags::DIRECTORY).map_err(at(&path))?;
        xattrs(dir.as_fd(), made.as_fd()).map_err(at(&path))?;
        folders.push((made_times(&stat), path.clone()));
        for name in names(dir.as_fd()).map_err(at(&path))? {
            let inner = if path.is_empty() { name.clone() } else { [path.as_slice(), b"/", &name].concat() };
            let stat = fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(at(&inner))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => waiting.push(inner),
                FileType::RegularFile => file(dir.as_fd(), &name, &inner, &stat, &mut seen, tree, intake)?,
                FileType::Symlink => {
                    intake.count(0)?;
                    let target = fs::readlinkat(&dir, &*name, Vec::new()).map_err(at(&inner))?;
                    tree.symlink(&inner, target.as_bytes()).map_err(at(&inner))?;
                    tree.own_link(&inner, access(&inner, &stat)?).map_err(at(&inner))?;
                    date(tree, &inner, &made_times(&stat)).map_err(at(&inner))?;
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => {
                    intake.count(0)?;
                    whiteout(tree, &inner).map_err(at(&inner))?;
                }
                _ => intake.skipped += 1,
            }
        }
    }
    // What comes into a folder changes its times, so folders get theirs last, the inner ones first.
    for (times, path) in folders.iter().rev() {
        date(tree, path, times).map_err(at(path))?;
    }
    Ok(())
}

fn file(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    stat: &Stat,
    seen: &mut HashMap<u64, Vec<u8>>,
    tree: &mut Tree,
    intake: &mut Intake<'_>,
) -> Result<(), Refusal> {
    if let Some(first) = seen.get(&stat.st_ino) {
        intake.count(0)?;
        return tree.link_inside(path, first).map_err(at(path));
    }
    // What a file of holes holds is not its length.
    intake.count(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)?;
    let from = File::from(open(dir, name, OFlags::NONBLOCK).map_err(at(path))?);
    let to = tree.create(path).map_err(at(path))?;
    content(&from, &to, u64::try_from(stat.st_size).unwrap_or(0)).map_err(at(path))?;
    tree::apply(to.as_fd(), access(path, stat)?).map_err(at(path))?;
    // After the owner, whose change takes capabilities away.
    xattrs(from.as_fd(), to.as_fd()).map_err(at(path))?;
    fs::futimens(&to, &made_times(stat)).map_err(at(path))?;
    if stat.st_nlink > 1 {
        seen.insert(stat.st_ino, path.to_vec());
    }
    Ok(())
}

/// The same blocks where the file system can share them, else the data between the holes.
fn content(from: &File, to: &File, size: u64) -> io::Result<()> {
    if fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    fs::ftruncate(to, size)?;
    let mut at = 0;
    while at < size {
        at = match fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // A hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = fs::seek(from, SeekFrom::Hole(at))?.min(size);
        let (mut source, mut target) = (at, at);
        while source < end {
            let length = usize::try_from(end - source).unwrap_or(usize::MAX);
            if fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length)? == 0 {
                return Ok(());
            }
        }
        at = end;
    }
    Ok(())
}

fn xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut list = vec![0_u8; LARGEST_XATTR];
    let length = match fs::flistxattr(from, &mut list) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed?,
    };
    let mut value = vec![0_u8; LARGEST_XATTR];
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let size = fs::fgetxattr(from, name, &mut value)?;
        fs::fsetxattr(to, name, &value[..size], fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// What hides a file of the layers below.
fn whiteout(tree: &mut Tree, path: &[u8]) -> Result<(), Errno> {
    let (folder, name) = split(path);
    let folder = tree.folder(folder)?;
    fs::mknodat(&*folder, name, FileType::CharacterDevice, Mode::empty(), 0)
}

fn date(tree: &mut Tree, path: &[u8], times: &Timestamps) -> Result<(), Errno> {
    let (folder, name) = split(path);
    let name = if name.is_empty() { b"." } else { name };
    fs::utimensat(&*tree.folder(folder)?, name, times, AtFlags::SYMLINK_NOFOLLOW)
}

fn made_times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn access(path: &[u8], stat: &Stat) -> Result<Access, Refusal> {
    Ok(Access {
        mode: stat.st_mode & 0o7777,
        uid: owner(path, stat.st_uid.into())?,
        gid: owner(path, stat.st_gid.into())?,
    })
}

fn open(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let at = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat2(from, at, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}
