//! How images and leftovers go: renamed out of sight first, then unlinked name by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{Doing as _, ImageError, MANIFEST, draft, tree};
use crate::{
    failpoint::{self, Step},
    id::BuildId,
    warden::storage,
};

/// Begins the name of an image being made.
pub(super) const DRAFT: &str = ".new-";
/// Begins the name of an image being removed.
const TRASH: &str = ".trash-";
/// Directories open at a time; what lies deeper is moved up and removed from there.
const DEEPEST: usize = 64;

/// Removes a complete image.
pub(super) fn image(store: BorrowedFd<'_>, build: BuildId) -> Result<(), ImageError> {
    let trash = format!("{TRASH}{build}");
    tree(store, trash.as_bytes()).doing(|| format!("finish an earlier removal of {build}"))?;
    match fs::renameat(store, &*build.to_string(), store, &*trash) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).doing(|| format!("take {build} out of sight")),
    }
    failpoint::reach(Step::ImageHidden);
    tree(store, trash.as_bytes()).doing(|| format!("remove the files of {build}"))
}

/// Removes what crashes have left: drafts that nobody locks and half-done removals.
pub(super) fn leftovers(store: BorrowedFd<'_>) -> Result<(), ImageError> {
    for name in tree::names(store).doing(|| "list the template store".to_owned())? {
        let Ok(name) = std::str::from_utf8(&name) else { continue };
        let draft = name.starts_with(DRAFT);
        if !draft && !name.starts_with(TRASH) {
            continue;
        }
        // A draft's lock is held while it goes, so that its maker's twin does not take it over.
        let lock = draft.then(|| draft::lock(store, name)).transpose();
        let lock = lock.doing(|| format!("lock {name}"))?;
        if matches!(lock, Some(None)) {
            continue;
        }
        tree(store, name.as_bytes()).doing(|| format!("remove {name}"))?;
    }
    Ok(())
}

/// Removes images whose manifest is empty: they had their name when the host went down, and nobody was
/// told of them.
pub(super) fn nameless(store: BorrowedFd<'_>) -> Result<(), ImageError> {
    for name in tree::names(store).doing(|| "list the template store".to_owned())? {
        let Some(build) = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let manifest = format!("{build}/{MANIFEST}");
        let empty =
            fs::statat(store, &*manifest, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_size == 0);
        if empty {
            image(store, build)?;
        }
    }
    Ok(())
}

/// Removes a directory with all below it; one that is not there is already removed. Follows no
/// link, enters no other file system (a subvolume goes whole), changes nothing of a file but its
/// number of names.
pub(super) fn tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let top = match open(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let device = fs::fstat(&top)?.st_dev;
    let mut hoisted = 0_u64;
    loop {
        let before = hoisted;
        empty(top.as_fd(), top.as_fd(), 0, device, &mut hoisted)?;
        if hoisted == before {
            break;
        }
    }
    match fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn empty(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    depth: usize,
    device: u64,
    hoisted: &mut u64,
) -> Result<(), Errno> {
    let names = match tree::names(dir) {
        Err(Errno::NOENT) => return Ok(()),
        names => names?,
    };
    for name in names {
        match fs::unlinkat(dir, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        // Another worker may remove the same tree: what it took first is gone as well.
        if depth == DEEPEST {
            *hoisted += 1;
            gone(fs::renameat(dir, &*name, top, format!(".deep-{hoisted}")))?;
            continue;
        }
        let below = match open(dir, &name) {
            Err(Errno::NOENT) => continue,
            opened => opened?,
        };
        let found = fs::fstat(&below)?;
        if found.st_dev != device {
            drop(below);
            let removed = storage::remove(dir, &name, found.st_ino);
            if removed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))? {
                continue;
            }
            return Err(Errno::XDEV);
        }
        empty(top, below.as_fd(), depth + 1, device, hoisted)?;
        drop(below);
        gone(fs::unlinkat(dir, &*name, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

/// What is not there is removed already.
fn gone(removed: Result<(), Errno>) -> Result<(), Errno> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}
