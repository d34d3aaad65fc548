//! The policy of one sandbox: which request is allowed where it stands, and what follows.
//!
//! ```text
//!   Creating ----ready----> Running ----end----> Killing ----> (gone)
//!       \______end (undone)____________________/
//! ```
//! Pure: no clock, no task, no store. The driver asks before it acts, so whatever may happen to a
//! sandbox is written here once: nothing is accepted behind an end, a deadline that has passed is
//! an end, `connect` and `extend` only move the deadline away, `set_timeout` sets it, and no
//! deadline is beyond the run's longest length (contract/control-plane 2.5-2.8).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Where the sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its guest is not ready yet.
    Creating,
    /// It serves.
    Running {
        /// Start of this run.
        started_at: Timestamp,
        /// When the deadline strikes.
        end_at: Timestamp,
    },
    /// Teardown has begun.
    Killing,
}

/// What is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// The deadline is to be now + this.
    SetTimeout(Duration),
    /// The deadline is to be at least now + this.
    Extend(Duration),
    /// As `Extend`, from somebody who wants to use it.
    Connect(Duration),
    /// The deadline may have struck.
    Expire,
    /// It is to end.
    End,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The deadline moves to this.
    Deadline(Timestamp),
    /// Nothing changes.
    Keep,
    /// The one teardown begins.
    TearDown,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As far as the asker may know, there is no such sandbox.
    NotFound,
    /// It is on its way to another stage.
    Transitioning,
    /// The run has lasted its maximum.
    MaxLength,
}

/// The rules, with the longest run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// The longest run; none: any length.
    pub(super) max_length: Option<Duration>,
}

// === impl Policy ===

impl Policy {
    /// Decides one request.
    pub(super) fn decide(self, stage: Stage, request: Request, now: Timestamp) -> Result<Verdict, Refusal> {
        match stage {
            Stage::Creating => match request {
                Request::End => Ok(Verdict::TearDown),
                Request::Expire => Ok(Verdict::Keep),
                _ => Err(Refusal::Transitioning),
            },
            Stage::Killing => match request {
                Request::End | Request::Expire => Ok(Verdict::Keep),
                Request::Connect(_) => Err(Refusal::Transitioning),
                Request::SetTimeout(_) | Request::Extend(_) => Err(Refusal::NotFound),
            },
            Stage::Running { started_at, end_at } => self.running(started_at, end_at, request, now),
        }
    }

    /// When a run that starts now and asks for this lifetime ends.
    pub(super) fn deadline(self, started_at: Timestamp, now: Timestamp, timeout: Duration) -> Timestamp {
        let wanted = later(now, timeout);
        self.limit(started_at).map_or(wanted, |limit| wanted.min(limit))
    }

    fn running(
        self,
        started_at: Timestamp,
        end_at: Timestamp,
        request: Request,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
        let expired = now >= end_at;
        let too_long = self.limit(started_at).is_some_and(|limit| now > limit);
        match request {
            Request::End => Ok(Verdict::TearDown),
            Request::Expire => Ok(if expired { Verdict::TearDown } else { Verdict::Keep }),
            Request::SetTimeout(_) | Request::Extend(_) if too_long => Err(Refusal::MaxLength),
            // The reaper is on its way; nobody may snatch the sandbox back.
            _ if expired => Err(Refusal::NotFound),
            Request::SetTimeout(Duration::ZERO) => Ok(Verdict::TearDown),
            Request::SetTimeout(timeout) => Ok(Verdict::Deadline(self.deadline(started_at, now, timeout))),
            Request::Extend(timeout) | Request::Connect(timeout) => {
                let wanted = self.deadline(started_at, now, timeout);
                Ok(if wanted > end_at { Verdict::Deadline(wanted) } else { Verdict::Keep })
            }
        }
    }

    fn limit(self, started_at: Timestamp) -> Option<Timestamp> {
        self.max_length.map(|length| later(started_at, length))
    }
}

/// A later time; the last one there is, where the sum is beyond it.
pub(super) fn later(from: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| from.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
