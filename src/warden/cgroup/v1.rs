//! One controller of cgroup v1.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal};

use super::{
    GUEST_MEMORY, GUEST_PIDS, Handles, Hierarchy, Inner, Limits, Reclaim, WORK_PIDS, put, read_key,
    read_number,
    reclaim::{Manner, is_offered},
};
use crate::wire::warden::MachineStats;

/// The controllers that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
    Cpuacct,
    /// Only where there is no v2: **a frozen process ignores SIGKILL until it is thawed.**
    Freezer,
}

/// The hierarchy of one controller (of one of several that are mounted together).
#[derive(Debug)]
pub(super) struct V1 {
    pub(super) controller: Controller,
    root: PathBuf,
}

// === impl Controller ===

impl Controller {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "cpu" => Self::Cpu,
            "cpuacct" => Self::Cpuacct,
            "freezer" => Self::Freezer,
            _ => return None,
        })
    }
}

// === impl V1 ===

impl V1 {
    pub(super) fn new(mount: &Path, tree: &str, controller: Controller) -> Self {
        Self { controller, root: mount.join(tree) }
    }
}

impl Hierarchy for V1 {
    fn root(&self) -> &Path {
        &self.root
    }

    fn establish(&self) -> io::Result<()> {
        Ok(())
    }

    fn inner(&self) -> Inner {
        match self.controller {
            Controller::Memory => Inner::Work,
            Controller::Pids => Inner::Both,
            Controller::Cpu | Controller::Cpuacct | Controller::Freezer => Inner::None,
        }
    }

    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()> {
        match self.controller {
            Controller::Memory => {
                for (directory, bytes) in
                    [(group.to_owned(), limits.memory + GUEST_MEMORY), (group.join("work"), limits.memory)]
                {
                    put(&directory.join("memory.limit_in_bytes"), bytes)?;
                    // Swap accounting is a boot option of the host; without it there is no such file.
                    let with_swap = directory.join("memory.memsw.limit_in_bytes");
                    if with_swap.exists() {
                        put(&with_swap, bytes)?;
                    }
                }
                Ok(())
            }
            Controller::Pids => {
                put(&group.join("guest/pids.max"), GUEST_PIDS)?;
                put(&group.join("work/pids.max"), WORK_PIDS)
            }
            Controller::Cpu => put(&group.join("cpu.shares"), u64::from(limits.cpus.clamp(1, 256)) * 1024),
            Controller::Cpuacct | Controller::Freezer => Ok(()),
        }
    }

    fn expose(&self, group: &Path, handles: &mut Handles) -> io::Result<()> {
        let open = |name: &str| fs::File::open(group.join(name)).map(OwnedFd::from);
        match self.controller {
            Controller::Memory => {
                handles.memory_current = Some(open("work/memory.usage_in_bytes")?);
                handles.memory_stat = Some(open("work/memory.stat")?);
            }
            Controller::Cpuacct => handles.cpu_usage = Some(open("cpuacct.usage")?),
            _ => {}
        }
        Ok(())
    }

    fn measure(&self, group: &Path, stats: &mut MachineStats) {
        let number = |name: &str| read_number(&group.join(name)).unwrap_or(0);
        match self.controller {
            Controller::Memory => {
                stats.memory_bytes = number("work/memory.usage_in_bytes");
                stats.memory_limit_bytes = number("work/memory.limit_in_bytes");
                stats.cache_bytes = read_key(&group.join("work/memory.stat"), "total_cache").unwrap_or(0);
            }
            Controller::Pids => stats.processes = number("work/pids.current"),
            Controller::Cpuacct => stats.cpu_ns = number("cpuacct.usage"),
            Controller::Cpu | Controller::Freezer => {}
        }
    }

    fn freeze(&self, group: &Path, frozen: bool) -> Option<io::Result<()>> {
        let state = if frozen { "FROZEN" } else { "THAWED" };
        (self.controller == Controller::Freezer).then(|| put(&group.join("freezer.state"), state))
    }

    fn frozen(&self, group: &Path) -> Option<bool> {
        (self.controller == Controller::Freezer).then(|| {
            fs::read_to_string(group.join("freezer.state")).is_ok_and(|state| state.trim() == "FROZEN")
        })
    }

    fn kill(&self, group: &Path) -> io::Result<()> {
        if self.controller != Controller::Freezer {
            return Ok(());
        }
        // First the signal, then the thaw: nothing runs in between that could fork away.
        for pid in processes(group) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        put(&group.join("freezer.state"), "THAWED")
    }

    fn populated(&self, directory: &Path) -> bool {
        let Ok(entries) = fs::read_dir(directory) else { return false };
        fs::read(directory.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
            || entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .any(|entry| self.populated(&entry.path()))
    }

    fn reclaim(&self, group: &Path) -> Option<Reclaim> {
        let here = self.controller == Controller::Memory && is_offered(group, Manner::V1);
        here.then(|| Reclaim::new(group, Manner::V1))
    }

    fn events(&self, _group: &Path) -> Option<io::Result<OwnedFd>> {
        None
    }
}

fn processes(group: &Path) -> Vec<Pid> {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}
