//! The disks and images of the fake host: a disk is the build that it stands on and its files by
//! name; an image is the same, at rest.

use std::collections::{BTreeMap, BTreeSet};

use super::{FakeEngine, Host};
use crate::{
    id::{BuildId, SandboxId},
    runtime::engine::{EngineError, ImageUse},
};

/// Contents by name.
pub type FakeFiles = BTreeMap<String, Vec<u8>>;

/// What a sandbox writes to.
#[derive(Debug, Clone)]
pub(super) struct FakeDisk {
    pub(super) build: BuildId,
    pub(super) files: FakeFiles,
}

/// The images of a host. Every build has one until it is removed: it comes to be with the first
/// machine that is made of it, or by a seal.
#[derive(Debug, Default)]
pub(super) struct Images {
    known: BTreeMap<BuildId, FakeImage>,
    removed: BTreeSet<BuildId>,
}

#[derive(Debug, Default)]
struct FakeImage {
    /// Of sealed ones.
    parent: Option<BuildId>,
    /// Whether it came from outside, and is told of.
    imported: bool,
    files: FakeFiles,
}

// === impl Images ===

impl Images {
    /// A new disk on an image.
    pub(super) fn disk(&mut self, build: BuildId) -> Result<FakeDisk, EngineError> {
        if self.removed.contains(&build) {
            return Err(EngineError::NoImage(build));
        }
        let image = self.known.entry(build).or_default();
        Ok(FakeDisk { build, files: image.files.clone() })
    }

    fn seal(&mut self, disk: FakeDisk, build: BuildId) -> Result<(), EngineError> {
        if self.known.contains_key(&build) {
            let reason = format!("build {build} exists already");
            return Err(EngineError::Host { step: "seal", reason });
        }
        self.removed.remove(&build);
        self.known.insert(build, FakeImage { parent: Some(disk.build), files: disk.files, imported: false });
        Ok(())
    }

    /// The sealed and imported ones: the others stand for templates, of which the fake host knows nothing.
    pub(super) fn uses(&self) -> Vec<ImageUse> {
        let told = |(build, image): (&BuildId, &FakeImage)| {
            let (parent, sealed) = (image.parent, image.parent.is_some());
            (sealed || image.imported).then_some(ImageUse { build: *build, parent, sealed })
        };
        self.known.iter().filter_map(told).collect()
    }
}

// === impl Host ===

impl Host {
    /// The disk of a sandbox: its machine's, or the one that was kept.
    fn with_disk<T>(&self, sandbox: SandboxId, look: impl FnOnce(&mut FakeDisk) -> T) -> Option<T> {
        // The machines stay locked: a machine that ends meanwhile would be seen in neither place.
        let machines = self.machines.lock();
        match machines.get(&sandbox) {
            Some(body) => Some(look(&mut body.disk.lock())),
            None => self.kept.lock().get_mut(&sandbox).map(look),
        }
    }

    pub(super) async fn seal(&self, sandbox: SandboxId, build: BuildId) -> Result<(), EngineError> {
        let faults = self.faults();
        self.sealable(sandbox)?;
        tokio::time::sleep(faults.seal_delay).await;
        if faults.disk_full {
            return Err(EngineError::DiskFull);
        }
        if self.take(|faults| &mut faults.seal_failures) {
            return Err(EngineError::Host { step: "seal", reason: "injected".to_owned() });
        }
        // It may have gone, or gone on, meanwhile.
        let disk = self.sealable(sandbox)?;
        self.images.lock().seal(disk, build)
    }

    fn sealable(&self, sandbox: SandboxId) -> Result<FakeDisk, EngineError> {
        if self.body(sandbox).is_some_and(|body| !body.is_frozen()) {
            let reason = "the machine is not frozen".to_owned();
            return Err(EngineError::Host { step: "seal", reason });
        }
        self.with_disk(sandbox, |disk| disk.clone()).ok_or(EngineError::Gone)
    }

    pub(super) fn remove_image(&self, build: BuildId) -> bool {
        let machines = self.machines.lock();
        let kept = self.kept.lock();
        let mut images = self.images.lock();
        let used = machines.values().any(|body| body.disk.lock().build == build)
            || kept.values().any(|disk| disk.build == build)
            || images.known.values().any(|image| image.parent == Some(build));
        if !used {
            images.known.remove(&build);
            images.removed.insert(build);
        }
        !used
    }
}

// === impl FakeEngine ===

impl FakeEngine {
    /// Writes a file of a sandbox, whose machine may run or not. False: it has no disk.
    pub fn write_file(&self, sandbox: SandboxId, name: &str, content: &[u8]) -> bool {
        let write = |disk: &mut FakeDisk| disk.files.insert(name.to_owned(), content.to_vec());
        self.host.with_disk(sandbox, write).is_some()
    }

    /// Removes a file of a sandbox. False: there was none.
    pub fn remove_file(&self, sandbox: SandboxId, name: &str) -> bool {
        self.host.with_disk(sandbox, |disk| disk.files.remove(name)).flatten().is_some()
    }

    /// All files of a sandbox, its image's among them. None: it has no disk.
    pub fn files(&self, sandbox: SandboxId) -> Option<FakeFiles> {
        self.host.with_disk(sandbox, |disk| disk.files.clone())
    }

    /// All files of an image.
    pub fn image_files(&self, build: BuildId) -> Option<FakeFiles> {
        self.host.images.lock().known.get(&build).map(|image| image.files.clone())
    }

    /// The sealed images that there are, as the engine tells of them.
    pub fn image_uses(&self) -> Vec<ImageUse> {
        self.host.images.lock().uses()
    }

    /// Puts an empty image there that was made of no sandbox.
    pub fn import_image(&self, build: BuildId) {
        let image = FakeImage { imported: true, ..FakeImage::default() };
        self.host.images.lock().known.insert(build, image);
    }

    /// Loses an image, whatever stands on it.
    pub fn lose_image(&self, build: BuildId) {
        let mut images = self.host.images.lock();
        images.known.remove(&build);
        images.removed.insert(build);
    }
}
