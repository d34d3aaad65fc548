//! A tree of files being made below one directory, without ever following a link in it.
//!
//! Paths are bytes without a leading slash; every step starts at the tree's own descriptor and
//! is refused by the kernel when it would leave the tree or go through a link. Modes are set
//! explicitly, so the caller's umask has no say.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    rc::Rc,
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

/// Nothing leaves the tree, no link is gone through.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const ANCHOR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Owner and permissions of a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::warden) struct Access {
    /// Permission bits with setuid, setgid and sticky.
    pub(in crate::warden) mode: u32,
    /// The owner as seen inside a machine.
    pub(in crate::warden) uid: u32,
    /// The group as seen inside a machine.
    pub(in crate::warden) gid: u32,
}

/// The tree.
#[derive(Debug)]
pub(in crate::warden) struct Tree {
    root: OwnedFd,
    /// The folder used last: files come folder by folder.
    recent: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

// === impl Access ===

impl Access {
    /// Root's, with these permissions.
    pub(in crate::warden) const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

// === impl Tree ===

impl Tree {
    /// The tree below an open directory.
    pub(in crate::warden) fn new(root: OwnedFd) -> Self {
        Self { root, recent: None }
    }

    /// The top directory.
    pub(in crate::warden) fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A folder, made with what is missing above it (root's, 0755).
    pub(in crate::warden) fn folder(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if let Some((recent, folder)) = &self.recent
            && recent == path
        {
            return Ok(Rc::clone(folder));
        }
        let at = if path.is_empty() { b".".as_slice() } else { path };
        let opened = match fs::openat2(&self.root, at, ANCHOR, Mode::empty(), INSIDE) {
            Err(Errno::NOENT) => self.make_folders(path)?,
            opened => opened?,
        };
        let folder = Rc::new(opened);
        self.recent = Some((path.to_vec(), Rc::clone(&folder)));
        Ok(folder)
    }

    /// A directory with these permissions, made or changed.
    pub(in crate::warden) fn dir(&mut self, path: &[u8], access: Access) -> Result<(), Errno> {
        let folder = self.folder(path)?;
        fs::chownat(&*folder, "", Some(uid(access)), Some(gid(access)), AtFlags::EMPTY_PATH)?;
        fs::chmodat(&*folder, ".", mode(access), AtFlags::empty())
    }

    /// A new file with this content, in place of what had the name.
    pub(in crate::warden) fn write(&mut self, path: &[u8], content: &[u8], access: Access) -> io::Result<()> {
        let mut file = self.create(path)?;
        file.write_all(content)?;
        Ok(apply(file.as_fd(), access)?)
    }

    /// A new file with the content of another, sharing its blocks where the file system can.
    pub(in crate::warden) fn copy(&mut self, path: &[u8], from: &File, access: Access) -> io::Result<u64> {
        let mut file = self.create(path)?;
        let copied = io::copy(&mut &*from, &mut file)?;
        apply(file.as_fd(), access)?;
        Ok(copied)
    }

    /// A new empty file that only the caller sees as complete or not; see [`apply`].
    pub(in crate::warden) fn create(&mut self, path: &[u8]) -> io::Result<File> {
        let (folder, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(fs::openat(&*folder, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// A symbolic link, in place of what had the name.
    pub(in crate::warden) fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Errno> {
        let (folder, name) = self.place(path)?;
        fs::symlinkat(target, &*folder, name)
    }

    /// Gives a symbolic link its owner.
    pub(in crate::warden) fn own_link(&mut self, path: &[u8], access: Access) -> Result<(), Errno> {
        let (folder, name) = split(path);
        let folder = self.folder(folder)?;
        fs::chownat(&*folder, name, Some(uid(access)), Some(gid(access)), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Says when something was last written, in seconds since 1970; a link is not followed.
    pub(in crate::warden) fn date(&mut self, path: &[u8], seconds: i64) -> Result<(), Errno> {
        let (folder, name) = split(path);
        let when = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: when, last_modification: when };
        fs::utimensat(&*self.folder(folder)?, here(name), &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A further name for a file of another directory of the same file system.
    pub(in crate::warden) fn link(
        &mut self,
        path: &[u8],
        from: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), Errno> {
        let (folder, own) = split(path);
        fs::linkat(from, name, &*self.folder(folder)?, own, AtFlags::empty())
    }

    /// A further name for a file of this tree; links are not followed to it.
    pub(in crate::warden) fn link_inside(&mut self, path: &[u8], existing: &[u8]) -> Result<(), Errno> {
        let (from, name) = split(existing);
        let from = fs::openat2(&self.root, here(from), ANCHOR, Mode::empty(), INSIDE)?;
        let (folder, own) = self.place(path)?;
        fs::linkat(from, name, &*folder, own, AtFlags::empty())
    }

    /// What has the name; a link is not followed.
    pub(in crate::warden) fn stat(&self, path: &[u8]) -> Result<Stat, Errno> {
        let (folder, name) = split(path);
        let folder = fs::openat2(&self.root, here(folder), ANCHOR, Mode::empty(), INSIDE)?;
        fs::statat(folder, here(name), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether a path leads to something, for a process that has this tree as its root.
    pub(in crate::warden) fn leads_somewhere(&self, path: &[u8]) -> bool {
        let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(&self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags).is_ok()
    }

    /// The content of a file of at most `cap` bytes; a link is not followed.
    pub(in crate::warden) fn read(&self, path: &str, cap: u64) -> io::Result<Vec<u8>> {
        read_capped(self.root.as_fd(), path, cap)
    }

    /// The folder of a new name that is free: a file or link that has it goes, a directory stays
    /// and makes the next step fail.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(Rc<OwnedFd>, &'p [u8]), Errno> {
        let (folder, name) = split(path);
        let folder = self.folder(folder)?;
        match fs::unlinkat(&*folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok((folder, name)),
            Err(error) => Err(error),
        }
    }

    fn make_folders(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut folder = fs::openat2(&self.root, ".", ANCHOR, Mode::empty(), INSIDE)?;
        for name in path.split(|byte| *byte == b'/') {
            match fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => fs::chmodat(&folder, name, Mode::from_raw_mode(0o755), AtFlags::empty())?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            folder = fs::openat2(&folder, name, ANCHOR, Mode::empty(), INSIDE)?;
        }
        Ok(folder)
    }
}

/// Gives a new file its owner and then its mode: changing the owner clears setuid.
pub(in crate::warden) fn apply(file: BorrowedFd<'_>, access: Access) -> Result<(), Errno> {
    fs::fchown(file, Some(uid(access)), Some(gid(access)))?;
    fs::fchmod(file, mode(access))
}

/// The content of a regular file of at most `cap` bytes; no link is gone through.
pub(in crate::warden) fn read_capped(dir: BorrowedFd<'_>, path: &str, cap: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat2(dir, path, flags, Mode::empty(), INSIDE)?;
    if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    File::from(file).take(cap + 1).read_to_end(&mut content)?;
    if content.len() as u64 > cap {
        return Err(io::Error::other(format!("larger than {cap} bytes")));
    }
    Ok(content)
}

/// The names in a directory, but `.` and `..`.
pub(in crate::warden) fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in fs::Dir::new(fs::openat(dir, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.as_bytes().to_vec());
        }
    }
    Ok(names)
}

/// A path's folder (empty for the top) and last name.
pub(in crate::warden) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn here(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn mode(access: Access) -> Mode {
    Mode::from_raw_mode(access.mode & 0o7777)
}

fn uid(access: Access) -> Uid {
    Uid::from_raw(access.uid)
}

fn gid(access: Access) -> Gid {
    Gid::from_raw(access.gid)
}
