//! A machine's directory: its writable layers, its record, and its way to the rubbish.
//!
//! ```text
//!   machines/<sandbox>/upper0 work0 [upper1 work1]   one pair a mount of the image; or all in disk/
//!                      machine.json | kept.json
//!   machines/.trash/<sandbox>.<generation>.<n>       renamed there at once, removed by a worker
//! ```

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Dir, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};

use super::record;
use crate::{
    id::BuildId,
    warden::storage::{DISK, Driver},
};

const TRASH: &str = ".trash";
/// Tries to find a free name in the rubbish.
const NAMES: u32 = 10_000;

/// Opens a directory below another one, never through a link and never out of it.
pub(in crate::warden) fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?)
}

/// The directory that was kept for a sandbox, if there is one on that build: on another one what is in
/// it would mean something else.
pub(in crate::warden) fn kept(
    machines: BorrowedFd<'_>,
    name: &str,
    mounts: usize,
    build: BuildId,
) -> io::Result<Option<OwnedFd>> {
    let room = match open(machines, name) {
        Ok(room) => room,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let whole = record::read_kept(room.as_fd()).is_some_and(|record| record.build == build)
        && disk(room.as_fd()).and_then(|disk| open(disk.as_fd(), &layer("upper", mounts - 1))).is_ok();
    Ok(whole.then_some(room))
}

/// Makes a machine's directory with an empty disk for so many mounts. Whatever has that name already
/// is rubbish.
pub(in crate::warden) fn make(
    machines: BorrowedFd<'_>,
    name: &str,
    mounts: usize,
    driver: Driver,
    size: Option<u64>,
) -> io::Result<OwnedFd> {
    if open(machines, name).is_ok() {
        retire(machines, name, 0)?;
    }
    rustix::fs::mkdirat(machines, name, Mode::from_raw_mode(0o700))?;
    let room = open(machines, name)?;
    driver.new_upper(room.as_fd(), mounts, size)?;
    Ok(room)
}

/// Makes a pair of layer directories for each mount.
pub(in crate::warden) fn layers(disk: BorrowedFd<'_>, mounts: usize) -> io::Result<()> {
    for mount in 0..mounts {
        for half in ["upper", "work"] {
            let directory = layer(half, mount);
            rustix::fs::mkdirat(disk, &directory, Mode::from_raw_mode(0o755))?;
            // Not what the process's umask makes of it: this is the mode of `/` inside.
            let made = open(disk, &directory)?;
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(())
}

/// What holds the layers of a machine's directory: that directory, or the subvolume in it.
pub(in crate::warden) fn disk(room: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match open(room, DISK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => open(room, "."),
        disk => disk,
    }
}

/// The name of half a layer.
pub(in crate::warden) fn layer(half: &str, mount: usize) -> String {
    format!("{half}{mount}")
}

/// Takes a directory out of the way at once; its content is removed later.
pub(in crate::warden) fn retire(machines: BorrowedFd<'_>, name: &str, generation: u64) -> io::Result<()> {
    let trash = trash(machines)?;
    for number in 0..NAMES {
        let target = format!("{name}.{generation}.{number}");
        match rustix::fs::renameat_with(machines, name, &trash, target, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) | Ok(()) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("the rubbish is full of this name"))
}

/// The directory of what waits to be removed.
pub(in crate::warden) fn trash(machines: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(machines, TRASH, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => open(machines, TRASH),
        Err(error) => Err(error.into()),
    }
}

/// Names in the directory of machines; those that no sandbox can have are left out.
pub(in crate::warden) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        match entry?.file_name().to_str() {
            Ok("." | ".." | TRASH) | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
