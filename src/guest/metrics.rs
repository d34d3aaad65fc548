//! `GET /metrics` (contract/sandbox 5.5): the machine's use, from its own cgroup counters and
//! what its host says of its disk. Without counters (a guest run as an ordinary process) the kernel's
//! view of the whole host stands in.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use nix::sys::{statvfs::statvfs, uio::pread};
use serde::Serialize;

use crate::guest::{
    serve::{problem, read_only},
    state::{Guest, Machine},
};

const MIB: u64 = 1 << 20;
/// Kernel clock ticks a second, as `/proc/stat` counts on every Linux.
const TICK_NS: u64 = 10_000_000;

/// The answer, field for field as clients parse it. Memory and disk in bytes.
#[derive(Debug, PartialEq, Serialize)]
struct Metrics {
    /// Unix seconds.
    ts: i64,
    cpu_count: u64,
    /// Of all CPUs together, since the last request, 0 to 100 with two decimals.
    cpu_used_pct: f64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    mem_total: u64,
    /// Without the page cache.
    mem_used: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

/// CPU time seen by the last request.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    busy_ns: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    used: u64,
    cache: u64,
}

/// The route. Each router keeps the last request's counters.
pub(crate) fn routes(guest: &Guest) -> Router<Guest> {
    let now = Instant::now();
    let busy_ns = busy_ns(guest.machine()).unwrap_or_default();
    let last = std::sync::Arc::new(Mutex::new(Seen { at: now, busy_ns }));
    Router::new()
        .route("/metrics", read_only(move |State(guest): State<Guest>| async move { answer(&guest, &last) }))
}

/// A handful of small reads from kernel memory: not worth a thread.
fn answer(guest: &Guest, last: &Mutex<Seen>) -> Response {
    match collect(guest, last) {
        Ok(metrics) => ([(header::CACHE_CONTROL, "no-store")], axum::Json(metrics)).into_response(),
        Err(error) => {
            let text = format!("cannot read the machine's counters: {error}");
            problem(http::StatusCode::INTERNAL_SERVER_ERROR, &text)
        }
    }
}

fn collect(guest: &Guest, last: &Mutex<Seen>) -> io::Result<Metrics> {
    let machine = guest.machine();
    let cpu_count = match machine.cpu_count {
        0 => thread::available_parallelism().map_or(1, usize::from) as u64,
        count => u64::from(count),
    };
    let now = Seen { at: Instant::now(), busy_ns: busy_ns(machine)? };
    let before = std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), now);
    let memory = memory(machine)?;
    let (disk_used, disk_total) = match guest.disk().known() {
        Some(known) => known,
        None => file_system()?,
    };
    Ok(Metrics {
        ts: guest.now().as_second(),
        cpu_count,
        cpu_used_pct: used_percent(before, now, cpu_count),
        mem_total_mib: memory.total / MIB,
        mem_used_mib: memory.used / MIB,
        mem_total: memory.total,
        mem_used: memory.used,
        mem_cache: memory.cache,
        disk_used,
        disk_total,
    })
}

/// Used and all bytes of the file system of `/`.
fn file_system() -> io::Result<(u64, u64)> {
    let disk = statvfs("/")?;
    let total = disk.blocks() * disk.fragment_size();
    let available = disk.blocks_available() * disk.fragment_size();
    Ok((total.saturating_sub(available), total))
}

/// Two decimals; 0 when no time has passed.
#[expect(clippy::cast_precision_loss, reason = "a percentage of two decimals")]
fn used_percent(before: Seen, now: Seen, cpus: u64) -> f64 {
    let passed = now.at.duration_since(before.at).as_nanos() as f64 * cpus as f64;
    let used = now.busy_ns.saturating_sub(before.busy_ns) as f64;
    if passed <= 0.0 { 0.0 } else { ((used / passed * 10_000.0).round() / 100.0).min(100.0) }
}

/// CPU time of the machine, in nanoseconds.
fn busy_ns(machine: &Machine) -> io::Result<u64> {
    match &machine.cpu_usage {
        Some(file) if machine.v2 => {
            Ok(keyed(&read(file)?).get("usage_usec").copied().unwrap_or_default() * 1000)
        }
        Some(file) => number(&read(file)?),
        None => Ok(host_busy_ns(&fs::read_to_string("/proc/stat")?)),
    }
}

/// User, nice, system, irq and softirq time of all CPUs.
fn host_busy_ns(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks = |place: usize| line.split_whitespace().nth(place).and_then(|field| field.parse::<u64>().ok());
    [1, 2, 3, 6, 7].into_iter().filter_map(ticks).sum::<u64>() * TICK_NS
}

