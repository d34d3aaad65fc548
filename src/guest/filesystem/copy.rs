//! Copies a tree with owners, modes, times, links, special files and attributes: the
//! second half of a move that the kernel refuses.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
};

/// Copies the directory `source` into the existing empty directory `target`. Hard links within
/// the tree become files of their own.
pub(super) fn tree(source: &Path, target: &Path) -> io::Result<()> {
    let mut waiting = vec![(source.to_path_buf(), target.to_path_buf())];
    // Directories get their times last, when nothing is added to them any more.
    let mut made: Vec<(PathBuf, PathBuf, Metadata)> = Vec::new();
    while let Some((from, to)) = waiting.pop() {
        made.push((from.clone(), to.clone(), fs::symlink_metadata(&from)?));
        for child in fs::read_dir(&from)? {
            let child = child?;
            let (from, to) = (child.path(), to.join(child.file_name()));
            let found = child.metadata()?;
            if found.is_dir() {
                fs::create_dir(&to)?;
                waiting.push((from, to));
            } else {
                leaf(&from, &to, &found)?;
            }
        }
    }
    for (from, to, found) in made.iter().rev() {
        stamp(to, found)?;
        attributes(from, to)?;
    }
    Ok(())
}

fn leaf(from: &Path, to: &Path, found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else {
        let sort = if kind.is_fifo() {
            SFlag::S_IFIFO
        } else if kind.is_socket() {
            SFlag::S_IFSOCK
        } else if kind.is_char_device() {
            SFlag::S_IFCHR
        } else {
            SFlag::S_IFBLK
        };
        mknod(to, sort, Mode::from_bits_truncate(found.mode() & 0o7777), found.rdev())?;
    }
    stamp(to, found)?;
    // Last: a change of owner takes a file's capabilities away.
    if kind.is_file() { attributes(from, to) } else { Ok(()) }
}

/// Owner, mode (after the owner: chown clears setuid) and times of the original.
fn stamp(path: &Path, found: &Metadata) -> io::Result<()> {
    lchown(path, Some(found.uid()), Some(found.gid()))?;
    if !found.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    }
    let access = TimeSpec::new(found.atime(), found.atime_nsec());
    let change = TimeSpec::new(found.mtime(), found.mtime_nsec());
    utimensat(nix::fcntl::AT_FDCWD, path, &access, &change, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Attributes that are carried over besides the user's own.
const SYSTEM: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];

/// Carries attributes over, where both ends have them.
fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 * 1024];
    let Ok(length) = rustix::fs::llistxattr(from, &mut names[..]) else { return Ok(()) };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| is_carried(name)) {
        let mut value = vec![0; 64 * 1024];
        let Ok(size) = rustix::fs::lgetxattr(from, name, &mut value[..]) else { continue };
        match rustix::fs::lsetxattr(to, name, &value[..size], rustix::fs::XattrFlags::empty()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Errno::EOPNOTSUPP as i32 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_carried(name: &[u8]) -> bool {
    name.starts_with(b"user.") || SYSTEM.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::write(from.join("sub/file"), b"text").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        // A capability as `setcap cap_net_raw=ep` writes it: lost when the owner is set after it.
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let attributes = [("sub/file", "security.capability", &capability[..]), ("sub", "user.e2b.a", b"1")];
        for (name, attribute, value) in attributes {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(from.join(name), attribute, value, flags).unwrap();
        }
        symlink("nowhere", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o750)).unwrap();
        fs::create_dir(&to).unwrap();
        tree(&from, &to).unwrap();
        for name in ["", "sub", "sub/deep", "sub/file", "link", "pipe"] {
            let (a, b) = (
                fs::symlink_metadata(from.join(name)).unwrap(),
                fs::symlink_metadata(to.join(name)).unwrap(),
            );
            assert_eq!((a.mode(), a.uid(), a.mtime_nsec()), (b.mode(), b.uid(), b.mtime_nsec()), "{name}");
        }
        for (name, attribute, value) in attributes {
            let mut found = [0; 64];
            let length = rustix::fs::getxattr(to.join(name), attribute, &mut found[..]).unwrap();
            assert_eq!(&found[..length], value, "{attribute}");
        }
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"text");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
    }
}
