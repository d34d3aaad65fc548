//! A sandbox's writable layers become an image on top of the one that its machine was made of.
//!
//! The copying is done by a confined child (see [`confine`]) whose root directory is the draft: of
//! the rest of the host it has the sandbox's layers, as open directories, and nothing else. When
//! too many snapshots would lie on each other, the new one takes the contents of those below it
//! in, and lies on what they lay on.
//!
//! On btrfs nothing is copied: a snapshot of the subvolume is taken, and cannot be changed.
//!
//! Only the copying needs a sandbox that stands still. What the copy holds is summed up and brought
//! to the disk afterwards; until then nobody sees it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::{
    Doing as _, Draft, ImageError, directory,
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
const HIGHEST: usize = 20;
/// Of a draft: further names of files while they are copied.
const LINKS: &str = "links";
/// What each layer held, beside the layers.
const INTEGRITY: &str = "integrity.json";
/// Its text is some hundred bytes.
const LARGEST: u64 = 64 * 1024;

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
    let mut piles: Vec<Vec<OwnedFd>> = Vec::new();
    for (number, at) in mounts.iter().enumerate() {
        let upper = room::open(room.as_fd(), &room::layer("upper", number))
            .doing(|| format!("open the writable layer of /{at}"))?;
        let mut pile = vec![upper];
        for (manifest, image) in taken {
            pile.push(sealed_layer(image.as_fd(), manifest, number, at)?);
        }
        piles.push(pile);
    }
    let draft = Draft::begin(place, build)?;
    let names: Vec<&'static str> = mounts.iter().map(|at| layer_name(at)).collect();
    copy(&draft, &names, &piles)?;
    drop(piles);
    copied();
    draft.remove(LINKS)?;
    draft.write(INTEGRITY, sum_up(&draft, &names)?.as_bytes())?;
    draft.finish_on(below, None)
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
fn copy(draft: &Draft<'_>, names: &[&'static str], piles: &[Vec<OwnedFd>]) -> Result<(), ImageError> {
    let targets = names.iter().map(|name| draft.layer(name)).collect::<Result<Vec<_>, _>>()?;
    let links = draft.layer(LINKS)?;
    confine::run(draft.as_fd(), CapabilitySet::SETFCAP, &mut |_| {}, |_| {
        for (pile, layer) in piles.iter().zip(&targets) {
            layers::copy(pile, Target { layer: layer.as_fd(), links: links.as_fd() })?;
        }
        Ok(None)
    })?;
    Ok(())
}

/// What the layers of a draft hold, as JSON.
fn sum_up(draft: &Draft<'_>, names: &[&'static str]) -> Result<String, ImageError> {
    let open = |name: &&'static str| directory(draft.as_fd(), name).doing(|| format!("open layer {name}"));
    let layers = names.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    record(draft.as_fd(), layers)
}

/// What layers hold, as JSON, read by a confined child whose root directory is `top`.
fn record(top: BorrowedFd<'_>, layers: Vec<OwnedFd>) -> Result<String, ImageError> {
    let text = confine::run(top, CapabilitySet::empty(), &mut |_| {}, |_| {
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
    if let Some(told) = super::manifest(image.as_fd(), build)?.disk {
        let found = identity(image.as_fd())?;
        // What is on the disk is summed up by the file system itself, block by block.
        return if found == Some(told) { Ok(()) } else { Err(damaged("it was written to".to_owned())) };
    }
    let text = super::tree::read_capped(image.as_fd(), INTEGRITY, LARGEST)
        .map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    let told: Vec<Integrity> =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    let mounts = resolve(store, build)?.mounts;
    let mut found = Vec::with_capacity(mounts.len());
    for mount in mounts {
        // The top one is the snapshot's own.
        let layer = mount.lowers.into_iter().next().ok_or_else(|| damaged("it has no layer".to_owned()))?;
        found.push(layer);
    }
    let found = record(image.as_fd(), found).map_err(|error| damaged(error.to_string()))?;
    let found: Vec<Integrity> = serde_json::from_str(&found).map_err(|error| damaged(error.to_string()))?;
    if found == told { Ok(()) } else { Err(damaged("its files are not what they were".to_owned())) }
}

#[cfg(test)]
mod tests;