fn memory(machine: &Machine) -> io::Result<Memory> {
    let (Some(current), Some(stat)) = (&machine.memory_current, &machine.memory_stat) else {
        return Ok(host_memory(&fs::read_to_string("/proc/meminfo")?, machine.memory_mb * MIB));
    };
    let charged = number(&read(current)?)?;
    let stat = read(stat)?;
    let stat = keyed(&stat);
    // Version 1 counts the groups below only in the total_ lines.
    let cache =
        ["file", "total_cache", "cache"].iter().find_map(|key| stat.get(*key)).copied().unwrap_or_default();
    let total = match machine.memory_mb {
        0 => host_memory(&fs::read_to_string("/proc/meminfo")?, 0).total,
        limit => limit * MIB,
    };
    Ok(Memory { total, used: charged.saturating_sub(cache), cache })
}

/// `total` 0: as the file says.
fn host_memory(meminfo: &str, total: u64) -> Memory {
    let lines = meminfo.replace(':', " ");
    let lines = keyed(&lines);
    let bytes = |key: &str| lines.get(key).copied().unwrap_or_default() * 1024;
    let cache = bytes("Cached") + bytes("Buffers") + bytes("SReclaimable");
    let all = bytes("MemTotal");
    let used = all.saturating_sub(bytes("MemFree") + cache);
    Memory { total: if total == 0 { all } else { total }, used, cache }
}

/// Lines of a word and a number.
fn keyed(text: &str) -> HashMap<&str, u64> {
    text.lines().filter_map(pair).collect()
}

fn pair(line: &str) -> Option<(&str, u64)> {
    let (key, value) = line.split_once(char::is_whitespace)?;
    Some((key, value.split_whitespace().next()?.parse().ok()?))
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a counter is no number"))
}

/// The whole of a counter file, from its start.
fn read(file: &OwnedFd) -> io::Result<String> {
    let mut buffer = vec![0; 16 * 1024];
    let length = pread(file.as_fd(), &mut buffer, 0)?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use super::*;

    fn counter(text: &str) -> OwnedFd {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counter");
        fs::write(&path, text).unwrap();
        File::open(path).unwrap().into()
    }

    #[test]
    fn both_cgroup_versions_are_read() {
        let mut machine = Machine {
            memory_mb: 512,
            cpu_count: 2,
            memory_current: Some(counter("3000000\n")),
            memory_stat: Some(counter("anon 5\nfile 1000000\nfile_mapped 7\n")),
            cpu_usage: Some(counter("usage_usec 42\nuser_usec 40\n")),
            v2: true,
        };
        let wanted = Memory { total: 512 * MIB, used: 2_000_000, cache: 1_000_000 };
        assert_eq!(memory(&machine).unwrap(), wanted);
        assert_eq!(busy_ns(&machine).unwrap(), 42_000);
        machine.v2 = false;
        machine.memory_stat = Some(counter("cache 3\ntotal_cache 1000000\n"));
        machine.cpu_usage = Some(counter("42\n"));
        assert_eq!(memory(&machine).unwrap(), wanted);
        assert_eq!(busy_ns(&machine).unwrap(), 42);
    }

    #[test]
    fn percent_is_of_all_cpus() {
        let start = Seen { at: Instant::now(), busy_ns: 100 };
        let later = |busy_ns| Seen { at: start.at + Duration::from_secs(1), busy_ns };
        assert!((used_percent(start, later(500_000_100), 2) - 25.0).abs() < f64::EPSILON);
        assert!((used_percent(start, later(123_456_100), 1) - 12.35).abs() < f64::EPSILON);
        assert!((used_percent(start, later(9_000_000_000), 2) - 100.0).abs() < f64::EPSILON);
        assert!(used_percent(start, start, 2).abs() < f64::EPSILON);
    }

    #[test]
    fn the_host_stands_in() {
        let meminfo =
            "MemTotal:  1000 kB\nMemFree:  300 kB\nBuffers:  50 kB\nCached:  100 kB\nSReclaimable: 50 kB\n";
        let wanted = Memory { total: 1000 * 1024, used: 500 * 1024, cache: 200 * 1024 };
        assert_eq!(host_memory(meminfo, 0), wanted);
        assert_eq!(host_busy_ns("cpu  1 2 3 4 5 6 7 8\ncpu0 1"), (1 + 2 + 3 + 6 + 7) * TICK_NS);
    }

    #[tokio::test]
    async fn the_answer_has_every_field() {
        let answer = crate::guest::testing::get("/metrics").await;
        assert_eq!(answer.0, http::StatusCode::OK);
        let keys: Vec<&str> = answer.1.as_object().unwrap().keys().map(String::as_str).collect();
        let wanted = [
            "cpu_count",
            "cpu_used_pct",
            "disk_total",
            "disk_used",
            "mem_cache",
            "mem_total",
            "mem_total_mib",
            "mem_used",
            "mem_used_mib",
            "ts",
        ];
        assert_eq!(keys, wanted);
        assert!(answer.1["mem_total"].as_u64() > answer.1["mem_used"].as_u64());
        assert!(answer.1["disk_total"].as_u64() > answer.1["disk_used"].as_u64());
    }
}
