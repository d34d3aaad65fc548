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

/// Sums up a layer as it is walked through.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    hash: Sha256,
    files: u64,
    bytes: u64,
}

// === impl Recorder ===

impl Recorder {
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
        self.hash.update(b"U");
    }

    pub(super) fn file(&mut self, name: &[u8], stat: &Stat, attributes: &Attributes, content: &Content) {
        self.begin(b'F', name, stat);
        self.attributes(attributes);
        self.hash.update(stat.st_size.to_le_bytes());
        self.hash.update(content.hash);
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
        self.hash.update(b"N");
        self.text(name);
        self.hash.update(entry.to_le_bytes());
    }

    pub(super) fn finish(self) -> Integrity {
        let sha256 = hex::encode(<[u8; 32]>::from(self.hash.finalize()));
        Integrity { files: self.files, bytes: self.bytes, sha256 }
    }

    fn begin(&mut self, kind: u8, name: &[u8], stat: &Stat) {
        self.files += 1;
        self.hash.update([kind]);
        self.text(name);
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.hash.update(number.to_le_bytes());
        }
    }

    fn attributes(&mut self, attributes: &Attributes) {
        self.hash.update((attributes.len() as u64).to_le_bytes());
        for (name, value) in attributes {
            self.text(name);
            self.text(value);
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}
