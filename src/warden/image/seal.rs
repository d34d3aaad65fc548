//! A sandbox's writable layers become an image on top of the one that its machine was made of.
//!
//! The copying is done by a confined child (see [`confine`]) whose root directory is the draft: of
//! the rest of the host it has the sandbox's layers, as open directories, and nothing else. When
//! too many snapshots would lie on each other, the new one takes the contents of those below it
//! in, and lies on what they lay on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::{
    Doing as _, Draft, ImageError, directory,
    integrity::Integrity,
    layers::{self, Target},
    lineage, resolve, sealed_layer,
};
use crate::{
    id::BuildId,
    warden::{
        confine::{self, Refusal},
        machine::room,
    },
    wire::warden::{ImageInfo, ImageKind},
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
/// write to them meanwhile. Call it as root, in a process with one thread.
pub(in crate::warden) fn seal(
    store: BorrowedFd<'_>,
    room: BorrowedFd<'_>,
    parent: BuildId,
    build: BuildId,
) -> Result<ImageInfo, ImageError> {
    let lineage = lineage(store, parent)?;
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
        let upper = room::open(room, &room::layer("upper", number))
            .doing(|| format!("open the writable layer of /{at}"))?;
        let mut pile = vec![upper];
        for (manifest, image) in taken {
            let name = sealed_layer(at);
            let layer = directory(image.as_fd(), name);
            pile.push(layer.doing(|| format!("open layer {name} of {}", manifest.build))?);
        }
        piles.push(pile);
    }
    let draft = Draft::begin(store, build)?;
    let names: Vec<&'static str> = mounts.iter().map(|at| sealed_layer(at)).collect();
    let made = copy(&draft, &names, &piles)?;
    draft.write(INTEGRITY, made.as_bytes())?;
    draft.finish_on(ImageKind::Snapshot, Some(below), None, None)
}

/// Copies each pile into a layer of the draft; what the layers held comes back as JSON.
fn copy(draft: &Draft<'_>, names: &[&'static str], piles: &[Vec<OwnedFd>]) -> Result<String, ImageError> {
    let targets = names.iter().map(|name| draft.layer(name)).collect::<Result<Vec<_>, _>>()?;
    let links = draft.layer(LINKS)?;
    let made = confine::run(draft.as_fd(), CapabilitySet::SETFCAP, &mut |_| {}, |_| {
        let mut records: Vec<Integrity> = Vec::new();
        for (pile, layer) in piles.iter().zip(&targets) {
            records.push(layers::copy(pile, Target { layer: layer.as_fd(), links: links.as_fd() })?);
        }
        let text = serde_json::to_string_pretty(&records);
        text.map(Some).map_err(|error| Refusal::Content(error.to_string()))
    })?;
    draft.remove(LINKS)?;
    Ok(made.unwrap_or_default())
}

/// Makes sure that a snapshot holds what it held when it was made. It reads all of it: run it in a
/// worker.
pub(in crate::warden) fn check(store: BorrowedFd<'_>, build: BuildId) -> Result<(), ImageError> {
    let damaged = |reason: String| ImageError::Damaged { build, reason };
    let image = super::open(store, build)?;
    let text = super::tree::read_capped(image.as_fd(), INTEGRITY, LARGEST)
        .map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    let told: Vec<Integrity> =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{INTEGRITY}: {error}")))?;
    let mounts = resolve(store, build)?.mounts;
    let mut found = Vec::with_capacity(mounts.len());
    for mount in mounts {
        // The top one is the snapshot's own.
        let layer = mount.lowers.into_iter().next().ok_or_else(|| damaged("it has no layer".to_owned()))?;
        found.push(layers::record(layer).map_err(|refusal| damaged(refusal.to_string()))?);
    }
    if found == told { Ok(()) } else { Err(damaged("its files are not what they were".to_owned())) }
}

#[cfg(test)]
mod tests;
