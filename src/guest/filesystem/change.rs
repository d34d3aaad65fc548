//! `MakeDir`, `Move` and `Remove`, and the parents that uploads need. Blocking: run off the
//! async thread. The guest is the machine's root, so ownership is set, not checked.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, chown},
    },
    path::{Path, PathBuf},
};

use super::{FilesystemError, copy, erase};
use crate::guest::failure::{self, is_missing};

/// The owner of what a request makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The user.
    pub(crate) uid: u32,
    /// Its primary group.
    pub(crate) gid: u32,
}

/// Makes a directory and its parents, all new ones 0755 and owned by `owner`.
pub(crate) fn make_dir(path: &Path, owner: Owner) -> Result<(), FilesystemError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            Err(FilesystemError::Exists(format!("directory already exists: {}", path.display())))
        }
        Ok(_) => Err(FilesystemError::Invalid(format!(
            "path already exists but it is not a directory: {}",
            path.display()
        ))),
        Err(error) if is_missing(&error) => ensure_dirs(path, owner).map_err(FilesystemError::Internal),
        Err(error) => Err(FilesystemError::Internal(format!(
            "error getting file info: {}",
            failure::describe("stat", path, &error)
        ))),
    }
}

/// Makes what is missing of `path`; the error is a text for an internal failure.
pub(crate) fn ensure_dirs(path: &Path, owner: Owner) -> Result<(), String> {
    let mut ancestors: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    ancestors.reverse();
    for dir in ancestors {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(format!("path is a file: {}", dir.display())),
            Err(error) if is_missing(&error) => make_one(dir, owner)?,
            Err(error) => return Err(failure::describe("failed to stat: stat", dir, &error)),
        }
    }
    Ok(())
}

fn make_one(dir: &Path, owner: Owner) -> Result<(), String> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Ok(()) => chown(dir, Some(owner.uid), Some(owner.gid))
            .map_err(|error| failure::describe("failed to chown directory: chown", dir, &error)),
        // Somebody else was faster: theirs to own.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(failure::describe("failed to create directory: mkdir", dir, &error)),
    }
}

/// Renames, replacing an existing file but no directory; makes the destination's parents.
pub(crate) fn rename(source: &Path, destination: &Path, owner: Owner) -> Result<(), FilesystemError> {
    if let Some(parent) = destination.parent() {
        ensure_dirs(parent, owner).map_err(FilesystemError::Internal)?;
    }
    let renamed = spare_directory(source, destination).and_then(|()| fs::rename(source, destination));
    let outcome = match renamed {
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) && is_overlay_limit(source, destination) => {
            move_by_copy(source, destination)
        }
        other => other,
    };
    outcome.map_err(|error| {
        let text =
            format!("rename {} {}: {}", source.display(), destination.display(), failure::text(&error));
        // A missing component of the destination is just made: what is missing is the source.
        if is_missing(&error) {
            FilesystemError::NotFound(format!("source file not found: {text}"))
        } else {
            FilesystemError::Internal(format!("error renaming: {text}"))
        }
    })
}

/// Go's `os.Rename`, and envd with it, puts nothing in the place of a directory, where the kernel
/// would take an empty one.
fn spare_directory(source: &Path, destination: &Path) -> io::Result<()> {
    let Ok(there) = fs::symlink_metadata(destination) else { return Ok(()) };
    if !there.is_dir() {
        return Ok(());
    }
    let moved = fs::symlink_metadata(source)?;
    let same = (moved.dev(), moved.ino()) == (there.dev(), there.ino());
    if same && source.as_os_str() != destination.as_os_str() {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// An overlay without `redirect_dir` refuses to rename a directory of a lower layer with
/// `EXDEV`, though both ends are on the same file system. Real crossings stay errors.
fn is_overlay_limit(source: &Path, destination: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|found| (found.is_dir(), found.dev()));
    let target = destination.parent().and_then(device);
    matches!((device(source), target), (Some((true, from)), Some((_, to))) if from == to)
}

/// Copies beside the destination, swaps in, then deletes the source: until the swap the
/// source is whole and the destination untouched.
fn move_by_copy(source: &Path, destination: &Path) -> io::Result<()> {
    match fs::symlink_metadata(destination) {
        Ok(found) if !found.is_dir() => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error),
    }
    let staging = beside(destination)?;
    let copied = copy::tree(source, &staging).and_then(|()| fs::rename(&staging, destination));
    if let Err(error) = copied {
        let _ = erase::tree(&staging);
        return Err(error);
    }
    erase::tree(source)
}

/// An unused name in the destination's directory, made as an empty directory.
fn beside(destination: &Path) -> io::Result<PathBuf> {
    let parent = destination.parent().unwrap_or(Path::new("/"));
    for number in 0..10_000_u32 {
        let candidate = parent.join(format!(".firkin-move-{number}"));
        match DirBuilder::new().mode(0o700).create(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// Removes a file or a whole tree; what is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), FilesystemError> {
    // The directory would be emptied and stay: the kernel removes no `.`.
    if path.as_os_str().as_bytes().ends_with(b"/.") {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let text = failure::describe("RemoveAll", path, &error);
        return Err(FilesystemError::Internal(format!("error removing file or directory: {text}")));
    }
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => erase::tree(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(FilesystemError::Internal(format!(
            "error removing file or directory: {}",
            failure::describe("unlinkat", path, &error)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_by_copy_is_a_move() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/f"), "x").unwrap();
        move_by_copy(&from, &to).unwrap();
        assert!(!from.exists());
        assert_eq!(fs::read_to_string(to.join("sub/f")).unwrap(), "x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");

        fs::create_dir(&from).unwrap();
        assert_eq!(move_by_copy(&from, &to).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        fs::write(dir.path().join("file"), "").unwrap();
        let over = move_by_copy(&from, &dir.path().join("file")).unwrap_err();
        assert_eq!(over.raw_os_error(), Some(libc::ENOTDIR));
        assert!(from.exists());
    }
}
