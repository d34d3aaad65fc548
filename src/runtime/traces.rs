//! What happened to each sandbox, and when: a trace of events a start, and durations made of them.
//!
//! ```text
//!   driver, boot --event--> open trace of the sandbox --its next start, its end--> ring of closed ones
//!                    '----> histograms of named durations; ends by cause
//! ```
//! Everything is bounded: a trace keeps its first events and counts the others, the ring its newest
//! traces. An event that comes again in one trace is kept as a duplicate, and ends no duration.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::world::Phase;
use crate::id::SandboxId;

/// The most events of one trace (contract/reference-runtime L12).
const MAX_EVENTS: usize = 1024;
/// The most traces that are closed.
const MAX_CLOSED: usize = 512;
/// Upper bounds of a histogram's buckets, in seconds.
pub const BUCKETS_S: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// How a sandbox came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Class {
    /// A warm machine of the pool.
    Hot,
    /// A new machine from a template's image.
    ColdPrepared,
    /// From its pause.
    Resumed,
    /// It ran, or rested, when this gateway started.
    Adopted,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Happening {
    /// Somebody asked for it to run.
    RequestStart,
    /// There is room for it on the host.
    Admitted,
    /// A warm machine was asked for.
    PoolLeaseRequested,
    /// It has one.
    PoolLeaseAcquired,
    /// The intent is recorded.
    RequestRecorded,
    /// Its frozen machine is to go on.
    SnapshotRestoreStart,
    /// That machine runs.
    SnapshotRestoreDone,
    /// A new machine exists.
    MachineStarted,
    /// The guest has answered.
    GuestAgentPingPassed,
    /// It serves, and that is recorded.
    ReadyProbePassed,
    /// Its checkout is to be synchronized.
    FreshnessSyncWanted,
    /// That began.
    FreshnessSyncStart,
    /// It came to nothing.
    FreshnessSyncFailed,
    /// It is done: files may be changed.
    WorkspaceReady,
    /// The start failed.
    StartFailed,
    /// A pause began.
    PauseStart,
    /// The intent of a pause is recorded.
    PauseRecorded,
    /// It rests.
    PauseDone,
    /// While it rested, memory was taken back, and nothing lost.
    MemoryReclaimed,
    /// While it rested, its processes ended for want of memory on the host.
    MemoryGivenUp,
    /// An image of it is to be made.
    SnapshotStart,
    /// It stands still for that.
    SnapshotFrozen,
    /// The image is there.
    SnapshotSaved,
    /// It goes on.
    SnapshotDone,
    /// The image was not made; it goes on.
    SnapshotFailed,
    /// Sandboxes are to be made of it.
    ForkStart,
    /// They run, or were not made.
    ForkDone,
    /// Its guest has not answered for long.
    GuestSilent,
    /// It answers again.
    GuestAnswered,
    /// Its end began.
    EndStart,
    /// Nothing of it is left.
    EndDone,
}

/// One event of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Event {
    /// What happened.
    pub name: Happening,
    /// Since the trace began.
    #[serde(rename = "offsetMs", serialize_with = "milliseconds")]
    pub offset: Duration,
    /// It happened before in the same trace.
    #[serde(rename = "debugDuplicate", skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// What happened to one sandbox from one start to the next.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The sandbox.
    #[serde(rename = "sandboxID")]
    pub sandbox: SandboxId,
    /// How it came to run.
    pub class: Class,
    /// When the trace began.
    pub started_at: Timestamp,
    /// Oldest first.
    pub events: Vec<Event>,
    /// How many events are not among them, because there were too many.
    pub overflowed: u64,
    #[serde(skip)]
    origin: Instant,
}

/// A duration with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    name: &'static str,
    class: Option<Class>,
    from: Happening,
    to: Happening,
    /// It may be passed more than once in one trace, and counts each time.
    again: bool,
}

