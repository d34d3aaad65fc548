//! The host API: what programs inside a machine may ask of the gateway, without a key.
//!
//! The socket that a connection came by names the sandbox; nothing that is said inside does.

use std::{
    fmt,
    future::Future,
    net::TcpListener,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;

use super::logs::{LogLine, LogRing};
use crate::id::SandboxId;

/// Answers inside machines.
pub trait HostApi: Send + Sync + fmt::Debug {
    /// Serves the connections of one machine; dropped when the machine is gone.
    fn serve(&self, caller: Caller, listener: TcpListener) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The sandbox.
    pub sandbox: SandboxId,
    pub(super) run: Arc<Run>,
}

/// What a run of a sandbox shares with those who ask from inside.
#[derive(Debug)]
pub(super) struct Run {
    logs: Arc<LogRing>,
    /// Nanoseconds since 1970.
    began: AtomicI64,
}

// === impl Caller ===

impl Caller {
    /// Adds a line to the sandbox's log.
    pub fn log(&self, line: LogLine) {
        self.run.logs.push(line);
    }

    /// When the present run began, by the clock that people read, in nanoseconds since 1970.
    pub fn began(&self) -> i64 {
        self.run.began.load(Ordering::Relaxed)
    }
}

// === impl Run ===

impl Run {
    pub(super) fn new(logs: Arc<LogRing>) -> Self {
        Self { logs, began: AtomicI64::new(0) }
    }

    /// A run begins, now.
    pub(super) fn begins(&self, now: Timestamp) {
        let now = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        self.began.store(now, Ordering::Relaxed);
    }
}
