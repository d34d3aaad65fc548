//! The logs of sandboxes that have ended: who looks for why one ended finds its last lines.
//!
//! ```text
//!   driver, when its sandbox ends --> the newest ended ones, bounded in number and in bytes
//! ```
//! They are in memory only: a new gateway knows none.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::logs::{LogLine, LogRing};
use crate::id::{SandboxId, TeamId};

/// The most ended sandboxes whose logs are kept.
const MOST: usize = 256;
/// The most bytes that their logs hold together.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// The ended sandboxes, in the order of their ends; the oldest make room.
#[derive(Default)]
pub(super) struct Past(Mutex<VecDeque<Ended>>);

struct Ended {
    team: TeamId,
    id: SandboxId,
    logs: Arc<LogRing>,
}

// === impl Past ===

impl Past {
    /// Keeps the log of a sandbox that ends. Its guest may add to it until it is gone.
    pub(super) fn keep(&self, team: TeamId, id: SandboxId, logs: Arc<LogRing>) {
        let mut kept = self.0.lock();
        kept.push_back(Ended { team, id, logs });
        let mut bytes: usize = kept.iter().map(|ended| ended.logs.held()).sum();
        while kept.len() > MOST || bytes > MAX_BYTES {
            let Some(oldest) = kept.pop_front() else { break };
            bytes = bytes.saturating_sub(oldest.logs.held());
        }
    }

    /// The last lines of an ended sandbox of the team, oldest first; none if it is not known.
    pub(super) fn logs(&self, team: TeamId, id: SandboxId) -> Option<Vec<LogLine>> {
        let kept = self.0.lock();
        let ended = kept.iter().rev().find(|ended| ended.id == id && ended.team == team)?;
        let logs = Arc::clone(&ended.logs);
        drop(kept);
        Some(logs.lines())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::id::OsEntropy;

    fn log(bytes: usize) -> Arc<LogRing> {
        let ring = LogRing::default();
        for _ in 0..bytes.div_ceil(4096) {
            ring.note("info", &"x".repeat(4096), Timestamp::UNIX_EPOCH);
        }
        Arc::new(ring)
    }

    #[test]
    fn a_log_is_its_own_teams_and_the_oldest_make_room() {
        let (past, team) = (Past::default(), TeamId::generate(&OsEntropy));
        let ids: Vec<_> = (0..=MOST).map(|_| SandboxId::generate(&OsEntropy)).collect();
        for id in &ids {
            past.keep(team, *id, log(1));
        }
        assert_eq!(past.logs(team, ids[0]), None);
        assert_eq!(past.logs(team, ids[1]).unwrap().len(), 1);
        assert_eq!(past.logs(TeamId::generate(&OsEntropy), ids[1]), None);
    }

    #[test]
    fn their_sum_is_bounded() {
        let (past, team) = (Past::default(), TeamId::generate(&OsEntropy));
        let ids: Vec<_> = (0..MOST).map(|_| SandboxId::generate(&OsEntropy)).collect();
        for id in &ids {
            past.keep(team, *id, log(400 * 1024));
        }
        let known: Vec<_> = ids.iter().filter(|id| past.logs(team, **id).is_some()).collect();
        assert!(known.len() > 50 && known.len() < 90, "{}", known.len());
        assert_eq!(known.last(), ids.last().as_ref());
    }
}
