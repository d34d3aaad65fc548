//! The hardlink view: the host's package files, each under a second name in a tree of ours.
//!
//! What gets in: regular files and symbolic links that a package owns (and the byte code of
//! packaged Python files), that root owns, that everybody may read, in directories that
//! everybody may enter. All else of /usr stays out by not being linked.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::packages::Owned;
use crate::warden::image::{
    Doing as _, ImageError, Tree,
    tree::{Access, names, split},
};

/// Files between two lines of progress.
const PROGRESS: usize = 30_000;
/// Ids at or above this have no owner in a machine.
pub(super) const IDS: u32 = 65_536;

/// What became of the host's files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Linked {
    /// Linked, or copied where a link was not possible.
    pub(super) files: usize,
    /// Owned by a package, but not everybody's to read.
    pub(super) left_out: usize,
}

struct Linker<'a> {
    host: BorrowedFd<'a>,
    tree: &'a mut Tree,
    /// Whether everybody may enter and list a directory.
    public: HashMap<Vec<u8>, bool>,
    linked: Linked,
}

/// Tries one link: an error means that the store and the host's /usr cannot share files.
pub(super) fn probe(host: BorrowedFd<'_>, tree: &mut Tree) -> Result<(), Errno> {
    let folder = open(host, b"usr/bin")?;
    tree.link(b".probe", folder.as_fd(), b"env")?;
    fs::unlinkat(tree.as_fd(), ".probe", AtFlags::empty())
}

/// Links everything that may be seen.
pub(super) fn link(
    host: BorrowedFd<'_>,
    tree: &mut Tree,
    owned: &Owned,
    progress: &mut dyn FnMut(&str),
) -> Result<Linked, ImageError> {
    let mut linker = Linker { host, tree, public: HashMap::new(), linked: Linked::default() };
    let mut next = PROGRESS;
    for (folder, names) in &owned.usr {
        linker.folder(folder, names)?;
        if linker.linked.files >= next {
            progress(&format!("linking packages: {} of {} files", linker.linked.files, owned.count));
            next += PROGRESS;
        }
    }
    Ok(linker.linked)
}

// === impl Linker ===

impl Linker<'_> {
    fn folder(
        &mut self,
        folder: &[u8],
        owned: &std::collections::BTreeSet<Vec<u8>>,
    ) -> Result<(), ImageError> {
        let Ok(from) = open(self.host, folder) else {
            // A package's directory that is gone, or a link to another's: nothing of its own.
            return Ok(());
        };
        if !self.is_public(folder) {
            self.linked.left_out += owned.len();
            return Ok(());
        }
        let mut python = false;
        for name in owned {
            python |= name.ends_with(b".py");
            self.name(folder, from.as_fd(), name)?;
        }
        if python { self.byte_code(folder, owned) } else { Ok(()) }
    }

    fn name(&mut self, folder: &[u8], from: BorrowedFd<'_>, name: &[u8]) -> Result<(), ImageError> {
        let Ok(stat) = fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        // pip must work as in the official image, without an argument.
        if name == b"EXTERNALLY-MANAGED" && folder.starts_with(b"usr/lib/python3") {
            return Ok(());
        }
        let path = join(folder, name);
        let made = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if self.is_public(&path) => self.tree.folder(&path).map(|_| ()),
            FileType::RegularFile if everybodys(&stat) => self.share(&path, from, name, &stat),
            FileType::Symlink if stat.st_uid == 0 => self.share(&path, from, name, &stat),
            _ => {
                self.linked.left_out += 1;
                return Ok(());
            }
        };
        made.doing(|| format!("link /{}", String::from_utf8_lossy(&path)))
    }

    /// Byte code is made on the host when a package is set up, so no list has it; without it
    /// every start of Python would compile what it imports.
    fn byte_code(
        &mut self,
        folder: &[u8],
        owned: &std::collections::BTreeSet<Vec<u8>>,
    ) -> Result<(), ImageError> {
        let cache = join(folder, b"__pycache__");
        let Ok(from) = open(self.host, &cache) else { return Ok(()) };
        if !self.is_public(&cache) {
            return Ok(());
        }
        for name in names(from.as_fd()).doing(|| "list byte code".to_owned())? {
            let source = name.split(|byte| *byte == b'.').next().unwrap_or_default();
            if name.ends_with(b".pyc") && owned.contains(&[source, b".py"].concat()) {
                self.name(&cache, from.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    fn share(&mut self, path: &[u8], from: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), Errno> {
        self.linked.files += 1;
        match self.tree.link(path, from, name) {
            // A part of /usr on another file system, or an inode with all the names it can have.
            Err(Errno::XDEV | Errno::MLINK) => self.copy(path, from, name, stat),
            Err(Errno::EXIST) => Ok(()),
            linked => linked,
        }
    }

    fn copy(&mut self, path: &[u8], from: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), Errno> {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = fs::readlinkat(from, name, Vec::new())?;
            return self.tree.symlink(path, target.as_bytes());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(from, name, flags, Mode::empty())?.into();
        let access = Access { mode: stat.st_mode, uid: 0, gid: stat.st_gid };
        let copied = self.tree.copy(path, &file, access);
        copied.map(|_| ()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn is_public(&mut self, folder: &[u8]) -> bool {
        if folder.is_empty() {
            return true;
        }
        if let Some(known) = self.public.get(folder) {
            return *known;
        }
        let (parent, name) = split(folder);
        let public = self.is_public(parent)
            && open(self.host, parent)
                .and_then(|parent| fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW))
                .is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & 0o005 == 0o005);
        self.public.insert(folder.to_vec(), public);
        public
    }
}

/// Whether a file may be shown to everybody who can enter its directory.
pub(super) fn everybodys(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_gid < IDS && stat.st_mode & 0o004 != 0
}

/// Opens a directory of the host without going through a link.
pub(super) fn open(host: BorrowedFd<'_>, folder: &[u8]) -> Result<OwnedFd, Errno> {
    let at = if folder.is_empty() { b"." } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat2(host, at, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// A path from its folder and last name.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}
