//! What an image is on disk, and how one comes to be and goes.
//!
//! ```text
//!   STORE/                0700 root; held by everybody as an open directory, never by path
//!     .new-<build>/       a draft: flock'ed by whoever makes it; one that nobody locks is a
//!                         leftover of a crash and is removed by the next maker
//!     <build>/            complete: the draft renamed, after all of it reached the disk
//!       image.json        what it is
//!       root/             the layer at /
//!       mask/ supplement/ only of a host view: the layers over the host's own /usr
//!       usr/              only of a snapshot on a host view: the layer at /usr
//!       integrity.json    only of a snapshot: what each layer held when it was made
//!       disk/             only of a snapshot on btrfs, instead of root, usr and integrity.json: a
//!                         read-only snapshot of the sandbox's subvolume, told in image.json
//!     .pool/              a btrfs of the server's own (`storage`): images of sandboxes lie in it
//!                         as they do here
//!     .trash-<build>/     being removed; finished by the next maker if that is cut short
//!     .squash-<build>/    what an image was before it took in those below it (`squash`)
//! ```
//! An image never changes once it has its name, so it is read without a lock. The files of a
//! layer may be hard links to the host's own (kind [`ImageKind::HostPackages`]): whoever works on
//! the store may unlink, and may never write to, chmod or chown a file it did not make itself.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    machine::room,
    storage::{DISK, POOL, btrfs},
};
use crate::{
    id::BuildId,
    wire::warden::{ImageInfo, ImageKind, ImageUse},
};

pub(super) mod accounts;
mod attributes;
mod content;
mod draft;
mod integrity;
mod layers;
mod remove;
pub(super) mod seal;
pub(super) mod squash;
pub(super) mod tree;

pub(super) use draft::Draft;
pub(super) use tree::Tree;

/// The version of the on-disk form; an image of another version is made anew.
pub(super) const FORMAT: u32 = 1;
/// Describes a complete image.
const MANIFEST: &str = "image.json";
/// Snapshots that lie on each other before they are made one.
pub(super) const TALL: usize = 16;
/// How many images may lie on each other; the kernel mounts some hundred layers.
pub(super) const DEEPEST: usize = 64;
/// A manifest is some hundred bytes; a larger one is not ours.
const LARGEST_MANIFEST: u64 = 64 * 1024;

/// What a machine is mounted from: one overlay an entry, in mount order.
#[derive(Debug)]
pub struct ImageLayers {
    /// The overlays, the root first.
    pub mounts: Vec<ImageMount>,
    /// The builds that they come from, the image's own first.
    pub builds: Vec<BuildId>,
}

/// One overlay of an image.
#[derive(Debug)]
pub struct ImageMount {
    /// Where it goes in the machine: `""` is the root, `"usr"` is /usr.
    pub at: &'static str,
    /// The read-only layers, top first; each `O_PATH | O_DIRECTORY`.
    pub lowers: Vec<OwnedFd>,
}

/// Why an image could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Nothing complete under that id.
    #[error("build {0} has no image on this host")]
    Missing(BuildId),
    /// Something is there, but it is not an image of this version.
    #[error("the image of build {build} cannot be used ({reason}); remove and import or build it again")]
    Damaged {
        /// The build.
        build: BuildId,
        /// What is wrong.
        reason: String,
    },
    /// Another process makes the same image.
    #[error("build {0} is being made by another process; wait for it to end")]
    Busy(BuildId),
    /// The host cannot lend its packages.
    #[error(
        "no `base` template can be made from this host: {0}; import one instead with \
         `firkin template import NAME --rootfs DIR` or `--tar FILE`"
    )]
    Host(String),
    /// The file system has no room, or no inode, left.
    #[error("the disk is full: {0}")]
    Full(String),
    /// What was to be imported is not acceptable.
    #[error("import refused: {0}")]
    Refused(String),
    /// The host refused a step.
    #[error("{step}: {source}")]
    Step {
        /// What was being done, and to what.
        step: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

// === impl ImageError ===

impl ImageError {
    /// Whether there was no room for it.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Step { source, .. } => is_full(source),
            _ => false,
        }
    }
}

