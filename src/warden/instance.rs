//! Which of the host's firkin servers this is: a number, its lock, and the id range it implies.
//!
//! `/run/firkin/instances/<n>` is held locked by the live warden of instance n and names its data
//! directory. A number whose lock is free is taken over only when no process lives in its cgroup
//! tree, or when those are this data directory's own machines, which outlived their warden.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{self, FlockOperation, Mode, OFlags};

use super::{At, WardenError};

/// How many servers one host may run.
pub(crate) const INSTANCES: u32 = 8;
/// Id ranges of one instance; the first is the gateway's own.
pub(crate) const SLOTS: u32 = 2048;
/// Ids of one slot, as many as a sandbox sees.
pub(crate) const SLOT_IDS: u32 = 65_536;
/// Above every range that distributions hand out, below the sign bit.
const FIRST_ID: u32 = 0x4000_0000;
/// The gateway's user and group within slot 0.
const GATEWAY_OFFSET: u32 = 1000;

/// One of the host's firkin servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instance(pub(crate) u32);

/// An instance's number, taken. The lock ends with the last process that holds the descriptor.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) instance: Instance,
    file: File,
    path: PathBuf,
}

// === impl Instance ===

impl Instance {
    /// The first host id of a slot.
    pub(crate) fn base_uid(self, slot: u32) -> u32 {
        FIRST_ID + (self.0 * SLOTS + slot) * SLOT_IDS
    }

    /// The gateway's user and group id.
    pub(crate) fn gateway_id(self) -> u32 {
        self.base_uid(0) + GATEWAY_OFFSET
    }

    /// The name of the instance's tree in every cgroup hierarchy.
    pub(crate) fn cgroup(self) -> String {
        format!("firkin-{}", self.0)
    }

    /// Whether a user id is that of some instance's gateway.
    pub(crate) fn is_gateway_id(uid: u32) -> bool {
        (0..INSTANCES).any(|number| Self(number).gateway_id() == uid)
    }
}

// === impl Claim ===

impl Claim {
    /// Takes the number that the data directory had before, if it can be had, else a free one.
    /// `live` tells whether an instance's cgroup tree holds a process.
    pub(crate) fn take(
        registry: &Path,
        data_dir: &Path,
        before: Option<u32>,
        live: &dyn Fn(Instance) -> bool,
    ) -> Result<Self, WardenError> {
        let candidates = before.into_iter().filter(|number| *number < INSTANCES).chain(0..INSTANCES);
        for number in candidates {
            if let Some(claim) = Self::attempt(registry, data_dir, Instance(number), live)? {
                return Ok(claim);
            }
        }
        Err(WardenError::NoInstance(INSTANCES))
    }

    fn attempt(
        registry: &Path,
        data_dir: &Path,
        instance: Instance,
        live: &dyn Fn(Instance) -> bool,
    ) -> Result<Option<Self>, WardenError> {
        let path = registry.join(instance.0.to_string());
        loop {
            make_registry(registry).at("make the directory of instances")?;
            let Some(file) = open(&path).at("open the instance's lock")? else { continue };
            match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).at("lock the instance"),
            }
            // The former holder may have removed the name between our open and our lock.
            if !same_file(&file, &path) {
                continue;
            }
            let mut claim = Self { instance, file, path };
            let owner = claim.owner().at("read the instance's owner")?;
            if owner.as_deref() != Some(data_dir) && live(instance) {
                return Ok(None);
            }
            claim.write_owner(data_dir).at("write the instance's owner")?;
            return Ok(Some(claim));
        }
    }

    fn owner(&mut self) -> io::Result<Option<PathBuf>> {
        let mut text = String::new();
        (&self.file).take(8192).read_to_string(&mut text)?;
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn write_owner(&mut self, data_dir: &Path) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(data_dir.as_os_str().as_bytes())
    }

    /// The lock.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Gives the number back. Only for an instance without machines.
    pub(crate) fn release(&self) {
        // Best effort: a name left behind costs the next server one more look at it.
        let _ = std::fs::remove_file(&self.path);
        for parent in self.path.ancestors().skip(1).take(2) {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

fn make_registry(registry: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(registry)
}

/// `None`: the directory was removed under us by a server that just ended.
fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::open(path, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => Ok(Some(file.into())),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_instances_and_slots_do_not_touch() {
        assert_eq!(Instance(0).base_uid(1), 0x4001_0000);
        assert_eq!(Instance(0).base_uid(SLOTS), Instance(1).base_uid(0));
        assert!(Instance(INSTANCES - 1).base_uid(SLOTS - 1).checked_add(SLOT_IDS).is_some());
        assert!(Instance::is_gateway_id(Instance(3).gateway_id()));
        assert!(!Instance::is_gateway_id(1000));
    }

    #[test]
    fn a_held_or_inhabited_number_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("firkin/instances");
        let dead = |_: Instance| false;
        let first = Claim::take(&registry, Path::new("/a"), None, &dead).unwrap();
        assert_eq!(first.instance, Instance(0));
        let second = Claim::take(&registry, Path::new("/b"), Some(0), &dead).unwrap();
        assert_eq!(second.instance, Instance(1));
        // Without its warden, but with live machines: only its own data directory gets it back.
        drop(first);
        let inhabited = |instance: Instance| instance == Instance(0);
        let third = Claim::take(&registry, Path::new("/c"), None, &inhabited).unwrap();
        assert_eq!(third.instance, Instance(2));
        let again = Claim::take(&registry, Path::new("/a"), Some(0), &inhabited).unwrap();
        assert_eq!(again.instance, Instance(0));
        for claim in [again, second, third] {
            claim.release();
        }
        assert!(!registry.exists());
    }
}
