//! The policy of one sandbox: which request is allowed where it stands, and what follows.
//!
//! ```text
//!   Creating --ready--> Running --pause, deadline--> Pausing --> Paused --connect, traffic--> Resuming
//!                        | ^ '--snapshot--> Snapshotting --'        ^------(failed)-------------' |
//!                        |  '-------------------------------------------------------------------'
//!                        '--end, from anywhere--> Killing --> (gone)
//! ```
//! Pure: no clock, no task, no store. The driver asks before it acts, so whatever may happen to a
//! sandbox is written here once: nothing is accepted behind an end, a deadline that has passed is
//! an end or a pause, `connect` and `extend` only move the deadline away, `set_timeout` sets it, no
//! deadline is beyond the run's longest length, and what comes in the middle of a change waits for
//! its end or is refused (contract/control-plane 2.5-2.9).

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
        /// The deadline pauses it instead of ending it.
        pauses: bool,
    },
    /// It is being paused.
    Pausing,
    /// It rests.
    Paused,
    /// It is being resumed.
    Resuming,
    /// An image is being made of it; it stands still meanwhile.
    Snapshotting,
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
    /// As `Extend`, from somebody who wants to use it: a paused one is to be resumed.
    Connect(Duration),
    /// As `Connect`, but a paused one is to start anew from its disk.
    Reboot(Duration),
    /// A paused one is to be resumed; one that runs is not meant.
    Resume(Duration),
    /// Traffic for it has come.
    Wake,
    /// It is to be paused.
    Pause,
    /// An image is to be made of it.
    Snapshot,
    /// Its way out is to be another.
    SetEgress,
    /// The host is short of memory.
    Relieve,
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
    /// It is paused now.
    Pause,
    /// The pause that is under way is the answer.
    Join,
    /// It is resumed now.
    Resume,
    /// An image is made of it now.
    Snapshot,
    /// It gives memory back now.
    Relieve,
    /// Asked again when the change that is under way has come to its end.
    Wait,
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
    /// It is paused already.
    Paused,
    /// It runs already.
    Running,
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
                Request::Expire | Request::Relieve => Ok(Verdict::Keep),
                _ => Err(Refusal::Transitioning),
            },
            Stage::Running { started_at, end_at, pauses } => {
                self.running((started_at, end_at), pauses, request, now)
            }
            Stage::Pausing => match request {
                Request::End => Ok(Verdict::TearDown),
                Request::Pause => Ok(Verdict::Join),
                Request::Connect(_) | Request::Reboot(_) | Request::Resume(_) | Request::Wake => {
                    Ok(Verdict::Wait)
                }
                Request::Expire | Request::Relieve => Ok(Verdict::Keep),
                Request::SetTimeout(_) | Request::Extend(_) | Request::Snapshot | Request::SetEgress => {
                    Err(Refusal::Transitioning)
                }
            },
            Stage::Paused => match request {
                Request::End => Ok(Verdict::TearDown),
                Request::Connect(_) | Request::Reboot(_) | Request::Resume(_) | Request::Wake => {
                    Ok(Verdict::Resume)
                }
                Request::Pause => Err(Refusal::Paused),
                Request::Relieve => Ok(Verdict::Relieve),
                Request::Expire => Ok(Verdict::Keep),
                Request::SetTimeout(_) | Request::Extend(_) | Request::Snapshot | Request::SetEgress => {
                    Err(Refusal::NotFound)
                }
            },
            Stage::Resuming => match request {
                Request::End => Ok(Verdict::TearDown),
                Request::Connect(_) | Request::Reboot(_) | Request::Resume(_) | Request::Wake => {
                    Ok(Verdict::Wait)
                }
                Request::Expire | Request::Relieve => Ok(Verdict::Keep),
                Request::SetTimeout(_)
                | Request::Extend(_)
                | Request::Pause
                | Request::Snapshot
                | Request::SetEgress => Err(Refusal::Transitioning),
            },
            Stage::Snapshotting => match request {
                Request::End => Ok(Verdict::TearDown),
                Request::Connect(_) | Request::Reboot(_) | Request::Wake | Request::Pause => {
                    Ok(Verdict::Wait)
                }
                Request::Expire | Request::Relieve => Ok(Verdict::Keep),
                _ => Err(Refusal::Transitioning),
            },
            Stage::Killing => match request {
                Request::End | Request::Expire | Request::Relieve => Ok(Verdict::Keep),
                Request::Connect(_) | Request::Reboot(_) => Err(Refusal::Transitioning),
                _ => Err(Refusal::NotFound),
            },
        }
    }

    /// When a run that starts now and asks for this lifetime ends.
    pub(super) fn deadline(self, started_at: Timestamp, now: Timestamp, timeout: Duration) -> Timestamp {
        let wanted = later(now, timeout);
        self.limit(started_at).map_or(wanted, |limit| wanted.min(limit))
    }

    fn running(
        self,
        (started_at, end_at): (Timestamp, Timestamp),
        pauses: bool,
        request: Request,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
        let expired = now >= end_at;
        let too_long = self.limit(started_at).is_some_and(|limit| now > limit);
        let struck = if pauses { Verdict::Pause } else { Verdict::TearDown };
        match request {
            Request::End => Ok(Verdict::TearDown),
            Request::Relieve => Ok(Verdict::Keep),
            Request::Expire => Ok(if expired { struck } else { Verdict::Keep }),
            Request::SetTimeout(_) | Request::Extend(_) if too_long => Err(Refusal::MaxLength),
            // The reaper is on its way; nobody may snatch the sandbox back. One that will only
            // be paused may be kept awake.
            _ if expired && !pauses => Err(Refusal::NotFound),
            Request::SetTimeout(Duration::ZERO) => Ok(struck),
            Request::SetTimeout(timeout) => Ok(Verdict::Deadline(self.deadline(started_at, now, timeout))),
            Request::Extend(timeout) | Request::Connect(timeout) | Request::Reboot(timeout) => {
                let wanted = self.deadline(started_at, now, timeout);
                Ok(if wanted > end_at { Verdict::Deadline(wanted) } else { Verdict::Keep })
            }
            Request::Wake | Request::SetEgress => Ok(Verdict::Keep),
            Request::Resume(_) => Err(Refusal::Running),
            Request::Pause => Ok(Verdict::Pause),
            Request::Snapshot => Ok(Verdict::Snapshot),
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