/// The durations; the names that the reference has are the reference's.
const SPANS: [Span; 15] = [
    Span::of("hot_create", Happening::RequestStart, Happening::ReadyProbePassed).only(Class::Hot),
    Span::of("warm_pool_checkout", Happening::PoolLeaseRequested, Happening::PoolLeaseAcquired)
        .only(Class::Hot),
    Span::of("ready_certificate_check", Happening::PoolLeaseAcquired, Happening::GuestAgentPingPassed)
        .only(Class::Hot),
    Span::of("admission", Happening::RequestStart, Happening::Admitted),
    Span::of("create", Happening::RequestStart, Happening::ReadyProbePassed).only(Class::ColdPrepared),
    Span::of("resume", Happening::RequestStart, Happening::ReadyProbePassed).only(Class::Resumed),
    Span::of("warm_snapshot_restore", Happening::RequestStart, Happening::SnapshotRestoreDone)
        .only(Class::Resumed),
    Span::of("ready_probe", Happening::MachineStarted, Happening::GuestAgentPingPassed),
    Span::of("pause", Happening::PauseStart, Happening::PauseDone),
    Span::of("pause_record", Happening::PauseStart, Happening::PauseRecorded),
    Span::of("snapshot_save", Happening::SnapshotStart, Happening::SnapshotDone).again(),
    Span::of("snapshot_copy", Happening::SnapshotFrozen, Happening::SnapshotSaved).again(),
    Span::of("fork", Happening::ForkStart, Happening::ForkDone).again(),
    Span::of("freshness_sync", Happening::FreshnessSyncStart, Happening::WorkspaceReady).again(),
    Span::of("kill_delete", Happening::EndStart, Happening::EndDone),
];

/// How often a named duration was how long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Histogram {
    /// How many lie in each of [`BUCKETS_S`] and not in the one before; the last: above all.
    pub counts: [u64; BUCKETS_S.len() + 1],
    /// All of them together, in seconds.
    pub sum_s: f64,
}

