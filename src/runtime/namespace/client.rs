//! The gateway's side of the warden's socket: one answer for every call, events for who listens.

use std::{os::fd::OwnedFd, sync::Arc};

use crate::wire::warden::{Call, Event, ImageInfo, ProbeResult, Reply};

/// Speaks to the warden. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WardenClient {
    _socket: Arc<OwnedFd>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The warden is gone: nothing can be made or ended any more, and the server must stop.
    #[error("the privileged helper has ended; restart the server, its sandboxes are still there")]
    Closed,
    /// The warden refused, or the host could not do it.
    #[error("{reason}")]
    Refused {
        /// For the log.
        reason: String,
        /// True: the request itself was wrong; false: the host could not do it.
        invalid: bool,
    },
    /// The answer was not one of this call's.
    #[error("the privileged helper gave an answer of another kind")]
    Unexpected,
}

// === impl WardenClient ===

impl WardenClient {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { _socket: Arc::new(socket) }
    }

    /// Sends one call and waits for its answer and the descriptors that came with it. A dropped
    /// future forgets the answer; it does not undo the call.
    pub async fn call(&self, call: Call) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let _ = call;
        Err(ClientError::Closed)
    }

    /// Builds the `base` template if it must be; `progress` hears what is being done.
    pub async fn ensure_base(&self, progress: impl Fn(&str) + Send) -> Result<ImageInfo, ClientError> {
        let _ = progress;
        Err(ClientError::Closed)
    }

    /// What this host offers.
    pub async fn probe(&self) -> Result<Vec<ProbeResult>, ClientError> {
        Err(ClientError::Closed)
    }

    /// Ends the warden, and all machines first when asked to.
    pub async fn shutdown(&self, stop_machines: bool) -> Result<(), ClientError> {
        let _ = stop_machines;
        Err(ClientError::Closed)
    }

    /// What happens without having been asked for. A listener that lags misses the oldest.
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<Event> {
        tokio::sync::broadcast::channel(1).1
    }

    /// Resolves when the warden is gone.
    pub async fn closed(&self) {
        std::future::pending().await
    }
}
