//! What a firkin server leaves on its host: looked at before and after, the two must be equal.
//!
//! Only what belongs to one server is looked at (its data directory, its instance), so that tests and
//! servers beside it do not disturb the comparison.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where ids of instances start, how many a slot and how many slots an instance has.
const FIRST_ID: u32 = 0x4000_0000;
const SLOT_IDS: u32 = 65_536;
const SLOTS: u32 = 2048;

/// Which server is meant.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) data_dir: PathBuf,
    pub(crate) instance: u32,
}

/// What is there of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Host {
    /// Lines of the mount table that name the data directory.
    pub(crate) mounts: BTreeSet<String>,
    /// Control groups of the instance, in all hierarchies.
    pub(crate) cgroups: BTreeSet<PathBuf>,
    /// Processes with ids of the instance, or in its groups.
    pub(crate) processes: BTreeSet<String>,
    /// Network namespaces of those processes.
    pub(crate) networks: BTreeSet<String>,
    /// Machines' directories, also those in the rubbish, and sockets.
    pub(crate) entries: BTreeSet<PathBuf>,
    /// The instance's lock.
    pub(crate) instance: bool,
}

// === impl Scope ===

impl Scope {
    /// What is there now.
    pub(crate) fn look(&self) -> Host {
        let mut host = Host { instance: self.lock().exists(), ..Host::default() };
        self.look_at_mounts(&mut host);
        for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if words.get(2).is_some_and(|kind| kind.starts_with("cgroup")) {
                collect(&Path::new(words[1]).join(format!("firkin-{}", self.instance)), &mut host.cgroups);
            }
        }
        self.look_at_processes(&mut host);
        for room in ["machines", "machines/.trash", "run"] {
            for entry in fs::read_dir(self.data_dir.join(room)).into_iter().flatten().flatten() {
                if entry.file_name() != ".trash" {
                    host.entries.insert(entry.path());
                }
            }
        }
        host
    }

    /// Waits until the host is as expected; what is released in the background may take a moment.
    ///
    /// # Panics
    /// When it does not become so in time, with both sides.
    pub(crate) fn settles_as(&self, expected: &Host) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = self.look();
            if now == *expected {
                return;
            }
            assert!(Instant::now() < deadline, "left on the host: {now:#?}\nexpected: {expected:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn lock(&self) -> PathBuf {
        PathBuf::from(format!("/run/firkin/instances/{}", self.instance))
    }

    fn look_at_mounts(&self, host: &mut Host) {
        let name = self.data_dir.to_string_lossy().into_owned();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        host.mounts.extend(
            table
                .lines()
                .filter(|line| line.contains(&name))
                // The first two numbers are the mount's own and differ each time.
                .map(|line| line.splitn(3, ' ').last().unwrap_or_default().to_owned()),
        );
    }

    fn look_at_processes(&self, host: &mut Host) {
        let first = FIRST_ID + self.instance * SLOTS * SLOT_IDS;
        let ids = first..first + SLOTS * SLOT_IDS;
        let group = format!("/firkin-{}/", self.instance);
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
            let uid = field(&status, "Uid:").first().and_then(|uid| uid.parse().ok()).unwrap_or(0);
            let member = fs::read_to_string(path.join("cgroup")).is_ok_and(|groups| groups.contains(&group));
            // What is dead and waits for the kernel or its parent is on its way out by itself.
            let dead = matches!(field(&status, "State:").first(), Some(&("Z" | "X")));
            if !dead && (member || ids.contains(&uid)) {
                let name = field(&status, "Name:").join(" ");
                host.processes.insert(format!("{} {name} {uid}", path.display()));
                if let Ok(network) = fs::read_link(path.join("ns/net")) {
                    host.networks.insert(network.to_string_lossy().into_owned());
                }
            }
        }
    }
}

/// What a process has open: one line a descriptor, without its number.
pub(crate) fn descriptors(pid: u32) -> Vec<String> {
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    open.sort();
    open
}

/// The words of a line of `/proc/<pid>/status`.
pub(crate) fn status(pid: u32, name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&text, name).into_iter().map(str::to_owned).collect()
}

/// That a process is an ordinary user without any capability, and can never become more.
///
/// # Panics
/// When it is more.
pub(crate) fn assert_unprivileged(pid: u32, uid: u32) {
    let expected = uid.to_string();
    for ids in ["Uid:", "Gid:"] {
        let found = status(pid, ids);
        assert_eq!(found.len(), 4, "{ids} {found:?}");
        assert!(found.iter().all(|id| *id == expected), "{ids} {found:?}, expected {expected}");
    }
    assert_eq!(status(pid, "Groups:"), Vec::<String>::new());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status(pid, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs:"), ["1"]);
}

fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map(|line| line.split_whitespace().collect()).unwrap_or_default()
}

fn collect(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    if let Ok(entries) = fs::read_dir(directory) {
        found.insert(directory.to_owned());
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            collect(&entry.path(), found);
        }
    }
}
