//! All machines of a warden, and which of them are on the way from one phase to another.
//!
//! Nearly all of them live and want nothing. Those that do are known by name, so that a turn of the
//! loop costs as much as is under way, not as much as is there. Nobody keeps that list by hand:
//! whoever is given out to be changed is on it until it is seen to be settled.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::Machine;
use crate::id::SandboxId;

/// Machines by the sandbox that they belong to.
#[derive(Debug, Default)]
pub(in crate::warden) struct Machines {
    all: BTreeMap<SandboxId, Machine>,
    /// Of `all`: everyone that is not settled, and whoever may have been changed since the last look.
    moving: BTreeSet<SandboxId>,
}

// === impl Machines ===

impl Machines {
    /// One of them, to look at.
    pub(in crate::warden) fn get(&self, sandbox: &SandboxId) -> Option<&Machine> {
        self.all.get(sandbox)
    }

    /// One of them, to change.
    pub(in crate::warden) fn get_mut(&mut self, sandbox: &SandboxId) -> Option<&mut Machine> {
        let machine = self.all.get_mut(sandbox)?;
        self.moving.insert(*sandbox);
        Some(machine)
    }

    /// Adds one, in the place of another if there is one.
    pub(in crate::warden) fn insert(&mut self, sandbox: SandboxId, machine: Machine) {
        self.moving.insert(sandbox);
        self.all.insert(sandbox, machine);
    }

    /// Takes one out.
    pub(in crate::warden) fn remove(&mut self, sandbox: &SandboxId) -> Option<Machine> {
        self.moving.remove(sandbox);
        self.all.remove(sandbox)
    }

    /// Whether a sandbox has one.
    pub(in crate::warden) fn contains(&self, sandbox: &SandboxId) -> bool {
        self.all.contains_key(sandbox)
    }

    /// Whether there are none.
    pub(in crate::warden) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, by name.
    pub(in crate::warden) fn iter(&self) -> btree_map::Iter<'_, SandboxId, Machine> {
        self.all.iter()
    }

    /// All of them.
    pub(in crate::warden) fn values(&self) -> btree_map::Values<'_, SandboxId, Machine> {
        self.all.values()
    }

    /// All that start, end, or wait for the kernel; settled ones may be among them.
    pub(in crate::warden) fn moving(&self) -> impl Iterator<Item = (&SandboxId, &Machine)> {
        self.moving.iter().filter_map(|sandbox| self.all.get_key_value(sandbox))
    }

    /// Leaves those alone that want nothing any more.
    pub(in crate::warden) fn forget_settled(&mut self) {
        let all = &self.all;
        self.moving.retain(|sandbox| all.get(sandbox).is_some_and(|machine| !machine.is_settled()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{BuildId, OsEntropy},
        warden::machine::{Ending, Phase, Record},
    };

    fn machine(sandbox: SandboxId, phase: Phase) -> Machine {
        let record = Record {
            sandbox,
            generation: 1,
            build: BuildId::generate(&OsEntropy),
            slot: 0,
            pid: 1,
            start_time: 1,
            boot_id: String::new(),
            lineage: Vec::new(),
            disk_mb: 0,
        };
        Machine::new(record, phase)
    }

    #[test]
    fn who_is_changed_is_looked_at_until_it_is_settled() {
        let mut machines = Machines::default();
        let (calm, busy) = (SandboxId::generate(&OsEntropy), SandboxId::generate(&OsEntropy));
        machines.insert(calm, machine(calm, Phase::Live { settling: None }));
        machines.insert(busy, machine(busy, Phase::Live { settling: Some((1, true)) }));
        let moving = |machines: &Machines| machines.moving().map(|(of, _)| *of).collect::<BTreeSet<_>>();
        assert_eq!(moving(&machines), BTreeSet::from([calm, busy]));
        machines.forget_settled();
        assert_eq!(moving(&machines), BTreeSet::from([busy]));
        machines.get_mut(&calm).unwrap().phase = Phase::Ending(Ending::default());
        machines.get_mut(&busy).unwrap().phase = Phase::Live { settling: None };
        machines.forget_settled();
        assert_eq!(moving(&machines), BTreeSet::from([calm]));
        assert!(machines.remove(&calm).is_some() && moving(&machines).is_empty());
        assert!(machines.contains(&busy) && !machines.contains(&calm));
    }
}
