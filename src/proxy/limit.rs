//! How many requests may be in flight to one sandbox.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{error::ProxyError, target::Bound};
use crate::id::SandboxId;

/// Counts requests by sandbox. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    most: Option<u32>,
    counts: Arc<Mutex<HashMap<SandboxId, u32>>>,
}

/// One request's part of the limit, given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Share {
    id: SandboxId,
    counts: Arc<Mutex<HashMap<SandboxId, u32>>>,
}

// === impl Limit ===

impl Limit {
    /// None: no limit, and nothing is counted.
    pub(super) fn new(most: Option<u32>) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// Gives the request its share, or refuses it.
    pub(super) fn admit(&self, mut bound: Bound) -> Result<Bound, ProxyError> {
        if let Some(most) = self.most {
            let id = bound.target.id;
            let mut counts = self.counts.lock();
            let count = counts.entry(id).or_default();
            if *count >= most {
                return Err(ProxyError::TooManyConnections { limit: most });
            }
            *count += 1;
            drop(counts);
            bound.share = Some(Share { id, counts: Arc::clone(&self.counts) });
        }
        Ok(bound)
    }
}

// === impl Share ===

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}
