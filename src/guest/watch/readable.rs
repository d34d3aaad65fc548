//! Waiting for the inotify instance without a thread.

#![expect(unsafe_code, reason = "tokio asks the caller to promise that the descriptor stays open")]

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor of the same instance that the runtime tells of when it has events.
pub(super) fn watched(descriptor: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let own = descriptor.try_clone_to_owned()?;
    // SAFETY: the `OwnedFd` is moved into the `AsyncFd`, which alone closes it; its number
    // never changes.
    let watched = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
    watched.map_err(|refused| refused.into_parts().1)
}
