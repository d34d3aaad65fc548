//! Where the server's certificate comes from, and how it stays fresh.
//!
//! ```text
//!  root:          given files --read--> Given        (a wrong file ends the start)
//!  ordinary user: Given, or the development Authority --> Keeper --first certificate--> listener
//!                 every LOOK: files changed and settled? leaf old? --> replaced for new connections
//!                             the new files do not fit? --> logged, the old certificate goes on
//! ```
//! The keeper is the only writer of what the listener shows. Given files are looked at again and
//! again because certificates are often links through several directories, or on network file
//! systems, where change notices see nothing; two `stat`s see all.

mod authority;
mod given;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use authority::{Authority, CERTIFICATE};
pub use given::Given;

use crate::{clock::Clock, proxy::tls::Certificates};

/// Between two looks at the files and the clock.
const LOOK: Duration = Duration::from_secs(2);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A certificate that could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A certificate and a key that TLS cannot use.
    #[error("the certificate does not work: {0}")]
    Use(#[from] rustls::Error),
}

/// Where certificates come from.
#[derive(Debug)]
enum Source {
    Given(Box<Given>),
    Development { authority: Box<Authority>, renew: Timestamp },
}

/// Keeps the listener's certificate fresh.
pub struct Keeper {
    source: Source,
    certificates: Arc<Certificates>,
    clock: Arc<dyn Clock>,
}

// === impl TlsError ===

impl TlsError {
    fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }

    fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content { path: path.display().to_string(), reason: reason.into() }
    }
}

// === impl Keeper ===

impl Keeper {
    /// With the operator's certificate, which was read already.
    pub fn given(mut given: Given, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates::new(given.take_first()?));
        Ok(Self { source: Source::Given(Box::new(given)), certificates, clock })
    }

    /// With leaves of the development authority.
    pub fn development(authority: Authority, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let (leaf, renew) = authority.leaf(clock.now())?;
        let certificates = Arc::new(Certificates::new(leaf));
        let source = Source::Development { authority: Box::new(authority), renew };
        Ok(Self { source, certificates, clock })
    }

    /// What the listener shows.
    pub fn certificates(&self) -> Arc<Certificates> {
        Arc::clone(&self.certificates)
    }

    /// Looks at the source again and again until the server stops.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(keeper) => self = keeper,
                Err(error) => {
                    tracing::error!(%error, "certificates are not looked after any more; start the server again");
                    return;
                }
            }
        }
    }

    /// Replaces the certificate where there is a newer one; may block on files.
    fn look(&mut self) {
        match &mut self.source {
            Source::Given(given) => match given.changed() {
                None => {}
                Some(Ok(certificate)) => {
                    self.certificates.replace(certificate);
                    tracing::info!("the TLS certificate was changed: new connections get the new one");
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the changed TLS certificate is not usable; the old one goes on");
                }
            },
            Source::Development { authority, renew } => {
                let now = self.clock.now();
                if now < *renew {
                    return;
                }
                match authority.leaf(now) {
                    Ok((leaf, next)) => {
                        self.certificates.replace(leaf);
                        *renew = next;
                        tracing::info!("the development certificate was renewed");
                    }
                    Err(error) => tracing::warn!(%error, "the development certificate cannot be renewed"),
                }
            }
        }
    }
}
