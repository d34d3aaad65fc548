//! From a request to a live machine, or to nothing.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::epoll,
    fs::{AtFlags, Gid, Mode, Uid},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use uuid::Uuid;

use super::{Source, Warden};
use crate::{
    failpoint::{self, Step},
    id::{Entropy, OsEntropy, SandboxId},
    warden::{
        cgroup::{Handles, Limits},
        image::{self, ImageError, ImageLayers},
        launch::{LaunchMount, LaunchPlan, Launched, Launching, StatsFiles},
        machine::{Counted, Ending, Machine, Phase, Record, Starting, record, room},
        prepare::proc_path,
        slot::Slot,
    },
    wire::warden::{Cause, CreateMachine, Reply},
};

/// Launches at once; the others wait in the order of their coming.
const AT_ONCE: usize = 16;
/// Creates that may wait.
const WAITING: usize = 4096;
/// Connections to a guest that it has not accepted yet.
const BACKLOG: i32 = 1024;
/// Sizes that a machine may have.
const CPUS: std::ops::RangeInclusive<u32> = 1..=256;
const MEMORY_MB: std::ops::RangeInclusive<u32> = 16..=4 * 1024 * 1024;
const LONGEST_HOSTNAME: usize = 63;

/// Why a create came to nothing.
#[derive(Debug)]
struct Refusal {
    cause: Cause,
    reason: String,
}

/// What a launch needs open; the machine keeps none of it.
struct Parts {
    disk: OwnedFd,
    handles: Handles,
    listener: OwnedFd,
}

