//! What a layer held when it was made: a sum over all that a machine can see of it.

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{attributes::Attributes, content::Content};

/// What `integrity.json` says of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::warden) struct Integrity {
    /// Names in it, directories and links among them.
    pub(in crate::warden) files: u64,
    /// Bytes of content that are not in holes.
    pub(in crate::warden) bytes: u64,
    /// SHA-256 in hex: over one record an entry, folder by folder in the order of names.
    pub(in crate::warden) sha256: String,
}

/// Sums up a layer as it is walked through, or only counts what is in it.
#[derive(Debug)]
pub(super) struct Recorder {
    hash: Option<Sha256>,
    files: u64,
    bytes: u64,
}

// === impl Recorder ===

impl Recorder {
    /// `sums`: else it only counts.
    pub(super) fn new(sums: bool) -> Self {
        Self { hash: sums.then(Sha256::new), files: 0, bytes: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
    }

    /// Entries so far: the number of the last one.
    pub(super) fn entries(&self) -> u64 {
        self.files
    }

    /// What follows is in this directory.
    pub(super) fn directory(&mut self, name: &[u8], stat: &Stat, attributes: &Attributes) {
        self.begin(b'D', name, stat);
        self.attributes(attributes);
    }

    /// Back to the directory above.
    pub(super) fn up(&mut self) {
        self.add(b"U");
    }

    pub(super) fn file(&mut self, name: &[u8], stat: &Stat, attributes: &Attributes, content: &Content) {
        self.begin(b'F', name, stat);
        self.attributes(attributes);
        self.add(&stat.st_size.to_le_bytes());
        self.add(&content.hash);
        self.bytes += content.bytes;
    }

    pub(super) fn link(&mut self, name: &[u8], stat: &Stat, target: &[u8]) {
        self.begin(b'L', name, stat);
        self.text(target);
    }

    /// A whiteout, a pipe or a socket.
    pub(super) fn special(&mut self, name: &[u8], stat: &Stat) {
        self.begin(b'S', name, stat);
    }

    /// A further name of an entry.
    pub(super) fn name(&mut self, name: &[u8], entry: u64) {
        self.files += 1;
        self.add(b"N");
        self.text(name);
        self.add(&entry.to_le_bytes());
    }

    pub(super) fn finish(self) -> Integrity {
        let sha256 = hex::encode(<[u8; 32]>::from(self.hash.unwrap_or_default().finalize()));
        Integrity { files: self.files, bytes: self.bytes, sha256 }
    }

    fn begin(&mut self, kind: u8, name: &[u8], stat: &Stat) {
        self.files += 1;
        self.add(&[kind]);
        self.text(name);
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.add(&number.to_le_bytes());
        }
    }

    fn attributes(&mut self, attributes: &Attributes) {
        self.add(&(attributes.len() as u64).to_le_bytes());
        for (name, value) in attributes {
            self.text(name);
            self.text(value);
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
    }
}
