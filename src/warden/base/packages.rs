//! What dpkg knows of the host: which packages there are, and which files are theirs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::{AsFd, BorrowedFd},
};

use sha2::{Digest as _, Sha256};

use crate::warden::image::{
    Doing as _, ImageError, directory,
    tree::{names, read_capped, split},
};

/// Where dpkg keeps its database.
pub(super) const ADMIN: &str = "var/lib/dpkg";
/// The largest file of the database that is read.
pub(super) const LARGEST: u64 = 64 << 20;
/// Top-level directories that are links into /usr where /usr is merged.
pub(super) const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Files by folder; paths as bytes without a leading slash.
pub(super) type Folders = BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>;

/// The files that belong to packages.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Below /usr, without /usr/local.
    pub(super) usr: Folders,
    /// Below /etc.
    pub(super) etc: BTreeSet<Vec<u8>>,
    /// How many names below /usr.
    pub(super) count: usize,
}

/// Adds name, version, architecture and state of each package to a hash.
pub(super) fn hash_status(host: BorrowedFd<'_>, hash: &mut Sha256) -> Result<(), ImageError> {
    let status = read_capped(host, &format!("{ADMIN}/status"), LARGEST)
        .map_err(|error| ImageError::Host(format!("its package database {ADMIN}/status: {error}")))?;
    for line in status.split(|byte| *byte == b'\n') {
        let wanted: [&[u8]; 4] = [b"Package: ", b"Version: ", b"Architecture: ", b"Status: "];
        if wanted.iter().any(|field| line.starts_with(field)) {
            hash.update(line);
            hash.update(b"\n");
        }
    }
    Ok(())
}

/// Reads the lists of the packages that are wanted.
pub(super) fn owned(host: BorrowedFd<'_>, wanted: &dyn Fn(&str) -> bool) -> Result<Owned, ImageError> {
    let info = directory(host, &format!("{ADMIN}/info")).doing(|| format!("open {ADMIN}/info"))?;
    let diversions = diversions(host);
    let mut owned = Owned::default();
    for name in names(info.as_fd()).doing(|| format!("list {ADMIN}/info"))? {
        let Ok(name) = std::str::from_utf8(&name) else { continue };
        let Some(package) = name.strip_suffix(".list") else { continue };
        let package = package.split(':').next().unwrap_or(package);
        if !wanted(package) {
            continue;
        }
        let list = read_capped(info.as_fd(), name, LARGEST).doing(|| format!("read {ADMIN}/info/{name}"))?;
        for line in list.split(|byte| *byte == b'\n') {
            let line = match diversions.get(line) {
                Some((to, by)) if by != package => to.as_slice(),
                _ => line,
            };
            owned.add(line);
        }
    }
    Ok(owned)
}

// === impl Owned ===

impl Owned {
    fn add(&mut self, path: &[u8]) {
        let Some(path) = unmerged(path) else { return };
        if path.starts_with(b"etc/") {
            self.etc.insert(path);
        } else if in_usr(&path) {
            let (folder, name) = split(&path);
            if !self.usr.contains_key(folder) {
                self.usr.insert(folder.to_vec(), BTreeSet::new());
            }
            if let Some(names) = self.usr.get_mut(folder) {
                self.count += usize::from(names.insert(name.to_vec()));
            }
        }
    }
}

/// Whether a path without leading slash is one that packages may own and machines may see.
pub(super) fn in_usr(path: &[u8]) -> bool {
    path.starts_with(b"usr/") && path != b"usr/local" && !path.starts_with(b"usr/local/")
}

/// An absolute path as it is where /usr is merged: no leading slash, `/bin/x` as `usr/bin/x`.
/// None for what is no plain absolute path.
pub(super) fn unmerged(path: &[u8]) -> Option<Vec<u8>> {
    let path = path.strip_prefix(b"/")?;
    let mut parts = path.split(|byte| *byte == b'/');
    let first = parts.next()?;
    if path.split(|byte| *byte == b'/').any(|part| part.is_empty() || part == b"." || part == b"..") {
        return None;
    }
    let moved = parts.next().is_some() && MERGED.iter().any(|name| name.as_bytes() == first);
    Some(if moved { [b"usr/", path].concat() } else { path.to_vec() })
}

/// Where files of other packages than the named one went: `path -> (place, package)`.
fn diversions(host: BorrowedFd<'_>) -> HashMap<Vec<u8>, (Vec<u8>, String)> {
    let text = read_capped(host, &format!("{ADMIN}/diversions"), LARGEST).unwrap_or_default();
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    lines
        .chunks_exact(3)
        .map(|three| (three[0].to_vec(), (three[1].to_vec(), String::from_utf8_lossy(three[2]).into_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_on_a_merged_usr() {
        assert_eq!(unmerged(b"/bin/ls").unwrap(), b"usr/bin/ls");
        assert_eq!(unmerged(b"/usr/bin/ls").unwrap(), b"usr/bin/ls");
        assert_eq!(unmerged(b"/lib64/ld.so").unwrap(), b"usr/lib64/ld.so");
        assert_eq!(unmerged(b"/library/x").unwrap(), b"library/x");
        assert_eq!(unmerged(b"/bin").unwrap(), b"bin");
        for refused in ["/.", "usr/bin/ls", "", "/usr/../root/x", "/usr//x"] {
            assert!(unmerged(refused.as_bytes()).is_none(), "{refused}");
        }
        assert!(in_usr(b"usr/bin/ls") && in_usr(b"usr/localx/y"));
        assert!(!in_usr(b"usr/local/bin/ls") && !in_usr(b"usr/local") && !in_usr(b"opt/x"));
    }

    #[test]
    fn a_diverted_file_belongs_to_its_package_under_its_new_name() {
        let host = tempfile::tempdir().unwrap();
        let admin = host.path().join(ADMIN);
        std::fs::create_dir_all(admin.join("info")).unwrap();
        std::fs::write(admin.join("info/perf:amd64.list"), "/usr\n/usr/bin\n/usr/bin/perf\n/etc/perf.conf\n")
            .unwrap();
        std::fs::write(admin.join("info/other.list"), "/bin/perf\n/usr/local/bin/no\n").unwrap();
        std::fs::write(admin.join("info/third.list"), "/usr/bin/third\n").unwrap();
        std::fs::write(admin.join("diversions"), "/bin/perf\n/bin/perf.old\nperf\n").unwrap();
        let dir = std::fs::File::open(host.path()).unwrap();
        let owned = owned(dir.as_fd(), &|package| package != "third").unwrap();
        let bin: Vec<_> =
            owned.usr[b"usr/bin".as_slice()].iter().map(|name| String::from_utf8_lossy(name)).collect();
        assert_eq!(bin, ["perf", "perf.old"]);
        assert!(owned.etc.contains(b"etc/perf.conf".as_slice()));
        assert!(!owned.usr.contains_key(b"usr/local/bin".as_slice()));
    }
}
