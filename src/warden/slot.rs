//! Slots: a user namespace with its own range of host ids and a network namespace it owns.
//!
//! ```text
//!   make: helper process --unshare--> lo up --"namespaces"--> warden writes the id maps, opens both
//!                        <--"opened"-- end --> reaped
//! ```
//! Root inside owns the network namespace, so ports below 1024 and raw sockets work there without
//! any setting. A slot that is dropped half-made takes its helper with it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    net::{AddressFamily, SocketType},
    process::{Pid, Signal, WaitOptions},
};

use super::{
    launch::{LaunchError, Step},
    syscall,
    worker::fork_bound,
};

/// As many ids as a machine sees (`warden::instance`).
const IDS: u32 = 65_536;

/// A pre-made pair of namespaces. Its processes are gone: the descriptors alone keep it alive,
/// so dropping it frees it. One machine at a time may use it, and its ids are free again only
/// when no process of that machine is left.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Which of the instance's id ranges.
    pub(crate) index: u32,
    /// The user namespace.
    pub(crate) userns: OwnedFd,
    /// The network namespace, owned by the user namespace, with loopback up.
    pub(crate) netns: OwnedFd,
}

/// The helper while it lives.
struct Helper(Pid);

// === impl Slot ===

impl Slot {
    /// Makes the pair by a short-lived helper process; about half a millisecond. `base_uid` is
    /// the host id that is 0 inside: the slot has the 65,536 ids from there on.
    pub(crate) fn make(index: u32, base_uid: u32) -> Result<Self, LaunchError> {
        Self::try_make(index, base_uid).map_err(|source| LaunchError::Step { step: Step::Slot, source })
    }

    fn try_make(index: u32, base_uid: u32) -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let helper = Helper(fork_bound(|| i32::from(serve(&theirs).is_err()))?);
        drop(theirs);
        // One byte, or the end of the stream when the helper failed.
        ours.read_exact(&mut [0])?;
        let proc = format!("/proc/{}", helper.0.as_raw_nonzero());
        let map = format!("0 {base_uid} {IDS}");
        fs::write(format!("{proc}/uid_map"), &map)?;
        fs::write(format!("{proc}/gid_map"), &map)?;
        let userns = File::open(format!("{proc}/ns/user"))?.into();
        let netns = File::open(format!("{proc}/ns/net"))?.into();
        ours.write_all(&[1])?;
        helper.finish()?;
        Ok(Self { index, userns, netns })
    }
}

/// The helper's whole life, in a forked process.
fn serve(mut warden: &UnixStream) -> io::Result<()> {
    // The helper has the warden's end too, so it would never see that end close.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    syscall::unshare_user_and_net()?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    syscall::loopback_up(socket.as_fd())?;
    warden.write_all(&[1])?;
    // Until the warden has both namespaces.
    warden.read_exact(&mut [0])
}

// === impl Helper ===

impl Helper {
    /// Waits for the helper's own end and tells whether it succeeded.
    fn finish(self) -> io::Result<()> {
        let status = wait(self.0)?;
        std::mem::forget(self);
        match status.and_then(rustix::process::WaitStatus::exit_status) {
            Some(0) => Ok(()),
            _ => Err(io::Error::other("the helper of the slot failed")),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
        let _ = wait(self.0);
    }
}

fn wait(pid: Pid) -> io::Result<Option<rustix::process::WaitStatus>> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(found) => return Ok(found.map(|(_, status)| status)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
