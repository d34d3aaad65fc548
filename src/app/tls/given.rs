//! The operator's own certificate: two PEM files, read at the start and whenever they change.
//!
//! The start reads them as root. Later changes are read by the gateway's ordinary user, so a key
//! that only root may read works until it changes; [`Given::readable`] says so early.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::TlsError;

/// A certificate chain and its key, as files.
#[derive(Debug)]
pub struct Given {
    chain: PathBuf,
    key: PathBuf,
    first: Option<CertifiedKey>,
    /// What was read last, usable or not.
    read: Option<Look>,
    /// What the last look saw: only files that stay the same between two looks are read.
    seen: Option<Look>,
}

/// What tells two states of the files apart.
type Look = [Mark; 2];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

// === impl Given ===

impl Given {
    /// Reads both files for the first time.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let look = look(chain, key).ok();
        let first = read(chain, key)?;
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), first: Some(first), read: look, seen: look })
    }

    /// Whether this process can read the files again when they change.
    pub fn readable(&self) -> Result<(), TlsError> {
        for path in [&self.chain, &self.key] {
            fs::File::open(path).map_err(|error| TlsError::file(path, error))?;
        }
        Ok(())
    }

    /// What [`Given::load`] read; reads again where it was taken before.
    pub(super) fn take_first(&mut self) -> Result<CertifiedKey, TlsError> {
        self.first.take().map_or_else(|| read(&self.chain, &self.key), Ok)
    }

    /// Reads files that changed since the last reading and have not changed since the last call.
    pub(super) fn changed(&mut self) -> Option<Result<CertifiedKey, TlsError>> {
        // A file that is away is on its way back, or the old certificate goes on.
        let now = look(&self.chain, &self.key).ok()?;
        let settled = self.seen.replace(now) == Some(now);
        if !settled || self.read == Some(now) {
            return None;
        }
        self.read = Some(now);
        Some(read(&self.chain, &self.key))
    }
}

fn look(chain: &Path, key: &Path) -> io::Result<Look> {
    let mark = |path| -> io::Result<Mark> {
        let data = fs::metadata(path)?;
        let changed = (data.ctime(), data.ctime_nsec());
        Ok(Mark { device: data.dev(), inode: data.ino(), size: data.size(), changed })
    };
    Ok([mark(chain)?, mark(key)?])
}

fn read(chain: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let text = fs::read(chain).map_err(|error| TlsError::file(chain, error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::content(chain, format!("not a PEM certificate: {error}")))?;
    if certificates.is_empty() {
        return Err(TlsError::content(chain, "no certificate in it; it must be PEM, the server's own first"));
    }
    let text = fs::read(key).map_err(|error| TlsError::file(key, error))?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        TlsError::content(key, format!("no private key in PEM form without a passphrase: {error}"))
    })?;
    CertifiedKey::from_der(certificates, private, &ring::default_provider())
        .map_err(|error| TlsError::content(key, format!("does not fit {}: {error}", chain.display())))
}
