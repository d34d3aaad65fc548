//! Sockets that live in a machine's network namespace. Never connected here: connecting can wait.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    thread::{self, LinkNameSpaceType, ThreadNameSpaceType},
};

/// The warden's own network namespace, to come back to.
#[derive(Debug)]
pub(super) struct Home(OwnedFd);

// === impl Home ===

impl Home {
    pub(super) fn open() -> io::Result<Self> {
        File::open("/proc/self/ns/net").map(|file| Self(file.into()))
    }

    /// Makes TCP sockets in the namespace of the process. The descriptor names the process for
    /// sure: a number could have been given to another one.
    pub(super) fn sockets_in(
        &self,
        machine: BorrowedFd<'_>,
        v6: bool,
        count: usize,
    ) -> io::Result<Vec<OwnedFd>> {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = || Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?);
        self.inside(machine, || (0..count).map(|_| socket()).collect())
    }

    /// Does something in the network namespace of the process, and comes back.
    pub(super) fn inside<T>(
        &self,
        machine: BorrowedFd<'_>,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        thread::move_into_thread_name_spaces(machine, ThreadNameSpaceType::NETWORK)?;
        let _back = Back(self);
        work()
    }
}

/// Comes back to the warden's own network namespace, whatever happened there.
struct Back<'a>(&'a Home);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if thread::move_into_link_name_space(self.0.0.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
            // Every later step would happen in a sandbox's network: better none at all.
            std::process::abort();
        }
    }
}
