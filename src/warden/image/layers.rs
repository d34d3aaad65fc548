//! Layers that sandboxes wrote, copied or merged into one, and their integrity record.
//!
//! Such a tree is hostile: it is walked by descriptors, one name at a time, and no link is ever
//! followed. Nobody changes it meanwhile: its machine is frozen or gone. What a copy keeps is all
//! that an overlay shows of a layer: owners, modes, times, contents with their holes, hard links,
//! whiteouts (devices 0:0) and extended attributes, overlay's own among them. Other devices, which
//! no sandbox can make, are left out.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};

use super::{
    attributes::{self, Attributes},
    content,
    integrity::{Integrity, Recorder},
    tree::names,
};
use crate::warden::confine::{Refusal, at};

/// Directories below each other. No path that a program can write goes further.
const DEEPEST: usize = 2048;
/// Directories open at once, in all layers.
const OPEN: usize = 8192;

/// One walk through a pile of layers: to copy it, or to sum it up.
struct Walk<'a> {
    /// Where copies go; none: the walk only records.
    target: Option<Target<'a>>,
    recorder: Recorder,
    /// Whether the file system can share blocks, as far as is known.
    shares: bool,
    /// Files with several names, by device and inode: the number of their first.
    linked: HashMap<(u64, u64), u64>,
    open: usize,
    buffer: Vec<u8>,
}

/// Where a copy goes.
#[derive(Debug, Clone, Copy)]
pub(in crate::warden) struct Target<'a> {
    /// The new layer: an empty directory.
    pub(in crate::warden) layer: BorrowedFd<'a>,
    /// An empty directory of the same file system for further names of files, so that their other
    /// names need no path to be found by. The caller's to remove.
    pub(in crate::warden) links: BorrowedFd<'a>,
}

/// A directory on the way down.
struct Frame {
    /// Names that are left, the last one first.
    names: Vec<Vec<u8>>,
    /// The directory in the layers that have it, the top one first.
    sources: Vec<OwnedFd>,
    /// The top one's.
    stat: Stat,
    /// The top one's, and whether what lies below all of these layers stays hidden.
    attributes: Attributes,
    /// The copy.
    target: Option<OwnedFd>,
}

/// Copies a pile of layers, the top one first, into one that shows the same over whatever the pile
/// lay on.
pub(in crate::warden) fn copy(layers: &[OwnedFd], target: Target<'_>) -> Result<(), Refusal> {
    walk(layers, Some(target)).map(drop)
}

/// What a layer's record must say.
pub(in crate::warden) fn record(layer: OwnedFd) -> Result<Integrity, Refusal> {
    walk(&[layer], None)
}

fn walk(layers: &[OwnedFd], target: Option<Target<'_>>) -> Result<Integrity, Refusal> {
    let mut walk = Walk {
        target,
        recorder: Recorder::new(target.is_none()),
        shares: true,
        linked: HashMap::new(),
        open: 0,
        buffer: vec![0; content::CHUNK],
    };
    let mut sources = Vec::with_capacity(layers.len());
    for layer in layers {
        sources.push(directory(layer.as_fd(), b".").map_err(at(b"."))?);
    }
    let stat = fs::fstat(&sources[0]).map_err(at(b"."))?;
    let into = target.map(|target| directory(target.layer, b".")).transpose().map_err(at(b"."))?;
    let mut path = vec![walk.enter(b"", sources, stat, false, into)?];
    while let Some(frame) = path.last_mut() {
        if let Some(name) = frame.names.pop() {
            let deeper = walk.one(frame, &name)?;
            if path.len() == DEEPEST && deeper.is_some() {
                return Err(Refusal::Content(format!(
                    "it holds more than {DEEPEST} directories in each other"
                )));
            }
            path.extend(deeper);
        } else if let Some(frame) = path.pop() {
            walk.leave(&frame)?;
        }
    }
    Ok(walk.recorder.finish())
}

// === impl Walk ===

