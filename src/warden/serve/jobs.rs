//! Workers under way: what each is for, and who hears of it.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::event::epoll;

use super::{RUBBISH_AGE, Source, Warden};
use crate::{
    failpoint::{self, Step},
    id::{BuildId, SandboxId},
    warden::{
        cgroup::Cgroups,
        image::{self, ImageError},
        machine::room,
        overrun, rubbish, storage,
        worker::{Report, Reporter, Worker},
    },
    wire::warden::{Cause, Event, Reply},
};

/// Between a worker that died over the rubbish and the next one: it may die of it again.
const PAUSE: Duration = Duration::from_secs(2);

/// A worker and its purpose.
#[derive(Debug)]
pub(super) struct Job {
    worker: Worker,
    purpose: Purpose,
    /// Requests that its outcome answers.
    seqs: Vec<u64>,
    outcome: Option<Report>,
}

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Build the `base` template.
    Base,
    /// Remove an image.
    RemoveImage(BuildId),
    /// Make an image of a sandbox.
    Seal {
        /// Whose layers are copied.
        sandbox: SandboxId,
        /// What is made of them.
        build: BuildId,
    },
    /// Bring an image to the disk: what it was made of is copied.
    Settle(BuildId),
    /// Make one image of a snapshot and those below it.
    Squash(BuildId),
    /// Remove what was left of that.
    ForgetFormer(BuildId),
    /// Hold an image against its record.
    Check(BuildId),
    /// Nothing any more: it was to make this image, and was told to end.
    GivenUp(BuildId),
    /// Remove what is left of images that were not made.
    ClearDrafts,
    /// Look at the host.
    Probe,
    /// Have memory of a machine back.
    Reclaim(SandboxId),
    /// Nothing any more: it was to have memory back of a machine that has ended meanwhile.
    Abandoned,
    /// Count a machine's bytes on disk.
    Measure(SandboxId),
    /// Remove the directories of ended machines.
    Rubbish,
}

// === impl Purpose ===

impl Purpose {
    /// The image that comes or goes.
    pub(super) fn build(&self) -> Option<BuildId> {
        match self {
            Self::Seal { build, .. }
            | Self::Settle(build)
            | Self::GivenUp(build)
            | Self::RemoveImage(build) => Some(*build),
            _ => None,
        }
    }
}

// === impl Job ===

impl Job {
    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Ends the worker if it makes an image of the sandbox, or takes its memory; who waited for that
    /// comes back. It is reaped when the last process of it has ended, which a write to the disk may put off.
    pub(super) fn give_up(&mut self, sandbox: SandboxId) -> Option<Vec<u64>> {
        self.purpose = match self.purpose {
            Purpose::Seal { sandbox: of, build } if of == sandbox => Purpose::GivenUp(build),
            Purpose::Reclaim(of) if of == sandbox => Purpose::Abandoned,
            _ => return None,
        };
        self.worker.kill();
        Some(std::mem::take(&mut self.seqs))
    }
}