/// The sums of all traces since the gateway started.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// Named durations.
    pub durations: Vec<(&'static str, Histogram)>,
    /// Ends by cause.
    pub ends: Vec<(&'static str, u64)>,
    /// Starts that failed.
    pub failed_starts: u64,
    /// Guests that do not answer now.
    pub silent_guests: usize,
    /// Events by name; those that never happened are left out.
    pub events: Vec<(Happening, u64)>,
    /// Events that were not kept.
    pub overflowed: u64,
    /// Traces that are no longer kept.
    pub forgotten: u64,
}

/// Every trace of this gateway. A short lock, never across an await.
#[derive(Debug, Default)]
pub(super) struct Traces(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: HashMap<SandboxId, Trace>,
    closed: VecDeque<Trace>,
    histograms: [Histogram; SPANS.len()],
    ends: Vec<(&'static str, u64)>,
    failed_starts: u64,
    silent_guests: usize,
    /// As many as there are names.
    events: Vec<(Happening, u64)>,
    overflowed: u64,
    forgotten: u64,
}

// === impl Span ===

impl Span {
    const fn of(name: &'static str, from: Happening, to: Happening) -> Self {
        Self { name, class: None, from, to, again: false }
    }

    const fn only(self, class: Class) -> Self {
        Self { class: Some(class), ..self }
    }

    const fn again(self) -> Self {
        Self { again: true, ..self }
    }
}

// === impl Traces ===

impl Traces {
    /// A start: the sandbox's trace until now is closed.
    pub(super) fn begin(&self, sandbox: SandboxId, class: Class, now: Timestamp) {
        self.begin_at(sandbox, class, now, Instant::now());
    }

    /// A start that was asked for at this instant, before the sandbox had an id.
    pub(super) fn begin_at(&self, sandbox: SandboxId, class: Class, now: Timestamp, origin: Instant) {
        let first = |name| Event { name, offset: Duration::ZERO, duplicate: false };
        let events = match class {
            Class::Adopted => Vec::new(),
            Class::Hot => vec![first(Happening::RequestStart), first(Happening::PoolLeaseRequested)],
            _ => vec![first(Happening::RequestStart)],
        };
        let trace = Trace { sandbox, class, started_at: now, events, overflowed: 0, origin };
        let mut state = self.0.lock();
        if let Some(earlier) = state.open.insert(sandbox, trace) {
            state.close(earlier);
        }
    }

    /// An event of a sandbox that has a trace.
    pub(super) fn event(&self, sandbox: SandboxId, name: Happening) {
        let Some((class, offset)) = self.0.lock().add(sandbox, name) else { return };
        tracing::debug!(
            sandbox.id = %sandbox,
            trace.class = ?class,
            event.name = ?name,
            event.offset_ms = offset.as_secs_f64() * 1000.0,
            "sandbox {sandbox}: {name:?}"
        );
    }

    /// A boot, pause or resume has reached this phase.
    pub(super) fn reached(&self, sandbox: SandboxId, phase: Phase) {
        let name = match phase {
            Phase::Prepared => Happening::RequestRecorded,
            Phase::Booted => Happening::MachineStarted,
            Phase::Attached => Happening::GuestAgentPingPassed,
            Phase::Active => Happening::ReadyProbePassed,
            Phase::PauseRecorded => Happening::PauseRecorded,
            Phase::Stopped => Happening::PauseDone,
            Phase::Thawed => Happening::SnapshotRestoreDone,
            Phase::SealFrozen => Happening::SnapshotFrozen,
            Phase::Sealed => Happening::SnapshotSaved,
        };
        self.event(sandbox, name);
    }

    /// The sandbox's end begins, for this cause.
    pub(super) fn end(&self, sandbox: SandboxId, cause: &'static str) {
        {
            let ends = &mut self.0.lock().ends;
            match ends.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, count)) => *count += 1,
                None => ends.push((cause, 1)),
            }
        }
        self.event(sandbox, Happening::EndStart);
    }

    /// Nothing happens to the sandbox any more.
    pub(super) fn close(&self, sandbox: SandboxId) {
        let mut state = self.0.lock();
        if let Some(trace) = state.open.remove(&sandbox) {
            state.close(trace);
        }
    }

    /// The newest traces, newest first; of one sandbox where one is named.
    pub(super) fn newest(&self, sandbox: Option<SandboxId>, most: usize) -> Vec<Trace> {
        let state = self.0.lock();
        let all = state.open.values().chain(&state.closed);
        let mut wanted: Vec<&Trace> =
            all.filter(|trace| sandbox.is_none_or(|sandbox| trace.sandbox == sandbox)).collect();
        wanted.sort_by_key(|trace| std::cmp::Reverse(trace.origin));
        wanted.into_iter().take(most).cloned().collect()
    }

    /// How many guests do not answer now.
    pub(super) fn set_silent(&self, guests: usize) {
        self.0.lock().silent_guests = guests;
    }

    pub(super) fn tally(&self) -> Tally {
        let state = self.0.lock();
        let names = SPANS.iter().map(|span| span.name);
        Tally {
            durations: names.zip(state.histograms).collect(),
            ends: state.ends.clone(),
            failed_starts: state.failed_starts,
            silent_guests: state.silent_guests,
            events: state.events.clone(),
            overflowed: state.overflowed,
            forgotten: state.forgotten,
        }
    }
}

// === impl State ===

