//! Terminals: a master for the guest, a slave for the process; and how the runtime waits on them.
#![expect(unsafe_code, reason = "ioctl on the master side, registration with the runtime")]

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::{
    fcntl::OFlag,
    pty::Winsize,
    sys::stat::{Mode, fchmod},
    unistd::{Gid, Uid, fchown},
};
use tokio::io::unix::AsyncFd;

/// Size in characters. Larger numbers than the kernel knows are cut, as envd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Columns.
    pub(crate) cols: u16,
    /// Rows.
    pub(crate) rows: u16,
}

/// A new terminal: master (not blocking) and slave, which belongs to the user.
pub(crate) fn open(size: Size, uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = (OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits();
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags | OFlag::O_NONBLOCK.bits())
        .open("/dev/ptmx")?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the request reads one int through the pointer.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // By the master, not by a path: whatever is mounted on /dev/pts. TIOCGPTPEER takes open's flags.
    // SAFETY: the request takes an int and returns a new descriptor.
    let peer = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | flags) })?;
    // SAFETY: the kernel has just made it for us.
    let slave = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(peer) };
    // Programs like gpg and screen open their terminal again by name, as the user. Failure only
    // costs them that.
    let _ = fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>);
    let _ = fchmod(&slave, Mode::from_bits_truncate(0o620));
    let master = OwnedFd::from(master);
    resize(&master, size)?;
    Ok((master, slave))
}

/// Gives the terminal a new size; its foreground processes hear of it.
pub(crate) fn resize(master: &OwnedFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one winsize through the pointer.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Lets the runtime wait for a pipe's or terminal's readiness. The descriptor must not block.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, until it is dropped, and the runtime's
    // handle owns it.
    Ok(unsafe { AsyncFd::register(fd)? })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
