//! What every handler may reach, and the settings that shape answers.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    id::Entropy,
    routes::{keyring::KeyRing, streams::Streams},
    runtime::registry::Registry,
    sandbox::Resources,
    store::Store,
};

/// What every handler may reach. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// The way to sandboxes.
    pub registry: Registry,
    /// Durable records: templates, lists, idempotency keys.
    pub store: Arc<dyn Store>,
    /// Who may call.
    pub keys: KeyRing,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Random bytes for identifiers.
    pub entropy: Arc<dyn Entropy>,
    /// The open streams of browsers.
    pub streams: Streams,
    /// The settings that shape answers.
    pub settings: Settings,
}

/// The settings that shape answers; fixed at start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The domain in answers, with its port where that is not the scheme's: `firkin.localhost:3000`.
    pub domain: Arc<str>,
    /// The longest run; none: no limit.
    pub max_timeout: Option<Duration>,
    /// The size of sandboxes whose template says nothing else.
    pub default_resources: Resources,
    /// Origins whose pages may open streams, besides this server's own: `https://ide.example.com`.
    pub allowed_origins: Arc<[String]>,
}

// === impl AppState ===

impl fmt::Debug for AppState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AppState").field("settings", &self.settings).finish_non_exhaustive()
    }
}
