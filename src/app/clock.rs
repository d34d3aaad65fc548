//! The host's clocks: the wall clock, and a steady one for deadlines.
//!
//! ```text
//!   steady = time since boot + anchor     anchor: the wall clock's time of boot, when it was first asked for
//!   shift  = wall - steady                zero until somebody sets the wall clock by more than STEP
//! ```
//! The anchor is kept in a file with the id of the boot, so that the next gateway of the same boot
//! counts on; after another boot there is no machine left whose deadline could be wrong. The time since
//! boot counts while the host sleeps, the process's own timer does not: the file of the kernel that
//! tells it is looked at once in a while.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock};

/// What is less is drift, or the time between two looks: not that somebody set the clock.
const STEP: SignedDuration = SignedDuration::from_secs(2);
/// Between two looks at the time since boot and the wall clock.
const LOOK: Duration = Duration::from_millis(500);

/// The clocks of the host that the gateway runs on.
#[derive(Debug)]
pub(super) struct HostClock {
    steady: Mutex<Steady>,
    /// What the process's own timer is counted from.
    origin: Instant,
}

/// The steady clock; times in it are of the process's own timer.
#[derive(Debug, Clone, Copy)]
struct Steady {
    /// Steady time at the process timer's zero.
    base: Timestamp,
    /// Time since boot at the process timer's zero; none: this host does not tell.
    up: Option<Duration>,
    /// By how much the wall clock is ahead.
    shift: SignedDuration,
    /// When it was last looked.
    looked: Duration,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The boot's id.
    boot: String,
    /// Steady time of the boot, in microseconds since 1970.
    anchor_us: i64,
}

// === impl HostClock ===

impl HostClock {
    /// Counts on from the file, where it is of this boot; else from the wall clock, and writes the
    /// file. A file that cannot be used costs only that: it is logged.
    pub(super) fn open(file: &Path) -> Self {
        let (origin, wall) = (Instant::now(), SystemClock.now());
        let (boot, up) = (boot_id(), since_boot());
        let kept = boot.as_deref().and_then(|boot| read(file, boot));
        let base = match (kept, up) {
            (Some(anchor), Some(up)) => plus(anchor, up),
            _ => wall,
        };
        if let (None, Some(boot), Some(up)) = (kept, boot, up)
            && let Err(error) = write(file, &Kept { boot, anchor_us: minus(wall, up).as_microsecond() })
        {
            tracing::warn!(%error, "the clock's file was not written: a restart after the clock is set moves deadlines");
        }
        let mut steady = Steady { base, up, shift: SignedDuration::ZERO, looked: Duration::ZERO };
        steady.look(Duration::ZERO, up, wall);
        Self { steady: Mutex::new(steady), origin }
    }

    fn look(&self) -> (Steady, Duration) {
        let mut steady = self.steady.lock();
        let at = self.origin.elapsed();
        if at.saturating_sub(steady.looked) >= LOOK {
            steady.look(at, since_boot(), SystemClock.now());
        }
        (*steady, at)
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn steady(&self) -> Timestamp {
        let (steady, at) = self.look();
        steady.at(at)
    }

    fn shift(&self) -> SignedDuration {
        self.look().0.shift
    }
}

// === impl Steady ===

impl Steady {
    fn at(&self, timer: Duration) -> Timestamp {
        plus(self.base, timer)
    }

    /// Takes in that the host slept, and that somebody set the wall clock.
    fn look(&mut self, timer: Duration, up: Option<Duration>, wall: Timestamp) {
        self.looked = timer;
        if let (Some(before), Some(up)) = (self.up, up) {
            let slept = up.saturating_sub(before + timer);
            if slept >= Duration::from_secs(1) {
                self.base = plus(self.base, slept);
                self.up = Some(before + slept);
            }
        }
        let ahead = wall.duration_since(self.at(timer));
        if (ahead - self.shift).abs() > STEP {
            self.shift = if ahead.abs() > STEP { ahead } else { SignedDuration::ZERO };
            tracing::warn!(
                clock.shift_s = self.shift.as_secs(),
                "the host's clock was set: deadlines keep their length"
            );
        }
    }
}

fn read(file: &Path, boot: &str) -> Option<Timestamp> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, "the clock's file {} was not read", file.display());
            return None;
        }
    };
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    if kept.boot != boot {
        return None;
    }
    Timestamp::from_microsecond(kept.anchor_us).ok()
}

fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    let draft = file.with_extension("json.new");
    fs::write(&draft, serde_json::to_vec(kept)?)?;
    fs::rename(draft, file)
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// The kernel tells it in hundredths of a second.
fn since_boot() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

fn plus(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

fn minus(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_sub(by).ok()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn fresh() -> Steady {
        let up = Some(seconds(1000));
        Steady { base: at(0), up, shift: SignedDuration::ZERO, looked: Duration::ZERO }
    }

    #[test]
    fn a_wall_clock_that_is_set_moves_what_is_shown_and_no_deadline() {
        let mut steady = fresh();
        steady.look(seconds(10), Some(seconds(1010)), at(11));
        assert_eq!(
            (steady.at(seconds(10)), steady.shift),
            (at(10), SignedDuration::ZERO),
            "drift is no step"
        );
        steady.look(seconds(20), Some(seconds(1020)), at(3620));
        assert_eq!((steady.at(seconds(20)), steady.shift.as_secs()), (at(20), 3600));
        steady.look(seconds(30), Some(seconds(1030)), at(3631));
        assert_eq!(steady.shift.as_secs(), 3600, "what is shown does not tremble");
        steady.look(seconds(40), Some(seconds(1040)), at(-60));
        assert_eq!((steady.at(seconds(40)), steady.shift.as_secs()), (at(40), -100));
        steady.look(seconds(50), Some(seconds(1050)), at(50));
        assert_eq!(steady.shift, SignedDuration::ZERO, "set back to what it was");
    }

    #[test]
    fn sleep_of_the_host_is_time_that_passes() {
        let mut steady = fresh();
        // Ten seconds of the process's timer, and an hour on both other clocks.
        steady.look(seconds(10), Some(seconds(1000 + 3600)), at(3600));
        assert_eq!((steady.at(seconds(10)), steady.shift), (at(3600), SignedDuration::ZERO));
        steady.look(seconds(20), Some(seconds(1000 + 3610)), at(3610));
        assert_eq!(steady.at(seconds(20)), at(3610), "counted once");
    }

    #[test]
    fn the_next_gateway_of_the_same_boot_counts_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("clock.json");
        let first = HostClock::open(&file);
        assert_eq!(first.shift(), SignedDuration::ZERO);
        let mut kept: Kept = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let known = first.steady();
        // As if the wall clock had been set an hour ahead between the two.
        kept.anchor_us -= 3_600_000_000;
        write(&file, &kept).unwrap();
        let second = HostClock::open(&file);
        let early = known.duration_since(second.steady());
        assert!((early - SignedDuration::from_hours(1)).abs() < STEP, "{early}");
        assert!((second.shift() - SignedDuration::from_hours(1)).abs() < STEP);
        assert!(second.now().duration_since(second.shown(second.steady())).abs() < STEP);

        kept.boot = "another".to_owned();
        for other in [serde_json::to_vec(&kept).unwrap(), b"{".to_vec()] {
            fs::write(&file, other).unwrap();
            let after = HostClock::open(&file);
            assert_eq!(after.shift(), SignedDuration::ZERO);
            assert!(after.now().duration_since(after.steady()).abs() < STEP);
        }
    }
}