/// Whether the kernel says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|full| error.raw_os_error() == Some(full.raw_os_error()))
}

/// Names the step at which a kernel call failed.
pub(super) trait Doing<T> {
    /// `step` is only made when it is needed: it is said of one file among 100,000.
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, step: impl FnOnce() -> String) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Step { step: step(), source: error.into() })
    }
}

/// What `image.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) build: BuildId,
    pub(super) kind: ImageKind,
    /// The image that its layers lie on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<BuildId>,
    /// Its layers are those of this snapshot of a subvolume, `disk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<btrfs::Identity>,
    pub(super) fingerprint: Option<String>,
    pub(super) notice: Option<String>,
}

// === impl Manifest ===

impl Manifest {
    /// What people and the gateway are told of it.
    pub(super) fn info(self, fresh: bool) -> ImageInfo {
        let Self { build, kind, fingerprint, notice, .. } = self;
        ImageInfo { build, kind, fingerprint, fresh, notice }
    }
}

/// The layers of a complete image, for the launcher: its own on top of those of its parents.
pub fn resolve(store: BorrowedFd<'_>, build: BuildId) -> Result<ImageLayers, ImageError> {
    let mut lineage = lineage(store, build)?;
    let builds = lineage.iter().map(|(manifest, _)| manifest.build).collect();
    let Some((first, image)) = lineage.pop() else { return Err(ImageError::Missing(build)) };
    let mut mounts = own_layers(image.as_fd(), &first)?;
    for (manifest, image) in lineage.into_iter().rev() {
        for (number, mount) in mounts.iter_mut().enumerate() {
            mount.lowers.insert(0, sealed_layer(image.as_fd(), &manifest, number, mount.at)?);
        }
    }
    Ok(ImageLayers { mounts, builds })
}

/// An image and its parents, the first ancestor last.
fn lineage(store: BorrowedFd<'_>, build: BuildId) -> Result<Vec<(Manifest, OwnedFd)>, ImageError> {
    let mut lineage = Vec::new();
    let mut next = Some(build);
    while let Some(one) = next {
        if lineage.len() > DEEPEST {
            let reason = format!("more than {DEEPEST} images lie on each other");
            return Err(ImageError::Damaged { build, reason });
        }
        let damaged = |reason: String| ImageError::Damaged { build, reason };
        let image = match open(store, one) {
            Err(ImageError::Missing(_)) if one != build => {
                return Err(damaged(format!("image {one}, which it lies on, is not there")));
            }
            opened => opened?,
        };
        let manifest = manifest(image.as_fd(), one)?;
        next = manifest.parent;
        if next.is_some() != (manifest.kind == ImageKind::Snapshot) {
            return Err(damaged(format!("what image {one} lies on is not told")));
        }
        lineage.push((manifest, image));
    }
    Ok(lineage)
}

/// The name of a copied layer for a mount.
fn layer_name(at: &str) -> &'static str {
    if at == "usr" { "usr" } else { "root" }
}

/// A snapshot's layer for a mount of this number.
fn sealed_layer(
    image: BorrowedFd<'_>,
    manifest: &Manifest,
    number: usize,
    at: &str,
) -> Result<OwnedFd, ImageError> {
    let name = match manifest.disk {
        Some(_) => format!("{DISK}/{}", room::layer("upper", number)),
        None => layer_name(at).to_owned(),
    };
    directory(image, &name).doing(|| format!("open layer {name} of {}", manifest.build))
}

/// The server's own btrfs, where there is one.
pub(super) fn pool(store: BorrowedFd<'_>) -> Option<OwnedFd> {
    // Opened for reading: it is listed.
    room::open(store, POOL).ok()
}

