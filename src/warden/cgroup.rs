//! Limits, freezing and killing through whatever cgroups the host offers.
//!
//! Every machine has a group in each hierarchy of use, below the instance's own tree:
//! ```text
//!   firkin-<n>/<sandbox>          the whole machine: cpu weight, freeze, kill, memory + the guest's share
//!             /<sandbox>/guest    pid 1 and its own helpers, where it must be apart from the whole
//!             /<sandbox>/work     the user's processes: memory and process limits
//! ```
//! so that a greedy process meets its own limit and the guest lives on. Which hierarchies are
//! used is chosen once, at start: v2 with controllers; v1; hybrid (v1 controllers, and v2 for
//! what it does better without any: freeze and kill); or none, where only whole-machine kill is
//! left. The machine's owner is the only writer here; names are parsed sandbox ids.

use std::{
    fmt, fs,
    io::{self, ErrorKind, Read as _},
    os::fd::OwnedFd,
    path::Path,
};

use self::{
    v1::{Controller, V1},
    v2::V2,
};
use super::instance::Instance;
use crate::{sandbox::Resources, wire::warden::MachineStats};

mod reclaim;
mod v1;
mod v2;

pub(crate) use reclaim::Reclaim;

/// Processes and threads that the user's side of a machine may have.
pub(crate) const WORK_PIDS: u32 = 4096;
/// The same for the guest itself.
pub(crate) const GUEST_PIDS: u32 = 256;
/// Memory that the guest may use beside the user's processes, in bytes: some 36 KiB for each of its
/// 2,048 streams, and as much again.
pub(crate) const GUEST_MEMORY: u64 = 128 << 20;
/// What most of the kernel's texts fit into, in bytes, and what none exceeds.
const TEXT: usize = 4096;
const LONGEST_TEXT: u64 = 64 << 10;

/// The limits of one machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of the user's processes, in bytes.
    pub(crate) memory: u64,
    /// A weight between machines.
    pub(crate) cpus: u32,
}

/// Descriptors that a machine is started with.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// `cgroup.procs` of the groups that pid 1 joins.
    pub(crate) guest: Vec<OwnedFd>,
    /// `cgroup.procs` of the groups that the user's processes join.
    pub(crate) work: Vec<OwnedFd>,
    /// Bytes charged to the user's processes.
    pub(crate) memory_current: Option<OwnedFd>,
    /// What they are charged for.
    pub(crate) memory_stat: Option<OwnedFd>,
    /// CPU time of the machine: `cpuacct.usage` or `cpu.stat`.
    pub(crate) cpu_usage: Option<OwnedFd>,
    /// The format of the three above.
    pub(crate) v2: bool,
}

/// The inner groups of a machine in one hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// None: all of the machine is one group.
    None,
    /// One for the user's processes; the guest is in the machine's own. Each group of the memory controller takes
    /// memory itself, and time of the whole host when it goes.
    Work,
    /// One for the user's processes and one for the guest.
    Both,
}

/// One mounted cgroup hierarchy.
trait Hierarchy: fmt::Debug {
    /// The instance's directory in it.
    fn root(&self) -> &Path;
    /// Prepares the instance's directory, which exists, for groups.
    fn establish(&self) -> io::Result<()>;
    /// Which inner groups machines have here.
    fn inner(&self) -> Inner;
    /// Sets the limits of a group whose directories exist.
    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()>;
    /// Adds what the guest may read of a group.
    fn expose(&self, group: &Path, handles: &mut Handles) -> io::Result<()>;
    /// Adds what is known here of a group.
    fn measure(&self, group: &Path, stats: &mut MachineStats);
    /// Starts to freeze or thaw a group; `None`: not here.
    fn freeze(&self, group: &Path, frozen: bool) -> Option<io::Result<()>>;
    /// Whether all of a group is frozen; `None`: not known here.
    fn frozen(&self, group: &Path) -> Option<bool>;
    /// Kills all processes of a group as far as this hierarchy can.
    fn kill(&self, group: &Path) -> io::Result<()>;
    /// Whether a process is in the directory or below it.
    fn populated(&self, directory: &Path) -> bool;
    /// How to have memory of a group back; `None`: not here.
    fn reclaim(&self, group: &Path) -> Option<Reclaim>;
    /// What becomes readable by priority when a group becomes empty or frozen.
    fn events(&self, group: &Path) -> Option<io::Result<OwnedFd>>;
}

/// The instance's trees in the hierarchies that are used.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Box<dyn Hierarchy>>,
    kind: &'static str,
}

// === impl Cgroups ===

