//! An image while it is being made: locked by its maker, invisible to machines, removed unless
//! it is finished.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};

use super::{Doing as _, FORMAT, ImageError, MANIFEST, Manifest, Tree, directory, remove, tree::Access};
use crate::{
    failpoint::{self, Step},
    id::BuildId,
    warden::storage::btrfs,
    wire::warden::{ImageInfo, ImageKind},
};

/// Others remove stale drafts, so a new one may go between its making and its locking.
const ATTEMPTS: u32 = 5;

/// The image being made.
#[derive(Debug)]
pub(in crate::warden) struct Draft<'s> {
    store: BorrowedFd<'s>,
    build: BuildId,
    /// Holds the lock.
    dir: OwnedFd,
    finished: bool,
}

// === impl Draft ===

impl<'s> Draft<'s> {
    /// Starts an image; what crashes have left of this and of others is removed first.
    pub(in crate::warden) fn begin(store: BorrowedFd<'s>, build: BuildId) -> Result<Self, ImageError> {
        remove::leftovers(store)?;
        let name = name(build);
        for _ in 0..ATTEMPTS {
            match fs::mkdirat(store, &*name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(ImageError::Busy(build)),
                Err(error) => return Err(error).doing(|| format!("make the draft of {build}")),
            }
            if let Some(dir) = lock(store, &name).doing(|| format!("lock the draft of {build}"))? {
                failpoint::reach(Step::DraftBegun);
                return Ok(Self { store, build, dir, finished: false });
            }
        }
        Err(ImageError::Busy(build))
    }

    /// A new layer.
    pub(in crate::warden) fn layer(&self, name: &'static str) -> Result<Tree, ImageError> {
        let make = || {
            fs::mkdirat(&self.dir, name, Mode::RWXU)?;
            let mut tree = Tree::new(directory(self.dir.as_fd(), name)?);
            tree.dir(b"", Access::root(0o755))?;
            Ok::<_, Errno>(tree)
        };
        make().doing(|| format!("make layer {name} of {}", self.build))
    }

    /// The draft's own directory.
    pub(in crate::warden) fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A file beside the layers.
    pub(in crate::warden) fn write(&self, name: &str, text: &[u8]) -> Result<(), ImageError> {
        let build = self.build;
        let mut draft = Tree::new(self.dir.try_clone().doing(|| "keep the draft open".to_owned())?);
        let written = draft.write(name.as_bytes(), text, Access::root(0o600));
        written.doing(|| format!("write {name} of {build}"))
    }

    /// Takes a layer out again.
    pub(in crate::warden) fn remove(&self, name: &str) -> Result<(), ImageError> {
        remove::tree(self.dir.as_fd(), name.as_bytes()).doing(|| format!("remove {name} of {}", self.build))
    }

    /// Makes the image visible, once all of it has reached the disk.
    pub(in crate::warden) fn finish(
        self,
        kind: ImageKind,
        fingerprint: Option<String>,
        notice: Option<String>,
    ) -> Result<ImageInfo, ImageError> {
        let (format, build) = (FORMAT, self.build);
        let manifest = Manifest { format, build, kind, parent: None, disk: None, fingerprint, notice };
        self.name(manifest, &build.to_string())
    }

    /// The same for an image of a sandbox, whose layers lie on those of another. `disk`: they are
    /// those of this subvolume.
    pub(in crate::warden) fn finish_on(
        self,
        parent: BuildId,
        disk: Option<btrfs::Identity>,
    ) -> Result<ImageInfo, ImageError> {
        let (format, build, kind, parent) = (FORMAT, self.build, ImageKind::Snapshot, Some(parent));
        let manifest = Manifest { format, build, kind, parent, disk, fingerprint: None, notice: None };
        self.name(manifest, &build.to_string())
    }

    /// The same for a copied image, under another name than its build's.
    pub(super) fn finish_as(self, parent: BuildId, name: &str) -> Result<ImageInfo, ImageError> {
        let (format, build, kind, parent) = (FORMAT, self.build, ImageKind::Snapshot, Some(parent));
        let (disk, fingerprint, notice) = (None, None, None);
        self.name(Manifest { format, build, kind, parent, disk, fingerprint, notice }, name)
    }

    fn name(mut self, manifest: Manifest, as_name: &str) -> Result<ImageInfo, ImageError> {
        failpoint::reach(Step::DraftCopied);
        let build = self.build;
        let text = serde_json::to_vec_pretty(&manifest).doing(|| format!("describe {build}"))?;
        self.write(MANIFEST, &text)?;
        // On btrfs a name and what it names reach the disk in one transaction; what of that is cut short has
        // an empty manifest, and is removed by the next start.
        let at_once = manifest.disk.is_some();
        let sync = || fs::syncfs(&self.dir).doing(|| format!("bring {build} to the disk"));
        if !at_once {
            sync()?;
            failpoint::reach(Step::DraftSynced);
        }
        fs::renameat_with(self.store, &*name(build), self.store, as_name, RenameFlags::NOREPLACE)
            .doing(|| format!("give {build} its name"))?;
        self.finished = true;
        failpoint::reach(Step::DraftNamed);
        if at_once {
            fs::syncfs(&self.dir).doing(|| format!("bring {build} to the disk"))?;
            return Ok(manifest.info(true));
        }
        sync_names(self.store).doing(|| format!("bring the name of {build} to the disk"))?;
        Ok(manifest.info(true))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // What stays is found and removed by the next maker.
            let _ = remove::tree(self.store, name(self.build).as_bytes());
        }
    }
}

/// Locks a draft; none when somebody else has it or it is gone.
pub(super) fn lock(store: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match fs::openat(store, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    match fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    // Between the opening and the locking another may have removed it, and made a new one.
    match fs::statat(store, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_ino == fs::fstat(&dir)?.st_ino).then_some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn name(build: BuildId) -> String {
    format!("{}{build}", remove::DRAFT)
}

pub(super) fn sync_names(store: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::fsync(fs::openat(store, ".", flags, Mode::empty())?)
}
