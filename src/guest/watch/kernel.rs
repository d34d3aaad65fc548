//! The inotify instance: watch descriptors, and who stands on each.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

/// Room for some hundred events; one needs at most 272 bytes.
const BUFFER: usize = 16 * 1024;

/// A directory of one watcher.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The watcher.
    pub(super) watcher: u64,
    /// The directory, relative to the watcher's root; empty for the root itself.
    pub(super) dir: PathBuf,
}

/// An event as the kernel tells it.
#[derive(Debug)]
pub(super) struct RawEvent {
    pub(super) descriptor: WatchDescriptor,
    pub(super) mask: EventMask,
    /// Ties the two ends of a move.
    pub(super) cookie: u32,
    /// The entry in the directory; none: the directory itself.
    pub(super) name: Option<OsString>,
}

/// The instance and its watches.
pub(super) struct Kernel {
    inotify: Inotify,
    places: HashMap<WatchDescriptor, Vec<Place>>,
    buffer: Box<[u8]>,
}

// === impl Kernel ===

impl Kernel {
    pub(super) fn open() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        Ok(Self { inotify, places: HashMap::new(), buffer: vec![0; BUFFER].into() })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Puts a watcher on a directory. The same directory gives the same descriptor again.
    pub(super) fn add(&mut self, path: &Path, place: Place) -> io::Result<WatchDescriptor> {
        let mut mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        // The root may be reached by a link; below it a link is an entry, not a directory.
        if !place.dir.as_os_str().is_empty() {
            mask |= WatchMask::DONT_FOLLOW;
        }
        let descriptor = self.inotify.watches().add(path, mask)?;
        let places = self.places.entry(descriptor.clone()).or_default();
        match places.iter_mut().find(|known| known.watcher == place.watcher) {
            Some(known) => known.dir = place.dir,
            None => places.push(place),
        }
        Ok(descriptor)
    }

    /// Takes a watcher off a descriptor; the last one gives it back to the kernel.
    pub(super) fn remove(&mut self, descriptor: &WatchDescriptor, watcher: u64) {
        let Some(places) = self.places.get_mut(descriptor) else { return };
        places.retain(|place| place.watcher != watcher);
        if places.is_empty() {
            self.places.remove(descriptor);
            // Fails only when the directory is gone, and the watch with it.
            let _ = self.inotify.watches().remove(descriptor.clone());
        }
    }

    /// The kernel has given up this watch by itself.
    pub(super) fn gone(&mut self, descriptor: &WatchDescriptor) -> Vec<Place> {
        self.places.remove(descriptor).unwrap_or_default()
    }

    /// Who stands on a descriptor.
    pub(super) fn places(&self, descriptor: &WatchDescriptor) -> Vec<Place> {
        self.places.get(descriptor).cloned().unwrap_or_default()
    }

    /// What is queued, as much as fits the buffer; empty when nothing is.
    pub(super) fn read(&mut self) -> io::Result<Vec<RawEvent>> {
        match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => Ok(events
                .map(|event| RawEvent {
                    descriptor: event.wd,
                    mask: event.mask,
                    cookie: event.cookie,
                    name: event.name.map(ToOwned::to_owned),
                })
                .collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
