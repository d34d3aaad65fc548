//! Slots: a user namespace with its own range of host ids and a network namespace it owns.

use std::os::fd::OwnedFd;

use super::launch::{LaunchError, Step};

/// A pre-made pair of namespaces. Its processes are gone: the descriptors alone keep it alive,
/// so dropping it frees it. One machine at a time may use it, and its ids are free again only
/// when no process of that machine is left.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Which of the instance's id ranges.
    pub(crate) index: u32,
    /// The host id that is 0 inside; the slot has the 65,536 ids from here on.
    pub(crate) base_uid: u32,
    /// The user namespace.
    pub(crate) userns: OwnedFd,
    /// The network namespace, owned by the user namespace, with loopback up.
    pub(crate) netns: OwnedFd,
}

// === impl Slot ===

impl Slot {
    /// Makes the pair by a short-lived helper process.
    pub(crate) fn make(index: u32, base_uid: u32) -> Result<Self, LaunchError> {
        let _ = (index, base_uid);
        Err(LaunchError::Step { step: Step::Slot, source: std::io::ErrorKind::Unsupported.into() })
    }
}
