//! A copy of the host's package database for the image, so that `apt` and `dpkg` work inside.
//!
//! A copy, never links: dpkg rewrites some of these files in place. What the host's
//! administrator added by hand (local diversions, overrides, alternatives from outside the
//! packages) is left out with the files that it speaks of.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

use super::{
    packages::{ADMIN, LARGEST, in_usr, unmerged},
    view::{everybodys, join, open},
};
use crate::warden::image::{
    Doing as _, ImageError, Tree,
    tree::{Access, names, read_capped},
};

/// Copied whole; `alternatives` is copied by [`super::alternatives`].
const FOLDERS: [&str; 2] = ["info", "triggers"];
const FILES: [&str; 4] = ["status", "arch", "cmethopt", "info/format"];

/// Copies the database.
pub(super) fn copy(host: BorrowedFd<'_>, tree: &mut Tree) -> Result<(), ImageError> {
    for folder in FOLDERS {
        let path = format!("{ADMIN}/{folder}");
        copy_folder(host, tree, path.as_bytes()).doing(|| format!("copy /{path}"))?;
    }
    for file in FILES {
        let path = format!("{ADMIN}/{file}");
        copy_file(host, tree, path.as_bytes()).doing(|| format!("copy /{path}"))?;
    }
    let own = |name: &str, text: &[u8], tree: &mut Tree| {
        let path = format!("{ADMIN}/{name}");
        tree.write(path.as_bytes(), text, Access::root(0o644)).doing(|| format!("write /{path}"))
    };
    own("available", b"", tree)?;
    own("diversions", &packaged_diversions(&text(host, "diversions")), tree)?;
    own("statoverride", &packaged_overrides(&text(host, "statoverride")), tree)?;
    for folder in ["updates", "parts"] {
        let path = format!("{ADMIN}/{folder}");
        tree.dir(path.as_bytes(), Access::root(0o755)).doing(|| format!("make /{path}"))?;
    }
    Ok(())
}

/// Copies the files of one folder that everybody may read.
fn copy_folder(host: BorrowedFd<'_>, tree: &mut Tree, folder: &[u8]) -> std::io::Result<()> {
    let from = open(host, folder)?;
    tree.dir(folder, Access::root(0o755))?;
    for name in names(from.as_fd())? {
        copy_file(host, tree, &join(folder, &name))?;
    }
    Ok(())
}

/// Copies a regular file that everybody may read; another is passed over.
pub(super) fn copy_file(host: BorrowedFd<'_>, tree: &mut Tree, path: &[u8]) -> std::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (folder, name) = crate::warden::image::tree::split(path);
    let Ok(from) = open(host, folder) else { return Ok(false) };
    let stat = match fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && everybodys(&stat) => {
            stat
        }
        _ => return Ok(false),
    };
    let file = fs::openat(&from, name, flags, Mode::empty())?.into();
    tree.copy(path, &file, Access::root(stat.st_mode & 0o755))?;
    Ok(true)
}

fn text(host: BorrowedFd<'_>, name: &str) -> Vec<u8> {
    read_capped(host, &format!("{ADMIN}/{name}"), LARGEST).unwrap_or_default()
}

fn packaged_diversions(text: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let mut kept = Vec::new();
    for three in lines.chunks_exact(3).filter(|three| three[2] != b":") {
        for line in three {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    kept
}

/// Lines `owner group mode path`.
fn packaged_overrides(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let path = line.trim_ascii_end().splitn(4, |byte| *byte == b' ').nth(3);
        if path.and_then(unmerged).is_some_and(|path| in_usr(&path)) {
            kept.extend_from_slice(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_administrator_added_is_left_out() {
        let diversions = b"/usr/bin/a\n/usr/bin/a.b\npackage\n/usr/bin/c\n/root/secret\n:\n";
        assert_eq!(packaged_diversions(diversions), b"/usr/bin/a\n/usr/bin/a.b\npackage\n");
        let overrides = b"root crontab 2755 /usr/bin/crontab\nroot x 755 /srv/secret place\n";
        assert_eq!(packaged_overrides(overrides), b"root crontab 2755 /usr/bin/crontab\n");
    }
}
