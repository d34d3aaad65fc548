//! What this host has for all sandboxes together: its memory, less a reserve, its CPUs, its disk.

use std::{
    fs,
    io::{self, Error},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    thread::available_parallelism,
};

use rustix::fs::StatVfsMountFlags;

use crate::{
    config,
    runtime::{
        engine::DiskSpace,
        namespace::disk_space,
        registry::{Capacity, Charge, Floors, Purpose, Rules, WarmPlan, WarmTemplate},
    },
    wire::warden::ProbeResult,
};

/// Of the host's memory, in percent, sandboxes never get this.
const RESERVE_PERCENT: u64 = 15;
/// Where the limit of the control group that everything here runs in may be read: a container's.
const GROUP_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The rules of admission for this host.
pub fn rules(settings: &config::Admission) -> Rules {
    let cpus = available_parallelism().map_or(1, |cpus| u64::try_from(cpus.get()).unwrap_or(u64::MAX));
    rules_for(settings, memory(), cpus)
}

/// What is wrong with the data directory of a server that is about to serve, one line each.
pub fn preflight(settings: &config::Admission, data_dir: &Path) -> Vec<String> {
    let checked = fs::File::open(data_dir).map(|directory| room(settings, directory.as_fd()));
    match checked {
        Ok(probes) => probes
            .into_iter()
            .filter(|probe| !probe.present)
            .map(|probe| format!("{}: {}; {}", probe.feature, probe.used, probe.advice))
            .collect(),
        Err(error) => vec![format!("{} cannot be read: {error}", data_dir.display())],
    }
}

/// What there is on this host for sandboxes together, as `firkin doctor` shows it. `directory`: the
/// data directory, or one on the file system where it is going to be.
pub fn room(settings: &config::Admission, directory: BorrowedFd<'_>) -> Vec<ProbeResult> {
    let disk = disk_space(directory);
    let capacity = rules(settings).capacity;
    let memory = capacity.memory.map_or_else(
        || Err(Error::other("/proc/meminfo does not tell how much there is")),
        |bytes| if bytes > 0 { Ok(bytes) } else { Err(Error::other("the reserve leaves nothing")) },
    );
    vec![
        probe(
            "data directory can be written",
            writable(directory).map(|()| "yes".to_owned()),
            "mount its file system read-write, or choose another --data-dir",
        ),
        probe(
            "free disk space for sandboxes",
            enough(settings, Purpose::Restore, &disk),
            "creates, resumes from disk and snapshots are refused: free space, or lower disk-floor-mb",
        ),
        probe(
            "free disk space for warm machines",
            enough(settings, Purpose::Warm, &disk),
            "no machines are kept warm: free space, or lower warm-disk-floor-mb",
        ),
        probe(
            "memory for sandboxes",
            memory.map(|bytes| format!("{} MiB, charged by use", bytes >> 20)),
            "nobody is turned away for want of memory",
        ),
    ]
}

fn writable(directory: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fstatvfs(directory)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        Err(Error::other("its file system is mounted read-only"))
    } else {
        Ok(())
    }
}

fn enough(
    settings: &config::Admission,
    purpose: Purpose,
    disk: &io::Result<DiskSpace>,
) -> io::Result<String> {
    let space = disk.as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))?;
    let floor = floors(settings).of(purpose, space.total);
    let text =
        format!("{} MiB of {} MiB; {} MiB stay free", space.free >> 20, space.total >> 20, floor >> 20);
    if space.free < floor { Err(Error::other(text)) } else { Ok(text) }
}

fn probe(feature: &str, found: io::Result<String>, advice: &str) -> ProbeResult {
    let present = found.is_ok();
    ProbeResult {
        feature: feature.to_owned(),
        present,
        required: false,
        used: found.unwrap_or_else(|error| error.to_string()),
        advice: if present { String::new() } else { advice.to_owned() },
    }
}

