//! What each request does; all but the lives of machines, which have their own files.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{Warden, jobs::Purpose};
use crate::{
    failpoint::{self, Step},
    id::SandboxId,
    warden::{
        base,
        machine::{Counted, Machine, Phase, room},
        probe,
        steer::{self, Steered},
        storage::{self, Driver},
        worker::Report,
    },
    wire::warden::{Call, Cause, FromWarden, MAX_SOCKETS, MachineInfo, Reply},
};

/// Machines of one answer: their text stays well below the size of a packet.
const PAGE: usize = 200;
/// How old a count of bytes on disk may be: each count is a walk through the layer. A younger one is
/// not counted anew at all; in between it is as soon as the disk may have become full.
const DISK_AGE: Duration = Duration::from_mins(1);
const YOUNG: Duration = Duration::from_secs(3);

impl Warden<'_> {
    pub(super) fn call(&mut self, seq: u64, call: Call) {
        match call {
            Call::CreateMachine(spec) => self.create(seq, spec),
            Call::StopMachine { sandbox, keep_disk } => self.stop(sandbox, Some(seq), keep_disk),
            Call::Freeze { sandbox } => self.freeze(seq, sandbox, true),
            Call::Thaw { sandbox } => self.freeze(seq, sandbox, false),
            Call::Reclaim { sandbox } => self.reclaim(seq, sandbox),
            Call::Stats { sandbox } => self.stats(seq, sandbox),
            Call::PortSockets { sandbox, v6, count } => self.port_sockets(seq, sandbox, v6, count),
            Call::HostSocket { sandbox } => self.host_socket(seq, sandbox),
            Call::ListMachines { after } => self.list(seq, after),
            Call::ListKept { after } => self.list_kept(seq, after),
            Call::FindMachine { sandbox } => {
                let found = self.machines.get(&sandbox).filter(|machine| machine.is_live());
                let machines = found.map(Machine::info).into_iter().collect();
                self.answer(seq, Reply::Machines { machines });
            }
            Call::EnsureBase => self.ensure_base(seq),
            Call::CheckImage { build } => self.check_image(seq, build),
            Call::Seal { sandbox, build } => self.seal(seq, sandbox, build),
            Call::ListImages { after } => self.list_images(seq, after),
            Call::RemoveImage { build } => self.remove_image(seq, build),
            Call::Probe => {
                let prepared = self.prepared;
                self.send_worker(vec![seq], Purpose::Probe, move |_| {
                    Report::Probes(probe::all(prepared.data.as_fd()))
                });
            }
            Call::Shutdown { stop_machines } => self.close(Some(seq), stop_machines),
        }
    }

    fn list(&mut self, seq: u64, after: Option<SandboxId>) {
        let machines: Vec<MachineInfo> = self
            .machines
            .iter()
            .filter(|(sandbox, machine)| machine.is_live() && after.is_none_or(|after| **sandbox > after))
            .take(PAGE)
            .map(|(_, machine)| machine.info())
            .collect();
        self.answer(seq, Reply::Machines { machines });
    }

    fn list_kept(&mut self, seq: u64, after: Option<SandboxId>) {
        let machines = self.prepared.machines.as_fd();
        let names = match room::names(machines) {
            Ok(names) => names,
            Err(error) => return self.refuse(seq, format!("list the kept layers: {error}"), Cause::Host),
        };
        let mut sandboxes: Vec<SandboxId> = names
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(|sandbox| after.is_none_or(|after| *sandbox > after))
            .filter(|sandbox| !self.machines.contains(sandbox) && self.is_kept(sandbox.as_str()))
            .collect();
        sandboxes.sort_unstable();
        sandboxes.truncate(PAGE);
        self.answer(seq, Reply::Kept { sandboxes });
    }

    fn port_sockets(&mut self, seq: u64, sandbox: SandboxId, v6: bool, count: usize) {
        let Some(Machine { process: Some((process, _)), phase: Phase::Live { .. }, .. }) =
            self.machines.get(&sandbox)
        else {
            return self.no_machine(seq, sandbox);
        };
        match self.home.sockets_in(process.as_fd(), v6, count.clamp(1, MAX_SOCKETS)) {
            Ok(sockets) => self.wire.send(&FromWarden::Answer { seq, reply: Reply::Done }, sockets),
            Err(error) => self.refuse(seq, format!("make a socket in the machine: {error}"), Cause::Host),
        }
    }

    fn host_socket(&mut self, seq: u64, sandbox: SandboxId) {
        let Some(Machine { process: Some((process, _)), phase: Phase::Live { .. }, steering, .. }) =
            self.machines.get_mut(&sandbox)
        else {
            return self.no_machine(seq, sandbox);
        };
        // Of a gateway that is gone.
        *steering = None;
        match self.home.inside(process.as_fd(), steer::open) {
            Ok(Steered { listener, link }) => {
                *steering = Some(link);
                self.wire.send(&FromWarden::Answer { seq, reply: Reply::Done }, vec![listener]);
            }
            Err(error) => self.refuse(seq, format!("open the host API: {error}"), Cause::Host),
        }
    }

    fn freeze(&mut self, seq: u64, sandbox: SandboxId, frozen: bool) {
        if !frozen && self.is_sealing(sandbox) {
            return self.refuse(seq, "an image is being made of it".to_owned(), Cause::Invalid);
        }
        let Some(machine) = self.machines.get_mut(&sandbox) else {
            return self.no_machine(seq, sandbox);
        };
        match &mut machine.phase {
            Phase::Live { settling: Some(_) } => {
                self.refuse(seq, "it is being frozen or thawed".to_owned(), Cause::Invalid);
            }
            Phase::Live { settling } => match self.cgroups.freeze(machine.record.name(), frozen) {
                Ok(()) => {
                    failpoint::reach(Step::FreezeAsked);
                    *settling = Some((seq, frozen));
                    self.settled(sandbox);
                }
                Err(error) => self.refuse(seq, format!("freeze or thaw: {error}"), Cause::Host),
            },
            _ => self.no_machine(seq, sandbox),
        }
    }

    fn reclaim(&mut self, seq: u64, sandbox: SandboxId) {
        let Some(machine) = self.machines.get(&sandbox).filter(|machine| machine.is_live()) else {
            return self.no_machine(seq, sandbox);
        };
        if !machine.frozen {
            return self.refuse(seq, "it is not frozen".to_owned(), Cause::Invalid);
        }
        let Some(reclaim) = self.cgroups.reclaim(machine.record.name()) else {
            let reason = "this host's cgroups cannot be asked for memory".to_owned();
            return self.refuse(seq, reason, Cause::Host);
        };
        if self.join_job(seq, &Purpose::Reclaim(sandbox)) {
            return;
        }
        self.send_worker(vec![seq], Purpose::Reclaim(sandbox), move |_| match reclaim.run() {
            Ok(bytes) => Report::Reclaimed(bytes),
            Err(error) => Report::Failed(error.to_string()),
        });
    }

    pub(super) fn no_machine(&mut self, seq: u64, sandbox: SandboxId) {
        self.refuse(seq, format!("sandbox {sandbox} has no machine"), Cause::NoMachine);
    }

    /// Answers a freeze or thaw when the kernel says that it is so. True: it was answered.
    fn settled(&mut self, sandbox: SandboxId) -> bool {
        let Some(machine) = self.machines.get_mut(&sandbox) else { return false };
        let Phase::Live { settling: Some((seq, wanted)) } = machine.phase else { return false };
        if self.cgroups.frozen(machine.record.name()) != wanted {
            return false;
        }
        failpoint::reach(Step::FreezeSettled);
        machine.frozen = wanted;
        machine.phase = Phase::Live { settling: None };
        self.answer(seq, Reply::Done);
        true
    }

    /// The machine's cgroup became empty, frozen or thawed.
    pub(super) fn groups_changed(&mut self, sandbox: SandboxId) {
        let Some(machine) = self.machines.get(&sandbox) else { return };
        if let Some((groups, _)) = &machine.groups {
            // Only a read makes the kernel report the next change.
            let _ = rustix::io::pread(groups, &mut [0_u8; 256], 0);
        }
        if !self.settled(sandbox) {
            self.finish_ending(sandbox);
        }
    }

    pub(super) fn has_settling(&self) -> bool {
        self.settling().next().is_some()
    }

    fn settling(&self) -> impl Iterator<Item = SandboxId> {
        self.machines
            .moving()
            .filter(|(_, machine)| matches!(machine.phase, Phase::Live { settling: Some(_) }))
            .map(|(sandbox, _)| *sandbox)
    }

    /// Looks again at freezes that wait, for hosts that report no event for them.
    pub(super) fn finish_settling(&mut self) -> bool {
        let waiting: Vec<SandboxId> = self.settling().collect();
        waiting.into_iter().filter(|sandbox| self.settled(*sandbox)).count() > 0
    }

    fn stats(&mut self, seq: u64, sandbox: SandboxId) {
        let Some(machine) = self.machines.get(&sandbox).filter(|machine| machine.is_live()) else {
            return self.no_machine(seq, sandbox);
        };
        let (counted, size) = (machine.disk, machine.record.disk_size());
        if let Some(used) = self.counted_by_kernel(sandbox) {
            self.disk_measured(sandbox, Some(used));
            return self.answer_stats(seq, sandbox);
        }
        if counted.is_some_and(|counted| is_fresh(counted, size, self.host_free())) {
            return self.answer_stats(seq, sandbox);
        }
        self.measure_disk(seq, sandbox);
    }

    /// What a disk holds, where the file system knows.
    fn counted_by_kernel(&self, sandbox: SandboxId) -> Option<u64> {
        if self.prepared.driver == Driver::Plain {
            return None;
        }
        let room = room::open(self.prepared.machines.as_fd(), sandbox.as_str()).ok()?;
        storage::usage(room::disk(room.as_fd()).ok()?.as_fd())
    }

    /// What the file system of the machines has left, in bytes.
    pub(super) fn host_free(&self) -> u64 {
        let found = rustix::fs::fstatvfs(&self.prepared.machines);
        found.map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Answers with the cgroups' figures of now and the disk's last count.
    pub(super) fn answer_stats(&mut self, seq: u64, sandbox: SandboxId) {
        let Some(machine) = self.machines.get(&sandbox).filter(|machine| machine.is_live()) else {
            return self.no_machine(seq, sandbox);
        };
        let mut stats = self.cgroups.measure(machine.record.name());
        stats.disk_bytes = machine.disk.map_or(0, |counted| counted.used);
        stats.writers_ended = machine.writers_ended;
        self.answer(seq, Reply::Stats(stats));
    }

    pub(super) fn disk_measured(&mut self, sandbox: SandboxId, bytes: Option<u64>) {
        let host_free = self.host_free();
        if let Some(machine) = self.machines.get_mut(&sandbox) {
            let before = machine.disk.map_or(0, |counted| counted.used);
            machine.disk = Some(Counted { when: Instant::now(), used: bytes.unwrap_or(before), host_free });
        }
    }

    fn ensure_base(&mut self, seq: u64) {
        if self.join_job(seq, &Purpose::Base) {
            return;
        }
        let (prepared, sudo) = (self.prepared, self.sudo);
        self.send_worker(vec![seq], Purpose::Base, move |reporter| {
            let mut progress = |text: &str| reporter.say(&Report::Progress(text.to_owned()));
            match base::ensure(prepared.templates.as_fd(), sudo, &mut progress) {
                Ok(info) => Report::Image(info),
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }
}

/// Whether a count need not be made anew. It must be when the disk was nearly full, or when the host
/// has lost as much room since as would bring it there: what one machine wrote, or all together.
fn is_fresh(counted: Counted, size: u64, host_free: u64) -> bool {
    let age = counted.when.elapsed();
    let left = size.saturating_sub(counted.used);
    let settled = size == 0 || left > size / 8 && counted.host_free.saturating_sub(host_free) < left / 2;
    let most = if left > size / 2 { DISK_AGE } else { DISK_AGE / 4 };
    age < YOUNG || age < most && settled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_counted_anew_when_it_may_have_become_full() {
        let mib = 1 << 20;
        let ago = |secs: u64| Instant::now().checked_sub(Duration::from_secs(secs)).unwrap();
        let counted = |secs, used: u64| Counted { when: ago(secs), used: used * mib, host_free: 5000 * mib };
        let size = 1000 * mib;
        assert!(is_fresh(counted(14, 600), size, 5000 * mib), "it is more than half full");
        assert!(!is_fresh(counted(16, 600), size, 5000 * mib));
        assert!(is_fresh(counted(1, 990), size, 0), "it was counted just now");
        assert!(is_fresh(counted(30, 100), size, 5000 * mib));
        assert!(!is_fresh(counted(61, 100), size, 5000 * mib));
        assert!(!is_fresh(counted(5, 900), size, 5000 * mib), "it was nearly full");
        assert!(is_fresh(counted(5, 100), size, 4600 * mib) && !is_fresh(counted(5, 100), size, 4500 * mib));
        assert!(is_fresh(counted(5, 5000), 0, 0), "without a size there is nothing to keep");
    }
}
