//! The fallback where the store and /usr cannot share files: the host's own /usr, seen live
//! through two layers of ours.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, XattrFlags};

use super::{etc::LOCAL, view::open};
use crate::warden::image::{
    Doing as _, Draft, ImageError,
    tree::{Access, names},
};

/// What people are told of it.
pub(super) const NOTICE: &str = "base shows this host's whole /usr live, also files that only root may read and \
     files of no package; root in a sandbox reads all of it. Put the data directory on the file system of /usr, \
     or use `firkin template import`, before others may use this server";

/// Makes the two layers over /usr: `mask` hides, `supplement` adds.
pub(super) fn layers(host: BorrowedFd<'_>, draft: &Draft<'_>, sudo: &[u8]) -> Result<(), ImageError> {
    mask(host, draft).doing(|| "make the layer that hides".to_owned())?;
    supplement(host, draft, sudo).doing(|| "make the layer that adds".to_owned())
}

fn mask(host: BorrowedFd<'_>, draft: &Draft<'_>) -> Result<(), std::io::Error> {
    let mut mask = draft.layer("mask").map_err(std::io::Error::other)?;
    for name in LOCAL {
        mask.dir(format!("local/{name}").as_bytes(), Access::root(0o755))?;
    }
    mask.symlink(b"local/man", b"share/man")?;
    let local = fs::openat(
        mask.as_fd(),
        "local",
        fs::OFlags::RDONLY | fs::OFlags::DIRECTORY | fs::OFlags::NOFOLLOW | fs::OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    fs::fsetxattr(&local, "user.overlay.opaque", b"y", XattrFlags::empty())?;
    for name in names(open(host, b"usr/lib")?.as_fd())?.iter().filter(|name| name.starts_with(b"python3.")) {
        let managed = [b"lib/", name.as_slice(), b"/EXTERNALLY-MANAGED"].concat();
        if fs::statat(host, [b"usr/", managed.as_slice()].concat(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let folder = mask.folder(&[b"lib/", name.as_slice()].concat())?;
            fs::mknodat(&*folder, "EXTERNALLY-MANAGED", FileType::CharacterDevice, Mode::empty(), 0)?;
        }
    }
    Ok(())
}

fn supplement(host: BorrowedFd<'_>, draft: &Draft<'_>, sudo: &[u8]) -> Result<(), std::io::Error> {
    let mut supplement = draft.layer("supplement").map_err(std::io::Error::other)?;
    let bin = open(host, b"usr/bin")?;
    let has = |name: &str| fs::statat(&bin, name, AtFlags::empty()).is_ok();
    let setuid = fs::statat(&bin, "sudo", AtFlags::empty()).is_ok_and(|stat| stat.st_mode & 0o4001 == 0o4001);
    if !setuid && !sudo.is_empty() {
        supplement.write(b"bin/sudo", sudo, Access::root(0o4755))?;
    }
    if has("python3") && !has("python") {
        supplement.symlink(b"bin/python", b"python3")?;
    }
    Ok(())
}
