//! `/proc/meminfo` as the machine's size: the launcher mounts a writable file over it, and its
//! content is written here from the cgroup's counters, because the kernel's own shows the host.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::guest::state::Machine;

const PATH: &str = "/proc/meminfo";
/// Counters move all the time; programs look seldom.
const INTERVAL: Duration = Duration::from_secs(1);

/// The file and when it was written last.
#[derive(Debug, Default)]
pub(crate) struct Meminfo(Mutex<Option<(File, Option<Instant>)>>);

/// What the lines are made from, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Charged to the machine.
    pub(crate) current: u64,
    /// Of it, page cache.
    pub(crate) cache: u64,
}

// === impl Meminfo ===

impl Meminfo {
    /// Opens the file; called once at boot, in a machine only.
    pub(crate) fn attach(&self) -> io::Result<()> {
        // Where nothing is mounted over it, proc refuses to be opened for writing.
        let file = OpenOptions::new().write(true).open(PATH)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, None));
        Ok(())
    }

    /// Writes the present numbers, unless that was done just now.
    pub(crate) fn refresh(&self, machine: &Machine) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, written)) = state.as_mut() else { return };
        let now = Instant::now();
        if written.is_some_and(|written| now.duration_since(written) < INTERVAL) {
            return;
        }
        *written = Some(now);
        let text = render(machine.memory_mb, usage(machine));
        // A reader may see old and new lines mixed; the length is nearly constant, so it is
        // written first and cut after.
        if file.write_all_at(text.as_bytes(), 0).is_ok() {
            let _ = file.set_len(text.len() as u64);
            let _ = file.flush();
        }
    }
}

/// What the machine uses now, as far as there are counters.
pub(crate) fn usage(machine: &Machine) -> Usage {
    let current =
        read(machine.memory_current.as_ref()).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let name = if machine.v2 { "file" } else { "total_cache" };
    let cache = read(machine.memory_stat.as_ref()).and_then(|text| field(&text, name)).unwrap_or(0);
    Usage { current, cache: cache.min(current) }
}

fn read(fd: Option<&OwnedFd>) -> Option<String> {
    let file = File::from(fd?.try_clone().ok()?);
    let mut buffer = vec![0; 8192];
    let length = file.read_at(&mut buffer, 0).ok()?;
    buffer.truncate(length);
    String::from_utf8(buffer).ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn render(memory_mb: u64, usage: Usage) -> String {
    let total = memory_mb * 1024;
    let used = (usage.current / 1024).min(total);
    let cached = (usage.cache / 1024).min(used);
    let free = total - used;
    let available = free + cached;
    let anonymous = used - cached;
    let lines: [(&str, u64); 24] = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", available),
        ("Buffers", 0),
        ("Cached", cached),
        ("SwapCached", 0),
        ("Active", anonymous),
        ("Inactive", cached),
        ("Active(anon)", anonymous),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", cached),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", anonymous),
        ("Mapped", 0),
        ("Shmem", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
    ];
    let mut text = String::new();
    for (name, kib) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<16}{kib:>8} kB", format!("{name}:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_add_up_to_the_machines_size() {
        let text = render(512, Usage { current: 100 << 20, cache: 40 << 20 });
        let kib = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(kib("MemTotal"), 512 << 10);
        assert_eq!(kib("MemFree"), 412 << 10);
        assert_eq!(kib("MemAvailable"), 452 << 10);
        assert_eq!(kib("Cached"), 40 << 10);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let stat = "cache 1\ntotal_cache_x 2\ntotal_cache 3\n";
        assert_eq!(field(stat, "total_cache"), Some(3));
        assert_eq!(field(stat, "file"), None);
    }
}
