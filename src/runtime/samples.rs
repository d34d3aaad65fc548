//! What sandboxes used, over time: a bounded history each, filled by one sampler for all.
//!
//! ```text
//!   sampler --every 5 s, 8 machines at once--> Machine::stats --> History: an hour of samples,
//!                                                                 then one in 5 minutes for 7 days
//! ```
//! A sample that cannot be had is left out: a gap is honest, a repeated figure is not.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    runtime::{
        admission::Seat,
        engine::{Machine, MachineStats},
    },
    sandbox::Resources,
};

/// Between two samples (contract/control-plane 2.11).
pub(super) const PERIOD: Duration = Duration::from_secs(5);
/// Machines that are asked at the same time.
pub(super) const AT_ONCE: usize = 8;
/// Samples that are kept as they are: an hour.
const FINE: usize = 720;
/// Between two samples of the long history, in seconds.
const COARSE_STEP_S: i64 = 300;
/// Samples of the long history: seven days.
const COARSE: usize = 2016;

/// The guest is told of every such part of its disk's size.
const DISK_STEPS: u64 = 1024;

/// What one sandbox used at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Of all of them together since the sample before, in percent.
    pub cpu_used_pct: f64,
    /// Bytes charged, page cache included.
    pub mem_used: u64,
    /// The limit, in bytes.
    pub mem_total: u64,
    /// Of the used ones, page cache.
    pub mem_cache: u64,
    /// Bytes in the writable layer.
    pub disk_used: u64,
    /// Its size, in bytes.
    pub disk_total: u64,
}

/// The samples of one run of a sandbox.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
    /// CPU time at the last sample, and when that was.
    cpu: Option<(u64, Timestamp)>,
    /// What the guest was told that its disk holds, in bytes.
    disk_told: u64,
    /// Processes that were ended for what they wrote, as far as their owner was told.
    writers_told: u64,
    writers_ended: u64,
}

// === impl History ===

impl History {
    /// Asks the machine and keeps what it says.
    pub(super) async fn sample(&self, machine: &dyn Machine, resources: Resources, now: Timestamp) {
        match machine.stats().await {
            Ok(stats) => self.keep(&stats, resources, now),
            Err(error) => tracing::debug!(%error, "a machine was not measured"),
        }
    }

    /// What the guest should be told that its disk holds, in bytes: when that has changed by a part of
    /// its size, and when it has become full or is so no more.
    pub(super) fn disk_news(&self) -> Option<u64> {
        let kept = self.0.lock();
        let Sample { disk_used: used, disk_total: size, .. } = kept.fine.back()?;
        let crossed = (used >= size) != (kept.disk_told >= *size);
        let moved = used.abs_diff(kept.disk_told) >= (size / DISK_STEPS).max(1);
        (crossed || moved).then_some(*used)
    }

    /// It was told.
    pub(super) fn disk_told(&self, used: u64) {
        self.0.lock().disk_told = used;
    }

    /// How many processes were ended for what they wrote since this was asked last.
    pub(super) fn writers_ended(&self) -> u64 {
        let mut kept = self.0.lock();
        let ended = kept.writers_ended.saturating_sub(kept.writers_told);
        kept.writers_told = kept.writers_ended;
        ended
    }

    /// Charges a seat what was used last. Page cache is left out: it is given back when somebody
    /// needs the memory.
    pub(super) fn charge(&self, seat: &Seat) {
        if let Some(sample) = self.latest() {
            seat.measured(sample.mem_used.saturating_sub(sample.mem_cache));
        }
    }

    /// The newest sample.
    pub(super) fn latest(&self) -> Option<Sample> {
        self.0.lock().fine.back().copied()
    }

    /// The samples from `start` to `end`, both inclusive, oldest first; of each `step` the last.
    pub(super) fn between(&self, start: Timestamp, end: Timestamp, step: Duration) -> Vec<Sample> {
        let kept = self.0.lock();
        let first_fine = kept.fine.front().map_or(Timestamp::MAX, |sample| sample.at);
        let old = kept.coarse.iter().filter(|sample| sample.at < first_fine);
        let step_s = i64::try_from(step.as_secs()).unwrap_or(i64::MAX).max(1);
        let mut samples: Vec<Sample> = Vec::new();
        for sample in old.chain(&kept.fine).filter(|sample| (start..=end).contains(&sample.at)) {
            match samples.last_mut() {
                Some(last) if bucket(last.at, step_s) == bucket(sample.at, step_s) => *last = *sample,
                _ => samples.push(*sample),
            }
        }
        samples
    }

