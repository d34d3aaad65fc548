//! Removes a tree however deep it is: two descriptors and no recursion, where the standard
//! library holds one descriptor and one stack frame for each level.

use std::{ffi::CString, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat},
    io::Errno,
};

/// A directory on the way down.
struct Level {
    /// Its name in the level above.
    name: CString,
    /// What it is, to know it again when coming back up by `..`.
    id: (u64, u64),
    /// Directories in it that are still there.
    pending: Vec<CString>,
}

/// Removes the directory `root` and all in it. Links are removed, not followed.
pub(super) fn tree(root: &Path) -> io::Result<()> {
    let mut dir = open(CWD, root)?;
    let mut levels = vec![Level::enter(&dir, CString::default())?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            match open(&dir, name.as_c_str()) {
                Ok(child) => {
                    levels.push(Level::enter(&child, name)?);
                    dir = child;
                }
                Err(Errno::NOENT) => {}
                // Somebody put something else in its place.
                Err(Errno::NOTDIR | Errno::LOOP) => gone(unlinkat(&dir, name, AtFlags::empty()))?,
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let (done, above) = (levels.pop(), levels.last());
        let (Some(done), Some(above)) = (done, above) else { break };
        let up = open(&dir, c"..")?;
        if id(&up)? != above.id {
            // Moved away under our hands: what is there now is not ours to remove.
            return Err(Errno::BUSY.into());
        }
        gone(unlinkat(&up, done.name, AtFlags::REMOVEDIR))?;
        dir = up;
    }
    gone(unlinkat(CWD, root, AtFlags::REMOVEDIR))?;
    Ok(())
}

// === impl Level ===

impl Level {
    /// Removes what is no directory, and notes what is.
    fn enter(dir: &OwnedFd, name: CString) -> io::Result<Self> {
        let mut pending = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                pending.push(name.to_owned());
                continue;
            }
            match unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => pending.push(name.to_owned()),
                removed => gone(removed)?,
            }
        }
        Ok(Self { name, id: id(dir)?, pending })
    }
}

fn open(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

fn id(dir: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    fstat(dir).map(|found| (found.st_dev, found.st_ino))
}

/// What somebody else removed first is removed.
fn gone(removed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn depth_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep");
        fs::create_dir(&root).unwrap();
        let mut at = open(CWD, &root).unwrap();
        for _ in 0..1200 {
            mkdirat(&at, c"level", Mode::from_bits_retain(0o755)).unwrap();
            at = open(&at, c"level").unwrap();
        }
        tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn wide_trees_go_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kept) = (dir.path().join("root"), dir.path().join("kept"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("f"), "").unwrap();
        for number in 0..50 {
            fs::create_dir_all(root.join(format!("{number}/a/b"))).unwrap();
            fs::write(root.join(format!("{number}/a/f")), "").unwrap();
            std::os::unix::fs::symlink(&kept, root.join(format!("{number}/link"))).unwrap();
        }
        tree(&root).unwrap();
        assert!(!root.exists() && kept.join("f").exists());
    }
}
