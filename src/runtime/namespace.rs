//! The namespace engine: machines made by the warden on this host's kernel.
//!
//! The engine holds nothing of a machine but its name and the way to its socket: everything that
//! must be released belongs to the warden. A create whose caller went away is therefore undone
//! by one message, and a gateway that dies loses nothing but its connections.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use crate::runtime::engine::EngineError;

mod client;

pub use client::{ClientError, WardenClient};

/// Makes machines through the warden.
#[derive(Debug)]
pub struct NamespaceEngine {
    _client: WardenClient,
}

// === impl NamespaceEngine ===

impl NamespaceEngine {
    /// Takes the gateway's end of the warden's socket. `run_dir` is the directory of the
    /// machines' sockets ([`crate::warden::Prepared::run_dir`]). Call it inside the runtime.
    pub async fn connect(socket: OwnedFd, run_dir: &Path) -> Result<(Arc<Self>, WardenClient), EngineError> {
        let _ = run_dir;
        let client = WardenClient::new(socket);
        Ok((Arc::new(Self { _client: client.clone() }), client))
    }
}
