//! How much streams may take, and how long their clients may.

use std::time::Duration;

/// The bounds of all streams of a server. The default is what a server runs with.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most streams, and so 64 MiB of their messages.
    pub streams: usize,
    /// The most streams of one sandbox.
    pub streams_of_sandbox: usize,
    /// The most connections that follow streams. Each is one of the server's connections too.
    pub connections: usize,
    /// How often a WebSocket's client is pinged.
    pub ping: Duration,
    /// How long such a client may say nothing, not even that it is there.
    pub silence: Duration,
    /// How long a client may take nothing of what waits for it.
    pub unread: Duration,
    /// How long the first message may take.
    pub first_word: Duration,
    /// How long a process may take nothing of its input before more than what waits is refused.
    pub untaken: Duration,
    /// How long a client that says goodbye is still served: what it said before, and its answer to ours.
    pub farewell: Duration,
    /// How long a stream that nobody follows goes on.
    pub abandoned: Duration,
    /// How long the end of a stream can be read.
    pub retained: Duration,
}

// === impl Bounds ===

impl Default for Bounds {
    fn default() -> Self {
        Self {
            streams: 512,
            streams_of_sandbox: 32,
            connections: 1024,
            ping: Duration::from_secs(20),
            silence: Duration::from_mins(1),
            unread: Duration::from_secs(30),
            first_word: Duration::from_secs(30),
            untaken: Duration::from_secs(5),
            farewell: Duration::from_secs(5),
            abandoned: Duration::from_mins(5),
            retained: Duration::from_secs(30),
        }
    }
}