impl Cgroups {
    /// What this host offers, by its table of mounts.
    pub(crate) fn detect(instance: Instance) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self::from_mounts(&mounts, &instance.cgroup())
    }

    fn from_mounts(mounts: &str, tree: &str) -> Self {
        let mut v1: Vec<V1> = Vec::new();
        let mut v2 = None;
        for line in mounts.lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(place), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let place = Path::new(place);
            match kind {
                "cgroup2" => v2 = Some(V2::new(place, tree)),
                "cgroup" => v1.extend(
                    options
                        .split(',')
                        .filter_map(Controller::parse)
                        .map(|controller| V1::new(place, tree, controller)),
                ),
                _ => {}
            }
        }
        if v2.is_some() {
            v1.retain(|one| one.controller != Controller::Freezer);
        }
        Self::of(v1, v2)
    }

    fn of(v1: Vec<V1>, v2: Option<V2>) -> Self {
        let kind = match &v2 {
            Some(v2) if v2.controllers => "cgroup v2",
            Some(_) if !v1.is_empty() => "cgroup v1 for limits, v2 for freeze and kill",
            Some(_) => "cgroup v2 without controllers: no limits",
            None if !v1.is_empty() => "cgroup v1",
            None => "none",
        };
        let mut hierarchies: Vec<Box<dyn Hierarchy>> = Vec::new();
        hierarchies.extend(v2.map(|v2| Box::new(v2) as Box<dyn Hierarchy>));
        hierarchies.extend(v1.into_iter().map(|v1| Box::new(v1) as Box<dyn Hierarchy>));
        Self { hierarchies, kind }
    }

    /// No cgroups at all.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::of(Vec::new(), None)
    }

    /// The choice, in words.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Makes the instance's trees.
    pub(crate) fn establish(&self) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            make(hierarchy.root())?;
            hierarchy.establish()?;
        }
        Ok(())
    }

    /// Makes a group and removes it again.
    pub(crate) fn try_out(&self) -> io::Result<()> {
        if self.hierarchies.is_empty() {
            return Err(io::Error::new(ErrorKind::NotFound, "no cgroup hierarchy is mounted"));
        }
        let made = self
            .establish()
            .and_then(|()| self.make("probe", &Limits { memory: GUEST_MEMORY, cpus: 1 }).map(drop));
        self.remove("probe");
        self.remove_trees();
        made
    }

    /// Whether any process lives in the instance's trees.
    pub(crate) fn inhabited(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.populated(hierarchy.root()))
    }

    /// Makes a machine's groups. On failure nothing is left.
    pub(crate) fn make(&self, name: &str, limits: &Limits) -> io::Result<Handles> {
        let mut handles = Handles::default();
        let made = self.hierarchies.iter().try_for_each(|hierarchy| {
            let group = hierarchy.root().join(name);
            let (guest, work) = (group.join("guest"), group.join("work"));
            make(&group)?;
            let inner = hierarchy.inner();
            if inner != Inner::None {
                hierarchy.establish_group(&group)?;
                make(&work)?;
                handles.work.push(open_procs(&work)?);
            }
            if inner == Inner::Both {
                make(&guest)?;
                handles.guest.push(open_procs(&guest)?);
            } else {
                handles.guest.push(open_procs(&group)?);
            }
            hierarchy.limit(&group, limits)?;
            hierarchy.expose(&group, &mut handles)
        });
        match made {
            Ok(()) => Ok(handles),
            Err(error) => {
                self.remove(name);
                Err(error)
            }
        }
    }

    /// Removes a machine's groups; false: a process is still in one of them.
    pub(crate) fn remove(&self, name: &str) -> bool {
        let mut gone = true;
        for hierarchy in &self.hierarchies {
            let group = hierarchy.root().join(name);
            for directory in [group.join("guest"), group.join("work"), group] {
                match fs::remove_dir(&directory) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(_) => gone = false,
                }
            }
        }
        gone
    }

    /// Removes the instance's empty trees.
    pub(crate) fn remove_trees(&self) {
        for hierarchy in &self.hierarchies {
            if let Err(error) = fs::remove_dir(hierarchy.root())
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, cgroup = %hierarchy.root().display(), "a cgroup stays");
            }
        }
    }

    /// The names of all groups that exist in some hierarchy.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .hierarchies
            .iter()
            .filter_map(|hierarchy| fs::read_dir(hierarchy.root()).ok())
            .flat_map(|entries| entries.filter_map(Result::ok))
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Starts to freeze or thaw a machine.
    pub(crate) fn freeze(&self, name: &str, frozen: bool) -> io::Result<()> {
        self.hierarchies
            .iter()
            .find_map(|hierarchy| hierarchy.freeze(&hierarchy.root().join(name), frozen))
            .unwrap_or_else(|| {
                Err(io::Error::new(ErrorKind::Unsupported, "this host has no cgroup that can freeze"))
            })
    }

    /// Whether all of a machine is frozen.
    pub(crate) fn frozen(&self, name: &str) -> bool {
        self.hierarchies
            .iter()
            .find_map(|hierarchy| hierarchy.frozen(&hierarchy.root().join(name)))
            .unwrap_or(false)
    }

    /// Kills every process of a machine, frozen or not.
    pub(crate) fn kill(&self, name: &str) -> io::Result<()> {
        let mut result = Ok(());
        for hierarchy in &self.hierarchies {
            match hierarchy.kill(&hierarchy.root().join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
        }
        result
    }

    /// Whether a process of the machine is left.
    pub(crate) fn populated(&self, name: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.populated(&hierarchy.root().join(name)))
    }

    /// A descriptor that reports (by priority) when the machine is empty or frozen; none where
    /// the host has no such thing.
    pub(crate) fn events(&self, name: &str) -> Option<OwnedFd> {
        self.hierarchies.iter().find_map(|hierarchy| hierarchy.events(&hierarchy.root().join(name)))?.ok()
    }

    /// How to have memory of a machine back; none where the host has no such thing.
    pub(crate) fn reclaim(&self, name: &str) -> Option<Reclaim> {
        self.hierarchies.iter().find_map(|hierarchy| hierarchy.reclaim(&hierarchy.root().join(name)))
    }

    /// What a machine uses, but for its disk.
    pub(crate) fn measure(&self, name: &str) -> MachineStats {
        let mut stats = MachineStats::default();
        for hierarchy in &self.hierarchies {
            hierarchy.measure(&hierarchy.root().join(name), &mut stats);
        }
        stats
    }

    /// The numbers of the user's processes in a machine, one a line.
    pub(crate) fn work_processes(&self, name: &str) -> Option<String> {
        let groups = self.hierarchies.iter().map(|hierarchy| hierarchy.root().join(name).join("work"));
        let mut found = groups.filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
        found.find(|procs| !procs.is_empty())
    }

    /// Whether a process is in the machine's groups, by its `/proc/<pid>/cgroup`.
    pub(crate) fn holds(&self, instance: Instance, name: &str, membership: &str) -> bool {
        let inner = format!("/{}/{name}", instance.cgroup());
        self.hierarchies.is_empty()
            || membership.lines().any(|line| {
                line.find(&inner).is_some_and(|at| {
                    let rest = &line[at + inner.len()..];
                    rest.is_empty() || rest.starts_with('/')
                })
            })
    }
}