/// How much of the disk stays free.
pub fn floors(settings: &config::Admission) -> Floors {
    let bytes = |mb: u32| u64::from(mb) << 20;
    Floors { restore: bytes(settings.disk_floor_mb), warm: bytes(settings.warm_disk_floor_mb) }
}

/// What is to be kept warm.
pub fn warm_plan(settings: &config::Admission) -> WarmPlan {
    let template = |warm: &config::Warm| WarmTemplate {
        namespace: warm.namespace.clone(),
        name: warm.name.clone(),
        tag: warm.tag.clone(),
        depth: warm.depth,
    };
    WarmPlan { templates: settings.warm.iter().map(template).collect(), max_age: settings.warm_max_age }
}

fn rules_for(settings: &config::Admission, memory: Option<u64>, cpus: u64) -> Rules {
    let reserve = |memory: u64| {
        (memory / 100 * RESERVE_PERCENT).max(u64::from(settings.memory_reserve_mb) << 20).min(memory)
    };
    Rules {
        capacity: Capacity {
            sandboxes: settings.max_sandboxes.map(u64::from),
            cpus: settings.cpu_oversubscription.map(|hundredths| cpus.saturating_mul(hundredths) / 100),
            memory: memory.map(|memory| memory - reserve(memory)),
        },
        charge: if settings.charge_limit { Charge::Limit } else { Charge::Use },
        floor: u64::from(settings.memory_floor_mb) << 20,
        queue: usize::try_from(settings.queue).unwrap_or(usize::MAX),
        patience: settings.patience,
    }
}

/// In bytes: what the host has, or the control group around it, whichever is less.
fn memory() -> Option<u64> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let groups = GROUP_LIMITS.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    groups.chain(host).min()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn settings() -> config::Admission {
        config::Admission {
            max_sandboxes: None,
            cpu_oversubscription: None,
            memory_reserve_mb: 0,
            charge_limit: false,
            memory_floor_mb: 32,
            queue: 64,
            patience: Duration::from_secs(30),
            disk_floor_mb: 0,
            warm_disk_floor_mb: 0,
            warm: Vec::new(),
            warm_max_age: Duration::from_mins(1),
        }
    }

    #[test]
    fn the_greater_reserve_counts() {
        let memory = |reserve, has| {
            let settings = config::Admission { memory_reserve_mb: reserve, ..settings() };
            rules_for(&settings, Some(has), 2).capacity.memory.unwrap()
        };
        assert_eq!(memory(0, 100 * GIB), 100 * GIB - 100 * GIB / 100 * 15);
        assert_eq!(memory(20 << 10, 100 * GIB), 80 * GIB);
        assert_eq!(memory(1 << 10, 100 * GIB), memory(0, 100 * GIB));
        assert_eq!(memory(20 << 10, 4 * GIB), 0, "a reserve larger than the host leaves nothing");
    }

    #[test]
    fn a_disk_below_its_floor_is_told_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(preflight(&settings(), directory.path()), Vec::<String>::new());
        let high = config::Admission { disk_floor_mb: u32::MAX, warm_disk_floor_mb: 0, ..settings() };
        let space = disk_space(fs::File::open(directory.path()).unwrap().as_fd()).unwrap();
        let full = space.free < space.total / 20;
        let lines = preflight(&high, directory.path());
        assert_eq!(lines.iter().any(|line| line.contains("disk-floor-mb")), full, "{lines:?}");
        let missing = preflight(&settings(), &directory.path().join("missing"));
        assert!(missing[0].contains("cannot be read"), "{missing:?}");
    }

    #[test]
    fn cpus_are_counted_only_when_they_are_bounded() {
        assert_eq!(rules_for(&settings(), None, 2).capacity, Capacity::default());
        let settings = config::Admission { cpu_oversubscription: Some(150), ..settings() };
        assert_eq!(rules_for(&settings, None, 3).capacity.cpus, Some(4));
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(total("MemTotal:       24684032 kB\nMemFree: 1 kB\n"), Some(24_684_032 << 10));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(memory().is_some_and(|memory| memory > 64 << 20));
    }
}
