//! The warden's main loop: one thread, one poll set, one owner for every machine.
//!
//! Nothing in here waits: what takes time is a descriptor in the poll set (a stager's pipe, a
//! machine's process, its cgroup's events, a worker's pipe) or a retry at the next tick. Order within a
//! turn: what happened, then creates that wait, then endings that may now be finished, and last,
//! when there is nothing else to do, one more slot made ready.
//!
//! The loop ends when the gateway is gone or asked for it. Machines that were being made are
//! undone first; live ones stay, unless the request was to stop them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    os::fd::{BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

use self::jobs::Job;
use super::{
    Prepared,
    cgroup::Cgroups,
    dial::Home,
    instance::Instance,
    launch::Launcher,
    machine::{Machine, Machines, Phase},
    packet::{Received, Wire},
    slots::Slots,
};
use crate::{
    id::{BuildId, SandboxId},
    wire::warden::{Cause, CreateMachine, Event, FromWarden, Reply, Request},
};

mod calls;
mod create;
mod end;
mod images;
mod jobs;
mod sweep;

/// Requests read before the loop looks at anything else.
const BURST: usize = 64;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;
/// First (doubled before it is waited for) and longest pause between looks at what the host reports no
/// event for, or not at once: of a group's events it tells at most one in 10 ms.
const TICK: Duration = Duration::from_millis(1);
const LONGEST_TICK: Duration = Duration::from_millis(250);
/// How long a warden whose gateway is gone goes on undoing.
const LAST_WORK: Duration = Duration::from_secs(8);

/// How long rubbish lies before a worker is sent: one sweeps up after many machines.
const RUBBISH_AGE: Duration = Duration::from_millis(300);

/// The token of the gateway's socket.
const GATEWAY: u64 = 0;

/// What a descriptor in the poll set stands for.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// A stager has something to say.
    Launch(SandboxId),
    /// A machine's pid 1 has ended.
    Process(SandboxId),
    /// A machine is empty or frozen.
    Groups(SandboxId),
    /// A worker has something to say.
    Job,
}

/// The descriptors that are waited for.
#[derive(Debug)]
struct Watch {
    epoll: OwnedFd,
    next: u64,
    sources: HashMap<u64, Source>,
}

/// Why the loop is to end.
#[derive(Debug)]
struct Closing {
    /// The request to answer at the end, if there was one.
    answer: Option<u64>,
    deadline: Instant,
}

/// The root helper at work.
#[derive(Debug)]
pub(super) struct Warden<'a> {
    prepared: &'a Prepared,
    instance: Instance,
    cgroups: Cgroups,
    guest: OwnedFd,
    sudo: &'a [u8],
    boot_id: String,
    home: Home,
    launcher: Launcher,
    wire: Wire,
    watch: Watch,
    interest: epoll::EventFlags,
    machines: Machines,
    queue: VecDeque<(u64, CreateMachine)>,
    slots: Slots,
    /// Which image lies on which.
    parents: BTreeMap<BuildId, BuildId>,
    /// Snapshots that hold what they should, as far as is known: made or read whole by this warden.
    checked: BTreeSet<BuildId>,
    /// Snapshots that lie on too many others.
    tall: BTreeSet<BuildId>,
    /// Builds of which something is left that machines may be mounted from (`image::squash`).
    formers: BTreeSet<BuildId>,
    jobs: HashMap<u64, Job>,
    /// Since when something lies in the rubbish that no worker has been sent for.
    rubbish: Option<Instant>,
    tick: Duration,
    closing: Option<Closing>,
}

// === impl Warden ===

impl<'a> Warden<'a> {
    /// Takes over what earlier wardens of this data directory left: live machines are adopted,
    /// everything else is ended.
    pub(super) fn start(
        prepared: &'a Prepared,
        socket: OwnedFd,
        guest: OwnedFd,
        sudo: &'a [u8],
    ) -> io::Result<Self> {
        let instance = prepared.claim.instance;
        let cgroups = Cgroups::detect(instance);
        cgroups.establish()?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let wire = Wire::new(socket);
        let mut watch = Watch::new()?;
        let interest = epoll::EventFlags::IN;
        watch.add_as(GATEWAY, wire.as_fd(), interest)?;
        let mut warden = Self {
            prepared,
            instance,
            cgroups,
            guest,
            sudo,
            boot_id,
            home: Home::open()?,
            launcher: Launcher::new().map_err(io::Error::other)?,
            wire,
            watch,
            interest,
            machines: Machines::default(),
            queue: VecDeque::new(),
            slots: Slots::new(instance, &[]),
            parents: BTreeMap::new(),
            checked: BTreeSet::new(),
            tall: BTreeSet::new(),
            formers: BTreeSet::new(),
            jobs: HashMap::new(),
            rubbish: None,
            tick: TICK,
            closing: None,
        };
        warden.recover()?;
        Ok(warden)
    }