impl dyn Hierarchy {
    /// Lets a group's inner groups have the controllers of the instance's tree.
    fn establish_group(&self, group: &Path) -> io::Result<()> {
        v2::enable(self.root(), group)
    }
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(named(&error, directory)),
        _ => Ok(()),
    }
}

fn open_procs(group: &Path) -> io::Result<OwnedFd> {
    open_for_writing(&group.join("cgroup.procs")).map(OwnedFd::from)
}

fn open_for_writing(path: &Path) -> io::Result<fs::File> {
    // The kernel makes these files; on the fake trees of tests nobody does.
    fs::OpenOptions::new()
        .write(true)
        .create(cfg!(test))
        .truncate(cfg!(test))
        .open(path)
        .map_err(|error| named(&error, path))
}

fn put(path: &Path, value: impl fmt::Display) -> io::Result<()> {
    use std::io::Write;
    let mut file = open_for_writing(path)?;
    // One write: the kernel reads one value from each.
    file.write_all(value.to_string().as_bytes()).map_err(|error| named(&error, path))
}

fn read_number(path: &Path) -> Option<u64> {
    read_text(path)?.trim().parse().ok()
}

/// The text of one of the kernel's small files, which tell no size: in one piece, since a long one is
/// made anew for every piece of it.
fn read_text(path: &Path) -> Option<String> {
    let mut text = String::with_capacity(TEXT);
    fs::File::open(path).ok()?.take(LONGEST_TEXT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The number behind a key in a file of `key number` lines.
fn read_key(path: &Path, key: &str) -> Option<u64> {
    let text = read_text(path)?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl From<&Resources> for Limits {
    fn from(resources: &Resources) -> Self {
        Self { memory: u64::from(resources.memory_mb) << 20, cpus: resources.cpu_count }
    }
}

#[cfg(test)]
mod tests;
