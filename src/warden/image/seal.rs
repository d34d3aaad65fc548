//! A sandbox's writable layers become an image on top of the one that its machine was made of.
//!
//! The copying is done by a confined child (see [`confine`]) whose root directory is the draft: of
//! the rest of the host it has the sandbox's layers, as open directories, and nothing else. When
//! too many snapshots would lie on each other all the same (see `squash`), the new one takes the contents
//! of those below it in, and lies on what they lay on.
//!
//! On btrfs nothing is copied: a snapshot of the subvolume is taken, and cannot be changed.
//!
//! Only the copying needs a sandbox that stands still. What the copy holds is summed up and brought
//! to the disk afterwards; until then nobody sees it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::{
    Doing as _, Draft, ImageError, Manifest, directory,
    integrity::Integrity,
    layer_name,
    layers::{self, Target},
    lineage, resolve, sealed_layer,
};
use crate::{
    id::BuildId,
    warden::{
        confine::{self, Refusal},
        machine::room,
        storage::{DISK, btrfs},
    },
    wire::warden::ImageInfo,
};

/// Snapshots that lie on each other before the next one takes them in.
const HIGHEST: usize = 40;
/// Of a draft: further names of files while they are copied.
const LINKS: &str = "links";
/// What each layer held, beside the layers.
const INTEGRITY: &str = "integrity.json";
/// Its text is some hundred bytes.
const LARGEST: u64 = 64 * 1024;

/// Layers of one mount, the top one first.
#[derive(Debug)]
pub(super) struct Pile {
    at: &'static str,
    layers: Vec<OwnedFd>,
}

/// Makes image `build` of the layers in a machine's directory, on top of image `parent`. Nobody may
/// write to them until `copied` is called. Call it as root, in a process with one thread.
pub(in crate::warden) fn seal(
    store: BorrowedFd<'_>,
    room: BorrowedFd<'_>,
    parent: BuildId,
    build: BuildId,
    copied: impl FnOnce(),
) -> Result<ImageInfo, ImageError> {
    let lineage = lineage(store, parent)?;
    let room = room::disk(room).doing(|| "open the writable layers".to_owned())?;
    let pool = super::pool(store);
    // Where snapshots can be made of subvolumes.
    let place = pool.as_ref().map_or(store, |pool| pool.as_fd());
    if lineage.len() <= HIGHEST && btrfs::is_subvolume(room.as_fd()) {
        let draft = Draft::begin(place, build)?;
        match btrfs::snapshot(room.as_fd(), draft.as_fd(), DISK) {
            Ok(()) => {
                copied();
                let disk = identity(draft.as_fd())?.ok_or_else(|| unsound(build, "it is not read-only"))?;
                return draft.finish_on(parent, Some(disk));
            }
            // Made by a server whose images lay elsewhere: it is copied like any other.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => {}
            Err(error) => return Err(error).doing(|| format!("make the snapshot {build}")),
        }
    }
    let mounts: Vec<&'static str> = resolve(store, parent)?.mounts.iter().map(|mount| mount.at).collect();
    // The last one is no snapshot.
    let (taken, below) = if lineage.len() > HIGHEST {
        let ground = lineage.last().map_or(parent, |(manifest, _)| manifest.build);
        (&lineage[..lineage.len() - 1], ground)
    } else {
        (&lineage[..0], parent)
    };
    let mut piles = Vec::new();
    for (number, at) in mounts.iter().enumerate() {
        let upper = room::open(room.as_fd(), &room::layer("upper", number))
            .doing(|| format!("open the writable layer of /{at}"))?;
        let mut pile = Pile::of(taken, number, at)?;
        pile.layers.insert(0, upper);
        piles.push(pile);
    }
    let draft = Draft::begin(place, build)?;
    copy(&draft, &piles)?;
    drop(piles);
    copied();
    settle(&draft, &mounts)?;
    draft.finish_on(below, None)
}

// === impl Pile ===

impl Pile {
    /// What these snapshots, the top one first, have for the mount of this number.
    pub(super) fn of(
        snapshots: &[(Manifest, OwnedFd)],
        number: usize,
        at: &'static str,
    ) -> Result<Self, ImageError> {
        let layer =
            |(manifest, image): &(Manifest, OwnedFd)| sealed_layer(image.as_fd(), manifest, number, at);
        Ok(Self { at, layers: snapshots.iter().map(layer).collect::<Result<_, _>>()? })
    }
}

