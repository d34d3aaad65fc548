//! What a new warden finds: live machines are adopted, everything else is ended.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{event::epoll, fs::AtFlags};

use super::{Source, Warden};
use crate::{
    failpoint::{self, Step},
    id::SandboxId,
    warden::{
        image::{self, squash},
        machine::{Machine, Phase, Record, record, room},
        slots::Slots,
    },
};

/// How long orphaned processes may take to die before the warden goes on without their end.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

impl Warden<'_> {
    /// Called once, before the first request.
    pub(super) fn recover(&mut self) -> io::Result<()> {
        let images =
            image::list(self.prepared.templates.as_fd(), None, usize::MAX).map_err(io::Error::other)?;
        self.formers =
            squash::formers(self.prepared.templates.as_fd()).map_err(io::Error::other)?.into_iter().collect();
        self.parents = images.iter().filter_map(|image| Some((image.build, image.parent?))).collect();
        let machines = self.prepared.machines.as_fd();
        room::trash(machines)?;
        // An earlier worker may have been interrupted.
        self.rubbish = Some(Instant::now());
        self.clear_drafts();
        for name in room::names(machines)? {
            let found = name.parse::<SandboxId>().ok().and_then(|sandbox| self.look_at(sandbox));
            match found {
                Some(Found::Live(record, process)) => self.adopt(record, process)?,
                Some(Found::Kept) => {}
                None => room::retire(machines, &name, 0)?,
            }
        }
        failpoint::reach(Step::SweepAdopted);
        self.end_orphans();
        failpoint::reach(Step::SweepEnded);
        self.remove_stale_sockets()?;
        let taken: Vec<u32> = self.machines.values().map(|machine| machine.record.slot).collect();
        self.slots = Slots::new(self.instance, &taken);
        Ok(())
    }

    fn look_at(&self, sandbox: SandboxId) -> Option<Found> {
        let room = room::open(self.prepared.machines.as_fd(), sandbox.as_str()).ok()?;
        if record::is_kept(room.as_fd()) {
            return Some(Found::Kept);
        }
        let record = record::read(room.as_fd()).filter(|record| record.sandbox == sandbox)?;
        if let Some(process) = record::find(&record, &self.boot_id, &self.cgroups, self.instance) {
            return Some(Found::Live(record, process));
        }
        // It ended while nobody looked, perhaps with the host: its disk is for its sandbox to decide on.
        record::keep(room.as_fd()).ok()?;
        Some(Found::Kept)
    }

    fn adopt(&mut self, mut record: Record, process: std::os::fd::OwnedFd) -> io::Result<()> {
        let sandbox = record.sandbox;
        if record.lineage.is_empty() {
            record.lineage = self.lineage(record.build);
        }
        let token = self.watch.add(process.as_fd(), epoll::EventFlags::IN, Source::Process(sandbox))?;
        let mut machine = Machine::new(record, Phase::Live { settling: None });
        machine.frozen = self.cgroups.frozen(machine.record.name());
        machine.process = Some((process, token));
        tracing::info!(sandbox.id = %sandbox, pid = machine.record.pid, "a live machine was found again");
        self.machines.insert(sandbox, machine);
        self.watch_groups(sandbox);
        Ok(())
    }

    /// Kills and removes cgroups that belong to no machine: of creates that were interrupted.
    fn end_orphans(&self) {
        let names = self.cgroups.names();
        let orphans = names
            .iter()
            .filter(|name| name.parse().is_ok_and(|sandbox: SandboxId| !self.machines.contains(&sandbox)));
        let deadline = Instant::now() + PATIENCE;
        for name in orphans {
            tracing::warn!(sandbox.id = %name, "an orphaned machine is ended");
            loop {
                if let Err(error) = self.cgroups.kill(name) {
                    tracing::warn!(sandbox.id = %name, %error, "its cgroup could not be killed");
                }
                if self.cgroups.remove(name) || Instant::now() > deadline {
                    break;
                }
                // Nobody waits for this warden yet, and v1 has no event for an empty group.
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn remove_stale_sockets(&self) -> io::Result<()> {
        let run = self.prepared.run.as_fd();
        for name in room::names(run)? {
            let used = self.machines.values().any(|machine| machine.record.socket() == name);
            if !used {
                let _ = rustix::fs::unlinkat(run, &name, AtFlags::empty());
            }
        }
        Ok(())
    }
}

/// What a machine's directory turned out to be.
enum Found {
    Live(Record, std::os::fd::OwnedFd),
    Kept,
}