    /// Works until the gateway is gone or says so.
    pub(super) fn run(mut self) {
        tracing::info!(instance = self.instance.0, cgroups = self.cgroups.kind(), "the helper is ready");
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            if self.closing.as_ref().is_some_and(|closing| self.is_done(closing)) {
                return self.finish();
            }
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(
                &self.watch.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the helper cannot wait for events");
                    return;
                }
            }
            self.turn(&events);
        }
    }

    fn turn(&mut self, events: &[epoll::Event]) {
        for event in events {
            let token = event.data.u64();
            let handled = catch_unwind(AssertUnwindSafe(|| self.happened(token)));
            if handled.is_err() {
                tracing::error!(token, "the helper broke on an event; it goes on");
            }
        }
        let rest = catch_unwind(AssertUnwindSafe(|| {
            self.begin_waiting();
            let progress = self.finish_endings() | self.finish_settling();
            let begins = progress || !(self.has_endings() || self.has_settling());
            self.tick = if begins { TICK } else { (self.tick * 2).min(LONGEST_TICK) };
            self.collect_rubbish();
            self.tidy_images();
            events.is_empty() && self.closing.is_none() && self.queue.is_empty() && self.slots.refill()
        }));
        if rest.is_err() {
            tracing::error!("the helper broke on its own work; it goes on");
        }
        self.machines.forget_settled();
        self.listen_as_needed();
    }

    fn happened(&mut self, token: u64) {
        if token == GATEWAY {
            return self.hear();
        }
        match self.watch.sources.get(&token).copied() {
            Some(Source::Launch(sandbox)) => self.launched(sandbox),
            Some(Source::Process(sandbox)) => self.exited(sandbox),
            Some(Source::Groups(sandbox)) => self.groups_changed(sandbox),
            Some(Source::Job) => self.heard_from_job(token),
            None => {}
        }
    }

    /// Reads what the gateway says, some of it.
    fn hear(&mut self) {
        self.wire.flush();
        for _ in 0..BURST {
            if self.wire.congested() {
                return;
            }
            match self.wire.receive() {
                Received::Request(request) => self.serve(request),
                Received::Malformed { seq, reason } => {
                    tracing::warn!(%reason, "the gateway sent a packet that is none");
                    self.refuse(seq, reason, Cause::Invalid);
                }
                Received::Nothing => return,
                Received::Closed => return self.gateway_is_gone(),
            }
        }
    }

    fn serve(&mut self, Request { seq, call }: Request) {
        if self.closing.is_some() {
            return self.refuse(seq, "the helper is ending".to_owned(), Cause::Host);
        }
        if catch_unwind(AssertUnwindSafe(|| self.call(seq, call))).is_err() {
            self.refuse(seq, "the helper broke on this request".to_owned(), Cause::Host);
        }
    }

    fn answer(&mut self, seq: u64, reply: Reply) {
        self.wire.send(&FromWarden::Answer { seq, reply }, Vec::new());
    }

    fn refuse(&mut self, seq: u64, reason: String, cause: Cause) {
        self.answer(seq, Reply::Refused { reason, cause });
    }

    fn tell(&mut self, event: Event) {
        self.wire.send(&FromWarden::Event(event), Vec::new());
    }

    fn gateway_is_gone(&mut self) {
        if self.closing.is_none() {
            tracing::info!("the gateway is gone: the helper ends, machines stay");
            self.close(None, false);
        }
        // Whoever waited for an answer is gone, too.
        self.watch.forget(GATEWAY, self.wire.as_fd());
    }

    /// Begins the end: nothing new, half-made machines are undone, live ones on request.
    fn close(&mut self, answer: Option<u64>, stop_machines: bool) {
        self.closing = Some(Closing { answer, deadline: Instant::now() + LAST_WORK });
        for (seq, _) in std::mem::take(&mut self.queue) {
            self.refuse(seq, "the helper is ending".to_owned(), Cause::Host);
        }
        let affected: Vec<SandboxId> = self
            .machines
            .iter()
            .filter(|(_, machine)| stop_machines || matches!(machine.phase, Phase::Starting(_)))
            .map(|(sandbox, _)| *sandbox)
            .collect();
        for sandbox in affected {
            // A machine that was to stand on a kept disk leaves it as it found it.
            self.stop(sandbox, None, !stop_machines);
        }
    }

    fn is_done(&self, closing: &Closing) -> bool {
        // A worker's sweep is waited for only when somebody waits for a host as it was before.
        let swept = closing.answer.is_none() || !(self.rubbish.is_some() || self.is_sweeping());
        let undone = self.machines.values().all(Machine::is_live) && swept;
        undone || Instant::now() >= closing.deadline
    }

    fn finish(mut self) {
        let answer = self.closing.as_ref().and_then(|closing| closing.answer);
        let ended = self.machines.values().all(Machine::is_live);
        if self.machines.is_empty() {
            self.cgroups.remove_trees();
            self.prepared.release();
        }
        if let Some(seq) = answer {
            if ended {
                self.answer(seq, Reply::Done);
            } else {
                self.refuse(seq, "some machines did not end in time".to_owned(), Cause::Host);
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        if self.closing.is_none() && self.queue.is_empty() && self.slots.wants_more() {
            return Some(Timespec::default());
        }
        let soon = self.closing.is_some() || self.has_endings() || self.has_settling();
        let later = self.rubbish.is_some() && !self.is_sweeping();
        let pause = if soon { Some(self.tick) } else { later.then_some(RUBBISH_AGE) };
        pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) })
    }

    fn listen_as_needed(&mut self) {
        let mut wanted = epoll::EventFlags::empty();
        wanted.set(epoll::EventFlags::IN, !self.wire.congested());
        wanted.set(epoll::EventFlags::OUT, self.wire.pending());
        if wanted != self.interest && self.watch.change(GATEWAY, self.wire.as_fd(), wanted).is_ok() {
            self.interest = wanted;
        }
    }
}

// === impl Watch ===

impl Watch {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, next: GATEWAY + 1, sources: HashMap::new() })
    }

    fn add_as(&mut self, token: u64, fd: BorrowedFd<'_>, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, flags: epoll::EventFlags, source: Source) -> io::Result<u64> {
        let token = self.next;
        self.add_as(token, fd, flags)?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    fn change(&self, token: u64, fd: BorrowedFd<'_>, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// To be called before the descriptor is closed: a worker may hold a copy of it, and the kernel
    /// would go on reporting that.
    fn forget(&mut self, token: u64, fd: BorrowedFd<'_>) {
        self.sources.remove(&token);
        let _ = epoll::delete(&self.epoll, fd);
    }
}