fn unsound(build: BuildId, reason: &str) -> ImageError {
    ImageError::Damaged { build, reason: reason.to_owned() }
}

/// The subvolume of an image or of a draft.
fn identity(image: BorrowedFd<'_>) -> Result<Option<btrfs::Identity>, ImageError> {
    room::open(image, DISK)
        .and_then(|disk| btrfs::identity(disk.as_fd()))
        .doing(|| "tell the snapshot".to_owned())
}

/// Copies each pile into a layer of the draft.
pub(super) fn copy(draft: &Draft<'_>, piles: &[Pile]) -> Result<(), ImageError> {
    let layers = piles.iter().map(|pile| draft.layer(layer_name(pile.at)));
    let targets = layers.collect::<Result<Vec<_>, _>>()?;
    let links = draft.layer(LINKS)?;
    confine::run(draft.as_fd(), CapabilitySet::SETFCAP, &mut |_| {}, |_| {
        for (pile, layer) in piles.iter().zip(&targets) {
            layers::copy(&pile.layers, Target { layer: layer.as_fd(), links: links.as_fd() })?;
        }
        Ok(None)
    })?;
    Ok(())
}

/// Sums up what a draft's layers for these mounts hold after a copy.
pub(super) fn settle(draft: &Draft<'_>, mounts: &[&'static str]) -> Result<(), ImageError> {
    draft.remove(LINKS)?;
    let open = |at: &&'static str| {
        let name = layer_name(at);
        directory(draft.as_fd(), name).doing(|| format!("open layer {name}"))
    };
    let layers = mounts.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    // What reaches the disk now need not when the image is given its name.
    let beside = || {
        let _ = rustix::fs::syncfs(draft.as_fd());
    };
    draft.write(INTEGRITY, record(draft.as_fd(), layers, beside)?.as_bytes())
}

/// What layers hold, as JSON, read by a confined child whose root directory is `top`.
fn record(top: BorrowedFd<'_>, layers: Vec<OwnedFd>, beside: impl FnOnce()) -> Result<String, ImageError> {
    let text = confine::run_beside(top, CapabilitySet::empty(), &mut |_| {}, beside, |_| {
        let records: Vec<Integrity> = layers.into_iter().map(layers::record).collect::<Result<_, _>>()?;
        let text = serde_json::to_string_pretty(&records);
        text.map(Some).map_err(|error| Refusal::Content(error.to_string()))
    })?;
    Ok(text.unwrap_or_default())
}

/// Makes sure that a snapshot holds what it held when it was made. It reads all of it, but for one
/// that the file system has kept from being written to: run it in a worker.
pub(in crate::warden) fn check(store: BorrowedFd<'_>, build: BuildId) -> Result<(), ImageError> {
    let damaged = |reason: String| ImageError::Damaged { build, reason };
    let image = super::open(store, build)?;
    let manifest = super::manifest(image.as_fd(), build)?;
    if let Some(told) = &manifest.disk {
        let found = identity(image.as_fd())?;
        // What is on the disk is summed up by the file system itself, block by block.
        return if found.as_ref() == Some(told) {
            Ok(())
        } else {
            Err(damaged("it was written to".to_owned()))
        };
    }
    let text = super::tree::read_capped(image.as_fd(), INTEGRITY, LARGEST)
        .map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    let told: Vec<Integrity> =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    // The layers of what was opened: the image may be squashed meanwhile.
    let mounts = resolve(store, build)?.mounts;
    let layers = mounts.iter().enumerate();
    let layers = layers.map(|(number, mount)| sealed_layer(image.as_fd(), &manifest, number, mount.at));
    let found = layers.collect::<Result<Vec<_>, _>>()?;
    let found = record(image.as_fd(), found, || {}).map_err(|error| damaged(error.to_string()))?;
    let found: Vec<Integrity> = serde_json::from_str(&found).map_err(|error| damaged(error.to_string()))?;
    if found == told { Ok(()) } else { Err(damaged("its files are not what they were".to_owned())) }
}

#[cfg(test)]
mod tests;
