//! `ListDir`: a walk in the order of Go's `WalkDir`, depth first, names sorted by bytes.
//! Links are listed, never followed, but for the root itself.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    guest::{
        entry,
        failure::{self, is_missing},
        filesystem::FilesystemError,
        users::Users,
    },
    wire::rpc::filesystem::EntryInfo,
};

/// The most entries of one answer: about 400 MB of text, far beyond what a client takes.
const MAX_ENTRIES: usize = 1_000_000;

/// Lists `root` down to `depth` levels (0 counts as 1); the paths in the answer start with
/// `root` as it was asked for.
pub(crate) fn list(root: &Path, depth: u32, users: &Users) -> Result<Vec<EntryInfo>, FilesystemError> {
    check_root(root)?;
    let depth = usize::try_from(depth.max(1)).unwrap_or(usize::MAX);
    let mut entries = Vec::new();
    // One level of still unvisited names for each directory on the way down.
    let mut levels = vec![Level::open(root.to_path_buf()).map_err(|error| walk_failed(root, &error))?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let path = level.dir.join(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(walk_failed(root, &error)),
        };
        if entries.len() == MAX_ENTRIES {
            return Err(FilesystemError::TooMany(format!(
                "directory {} holds more than {MAX_ENTRIES} entries: list it with a smaller depth",
                root.display()
            )));
        }
        entries.push(entry::from_metadata(&path, &found, users));
        if found.is_dir() && levels.len() < depth {
            match Level::open(path) {
                Ok(level) => levels.push(level),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(walk_failed(root, &error)),
            }
        }
    }
    Ok(entries)
}

struct Level {
    dir: PathBuf,
    /// Sorted backwards: the next one is the last.
    names: Vec<OsString>,
}

// === impl Level ===

impl Level {
    fn open(dir: PathBuf) -> io::Result<Self> {
        let mut names = fs::read_dir(&dir)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { dir, names })
    }
}

fn check_root(root: &Path) -> Result<(), FilesystemError> {
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(FilesystemError::Invalid(format!("path is not a directory: {}", root.display()))),
        Err(error) if is_missing(&error) => Err(FilesystemError::NotFound(format!(
            "path not found: {}",
            failure::describe("lstat", root, &error)
        ))),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(FilesystemError::Precondition(
            format!("cyclic symlink or chain >255 links at \"{}\"", root.display()),
        )),
        Err(error) => Err(FilesystemError::Internal(format!(
            "error resolving symlink: {}",
            failure::describe("lstat", root, &error)
        ))),
    }
}

fn walk_failed(root: &Path, error: &io::Error) -> FilesystemError {
    FilesystemError::Internal(format!("error reading directory {}: {}", root.display(), failure::text(error)))
}