impl Warden<'_> {
    /// Sends a worker; its outcome answers the requests.
    pub(super) fn send_worker(
        &mut self,
        seqs: Vec<u64>,
        purpose: Purpose,
        work: impl FnOnce(&mut Reporter) -> Report,
    ) {
        let sent = Worker::spawn(work).and_then(|worker| {
            let token = self.watch.add(worker.as_fd(), epoll::EventFlags::IN, Source::Job)?;
            Ok((token, worker))
        });
        match sent {
            Ok((token, worker)) => {
                self.jobs.insert(token, Job { worker, purpose, seqs, outcome: None });
            }
            Err(error) => {
                let failed = Report::Failed(format!("start a worker: {error}"));
                if let Purpose::Seal { .. } = purpose {
                    self.note_images(purpose, &failed);
                }
                for seq in seqs {
                    self.refuse(seq, format!("start a worker: {error}"), Cause::Host);
                }
            }
        }
    }

    /// Lets a request wait for a worker that does the same already.
    pub(super) fn join_job(&mut self, seq: u64, purpose: &Purpose) -> bool {
        let found = self.jobs.values_mut().find(|job| job.purpose == *purpose);
        found.map(|job| job.seqs.push(seq)).is_some()
    }

    pub(super) fn has_job(&self, wanted: impl Fn(&Purpose) -> bool) -> bool {
        self.jobs.values().any(|job| wanted(&job.purpose))
    }

    pub(super) fn is_sweeping(&self) -> bool {
        self.jobs.values().any(|job| job.purpose == Purpose::Rubbish)
    }

    pub(super) fn heard_from_job(&mut self, token: u64) {
        let Some(job) = self.jobs.get_mut(&token) else { return };
        let (reports, ended) = job.worker.listen();
        let mut told = Vec::new();
        for report in reports {
            match report {
                Report::Progress(text) => {
                    told.extend(job.seqs.iter().map(|seq| Event::Progress { seq: *seq, text: text.clone() }));
                }
                Report::Copied => {
                    if let Purpose::Seal { build, .. } = job.purpose {
                        job.purpose = Purpose::Settle(build);
                    }
                    told.extend(job.seqs.iter().map(|seq| Event::Copied { seq: *seq }));
                }
                last => job.outcome = Some(last),
            }
        }
        for event in told {
            self.tell(event);
        }
        if ended && let Some(job) = self.jobs.remove(&token) {
            self.watch.forget(token, job.worker.as_fd());
            self.job_ended(job);
        }
    }

    fn job_ended(&mut self, job: Job) {
        if job.outcome.is_none() && self.closing.is_none() {
            self.worker_broke(job.purpose);
        }
        let outcome = job.outcome.unwrap_or_else(|| Report::Failed("the worker ended early".to_owned()));
        if let Purpose::Measure(sandbox) = job.purpose {
            let used = if let Report::Bytes { used, ended } = outcome {
                self.writers_ended(sandbox, ended);
                Some(used)
            } else {
                None
            };
            self.disk_measured(sandbox, used);
            return job.seqs.into_iter().for_each(|seq| self.answer_stats(seq, sandbox));
        }
        self.note_images(job.purpose, &outcome);
        // One that was told to end has failed nobody.
        let expected = matches!(job.purpose, Purpose::GivenUp(_) | Purpose::Abandoned);
        if let Report::Failed(reason) = &outcome
            && !expected
        {
            tracing::warn!(purpose = ?job.purpose, %reason, "a worker failed");
        }
        for seq in job.seqs {
            match &outcome {
                Report::Image(info) => self.answer(seq, Reply::Image(info.clone())),
                Report::Reclaimed(bytes) => self.answer(seq, Reply::Reclaimed { bytes: *bytes }),
                Report::Probes(probes) => self.answer(seq, Reply::Probes { probes: probes.clone() }),
                Report::Full(reason) => self.refuse(seq, reason.clone(), Cause::DiskFull),
                Report::Failed(reason) => self.refuse(seq, reason.clone(), Cause::Host),
                _ => self.answer(seq, Reply::Done),
            }
        }
    }

    /// A worker died in the middle: what it left is another one's to remove.
    fn worker_broke(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Base
            | Purpose::Seal { .. }
            | Purpose::Settle(_)
            | Purpose::Squash(_)
            | Purpose::GivenUp(_)
            | Purpose::RemoveImage(_) => self.clear_drafts(),
            Purpose::Rubbish => drop(self.rubbish.get_or_insert_with(|| Instant::now() + PAUSE)),
            _ => {}
        }
    }

    /// Keeps what is known of images true.
    fn note_images(&mut self, purpose: Purpose, outcome: &Report) {
        match (purpose, outcome) {
            // One that failed may have taken its name all the same.
            (Purpose::RemoveImage(build), _) if !self.is_there(build) => {
                self.parents.remove(&build);
                self.checked.remove(&build);
            }
            (Purpose::Squash(build), outcome) => self.squashed(build, outcome),
            // One that could not be removed is found by the next warden.
            (Purpose::ForgetFormer(build), _) => drop(self.formers.remove(&build)),
            (Purpose::Check(build), Report::Image(_)) => drop(self.checked.insert(build)),
            (Purpose::Check(build), Report::Failed(reason)) => self.refuse_creates_on(build, reason),
            // One that was made just before it was given up is there, and nobody knows of it.
            (Purpose::GivenUp(build), Report::Image(_)) => {
                self.send_remover(Vec::new(), build);
            }
            (Purpose::Seal { build, .. } | Purpose::Settle(build), Report::Image(_)) => {
                let parent = image::parent(self.prepared.templates.as_fd(), build).ok().flatten();
                self.parents.extend(parent.map(|parent| (build, parent)));
                self.checked.insert(build);
                if self.lineage(build).len() > image::TALL {
                    self.tall.insert(build);
                }
            }
            // One that died after it had given the image its name leaves an image on its parent.
            (Purpose::Seal { build, .. } | Purpose::Settle(build) | Purpose::GivenUp(build), _)
                if !self.is_there(build) =>
            {
                self.parents.remove(&build);
            }
            _ => {}
        }
    }

    fn is_there(&self, build: BuildId) -> bool {
        !matches!(image::info(self.prepared.templates.as_fd(), build), Err(ImageError::Missing(_)))
    }

    pub(super) fn measure_disk(&mut self, seq: u64, sandbox: SandboxId) {
        if self.join_job(seq, &Purpose::Measure(sandbox)) {
            return;
        }
        let Some(machine) = self.machines.get(&sandbox) else { return self.no_machine(seq, sandbox) };
        let size = machine.record.disk_size();
        let (prepared, instance) = (self.prepared, self.instance);
        self.send_worker(vec![seq], Purpose::Measure(sandbox), move |_| {
            let room = room::open(prepared.machines.as_fd(), sandbox.as_str());
            match room.and_then(|room| room::disk(room.as_fd())) {
                Ok(disk) => {
                    let used = storage::measure(disk.as_fd());
                    let over = overrun::is_over(size, used) && !storage::is_limited(disk.as_fd());
                    let end = || overrun::end_writers(&Cgroups::detect(instance), instance, sandbox.as_str());
                    let ended = if over { end() } else { 0 };
                    Report::Bytes { used, ended }
                }
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }

    /// Some of a machine's processes were ended because they wrote too much.
    fn writers_ended(&mut self, sandbox: SandboxId, count: u64) {
        if count > 0
            && let Some(machine) = self.machines.get_mut(&sandbox)
        {
            machine.writers_ended += count;
            tracing::warn!(sandbox.id = %sandbox, count, "its disk is far over its size: what wrote to it was ended");
        }
    }

    /// Sends a worker for what ended machines left, one at a time.
    pub(super) fn collect_rubbish(&mut self) {
        let ripe = self.rubbish.is_some_and(|since| self.closing.is_some() || since.elapsed() >= RUBBISH_AGE);
        if !ripe || self.is_sweeping() {
            return;
        }
        self.rubbish = None;
        let prepared = self.prepared;
        self.send_worker(Vec::new(), Purpose::Rubbish, move |_| {
            failpoint::reach(Step::RubbishBegun);
            match room::trash(prepared.machines.as_fd()).and_then(|trash| rubbish::empty(trash.as_fd())) {
                Ok(()) => Report::Done,
                Err(error) => Report::Failed(error.to_string()),
            }
        });
    }
}
