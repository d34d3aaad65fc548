//! cgroup v2: all controllers in one hierarchy, or (on hybrid hosts) only freeze and kill.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    GUEST_MEMORY, GUEST_PIDS, Handles, Hierarchy, Inner, Limits, Reclaim, WORK_PIDS, put, read_key,
    read_number,
    reclaim::{Manner, is_offered},
};
use crate::wire::warden::MachineStats;

/// The controllers that machines need here, and all or none are used.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The one hierarchy.
#[derive(Debug)]
pub(super) struct V2 {
    root: PathBuf,
    /// False: another hierarchy has the controllers, or nobody.
    pub(super) controllers: bool,
}

// === impl V2 ===

impl V2 {
    pub(super) fn new(mount: &Path, tree: &str) -> Self {
        let offered = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let controllers = CONTROLLERS.iter().all(|one| offered.split_whitespace().any(|name| name == *one));
        Self { root: mount.join(tree), controllers }
    }
}

impl Hierarchy for V2 {
    fn root(&self) -> &Path {
        &self.root
    }

    fn establish(&self) -> io::Result<()> {
        if !self.controllers {
            return Ok(());
        }
        let mount = self.root.parent().unwrap_or(&self.root);
        put(&mount.join("cgroup.subtree_control"), all_controllers())?;
        put(&self.root.join("cgroup.subtree_control"), all_controllers())
    }

    fn inner(&self) -> Inner {
        if self.controllers { Inner::Both } else { Inner::None }
    }

    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()> {
        if !self.controllers {
            return Ok(());
        }
        put(&group.join("cpu.weight"), u64::from(limits.cpus.clamp(1, 100)) * 100)?;
        for (directory, bytes) in
            [(group.to_owned(), limits.memory + GUEST_MEMORY), (group.join("work"), limits.memory)]
        {
            put(&directory.join("memory.max"), bytes)?;
            // Only where the kernel was built with swap.
            let swap = directory.join("memory.swap.max");
            if swap.exists() {
                put(&swap, 0)?;
            }
        }
        put(&group.join("guest/pids.max"), GUEST_PIDS)?;
        put(&group.join("work/pids.max"), WORK_PIDS)
    }

    fn expose(&self, group: &Path, handles: &mut Handles) -> io::Result<()> {
        if !self.controllers {
            return Ok(());
        }
        let open = |name: &str| fs::File::open(group.join(name)).map(OwnedFd::from);
        handles.memory_current = Some(open("work/memory.current")?);
        handles.memory_stat = Some(open("work/memory.stat")?);
        handles.cpu_usage = Some(open("cpu.stat")?);
        handles.v2 = true;
        Ok(())
    }

    fn measure(&self, group: &Path, stats: &mut MachineStats) {
        if !self.controllers {
            return;
        }
        let number = |name: &str| read_number(&group.join(name)).unwrap_or(0);
        stats.memory_bytes = number("work/memory.current");
        stats.memory_limit_bytes = number("work/memory.max");
        stats.cache_bytes = read_key(&group.join("work/memory.stat"), "file").unwrap_or(0);
        stats.processes = number("work/pids.current");
        stats.cpu_ns = read_key(&group.join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000);
    }

    fn freeze(&self, group: &Path, frozen: bool) -> Option<io::Result<()>> {
        Some(put(&group.join("cgroup.freeze"), u8::from(frozen)))
    }

    fn frozen(&self, group: &Path) -> Option<bool> {
        Some(read_key(&group.join("cgroup.events"), "frozen") == Some(1))
    }

    fn kill(&self, group: &Path) -> io::Result<()> {
        put(&group.join("cgroup.kill"), 1)
    }

    fn populated(&self, directory: &Path) -> bool {
        read_key(&directory.join("cgroup.events"), "populated") == Some(1)
    }

    fn reclaim(&self, group: &Path) -> Option<Reclaim> {
        let here = self.controllers && is_offered(group, Manner::V2);
        here.then(|| Reclaim::new(group, Manner::V2))
    }

    fn events(&self, group: &Path) -> Option<io::Result<OwnedFd>> {
        Some(fs::File::open(group.join("cgroup.events")).map(OwnedFd::from))
    }
}

/// Hands the controllers of the instance's tree on to a group's inner groups.
pub(super) fn enable(root: &Path, group: &Path) -> io::Result<()> {
    if root.join("cgroup.subtree_control").exists() {
        put(&group.join("cgroup.subtree_control"), all_controllers())?;
    }
    Ok(())
}

fn all_controllers() -> String {
    CONTROLLERS.map(|name| format!("+{name}")).join(" ")
}
