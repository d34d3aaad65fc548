//! The `base` template: the host's own packages as an image, with nothing to download.
//!
//! ```text
//!   ensure: fingerprint of the packages ---the image of it is there---> done, in milliseconds
//!              |
//!            draft --can a file of /usr have a second name in it?-- yes --> hardlink view
//!              |                                                    no  --> live view of /usr
//!            fingerprint again: changed -> start over
//!              |
//!            image
//! ```
//! The hardlink view shows files that belong to packages and that everybody on the host may
//! read, and stays as it is when the host is upgraded: an upgrade gives a new fingerprint and so
//! a new build. Runs as root in a worker; a worker that dies leaves a draft, which the next one
//! removes. Source of the rules: decision 0011.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    image::{self, Doing as _, Draft, ImageError, Tree, tree::Access},
    probe,
};
use crate::{
    id::BuildId,
    wire::warden::{ImageInfo, ImageKind},
};

mod alternatives;
mod dpkg;
pub(super) mod etc;
mod host;
mod packages;
mod view;

/// Raise it when the recipe changes: hosts then build `base` anew.
const RECIPE: u32 = 1;
/// How often a build is begun again because packages changed meanwhile.
const ATTEMPTS: u32 = 3;
/// What a sandbox is expected to have (contract/templates-and-timing 1), and the packages that
/// bring it.
const EXPECTED: [(&str, &str); 12] = [
    ("bash", "bash"),
    ("curl", "curl"),
    ("gcc", "build-essential"),
    ("git", "git"),
    ("make", "build-essential"),
    ("node", "nodejs"),
    ("pgrep", "procps"),
    ("pip3", "python3-pip"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("ss", "iproute2"),
    ("tput", "ncurses-bin"),
];

/// What the host's packages are today, as one number: equal means the same `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

// === impl Fingerprint ===

impl Fingerprint {
    /// The build that is made from these packages.
    pub fn build(&self) -> BuildId {
        let mut half = [0; 16];
        half.copy_from_slice(&self.0[..16]);
        BuildId(uuid::Builder::from_random_bytes(half).into_uuid())
    }

    /// As text, in hex.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// Reads the host's package database; a few milliseconds. `sudo` is what the supplement installs.
pub fn fingerprint(sudo: &[u8]) -> Result<Fingerprint, ImageError> {
    fingerprint_of(root()?.as_fd(), sudo)
}

/// The `base` image of today's packages: found at once, or built in some seconds. `progress` gets
/// lines for people.
pub fn ensure(
    store: BorrowedFd<'_>,
    sudo: &[u8],
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    ensure_of(store, sudo, &|_| true, progress)
}

/// As [`ensure`], of the packages that `wanted` names: tests do not need all of them.
fn ensure_of(
    store: BorrowedFd<'_>,
    sudo: &[u8],
    wanted: &dyn Fn(&str) -> bool,
    progress: &mut dyn FnMut(&str),
) -> Result<ImageInfo, ImageError> {
    let host = root()?;
    for _ in 0..ATTEMPTS {
        let fingerprint = fingerprint_of(host.as_fd(), sudo)?;
        let build = fingerprint.build();
        match image::info(store, build) {
            Err(ImageError::Missing(_)) => {}
            // Made by an older version, or damaged: it is nobody's work, so it is made anew.
            Err(ImageError::Damaged { .. }) => image::remove(store, build)?,
            found => return found,
        }
        let draft = Draft::begin(store, build)?;
        let (kind, notice) = make(host.as_fd(), &draft, sudo, wanted, progress)?;
        if fingerprint_of(host.as_fd(), sudo)? == fingerprint {
            progress("writing base to the disk");
            return draft.finish(kind, Some(fingerprint.to_hex()), notice);
        }
        progress("packages of this host changed meanwhile; starting over");
    }
    Err(ImageError::Host("packages are being installed; wait until that is done".to_owned()))
}

fn root() -> Result<File, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/", flags, Mode::empty()).map(File::from).doing(|| "open /".to_owned())
}

fn fingerprint_of(host: BorrowedFd<'_>, sudo: &[u8]) -> Result<Fingerprint, ImageError> {
    let mut hash = Sha256::new();
    hash.update(format!("firkin base {RECIPE} format {}\n", image::FORMAT));
    packages::hash_status(host, &mut hash)?;
    hash.update(sudo);
    Ok(Fingerprint(hash.finalize().into()))
}

fn make(
    host: BorrowedFd<'_>,
    draft: &Draft<'_>,
    sudo: &[u8],
    wanted: &dyn Fn(&str) -> bool,
    progress: &mut dyn FnMut(&str),
) -> Result<(ImageKind, Option<String>), ImageError> {
    check_merged(host)?;
    progress("reading the host's package database");
    let owned = packages::owned(host, wanted)?;
    let mut tree = draft.layer("root")?;
    match view::probe(host, &mut tree) {
        Ok(()) => {
            let notice = packages_view(host, &mut tree, &owned, sudo, progress)?;
            Ok((ImageKind::HostPackages, notice))
        }
        Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => {
            probe::idmapped_usr().map_err(|error| {
                ImageError::Host(format!("/usr cannot be mounted with mapped ids ({error})"))
            })?;
            live_view(host, draft, &mut tree, &owned, sudo)?;
            Ok((ImageKind::HostView, Some(host::NOTICE.to_owned())))
        }
        Err(error) => Err(error).doing(|| "link a file of /usr into the template store".to_owned()),
    }
}

/// The image as links to package files.
fn packages_view(
    host: BorrowedFd<'_>,
    tree: &mut Tree,
    owned: &packages::Owned,
    sudo: &[u8],
    progress: &mut dyn FnMut(&str),
) -> Result<Option<String>, ImageError> {
    let linked = view::link(host, tree, owned, progress)?;
    progress(&format!("linked {} files; {} are not everybody's to read", linked.files, linked.left_out));
    let exists = |tree: &Tree, path: &[u8]| tree.leads_somewhere(path);
    etc::curate(host, tree, owned, &exists)?;
    alternatives::copy(host, tree, true, &exists)?;
    progress("copying the package database");
    dpkg::copy(host, tree)?;
    supplement(tree, sudo).doing(|| "add what the host lacks".to_owned())?;
    etc::library_cache(tree);
    Ok(missing(tree))
}

/// The image as two layers over the host's own /usr.
fn live_view(
    host: BorrowedFd<'_>,
    draft: &Draft<'_>,
    tree: &mut Tree,
    owned: &packages::Owned,
    sudo: &[u8],
) -> Result<(), ImageError> {
    tree.dir(b"usr", Access::root(0o755)).doing(|| "make /usr".to_owned())?;
    let root = host.try_clone_to_owned().map(Tree::new).doing(|| "open / again".to_owned())?;
    let exists = |_: &Tree, path: &[u8]| root.leads_somewhere(path);
    etc::curate(host, tree, owned, &exists)?;
    alternatives::copy(host, tree, false, &exists)?;
    dpkg::copy(host, tree)?;
    dpkg::copy_file(host, tree, b"etc/ld.so.cache").doing(|| "copy the library cache".to_owned())?;
    host::layers(host, draft, sudo)
}

fn supplement(tree: &mut Tree, sudo: &[u8]) -> std::io::Result<()> {
    for name in etc::LOCAL {
        tree.dir(format!("usr/local/{name}").as_bytes(), Access::root(0o755))?;
    }
    tree.symlink(b"usr/local/man", b"share/man")?;
    if tree.stat(b"usr/bin/sudo").is_err() && !sudo.is_empty() {
        tree.write(b"usr/bin/sudo", sudo, Access::root(0o4755))?;
    }
    if tree.leads_somewhere(b"usr/bin/python3") && tree.stat(b"usr/bin/python").is_err() {
        tree.symlink(b"usr/bin/python", b"python3")?;
    }
    Ok(())
}

/// What sandboxes will miss because the host does not have it as a package.
fn missing(tree: &Tree) -> Option<String> {
    let has = |name: &str| tree.leads_somewhere(format!("usr/bin/{name}").as_bytes());
    let (mut names, mut packages): (Vec<&str>, Vec<&str>) =
        EXPECTED.iter().filter(|(name, _)| !has(name)).copied().unzip();
    if !has("sudo") {
        names.push("sudo");
        packages.push("sudo");
    }
    packages.dedup();
    (!names.is_empty()).then(|| {
        format!(
            "base has no {}: this host does not have it as a package. `apt-get install {}` on the host, and the \
             next start adds it",
            names.join(", "),
            packages.join(" ")
        )
    })
}

fn check_merged(host: BorrowedFd<'_>) -> Result<(), ImageError> {
    for name in ["bin", "sbin", "lib"] {
        let target = rustix::fs::readlinkat(host, name, Vec::new());
        let merged = target
            .is_ok_and(|target| target.to_string_lossy().trim_start_matches('/') == format!("usr/{name}"));
        if !merged {
            return Err(ImageError::Host(format!(
                "its /usr is not merged (/{name} is no link to usr/{name})"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
