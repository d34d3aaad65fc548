//! A tall pile of snapshots becomes one image of the same build, in the background.
//!
//! ```text
//!   <build> on p1 on p2 on ... on ground
//!   .new-<build>       all of it copied into one, on ground; a leftover if that is cut short
//!   .squash-<build>    the same, whole and on the disk
//!   exchanged:         <build> on ground; .squash-<build> is what it was
//!   removed            when no machine is mounted from it any more
//! ```
//! At every moment `<build>` is whole, one or the other, and shows the same. What is named
//! `.squash-` is never needed to read an image, but machines may have been made of it: only the warden,
//! which knows them, removes it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, RenameFlags};

use super::{
    Doing as _, Draft, ImageError, directory, lineage, pool, remove, resolve,
    seal::{self, Pile},
    tree,
};
use crate::{
    failpoint::{self, Step},
    id::BuildId,
};

/// Begins the name of an image that another one takes the place of, or has taken.
const FORMER: &str = ".squash-";

/// Makes one image of a snapshot and of those below it. None: it lies on no snapshot. Call it as root, in a process
/// with one thread; the images must stay meanwhile.
pub(in crate::warden) fn squash(
    store: BorrowedFd<'_>,
    build: BuildId,
) -> Result<Option<BuildId>, ImageError> {
    let lineage = lineage(store, build)?;
    let Some(((ground, _), pile)) = lineage.split_last() else { return Ok(None) };
    if pile.len() < 2 {
        return Ok(None);
    }
    let pool = pool(store);
    let name = build.to_string();
    // Where it is, there it stays.
    let pooled = pool.as_ref().filter(|pool| directory(pool.as_fd(), &name).is_ok());
    let place = pooled.map_or(store, |pool| pool.as_fd());
    let mounts: Vec<&'static str> = resolve(store, build)?.mounts.iter().map(|mount| mount.at).collect();
    let piles = mounts.iter().enumerate().map(|(number, at)| Pile::of(pile, number, at));
    let piles = piles.collect::<Result<Vec<Pile>, _>>()?;
    let draft = Draft::begin(place, build)?;
    seal::copy(&draft, &piles)?;
    drop(piles);
    let former = former(build);
    seal::settle(&draft, &mounts)?;
    draft.finish_as(ground.build, &former)?;
    failpoint::reach(Step::SquashMade);
    fs::renameat_with(place, &*former, place, &*name, RenameFlags::EXCHANGE)
        .doing(|| format!("put the squashed {build} in its place"))?;
    failpoint::reach(Step::SquashExchanged);
    super::draft::sync_names(place).doing(|| format!("bring the squashed {build} to the disk"))?;
    Ok(Some(ground.build))
}

/// The builds of which something is left that another image took the place of.
pub(in crate::warden) fn formers(store: BorrowedFd<'_>) -> Result<Vec<BuildId>, ImageError> {
    let mut builds = Vec::new();
    for place in places(store)? {
        let names = tree::names(place.as_fd()).doing(|| "list the template store".to_owned())?;
        builds.extend(names.iter().filter_map(|name| {
            std::str::from_utf8(name).ok()?.strip_prefix(FORMER)?.parse::<BuildId>().ok()
        }));
    }
    Ok(builds)
}

/// Removes what a squash of a build has left. No machine may be mounted from it.
pub(in crate::warden) fn forget(store: BorrowedFd<'_>, build: BuildId) -> Result<(), ImageError> {
    for place in places(store)? {
        remove::tree(place.as_fd(), former(build).as_bytes())
            .doing(|| format!("remove what {build} was before it was squashed"))?;
    }
    Ok(())
}

fn places(store: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, ImageError> {
    let own = store.try_clone_to_owned().doing(|| "keep the template store open".to_owned())?;
    Ok([Some(own), pool(store)].into_iter().flatten().collect())
}

fn former(build: BuildId) -> String {
    format!("{FORMER}{build}")
}
