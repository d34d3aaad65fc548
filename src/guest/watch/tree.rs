//! What kernel events mean to a watcher, and how a recursive one keeps covering its tree.
//!
//! A new directory is watched first and looked into afterwards; what is found is told as
//! created. An entry that appears in between is both found and told by the kernel: names that
//! were found are remembered until the kernel's queue has run empty, and told once.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use inotify::{EventMask, WatchDescriptor};

use super::{
    Hub, Watcher,
    kernel::{Kernel, Place, RawEvent},
    mailbox::{Event, Failure, Kind},
};
use crate::guest::{entry, users::Users};

/// Moves whose other end is still awaited; older ones left the tree.
const MAX_MOVING: usize = 1024;

/// The directories that a watcher covers.
#[derive(Default)]
pub(super) struct Places {
    /// By their names relative to the root.
    held: HashMap<PathBuf, WatchDescriptor>,
    /// Directories on the move: cookie and old name.
    moving: HashMap<u32, PathBuf>,
    /// Found by looking, perhaps still to be told by the kernel.
    found: HashSet<PathBuf>,
}

// === impl Places ===

impl Places {
    /// Gives up a directory and all below it.
    pub(super) fn release(&mut self, kernel: &mut Kernel, watcher: u64, dir: &Path) {
        self.held.retain(|held, descriptor| {
            let keep = !held.starts_with(dir);
            if !keep {
                kernel.remove(descriptor, watcher);
            }
            keep
        });
    }

    /// Follows a directory that was renamed within the tree.
    fn rename(&mut self, kernel: &mut Kernel, watcher: u64, root: &Path, old: &Path, new: &Path) {
        let moved: Vec<PathBuf> = self.held.keys().filter(|held| held.starts_with(old)).cloned().collect();
        for dir in moved {
            let Some(descriptor) = self.held.remove(&dir) else { continue };
            let tail = dir.strip_prefix(old).unwrap_or(Path::new(""));
            let dir = join(new, tail);
            // Adding again renames the place; it fails only if the directory is gone already.
            match kernel.add(&root.join(&dir), Place { watcher, dir: dir.clone() }) {
                Ok(again) if again == descriptor => drop(self.held.insert(dir, again)),
                Ok(other) => {
                    kernel.remove(&descriptor, watcher);
                    self.held.insert(dir, other);
                }
                Err(_) => kernel.remove(&descriptor, watcher),
            }
        }
    }
}

/// Covers a new watcher's root, and for a recursive one every directory below. Without events.
pub(super) fn cover_all(hub: &mut Hub, id: u64) -> Result<(), (PathBuf, io::Error)> {
    let Hub { kernel, watchers, .. } = hub;
    let Some(watcher) = watchers.get_mut(&id) else { return Ok(()) };
    let root = watcher.interests.root.clone();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        let path = join(&root, &dir);
        match kernel.add(&path, Place { watcher: id, dir: dir.clone() }) {
            Ok(descriptor) => drop(watcher.places.held.insert(dir.clone(), descriptor)),
            // Gone, or swapped for a file, while we looked.
            Err(error) if !dir.as_os_str().is_empty() && is_gone(&error) => continue,
            Err(error) => return Err((path, error)),
        }
        if watcher.interests.recursive {
            waiting.extend(children(&path).filter(|child| child.is_dir).map(|child| dir.join(child.name)));
        }
    }
    Ok(())
}

/// Delivers everything that the kernel has queued; the answer names watchers that failed.
pub(super) fn pump(hub: &mut Hub, users: &Users) -> Vec<u64> {
    let mut failed = Vec::new();
    loop {
        let Ok(events) = hub.kernel.read() else { return fail_all(hub, Failure::KernelOverflow) };
        if events.is_empty() {
            break;
        }
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return fail_all(hub, Failure::KernelOverflow);
            }
            dispatch(hub, users, &event, &mut failed);
        }
    }
    for watcher in hub.watchers.values_mut() {
        watcher.places.found.clear();
    }
    failed
}

fn fail_all(hub: &mut Hub, failure: Failure) -> Vec<u64> {
    for watcher in hub.watchers.values() {
        watcher.mailbox.fail(failure);
    }
    hub.watchers.keys().copied().collect()
}

fn dispatch(hub: &mut Hub, users: &Users, event: &RawEvent, failed: &mut Vec<u64>) {
    let Hub { kernel, watchers, .. } = hub;
    if event.mask.contains(EventMask::IGNORED) {
        for place in kernel.gone(&event.descriptor) {
            if let Some(watcher) = watchers.get_mut(&place.watcher) {
                watcher.places.held.remove(&place.dir);
            }
        }
        return;
    }
    for place in kernel.places(&event.descriptor) {
        let Some(watcher) = watchers.get_mut(&place.watcher) else { continue };
        let outcome = match &event.name {
            Some(name) => {
                let name = place.dir.join(name);
                Telling { kernel, watcher, id: place.watcher, users }.child(event, name)
            }
            None => Telling { kernel, watcher, id: place.watcher, users }.itself(event, &place.dir),
        };
        if let Err(failure) = outcome {
            watcher.mailbox.fail(failure);
            failed.push(place.watcher);
        }
    }
}