impl Walk<'_> {
    /// Goes into a directory.
    fn enter(
        &mut self,
        name: &[u8],
        sources: Vec<OwnedFd>,
        stat: Stat,
        opaque: bool,
        target: Option<OwnedFd>,
    ) -> Result<Frame, Refusal> {
        self.open += sources.len() + 1;
        if self.open > OPEN {
            return Err(Refusal::Content("it holds too many directories in each other".to_owned()));
        }
        let mut all = BTreeSet::new();
        for source in &sources {
            all.extend(names(source.as_fd()).map_err(at(name))?);
        }
        let attributes = attributes::read(sources[0].as_fd(), opaque).map_err(at(name))?;
        self.recorder.directory(name, &stat, &attributes);
        let names = all.into_iter().rev().collect();
        Ok(Frame { names, sources, stat, attributes, target })
    }

    /// Gives a directory its owner and the rest, now that nothing comes into it any more.
    fn leave(&mut self, frame: &Frame) -> Result<(), Refusal> {
        self.open -= frame.sources.len() + 1;
        self.recorder.up();
        let Some(target) = &frame.target else { return Ok(()) };
        dress(target.as_fd(), &frame.stat, &frame.attributes).map_err(at(b"."))
    }

    /// One name of a directory; a directory comes back to be gone into.
    fn one(&mut self, frame: &Frame, name: &[u8]) -> Result<Option<Frame>, Refusal> {
        let Some((first, stat)) = top(&frame.sources, name).map_err(at(name))? else { return Ok(None) };
        let source = frame.sources[first].as_fd();
        let into = frame.target.as_ref().map(AsFd::as_fd);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let (sources, opaque) = merged(&frame.sources[first..], name).map_err(at(name))?;
                let into = into.map(|into| make(into, name)).transpose().map_err(at(name))?;
                return self.enter(name, sources, stat, opaque, into).map(Some);
            }
            FileType::RegularFile => self.file(source, into, name, &stat)?,
            FileType::Symlink => {
                let link = fs::readlinkat(source, name, Vec::new()).map_err(at(name))?;
                if self.first_name(into, name, &stat)? {
                    self.recorder.link(name, &stat, link.as_bytes());
                    if let Some(into) = into {
                        fs::symlinkat(&*link, into, name)
                            .and_then(|()| dress_by_name(into, name, &stat))
                            .map_err(at(name))?;
                    }
                    self.remember(into, name, &stat)?;
                }
            }
            FileType::BlockDevice => {}
            FileType::CharacterDevice if stat.st_rdev != 0 => {}
            kind => {
                if self.first_name(into, name, &stat)? {
                    self.recorder.special(name, &stat);
                    if let Some(into) = into {
                        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                        fs::mknodat(into, name, kind, mode, 0)
                            .and_then(|()| fs::chmodat(into, name, mode, AtFlags::empty()))
                            .and_then(|()| dress_by_name(into, name, &stat))
                            .map_err(at(name))?;
                    }
                    self.remember(into, name, &stat)?;
                }
            }
        }
        Ok(None)
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        into: Option<BorrowedFd<'_>>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<(), Refusal> {
        if !self.first_name(into, name, stat)? {
            return Ok(());
        }
        let from = open(source, name, OFlags::NONBLOCK | OFlags::NOATIME).map_err(at(name))?;
        let same = fs::fstat(&from).map_err(at(name))?;
        if (same.st_ino, same.st_mode) != (stat.st_ino, stat.st_mode) {
            return Err(Refusal::Content(format!("{} changes", String::from_utf8_lossy(name))));
        }
        let attributes = attributes::read(from.as_fd(), false).map_err(at(name))?;
        let made = into.map(|into| create(into, name)).transpose().map_err(at(name))?;
        let from = File::from(from);
        if let Some(made) = made {
            content::copy(&from, &made, &same, &mut self.shares, &mut self.buffer).map_err(at(name))?;
            dress(made.as_fd(), stat, &attributes).map_err(at(name))?;
            self.recorder.file(name, stat, &attributes, &content::Content::default());
        } else {
            let content = content::sum(&from, &same, &mut self.buffer).map_err(at(name))?;
            self.recorder.file(name, stat, &attributes, &content);
        }
        self.remember(into, name, stat)
    }

    /// Whether this name is the first that is met of its file; a further one is linked to it.
    fn first_name(
        &mut self,
        into: Option<BorrowedFd<'_>>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<bool, Refusal> {
        let Some(number) = self.linked.get(&(stat.st_dev, stat.st_ino)).copied() else { return Ok(true) };
        if let (Some(into), Some(target)) = (into, self.target) {
            match fs::linkat(target.links, number.to_string(), into, name, AtFlags::empty()) {
                Ok(()) => {}
                // One name of a file is ours: one that had as many as can be is made twice.
                Err(Errno::MLINK) => {
                    fs::unlinkat(target.links, number.to_string(), AtFlags::empty()).map_err(at(name))?;
                    self.linked.remove(&(stat.st_dev, stat.st_ino));
                    return Ok(true);
                }
                Err(error) => return Err(at(name)(error)),
            }
        }
        self.recorder.name(name, number);
        Ok(false)
    }

    /// Remembers a file that has further names.
    fn remember(&mut self, into: Option<BorrowedFd<'_>>, name: &[u8], stat: &Stat) -> Result<(), Refusal> {
        if stat.st_nlink < 2 {
            return Ok(());
        }
        let number = self.recorder.entries();
        self.linked.insert((stat.st_dev, stat.st_ino), number);
        if let (Some(into), Some(target)) = (into, self.target) {
            fs::linkat(into, name, target.links, number.to_string(), AtFlags::empty()).map_err(at(name))?;
        }
        Ok(())
    }
}

/// The first of these that has the name.
fn top(sources: &[OwnedFd], name: &[u8]) -> Result<Option<(usize, Stat)>, Errno> {
    for (number, source) in sources.iter().enumerate() {
        match fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => return Ok(Some((number, stat))),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The directories of a name that an overlay of these would show as one, the first of which has
/// it; and whether they hide what is below all of them.
fn merged(sources: &[OwnedFd], name: &[u8]) -> Result<(Vec<OwnedFd>, bool), Errno> {
    let mut found = Vec::new();
    for source in sources {
        match fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            // A whiteout, or a file that the directory took the place of.
            Ok(_) => return Ok((found, true)),
            Err(error) => return Err(error),
        }
        let directory = directory(source.as_fd(), name)?;
        let opaque = attributes::is_opaque(directory.as_fd())?;
        found.push(directory);
        if opaque {
            return Ok((found, true));
        }
    }
    Ok((found, false))
}

fn directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    open(parent, name, OFlags::DIRECTORY)
}

fn open(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// A new directory that only root enters until it is dressed.
fn make(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    fs::mkdirat(parent, name, Mode::RWXU)?;
    directory(parent, name)
}

fn create(parent: BorrowedFd<'_>, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Owner, then mode, which a change of the owner makes smaller, then attributes, then times.
fn dress(made: BorrowedFd<'_>, stat: &Stat, attributes: &Attributes) -> Result<(), Errno> {
    // Root made it.
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        fs::fchown(made, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    fs::fchmod(made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    attributes::write(made, attributes)?;
    fs::futimens(made, &times(stat))
}

/// The same for what is not opened.
fn dress_by_name(parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    fs::utimensat(parent, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests;