/// Complete images in the order of their builds: after one of them, and at most so many.
pub(super) fn list(
    store: BorrowedFd<'_>,
    after: Option<BuildId>,
    most: usize,
) -> Result<Vec<ImageUse>, ImageError> {
    let mut names = tree::names(store).doing(|| "list the template store".to_owned())?;
    if let Some(pool) = pool(store) {
        names.extend(tree::names(pool.as_fd()).doing(|| "list the pool".to_owned())?);
    }
    let mut builds: Vec<BuildId> = names
        .iter()
        .filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok())
        .filter(|build| after.is_none_or(|after| *build > after))
        .collect();
    builds.sort_unstable();
    // One that cannot be read is nobody's parent, and stays.
    let read = |build: BuildId| {
        let Manifest { parent, kind, .. } = manifest(open(store, build).ok()?.as_fd(), build).ok()?;
        Some(ImageUse { build, parent, sealed: kind == ImageKind::Snapshot })
    };
    Ok(builds.into_iter().filter_map(read).take(most).collect())
}

/// The image that a complete image lies on.
pub(super) fn parent(store: BorrowedFd<'_>, build: BuildId) -> Result<Option<BuildId>, ImageError> {
    Ok(manifest(open(store, build)?.as_fd(), build)?.parent)
}

fn own_layers(image: BorrowedFd<'_>, manifest: &Manifest) -> Result<Vec<ImageMount>, ImageError> {
    let build = manifest.build;
    let layer = |name: &str| directory(image, name).doing(|| format!("open layer {name} of {build}"));
    let mut mounts = vec![ImageMount { at: "", lowers: vec![layer("root")?] }];
    if manifest.kind == ImageKind::HostView {
        let host =
            rustix::fs::open("/usr", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .doing(|| "open the host's /usr".to_owned())?;
        mounts.push(ImageMount { at: "usr", lowers: vec![layer("mask")?, layer("supplement")?, host] });
    }
    Ok(mounts)
}

/// What a complete image is.
pub fn info(store: BorrowedFd<'_>, build: BuildId) -> Result<ImageInfo, ImageError> {
    let image = open(store, build)?;
    Ok(manifest(image.as_fd(), build)?.info(false))
}

/// Removes an image; one that is not there is already removed. Machines that run on it keep
/// their mounts but lose its files, so the caller makes sure that there are none. May take
/// seconds: run it in a worker.
pub fn remove(store: BorrowedFd<'_>, build: BuildId) -> Result<(), ImageError> {
    if let Some(pool) = pool(store) {
        remove::image(pool.as_fd(), build)?;
    }
    remove::image(store, build)
}

/// Removes drafts that nobody works on any more, and what is left of removals.
pub(super) fn clear_drafts(store: BorrowedFd<'_>) -> Result<(), ImageError> {
    if let Some(pool) = pool(store) {
        remove::leftovers(pool.as_fd())?;
        remove::nameless(pool.as_fd())?;
    }
    remove::leftovers(store)?;
    remove::nameless(store)
}

/// Opens a directory by one name, which may not be a link.
pub(super) fn directory(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

fn open(store: BorrowedFd<'_>, build: BuildId) -> Result<OwnedFd, ImageError> {
    let name = build.to_string();
    let opened = match directory(store, &name) {
        Err(Errno::NOENT) => directory(store, &format!("{POOL}/{name}")),
        opened => opened,
    };
    match opened {
        Err(Errno::NOENT) => Err(ImageError::Missing(build)),
        opened => opened.doing(|| format!("open the image of {build}")),
    }
}

fn manifest(image: BorrowedFd<'_>, build: BuildId) -> Result<Manifest, ImageError> {
    let damaged = |reason: String| ImageError::Damaged { build, reason };
    let bytes = tree::read_capped(image, MANIFEST, LARGEST_MANIFEST)
        .map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    if manifest.format != FORMAT || manifest.build != build {
        return Err(damaged(format!(
            "it is build {} in format {}, this server reads format {FORMAT}",
            manifest.build, manifest.format
        )));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests;
