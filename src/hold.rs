//! What a request keeps of its connection when it outlives it: the place among the server's
//! connections, and the way to cut it.

use std::{any::Any, fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

/// A hold on a connection; the gateway puts it into every request's extensions. Cheap to clone. The
/// connection's place is free again when the last clone is gone.
#[derive(Clone)]
pub struct Hold {
    cut: CancellationToken,
    _place: Arc<dyn Any + Send + Sync>,
}

// === impl Hold ===

impl Hold {
    /// A hold on whatever `place` stands for; `cut` ends the connection and hears of its end.
    pub fn new(cut: CancellationToken, place: impl Any + Send + Sync) -> Self {
        Self { cut, _place: Arc::new(place) }
    }

    /// Fires when the server can wait no longer, or the connection was cut.
    pub fn is_cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Ends the connection with all its requests, whatever its client still has to read.
    pub fn cut(&self) {
        self.cut.cancel();
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Hold").finish_non_exhaustive()
    }
}