impl Warden<'_> {
    /// Takes a create: checks it, and begins or queues it.
    pub(super) fn create(&mut self, seq: u64, spec: CreateMachine) {
        if let Err(reason) = check(&spec) {
            return self.refuse(seq, reason.to_owned(), Cause::Invalid);
        }
        let known = self.machines.contains(&spec.sandbox)
            || self.queue.iter().any(|(_, queued)| queued.sandbox == spec.sandbox);
        if known {
            let reason = format!("sandbox {} has a machine already", spec.sandbox);
            return self.refuse(seq, reason, Cause::Invalid);
        }
        if self.is_sealing(spec.sandbox) {
            return self.refuse(seq, "an image is being made of its disk".to_owned(), Cause::Invalid);
        }
        if self.queue.len() >= WAITING {
            return self.refuse(seq, "too many machines wait to be made".to_owned(), Cause::Capacity);
        }
        self.queue.push_back((seq, spec));
    }

    /// Begins creates that wait, as far as launches may run at once.
    pub(super) fn begin_waiting(&mut self) {
        let mut starting =
            self.machines.moving().filter(|(_, machine)| matches!(machine.phase, Phase::Starting(_))).count();
        let mut at = 0;
        while starting < AT_ONCE
            && let Some((_, spec)) = self.queue.get(at)
        {
            // It keeps its place until what it is made of has been looked at.
            if let Some(build) = self.unchecked(spec.build) {
                self.look_through(build);
                at += 1;
                continue;
            }
            let Some((seq, spec)) = self.queue.remove(at) else { break };
            match self.begin(seq, &spec) {
                Ok(()) => starting += 1,
                Err(Refusal { cause, reason }) => {
                    tracing::warn!(sandbox.id = %spec.sandbox, %reason, "no machine was made");
                    self.refuse(seq, reason, cause);
                }
            }
        }
    }

    /// Takes what a machine needs and starts its launch. On failure nothing is left.
    fn begin(&mut self, seq: u64, spec: &CreateMachine) -> Result<(), Refusal> {
        let layers = image::resolve(self.prepared.templates.as_fd(), spec.build)?;
        if self.is_leaving(&layers.builds) {
            return Err(ImageError::Missing(spec.build).into());
        }
        let Some(slot) = self.slots.take() else {
            let reason = "every slot of this server has a sandbox".to_owned();
            return Err(Refusal { cause: Cause::Capacity, reason });
        };
        let slot = slot.map_err(|error| Refusal::host("make a slot", &error))?;
        let record = Record {
            sandbox: spec.sandbox,
            generation: spec.generation,
            build: spec.build,
            slot: slot.index,
            pid: 0,
            start_time: 0,
            boot_id: self.boot_id.clone(),
            disk_mb: spec.resources.disk_mb,
            lineage: layers.builds.clone(),
        };
        let begun = self
            .assemble(&record, spec, &layers, &slot)
            .and_then(|launching| self.watch_launch(spec.sandbox, launching));
        match begun {
            Ok((launching, token)) => {
                let keep_disk = spec.kept_disk;
                let starting = Starting { create: seq, launching, token, stops: Vec::new(), keep_disk };
                self.machines.insert(spec.sandbox, Machine::new(record, Phase::Starting(starting)));
                Ok(())
            }
            Err(refusal) => {
                self.give_up(record);
                Err(refusal)
            }
        }
    }

    /// Undoes a create that never got a process. Cgroups that are busy all the same end later.
    fn give_up(&mut self, record: Record) {
        let ending = Ending { exited: true, unborn: true, ..Ending::default() };
        let sandbox = record.sandbox;
        self.machines.insert(sandbox, Machine::new(record, Phase::Ending(ending)));
        self.finish_ending(sandbox);
    }

    fn assemble(
        &self,
        record: &Record,
        spec: &CreateMachine,
        layers: &ImageLayers,
        slot: &Slot,
    ) -> Result<Launching, Refusal> {
        let name = record.name();
        let disk = self.room(name, layers.mounts.len(), spec).and_then(|room| {
            room::disk(room.as_fd()).map_err(|error| Refusal::host("open the disk", &error))
        })?;
        failpoint::reach(Step::MachineRoom);
        let handles = self
            .cgroups
            .make(name, &Limits::from(&spec.resources))
            .map_err(|error| Refusal::host("make the machine's cgroups", &error))?;
        failpoint::reach(Step::MachineGroups);
        let listener =
            self.listen(&record.socket()).map_err(|error| Refusal::host("make the link's socket", &error))?;
        failpoint::reach(Step::MachineSocket);
        self.launch(spec, slot, layers, &Parts { disk, handles, listener })
    }

    /// The directory with the layers that the machine writes to.
    fn room(&self, name: &str, mounts: usize, spec: &CreateMachine) -> Result<OwnedFd, Refusal> {
        let machines = self.prepared.machines.as_fd();
        if spec.kept_disk {
            let room = room::kept(machines, name, mounts, spec.build)
                .map_err(|error| Refusal::host("open the kept layer", &error))?;
            return room.ok_or_else(|| Refusal {
                cause: Cause::NoDisk,
                reason: "no writable layer of it on that build was kept".to_owned(),
            });
        }
        let size = Some(u64::from(spec.resources.disk_mb) << 20);
        room::make(machines, name, mounts, self.prepared.driver, size)
            .map_err(|error| Refusal::host("make the machine's directory", &error))
    }

    fn launch(
        &self,
        spec: &CreateMachine,
        slot: &Slot,
        layers: &ImageLayers,
        parts: &Parts,
    ) -> Result<Launching, Refusal> {
        let names: Vec<(String, String)> = (0..layers.mounts.len())
            .map(|mount| (room::layer("upper", mount), room::layer("work", mount)))
            .collect();
        let mounts: Vec<LaunchMount<'_>> = layers
            .mounts
            .iter()
            .zip(&names)
            .map(|(mount, (upper, work))| LaunchMount { at: mount.at, lowers: &mount.lowers, upper, work })
            .collect();
        let handles = &parts.handles;
        let plan = LaunchPlan {
            sandbox: spec.sandbox,
            slot,
            disk: parts.disk.as_fd(),
            mounts: &mounts,
            guest: self.guest.as_fd(),
            listener: parts.listener.as_fd(),
            guest_cgroups: &handles.guest.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
            work_cgroups: &handles.work.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
            stats: StatsFiles {
                memory_current: handles.memory_current.as_ref().map(AsFd::as_fd),
                memory_stat: handles.memory_stat.as_ref().map(AsFd::as_fd),
                cpu_usage: handles.cpu_usage.as_ref().map(AsFd::as_fd),
                v2: handles.v2,
            },
            hostname: &spec.hostname,
            boot_id: run_id(),
            resources: spec.resources,
        };
        self.launcher.start(&plan).map_err(|error| Refusal::host("launch the machine", &error))
    }

    fn watch_launch(
        &mut self,
        sandbox: SandboxId,
        launching: Launching,
    ) -> Result<(Launching, u64), Refusal> {
        failpoint::reach(Step::MachineLaunching);
        // A launching that is dropped ends its stager.
        let token = self
            .watch
            .add(launching.as_fd(), epoll::EventFlags::IN, Source::Launch(sandbox))
            .map_err(|error| Refusal::host("watch the launch", &error))?;
        Ok((launching, token))
    }

    /// The link's socket: bound in the run directory, for the gateway's group only.
    fn listen(&self, name: &str) -> io::Result<OwnedFd> {
        let run = self.prepared.run.as_fd();
        let _ = rustix::fs::unlinkat(run, name, AtFlags::empty());
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(format!("{}/{name}", proc_path(run)))?)?;
        let group = Gid::from_raw(self.prepared.gateway_gid());
        rustix::fs::chownat(run, name, Some(Uid::ROOT), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(run, name, Mode::from_raw_mode(0o660), AtFlags::empty())?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// A stager has come to its end.
    pub(super) fn launched(&mut self, sandbox: SandboxId) {
        let Some(machine) = self.machines.get_mut(&sandbox) else { return };
        let ending = Phase::Ending(Ending { exited: true, ..Ending::default() });
        let Phase::Starting(starting) = std::mem::replace(&mut machine.phase, ending) else { return };
        self.watch.forget(starting.token, starting.launching.as_fd());
        let Starting { create, launching, stops, keep_disk, .. } = starting;
        let outcome =
            launching.finish().map_err(|error| (Refusal::host("launch the machine", &error), None)).and_then(
                |launched| self.settle_in(sandbox, launched).map_err(|(refusal, p)| (refusal, Some(p))),
            );
        let host_free = self.host_free();
        match outcome {
            Ok(()) if stops.is_empty() => {
                if let Some(machine) = self.machines.get_mut(&sandbox) {
                    machine.phase = Phase::Live { settling: None };
                    // Nothing is in a new layer: the first count can wait.
                    machine.disk = Some(Counted { when: Instant::now(), used: 0, host_free });
                    let info = machine.info();
                    self.answer(create, Reply::Machine(info));
                }
            }
            Ok(()) => {
                let why = ("it was ended while it was made".to_owned(), Cause::Host);
                self.end(
                    sandbox,
                    Ending { stops, create: Some((create, why.0, why.1)), keep_disk, ..Ending::default() },
                );
            }
            Err((Refusal { cause, reason }, process)) => {
                tracing::warn!(sandbox.id = %sandbox, %reason, "no machine was made");
                let exited = process.is_none();
                if let (Some(process), Some(machine)) = (process, self.machines.get_mut(&sandbox)) {
                    machine.process = Some(process);
                }
                let create = Some((create, reason, cause));
                let unborn = stops.is_empty() || keep_disk;
                self.end(sandbox, Ending { stops, create, keep_disk, unborn, exited, ..Ending::default() });
            }
        }
    }

    /// Records a launched machine and watches it. The error carries what must still be ended.
    fn settle_in(&mut self, sandbox: SandboxId, launched: Launched) -> Result<(), (Refusal, (OwnedFd, u64))> {
        failpoint::reach(Step::MachineLaunched);
        let Launched { pid, pidfd, start_time } = launched;
        let token = match self.watch.add(pidfd.as_fd(), epoll::EventFlags::IN, Source::Process(sandbox)) {
            Ok(token) => token,
            Err(error) => return Err((Refusal::host("watch the machine", &error), (pidfd, u64::MAX))),
        };
        let Some(machine) = self.machines.get_mut(&sandbox) else {
            let error = io::Error::other("it is not known");
            return Err((Refusal::host("record the machine", &error), (pidfd, token)));
        };
        machine.record.pid = pid;
        machine.record.start_time = start_time;
        let recorded = room::open(self.prepared.machines.as_fd(), machine.record.name())
            .and_then(|room| record::write(room.as_fd(), &machine.record));
        if let Err(error) = recorded {
            return Err((Refusal::host("record the machine", &error), (pidfd, token)));
        }
        failpoint::reach(Step::MachineRecorded);
        machine.process = Some((pidfd, token));
        self.watch_groups(sandbox);
        Ok(())
    }

    /// Watches the machine's cgroup, where the host can report on it.
    pub(super) fn watch_groups(&mut self, sandbox: SandboxId) {
        let Some(machine) = self.machines.get_mut(&sandbox) else { return };
        machine.groups = self.cgroups.events(machine.record.name()).and_then(|groups| {
            let token =
                self.watch.add(groups.as_fd(), epoll::EventFlags::PRI, Source::Groups(sandbox)).ok()?;
            Some((groups, token))
        });
    }
}

// === impl Refusal ===

impl Refusal {
    fn host(step: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        let full = causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(image::is_full));
        let cause = if full { Cause::DiskFull } else { Cause::Host };
        Self { cause, reason: format!("{step}: {error}") }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        Self { cause: Cause::NoImage, reason: error.to_string() }
    }
}

fn check(spec: &CreateMachine) -> Result<(), &'static str> {
    let hostname = spec.hostname.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if !CPUS.contains(&spec.resources.cpu_count) {
        return Err("the number of CPUs is out of range");
    }
    if !MEMORY_MB.contains(&spec.resources.memory_mb) {
        return Err("the memory is out of range");
    }
    if hostname.is_empty() || hostname.len() > LONGEST_HOSTNAME || !hostname.iter().all(plain) {
        return Err("the host name is not one");
    }
    Ok(())
}

fn run_id() -> Uuid {
    let mut bytes = [0; 16];
    OsEntropy.fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