/// One event on its way to one watcher.
struct Telling<'a> {
    kernel: &'a mut Kernel,
    watcher: &'a mut Watcher,
    id: u64,
    users: &'a Users,
}

// === impl Telling ===

impl Telling<'_> {
    /// Something happened to an entry of a covered directory.
    fn child(mut self, event: &RawEvent, name: PathBuf) -> Result<(), Failure> {
        let Some(kind) = kind_of(event.mask) else { return Ok(()) };
        let places = &mut self.watcher.places;
        match kind {
            Kind::Create if places.found.remove(&name) => return Ok(()),
            Kind::Remove | Kind::Rename => drop(places.found.remove(&name)),
            _ => {}
        }
        self.tell(kind, &name)?;
        if !event.mask.contains(EventMask::ISDIR) || !self.watcher.interests.recursive {
            return Ok(());
        }
        if event.mask.contains(EventMask::MOVED_FROM) {
            let moving = &mut self.watcher.places.moving;
            if moving.len() >= MAX_MOVING {
                moving.clear();
            }
            moving.insert(event.cookie, name);
            return Ok(());
        }
        if event.mask.contains(EventMask::MOVED_TO)
            && let Some(old) = self.watcher.places.moving.remove(&event.cookie)
        {
            let root = &self.watcher.interests.root;
            self.watcher.places.rename(self.kernel, self.id, root, &old, &name);
        }
        if kind == Kind::Create { self.cover(name) } else { Ok(()) }
    }

    /// Something happened to a covered directory. Of all but the root the parent tells too.
    fn itself(mut self, event: &RawEvent, dir: &Path) -> Result<(), Failure> {
        if event.mask.contains(EventMask::UNMOUNT) {
            return if dir.as_os_str().is_empty() { Err(Failure::Unmounted) } else { Ok(()) };
        }
        if dir.as_os_str().is_empty() {
            return kind_of(event.mask).map_or(Ok(()), |kind| self.tell(kind, Path::new(".")));
        }
        if event.mask.contains(EventMask::MOVE_SELF) {
            // Its move has no end in this tree: it was taken away.
            let places = &mut self.watcher.places;
            let gone: Vec<u32> =
                places.moving.iter().filter(|(_, old)| *old == dir).map(|(cookie, _)| *cookie).collect();
            if !gone.is_empty() {
                places.release(self.kernel, self.id, dir);
            }
            for cookie in gone {
                places.moving.remove(&cookie);
            }
        }
        Ok(())
    }

    /// Covers a directory that has just appeared, and tells of what is in it already.
    fn cover(&mut self, dir: PathBuf) -> Result<(), Failure> {
        let mut waiting = vec![dir];
        while let Some(dir) = waiting.pop() {
            let path = self.watcher.interests.root.join(&dir);
            match self.kernel.add(&path, Place { watcher: self.id, dir: dir.clone() }) {
                Ok(descriptor) => drop(self.watcher.places.held.insert(dir.clone(), descriptor)),
                Err(error) if is_gone(&error) => continue,
                Err(_) => return Err(Failure::NoWatch),
            }
            for child in children(&path) {
                let name = dir.join(child.name);
                self.watcher.places.found.insert(name.clone());
                self.tell(Kind::Create, &name)?;
                if child.is_dir {
                    waiting.push(name);
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, kind: Kind, name: &Path) -> Result<(), Failure> {
        let described = matches!(kind, Kind::Create | Kind::Write | Kind::Chmod);
        let entry = (described && self.watcher.interests.entries)
            .then(|| entry::describe(&join(&self.watcher.interests.root, name), self.users).ok())
            .flatten();
        let name = name.to_string_lossy().into_owned();
        self.watcher.mailbox.push(Event { name, kind, entry: entry.map(Box::new) })
    }
}

fn kind_of(mask: EventMask) -> Option<Kind> {
    let kinds = [
        (EventMask::CREATE | EventMask::MOVED_TO, Kind::Create),
        (EventMask::MOVED_FROM | EventMask::MOVE_SELF, Kind::Rename),
        (EventMask::ATTRIB, Kind::Chmod),
        (EventMask::MODIFY, Kind::Write),
        (EventMask::DELETE | EventMask::DELETE_SELF, Kind::Remove),
    ];
    kinds.into_iter().find(|(bits, _)| mask.intersects(*bits)).map(|(_, kind)| kind)
}

/// `base` itself for "." and the empty name, without a trailing slash.
fn join(base: &Path, name: &Path) -> PathBuf {
    if name.as_os_str().is_empty() || name == Path::new(".") { base.to_path_buf() } else { base.join(name) }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

struct Child {
    name: std::ffi::OsString,
    is_dir: bool,
}

/// The entries of a directory, links not followed; none where it cannot be read any more.
fn children(path: &Path) -> impl Iterator<Item = Child> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| Child {
        is_dir: entry.file_type().is_ok_and(|kind| kind.is_dir()),
        name: entry.file_name(),
    })
}
