//! Images as the warden keeps them: made of sandboxes, listed, removed when nothing lies on them.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
};

use super::{Warden, jobs::Purpose};
use crate::{
    id::{BuildId, SandboxId},
    warden::{
        image::{self, seal, squash},
        machine::{Phase, record, room},
        worker::{self, Report},
    },
    wire::warden::{Cause, ImageKind, Reply},
};

/// Images of one answer: their text stays well below the size of a packet.
const PAGE: usize = 200;
/// Snapshots that are looked at at the same time.
const CHECKS: usize = 2;

impl Warden<'_> {
    pub(super) fn list_images(&mut self, seq: u64, after: Option<BuildId>) {
        match image::list(self.prepared.templates.as_fd(), after, PAGE) {
            Ok(images) => self.answer(seq, Reply::Images { images }),
            Err(error) => self.refuse(seq, error.to_string(), Cause::Host),
        }
    }

    /// Makes an image of a sandbox that stands still.
    pub(super) fn seal(&mut self, seq: u64, sandbox: SandboxId, build: BuildId) {
        if self.is_sealing(sandbox) {
            return self.refuse(seq, "an image is being made of it already".to_owned(), Cause::Invalid);
        }
        let known = self.has_job(|purpose| purpose.build() == Some(build))
            || image::info(self.prepared.templates.as_fd(), build).is_ok();
        if known {
            return self.refuse(seq, format!("build {build} is there already"), Cause::Invalid);
        }
        let (room, parent) = match self.still(sandbox) {
            Ok(Some(found)) => found,
            Ok(None) => return self.no_machine(seq, sandbox),
            Err(reason) => return self.refuse(seq, reason.to_owned(), Cause::Invalid),
        };
        let prepared = self.prepared;
        // From now on: the sandbox may be gone before the image is there.
        self.parents.insert(build, parent);
        self.send_worker(vec![seq], Purpose::Seal { sandbox, build }, move |reporter| {
            // Somebody waits for it, with a machine that stands still.
            worker::hurry();
            let copied = || reporter.say(&Report::Copied);
            match seal::seal(prepared.templates.as_fd(), room.as_fd(), parent, build, copied) {
                Ok(info) => Report::Image(info),
                Err(error) if error.is_full() => Report::Full(error.to_string()),
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    /// The directory of a sandbox that nothing writes to, and the build that it lies on.
    fn still(&self, sandbox: SandboxId) -> Result<Option<(OwnedFd, BuildId)>, &'static str> {
        if self.queue.iter().any(|(_, queued)| queued.sandbox == sandbox) {
            return Err("its machine is being made");
        }
        let Ok(room) = room::open(self.prepared.machines.as_fd(), sandbox.as_str()) else {
            return Ok(None);
        };
        let build = match self.machines.get(&sandbox) {
            None => record::read_kept(room.as_fd()).map(|record| record.build),
            Some(machine) => match machine.phase {
                Phase::Live { settling: None } if machine.frozen => Some(machine.record.build),
                Phase::Live { .. } => return Err("its machine is not frozen"),
                Phase::Starting(_) => return Err("its machine is being made"),
                Phase::Ending(_) => None,
            },
        };
        Ok(build.map(|build| (room, build)))
    }

    /// Whether an image is being made of the sandbox: its layers must stay as they are.
    pub(super) fn is_sealing(&self, sandbox: SandboxId) -> bool {
        self.has_job(|purpose| matches!(purpose, Purpose::Seal { sandbox: of, .. } if *of == sandbox))
    }

    /// Gives up making an image of a sandbox that is ended, and taking its memory.
    pub(super) fn stop_sealing(&mut self, sandbox: SandboxId) {
        let seqs: Vec<u64> =
            self.jobs.values_mut().filter_map(|job| job.give_up(sandbox)).flatten().collect();
        for seq in seqs {
            self.refuse(seq, "the sandbox was ended".to_owned(), Cause::NoMachine);
        }
    }

    /// What an image is, if it is whole: a snapshot is held against its record.
    pub(super) fn check_image(&mut self, seq: u64, build: BuildId) {
        let info = match image::info(self.prepared.templates.as_fd(), build) {
            Ok(info) => info,
            Err(error) => return self.refuse(seq, error.to_string(), Cause::NoImage),
        };
        if info.kind != ImageKind::Snapshot {
            return self.answer(seq, Reply::Image(info));
        }
        if !self.join_job(seq, &Purpose::Check(build)) {
            self.send_checker(vec![seq], build);
        }
    }

    /// The first of a build and those that it lies on that has not been looked at by this warden.
    pub(super) fn unchecked(&self, build: BuildId) -> Option<BuildId> {
        let below = |build: &BuildId| self.parents.get(build).copied();
        // Only snapshots lie on something.
        let mut snapshots = std::iter::successors(Some(build), below)
            .take(image::DEEPEST)
            .filter(|build| self.parents.contains_key(build));
        snapshots.find(|build| !self.checked.contains(build))
    }

    /// Looks at a snapshot that a machine waits for, if no worker does so and one can.
    pub(super) fn look_through(&mut self, build: BuildId) {
        let mut busy = 0;
        for job in self.jobs.values() {
            match job.purpose() {
                Purpose::Check(of) if of == build => return,
                Purpose::Check(_) => busy += 1,
                _ => {}
            }
        }
        if busy < CHECKS {
            self.send_checker(Vec::new(), build);
        }
    }

    fn send_checker(&mut self, seqs: Vec<u64>, build: BuildId) {
        let prepared = self.prepared;
        self.send_worker(seqs, Purpose::Check(build), move |_| {
            worker::hurry();
            let templates = prepared.templates.as_fd();
            match seal::check(templates, build).and_then(|()| image::info(templates, build)) {
                Ok(info) => Report::Image(info),
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    /// No machine is made of a snapshot that is not what it was.
    pub(super) fn refuse_creates_on(&mut self, build: BuildId, reason: &str) {
        let queue = std::mem::take(&mut self.queue);
        let (waiting, others): (VecDeque<_>, VecDeque<_>) =
            queue.into_iter().partition(|(_, spec)| self.lies_on(spec.build, build));
        self.queue = others;
        for (seq, _) in waiting {
            self.refuse(seq, reason.to_owned(), Cause::NoImage);
        }
    }

    fn lies_on(&self, build: BuildId, below: BuildId) -> bool {
        std::iter::successors(Some(build), |build| self.parents.get(build).copied())
            .take(image::DEEPEST)
            .any(|build| build == below)
    }

    /// A build and those that it lies on.
    pub(super) fn lineage(&self, build: BuildId) -> Vec<BuildId> {
        let below = |build: &BuildId| self.parents.get(build).copied();
        std::iter::successors(Some(build), below).take(image::DEEPEST + 1).collect()
    }

    /// Makes tall piles of images low, one at a time, and removes what that has left.
    pub(super) fn tidy_images(&mut self) {
        let busy = |purpose: &Purpose| matches!(purpose, Purpose::Squash(_) | Purpose::ForgetFormer(_));
        if self.closing.is_some() || self.has_job(busy) {
            return;
        }
        let prepared = self.prepared;
        if let Some(build) = self.free_former() {
            return self.send_worker(
                Vec::new(),
                Purpose::ForgetFormer(build),
                move |_| match squash::forget(prepared.templates.as_fd(), build) {
                    Ok(()) => Report::Done,
                    Err(error) => Report::Failed(error.to_string()),
                },
            );
        }
        let ready = self.tall.iter().copied().find(|build| !self.formers.contains(build));
        let Some(build) = ready else { return };
        self.tall.remove(&build);
        if self.is_leaving(&[build]) {
            return;
        }
        self.send_worker(Vec::new(), Purpose::Squash(build), move |_| {
            match squash::squash(prepared.templates.as_fd(), build) {
                Ok(Some(ground)) => Report::Squashed(ground),
                Ok(None) => Report::Done,
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    pub(super) fn squashed(&mut self, build: BuildId, outcome: &Report) {
        // Also of one that failed: it may have failed behind the exchange.
        self.formers.insert(build);
        if let Report::Squashed(ground) = outcome {
            tracing::info!(build.id = %build, "a tall pile of snapshots was made one");
            self.parents.insert(build, *ground);
            self.checked.insert(build);
        } else {
            let parent = image::parent(self.prepared.templates.as_fd(), build).ok().flatten();
            self.parents.extend(parent.map(|parent| (build, parent)));
        }
    }

    /// A build whose former image nothing can be looking at: no machine was mounted from what it was, and
    /// no worker reads images.
    fn free_former(&self) -> Option<BuildId> {
        let reading = |purpose: &Purpose| matches!(purpose, Purpose::Seal { .. } | Purpose::Check(_));
        if self.formers.is_empty() || self.has_job(reading) {
            return None;
        }
        let mounted = |build: &BuildId| {
            self.machines.values().any(|machine| {
                let mut lineage = machine.record.lineage.iter().skip_while(|of| *of != build);
                // On what it lies now: made after the exchange.
                lineage.next().is_some() && lineage.next() != self.parents.get(build)
            })
        };
        self.formers.iter().copied().find(|build| !mounted(build))
    }

    /// Removes what workers left that did not come to their end.
    pub(super) fn clear_drafts(&mut self) {
        let prepared = self.prepared;
        self.send_worker(Vec::new(), Purpose::ClearDrafts, move |_| {
            match image::clear_drafts(prepared.templates.as_fd()) {
                Ok(()) => Report::Done,
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    /// Removes an image if nothing lies on it.
    pub(super) fn remove_image(&mut self, seq: u64, build: BuildId) {
        if let Some(user) = self.user_of(build) {
            return self.refuse(seq, format!("{user} uses build {build}"), Cause::InUse);
        }
        if self.join_job(seq, &Purpose::RemoveImage(build)) {
            return;
        }
        self.send_remover(vec![seq], build);
    }

    pub(super) fn send_remover(&mut self, seqs: Vec<u64>, build: BuildId) {
        let prepared = self.prepared;
        self.send_worker(seqs, Purpose::RemoveImage(build), move |_| {
            match image::remove(prepared.templates.as_fd(), build) {
                Ok(()) => Report::Done,
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    /// Whether one of these is on its way out: nothing new may be put on it.
    pub(super) fn is_leaving(&self, builds: &[BuildId]) -> bool {
        self.has_job(|purpose| matches!(purpose, Purpose::RemoveImage(build) if builds.contains(build)))
    }

    /// What keeps an image from being removed.
    fn user_of(&self, build: BuildId) -> Option<String> {
        let machine = |sandbox: &SandboxId| format!("the machine of {sandbox}");
        let live = self
            .machines
            .iter()
            .find(|(_, machine)| machine.record.build == build || machine.record.lineage.contains(&build));
        let queued = self.queue.iter().find(|(_, queued)| queued.build == build);
        live.map(|(sandbox, _)| machine(sandbox))
            .or_else(|| queued.map(|(_, queued)| machine(&queued.sandbox)))
            .or_else(|| {
                let child = self.parents.iter().find(|(_, parent)| **parent == build);
                child.map(|(child, _)| format!("image {child}"))
            })
            .or_else(|| {
                let made = |purpose: &Purpose| match purpose {
                    Purpose::Seal { build: of, .. } | Purpose::Settle(of) | Purpose::Squash(of) => {
                        *of == build
                    }
                    _ => false,
                };
                self.has_job(made).then(|| "the worker that makes it".to_owned())
            })
            .or_else(|| self.kept_on(build).map(|sandbox| format!("the kept disk of {sandbox}")))
    }

    fn kept_on(&self, build: BuildId) -> Option<SandboxId> {
        let machines = self.prepared.machines.as_fd();
        let names = room::names(machines).unwrap_or_default();
        names.iter().filter_map(|name| name.parse::<SandboxId>().ok()).find(|sandbox| {
            let room = room::open(machines, sandbox.as_str()).ok();
            room.and_then(|room| record::read_kept(room.as_fd())).is_some_and(|kept| kept.build == build)
        })
    }
}