    fn keep(&self, stats: &MachineStats, resources: Resources, now: Timestamp) {
        let mut kept = self.0.lock();
        let cpus = resources.cpu_count.max(1);
        let cpu_used_pct = kept.cpu.map_or(0.0, |(before, when)| {
            let elapsed = Duration::try_from(now.duration_since(when)).unwrap_or_default();
            percent(stats.cpu_ns.saturating_sub(before), elapsed, cpus)
        });
        kept.cpu = Some((stats.cpu_ns, now));
        let sample = Sample {
            at: now,
            cpu_count: resources.cpu_count,
            cpu_used_pct,
            mem_used: stats.memory_bytes,
            mem_total: stats.memory_limit_bytes,
            mem_cache: stats.cache_bytes,
            disk_used: stats.disk_bytes,
            disk_total: u64::from(resources.disk_mb) << 20,
        };
        kept.writers_ended = stats.writers_ended;
        kept.writers_told = kept.writers_told.min(stats.writers_ended);
        push(&mut kept.fine, sample, FINE);
        let due = kept
            .coarse
            .back()
            .is_none_or(|last| bucket(last.at, COARSE_STEP_S) != bucket(now, COARSE_STEP_S));
        if due {
            push(&mut kept.coarse, sample, COARSE);
        }
    }
}

/// How coarse the answer for a window of this length is (contract/control-plane 2.11).
pub(super) fn step(window: Duration) -> Duration {
    let hours = window.as_secs() / 3600;
    Duration::from_secs(match hours {
        0 => 5,
        1..6 => 30,
        6..12 => 60,
        12..24 => 120,
        24..168 => 300,
        _ => 900,
    })
}

fn push(samples: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    if samples.len() == most {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn bucket(at: Timestamp, step_s: i64) -> i64 {
    at.as_second().div_euclid(step_s)
}

/// Two decimals, as envd rounds.
#[expect(clippy::cast_precision_loss, reason = "percent with two decimals")]
fn percent(used_ns: u64, elapsed: Duration, cpus: u32) -> f64 {
    if elapsed.is_zero() {
        return 0.0;
    }
    let share = used_ns as f64 / (elapsed.as_nanos() as f64 * f64::from(cpus));
    (share * 10_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    const SIZE: Resources = Resources { cpu_count: 2, memory_mb: 512, disk_mb: 1024 };

    fn at(second: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second)
    }

    fn used(cpu_s: u64) -> MachineStats {
        MachineStats { cpu_ns: cpu_s * 1_000_000_000, memory_bytes: 7, ..MachineStats::default() }
    }

    #[test]
    fn cpu_is_a_share_of_all_cpus_since_the_sample_before() {
        let history = History::default();
        history.keep(&used(10), SIZE, at(0));
        assert!(history.latest().unwrap().cpu_used_pct.abs() < f64::EPSILON);
        history.keep(&used(15), SIZE, at(5));
        let sample = history.latest().unwrap();
        assert!((sample.cpu_used_pct - 50.0).abs() < 0.01, "{sample:?}");
        assert_eq!((sample.mem_used, sample.disk_total), (7, 1 << 30));
    }

    #[test]
    fn windows_are_inclusive_and_thinned_by_step() {
        let history = History::default();
        for number in 0..60 {
            history.keep(&used(0), SIZE, at(number * 5));
        }
        let all = history.between(at(0), at(1000), step(Duration::from_secs(1000)));
        assert_eq!(all.len(), 60);
        assert_eq!(history.between(at(10), at(20), Duration::from_secs(5)).len(), 3);
        assert_eq!(history.between(at(0), at(299), Duration::from_secs(30)).len(), 10);
        assert!(history.between(at(-100), at(-1), Duration::from_secs(5)).is_empty());
    }

    #[test]
    fn a_week_is_kept_in_bounded_room() {
        let history = History::default();
        for number in 0..(8 * 24 * 720) {
            history.keep(&used(0), SIZE, at(number * 5));
        }
        let end = 8 * 24 * 3600;
        assert_eq!(history.0.lock().fine.len(), FINE);
        assert_eq!(history.0.lock().coarse.len(), COARSE);
        let week = history.between(at(0), at(end), step(Duration::from_hours(168)));
        assert!((600..=700).contains(&week.len()), "{}", week.len());
        let day = history.between(at(end - 86_400), at(end), Duration::from_mins(5));
        assert!((280..=290).contains(&day.len()), "{}", day.len());
    }

    #[test]
    fn a_guest_is_told_of_its_disk_when_that_matters() {
        let history = History::default();
        let keep = |disk_bytes: u64| history.keep(&MachineStats { disk_bytes, ..used(0) }, SIZE, at(0));
        assert_eq!(history.disk_news(), None, "nothing is known");
        keep(1000);
        assert_eq!(history.disk_news(), None, "it is next to nothing");
        keep(7 << 20);
        assert_eq!(history.disk_news(), Some(7 << 20));
        history.disk_told(7 << 20);
        assert_eq!(history.disk_news(), None);
        keep((1 << 30) - 5);
        history.disk_told((1 << 30) - 5);
        keep(1 << 30);
        assert_eq!(history.disk_news(), Some(1 << 30), "it is full");
    }
}