impl State {
    fn add(&mut self, sandbox: SandboxId, name: Happening) -> Option<(Class, Duration)> {
        let trace = self.open.get_mut(&sandbox)?;
        let (class, offset) = (trace.class, trace.origin.elapsed());
        let duplicate = trace.events.iter().any(|event| event.name == name);
        for (span, histogram) in SPANS.iter().zip(&mut self.histograms) {
            let counts = span.to == name && span.class.is_none_or(|wanted| wanted == class);
            // The latest beginning counts: an earlier one came to nothing. Nothing ends twice.
            let mut events = trace.events.iter().rev().take_while(|event| event.name != name);
            let from = events.find(|event| event.name == span.from);
            if counts
                && (span.again || !duplicate)
                && let Some(from) = from
            {
                histogram.add(offset.saturating_sub(from.offset));
            }
        }
        match self.events.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.events.push((name, 1)),
        }
        if name == Happening::StartFailed {
            self.failed_starts += 1;
        }
        if trace.events.len() < MAX_EVENTS {
            trace.events.push(Event { name, offset, duplicate });
        } else {
            trace.overflowed += 1;
            self.overflowed += 1;
        }
        Some((class, offset))
    }

    fn close(&mut self, mut trace: Trace) {
        trace.events.shrink_to_fit();
        if self.closed.len() >= MAX_CLOSED {
            self.closed.pop_front();
            self.forgotten += 1;
        }
        self.closed.push_back(trace);
    }
}

// === impl Histogram ===

impl Histogram {
    fn add(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS_S.len());
        self.counts[bucket] += 1;
        self.sum_s += seconds;
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

fn milliseconds<S: serde::Serializer>(offset: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(offset.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OsEntropy;

    fn histogram(traces: &Traces, name: &str) -> Histogram {
        traces.tally().durations.into_iter().find(|(known, _)| *known == name).unwrap().1
    }

    #[tokio::test(start_paused = true)]
    async fn a_duration_goes_from_the_latest_beginning_to_the_first_end() {
        let (traces, id) = (Traces::default(), SandboxId::generate(&OsEntropy));
        traces.begin(id, Class::ColdPrepared, Timestamp::UNIX_EPOCH);
        tokio::time::advance(Duration::from_millis(40)).await;
        traces.reached(id, Phase::Active);
        traces.event(id, Happening::PauseStart);
        tokio::time::advance(Duration::from_mins(1)).await;
        traces.event(id, Happening::PauseStart);
        tokio::time::advance(Duration::from_secs(2)).await;
        traces.reached(id, Phase::Stopped);
        traces.reached(id, Phase::Stopped);
        let (create, pause) = (histogram(&traces, "create"), histogram(&traces, "pause"));
        assert_eq!((create.total(), create.counts[5]), (1, 1));
        assert_eq!((pause.total(), pause.counts[10]), (1, 1), "{pause:?}");
        assert!((pause.sum_s - 2.0).abs() < 0.1);
        assert_eq!(histogram(&traces, "resume").total(), 0, "another class");
        let trace = traces.newest(Some(id), 9).remove(0);
        assert_eq!(trace.events.iter().filter(|event| event.duplicate).count(), 2);
        assert_eq!(trace.events[1].offset, Duration::from_millis(40));
    }

    #[tokio::test]
    async fn traces_and_their_events_are_bounded_and_what_is_not_kept_is_counted() {
        let (traces, id) = (Traces::default(), SandboxId::generate(&OsEntropy));
        traces.event(id, Happening::EndDone);
        traces.begin(id, Class::Adopted, Timestamp::UNIX_EPOCH);
        for _ in 0..MAX_EVENTS + 3 {
            traces.event(id, Happening::PauseStart);
        }
        let trace = traces.newest(None, 9).remove(0);
        assert_eq!((trace.events.len(), trace.overflowed), (MAX_EVENTS, 3));
        for _ in 0..=MAX_CLOSED {
            traces.begin(id, Class::Resumed, Timestamp::UNIX_EPOCH);
        }
        traces.close(id);
        let (kept, tally) = (traces.newest(Some(id), usize::MAX), traces.tally());
        assert_eq!((kept.len(), tally.forgotten, tally.overflowed), (MAX_CLOSED, 2, 3));
        assert!(traces.0.lock().open.is_empty());
    }
}
