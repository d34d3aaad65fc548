//! Tunnels: what an accepted upgrade (WebSocket or any other) becomes.
//!
//! ```text
//!  101 sent --both sides upgraded--> copying --each side half-closes in its time--> gone
//!                                       `-- the sandbox's run ends, the server drains --> gone
//! ```
//! Bytes that either side sent right behind its head are in the upgraded streams' buffers and are
//! copied first. The tunnel keeps its connection's share of the server's bound and its part of
//! the sandbox's limit until it is gone.

use futures_util::future::try_join;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::sync::CancellationToken;

use super::{connect::Lease, limit::Share};
use crate::hold::Hold;

/// Per direction.
const BUFFER: usize = 16 * 1024;

/// Both ends of a tunnel, and what must live as long as it.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) guest: OnUpgrade,
    pub(super) ended: CancellationToken,
    pub(super) hold: Option<Hold>,
    pub(super) share: Option<Share>,
    pub(super) lease: Lease,
}

/// Starts the tunnel's task, which ends with either end, the sandbox's run or the server.
pub(super) fn start(tunnel: Tunnel) {
    tokio::spawn(async move {
        let Tunnel { client, guest, ended, hold, share, lease } = tunnel;
        let drained = hold.as_ref().map_or_else(CancellationToken::new, Hold::is_cut);
        let copying = async {
            let (client, guest) = try_join(client, guest).await?;
            let (mut client, mut guest) = (TokioIo::new(client), TokioIo::new(guest));
            // How a tunnel ends is the business of its two ends.
            let _ = copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await;
            Ok::<(), hyper::Error>(())
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = drained.cancelled() => {}
            _ = copying => {}
        }
        drop((lease, share, hold));
    });
}
