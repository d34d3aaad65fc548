//! From a live machine to nothing: the one place where what a machine holds is given back.

use std::{os::fd::AsFd, time::Instant};

use rustix::{
    fs::AtFlags,
    process::{Signal, WaitId, WaitIdOptions},
};

use super::Warden;
use crate::{
    failpoint::{self, Step},
    id::SandboxId,
    warden::machine::{Ending, Machine, Phase, record, room},
    wire::warden::{Cause, Event, Reply},
};

impl Warden<'_> {
    /// Ends a machine, whatever it is doing. `seq`: the request to answer when it is gone.
    pub(super) fn stop(&mut self, sandbox: SandboxId, seq: Option<u64>, keep_disk: bool) {
        self.stop_sealing(sandbox);
        if let Some(at) = self.queue.iter().position(|(_, queued)| queued.sandbox == sandbox)
            && let Some((create, _)) = self.queue.remove(at)
        {
            self.refuse(create, "it was ended before it was made".to_owned(), Cause::Host);
        }
        let Some(machine) = self.machines.get_mut(&sandbox) else {
            if !keep_disk {
                self.forget_kept(sandbox);
            }
            return seq.into_iter().for_each(|seq| self.answer(seq, Reply::Done));
        };
        match &mut machine.phase {
            // Its stager is ended here; `launched` comes with the end of its pipe.
            Phase::Starting(starting) => {
                starting.keep_disk &= keep_disk;
                starting.stops.extend(seq);
                if starting.stops.is_empty() {
                    starting.stops.push(0);
                }
            }
            Phase::Ending(ending) => {
                ending.stops.extend(seq);
                ending.keep_disk &= keep_disk;
            }
            Phase::Live { .. } => {
                let stops = seq.into_iter().collect();
                self.end(sandbox, Ending { stops, keep_disk, ..Ending::default() });
            }
        }
    }

    /// Pid 1 has ended: reap it if it is ours, and the rest follows.
    pub(super) fn exited(&mut self, sandbox: SandboxId) {
        let Some(machine) = self.machines.get_mut(&sandbox) else { return };
        if let Some((process, token)) = machine.process.take() {
            self.watch.forget(token, process.as_fd());
            // An adopted machine is init's child: then there is nothing to reap here.
            let _ = rustix::process::waitid(
                WaitId::PidFd(process.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
        }
        match &mut machine.phase {
            Phase::Ending(ending) => ending.exited = true,
            // Nobody asked for its end: whoever knows the sandbox decides about its disk.
            _ => {
                self.end(
                    sandbox,
                    Ending { notify: true, exited: true, keep_disk: true, ..Ending::default() },
                );
            }
        }
        self.finish_ending(sandbox);
    }

    /// Kills everything in a machine.
    pub(super) fn end(&mut self, sandbox: SandboxId, ending: Ending) {
        let Some(machine) = self.machines.get_mut(&sandbox) else { return };
        if let Phase::Live { settling: Some((seq, _)) } = machine.phase {
            self.refuse(seq, "the machine was ended".to_owned(), Cause::NoMachine);
        }
        if let Some(machine) = self.machines.get_mut(&sandbox) {
            machine.phase = Phase::Ending(ending);
        }
        self.kill(sandbox);
        failpoint::reach(Step::StopKilled);
        self.finish_ending(sandbox);
    }

    fn kill(&self, sandbox: SandboxId) {
        let Some(machine) = self.machines.get(&sandbox) else { return };
        if let Some((process, _)) = &machine.process {
            // It takes its whole pid namespace with it.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
        if let Err(error) = self.cgroups.kill(machine.record.name()) {
            tracing::warn!(sandbox.id = %sandbox, %error, "its cgroup could not be killed");
        }
    }

    /// Gives back what an ending machine holds, if none of its processes is left. True: done.
    pub(super) fn finish_ending(&mut self, sandbox: SandboxId) -> bool {
        let Some(Machine { phase: Phase::Ending(ending), record, .. }) = self.machines.get(&sandbox) else {
            return false;
        };
        let name = record.name();
        if !ending.exited || self.cgroups.populated(name) || !self.cgroups.remove(name) {
            return false;
        }
        failpoint::reach(Step::StopEmptied);
        let Some(machine) = self.machines.remove(&sandbox) else { return false };
        for (descriptor, token) in machine.process.iter().chain(&machine.groups) {
            self.watch.forget(*token, descriptor.as_fd());
        }
        let Phase::Ending(ending) = machine.phase else { return false };
        let record = machine.record;
        let _ = rustix::fs::unlinkat(self.prepared.run.as_fd(), record.socket(), AtFlags::empty());
        failpoint::reach(Step::StopClosed);
        if !(ending.unborn && self.is_kept(record.name())) {
            self.clear_room(record.name(), record.generation, ending.keep_disk);
        }
        failpoint::reach(Step::StopCleared);
        self.slots.give_back(record.slot);
        if ending.notify {
            self.tell(Event::MachineExited { sandbox, generation: record.generation });
        }
        if let Some((seq, reason, cause)) = ending.create {
            self.refuse(seq, reason, cause);
        }
        for seq in ending.stops.into_iter().filter(|seq| *seq != 0) {
            self.answer(seq, Reply::Done);
        }
        true
    }

    fn clear_room(&mut self, name: &str, generation: u64, keep_disk: bool) {
        let machines = self.prepared.machines.as_fd();
        let cleared = if keep_disk {
            room::open(machines, name).and_then(|room| record::keep(room.as_fd()))
        } else {
            self.rubbish.get_or_insert_with(Instant::now);
            room::retire(machines, name, generation)
        };
        if let Err(error) = cleared {
            tracing::warn!(sandbox.id = name, %error, "its directory stays until the next start");
        }
    }

    pub(super) fn is_kept(&self, name: &str) -> bool {
        room::open(self.prepared.machines.as_fd(), name).is_ok_and(|room| record::is_kept(room.as_fd()))
    }

    /// Removes the layer of a sandbox that has no machine, if one was kept.
    fn forget_kept(&mut self, sandbox: SandboxId) {
        if room::open(self.prepared.machines.as_fd(), sandbox.as_str()).is_ok() {
            self.clear_room(sandbox.as_str(), 0, false);
        }
    }

    /// Whether an ending waits for something that the host reports no event for.
    pub(super) fn has_endings(&self) -> bool {
        self.ending().next().is_some()
    }

    fn ending(&self) -> impl Iterator<Item = SandboxId> {
        self.machines
            .moving()
            .filter(|(_, machine)| matches!(&machine.phase, Phase::Ending(ending) if ending.exited))
            .map(|(sandbox, _)| *sandbox)
    }

    /// Looks again at all endings that wait. True: one is done.
    pub(super) fn finish_endings(&mut self) -> bool {
        let waiting: Vec<SandboxId> = self.ending().collect();
        let mut progress = false;
        for sandbox in waiting {
            if self.finish_ending(sandbox) {
                progress = true;
            } else {
                // Whoever joined the group after the first kill.
                self.kill(sandbox);
            }
        }
        progress
    }
}
