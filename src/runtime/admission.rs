//! Admission: who may have a machine now, who waits, and who is turned away.
//!
//! ```text
//!   create, resume --need--> decide --fits, nobody waits--> Seat
//!                              |--no room--> queue (first in, first out, bounded) --room--> Seat
//!                              |                '--deadline, caller gone--> out of the queue
//!                              '--too large, queue full--> Refused
//!   Seat: its share of the host, given back when it is dropped, changed as its memory is measured
//! ```
//! CPU is a weight and costs nothing unless it is bounded. Memory is charged by use: the greater of
//! a floor and what was last measured, or the whole limit where that is configured. What has its
//! seat keeps it: nobody is turned out when the memory in use grows beyond the host's share, but
//! nobody else comes in.

mod floor;
mod ledger;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use self::ledger::{Ledger, Verdict};
pub use self::{
    floor::{Floors, Purpose},
    ledger::{Capacity, Scarce, Share},
};
use crate::sandbox::Resources;

/// What a sandbox's memory costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Charge {
    /// What it uses, but never less than the floor.
    #[default]
    Use,
    /// Its limit, whatever it uses.
    Limit,
}

/// The rules of admission.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What there is.
    pub capacity: Capacity,
    /// What memory costs.
    pub charge: Charge,
    /// The least memory that a machine is charged, in bytes.
    pub floor: u64,
    /// How many may wait.
    pub queue: usize,
    /// How long one waits at most.
    pub patience: Duration,
}

/// Why somebody was turned away. Texts are for callers: they say what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No empty host could hold it.
    #[error("this server is too small for it: there is never enough {0}; choose a smaller template")]
    Oversized(Scarce),
    /// As many wait as may.
    #[error("{0} requests wait for room already; try again later, or end sandboxes that are not needed")]
    QueueFull(usize),
    /// It waited as long as one may.
    #[error(
        "there was not enough {scarce} in {} s, with {ahead} requests before this one; end sandboxes that are \
         not needed, then try again", .waited.as_secs()
    )]
    Impatient {
        /// What was missing at last.
        scarce: Scarce,
        /// How long it waited.
        waited: Duration,
        /// How many were still before it.
        ahead: usize,
    },
    /// The disk has less free space than is to stay.
    #[error(
        "the server's disk has {} MiB free, and {} MiB are to stay free (option disk-floor-mb); free space or delete \
         snapshots, then try again", .free >> 20, .floor >> 20
    )]
    Disk {
        /// Free, in bytes.
        free: u64,
        /// To stay free, in bytes.
        floor: u64,
    },
    /// Nobody knows how much space is free.
    #[error("the free space of the server's disk is not known, see the server's log")]
    DiskUnknown,
}

/// How full the host is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// What there is.
    pub capacity: Capacity,
    /// What sandboxes have.
    pub active: Share,
    /// What warm machines have.
    pub warm: Share,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that had to wait since the start, whatever became of them.
    pub waited: u64,
    /// Requests that were too large.
    pub oversized: u64,
    /// Requests that found the queue full.
    pub queue_full: u64,
    /// Requests that waited too long.
    pub impatient: u64,
}

/// The one ledger of a gateway, and its queue.
#[derive(Debug)]
pub(super) struct Admission {
    rules: Rules,
    state: Mutex<State>,
    /// Somebody waits, or more is used than there is: warm machines are to go.
    pressed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    queue: VecDeque<Waiter>,
    next: u64,
    counts: Occupancy,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    need: Share,
    grant: oneshot::Sender<Seat>,
}

/// A share of the host. Given back when it is dropped, or before.
#[derive(Debug)]
pub(super) struct Seat {
    admission: Arc<Admission>,
    held: Mutex<Held>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Active,
    Warm,
}

#[derive(Debug)]
struct Held {
    share: Share,
    /// The least memory it is charged while it has some.
    floor: u64,
    given_back: bool,
}

/// A place in the queue. Left when this is dropped.
struct Place<'a> {
    admission: &'a Arc<Admission>,
    ticket: u64,
}

/// Seats that were found for waiters. Handed out where no lock is held.
#[must_use]
struct Grants(Vec<(oneshot::Sender<Seat>, Seat)>);

// === impl Rules ===

impl Default for Rules {
    /// No bounds.
    fn default() -> Self {
        Self {
            capacity: Capacity::default(),
            charge: Charge::default(),
            floor: 8 << 20,
            queue: 64,
            patience: Duration::from_secs(30),
        }
    }
}

impl Rules {
    /// What a sandbox of this size takes when it starts.
    pub(super) fn share(&self, resources: Resources) -> Share {
        let limit = u64::from(resources.memory_mb) << 20;
        let memory = match self.charge {
            Charge::Use => self.floor.min(limit),
            Charge::Limit => limit,
        };
        Share { sandboxes: 1, cpus: resources.cpu_count.into(), memory }
    }
}

// === impl Admission ===

impl Admission {
    pub(super) fn new(rules: Rules) -> Arc<Self> {
        let ledger = Ledger { capacity: rules.capacity, ..Ledger::default() };
        let state = State { ledger, ..State::default() };
        Arc::new(Self { rules, state: Mutex::new(state), pressed: Notify::new() })
    }

    /// What a sandbox of this size takes when it starts.
    pub(super) fn share(&self, resources: Resources) -> Share {
        self.rules.share(resources)
    }

    /// A seat, perhaps after a wait. A caller that drops the future leaves the queue.
    pub(super) async fn admit(self: &Arc<Self>, need: Share) -> Result<Seat, Refused> {
        let (ticket, mut granted) = {
            let mut state = self.state.lock();
            match state.ledger.decide(need, state.queue.len(), self.rules.queue) {
                Verdict::Admit => {
                    state.ledger.active += need;
                    return Ok(self.seat(need, Kind::Active));
                }
                Verdict::Oversized(scarce) => {
                    state.counts.oversized += 1;
                    return Err(Refused::Oversized(scarce));
                }
                Verdict::Full => {
                    state.counts.queue_full += 1;
                    return Err(Refused::QueueFull(state.queue.len()));
                }
                Verdict::Wait => state.enqueue(need),
            }
        };
        let place = Place { admission: self, ticket };
        self.pressed.notify_one();
        let patience = self.rules.patience;
        match timeout(patience, &mut granted).await {
            Ok(Ok(seat)) => Ok(seat),
            // A seat that came at the last moment is a seat.
            _ => granted.try_recv().map_err(|_| place.lost_patience(need, patience)),
        }
    }

    /// A seat for what runs already, whether there is room or not.
    pub(super) fn take_over(self: &Arc<Self>, share: Share) -> Seat {
        self.state.lock().ledger.active += share;
        self.seat(share, Kind::Active)
    }

    /// A seat for a warm machine, when nobody waits and there is room.
    pub(super) fn spare(self: &Arc<Self>, resources: Resources) -> Option<Seat> {
        let share = Share { memory: self.share(resources).memory, ..Share::default() };
        let mut state = self.state.lock();
        if !state.queue.is_empty() || state.ledger.lacks(share).is_some() {
            return None;
        }
        state.ledger.warm += share;
        drop(state);
        Some(self.seat(share, Kind::Warm))
    }

    /// How many bytes warm machines have to give back, for whoever waits first or for what is overdrawn.
    pub(super) fn short_of(&self) -> u64 {
        let state = self.state.lock();
        let need = state.queue.front().map(|front| front.need).unwrap_or_default();
        state.ledger.short_of(need)
    }

    /// Resolves when warm machines may have to go.
    pub(super) async fn pressed(&self) {
        self.pressed.notified().await;
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let state = self.state.lock();
        Occupancy {
            capacity: state.ledger.capacity,
            active: state.ledger.active,
            warm: state.ledger.warm,
            waiting: state.queue.len(),
            ..state.counts
        }
    }

    fn seat(self: &Arc<Self>, share: Share, kind: Kind) -> Seat {
        let held = Held { share, floor: share.memory, given_back: false };
        Seat { admission: Arc::clone(self), held: Mutex::new(held), kind }
    }

    /// Seats for those who wait and now fit, strictly in order.
    fn grants(self: &Arc<Self>, state: &mut State) -> Grants {
        let mut grants = Vec::new();
        while let Some(front) = state.queue.front()
            && state.ledger.lacks(front.need).is_none()
            && let Some(Waiter { need, grant, .. }) = state.queue.pop_front()
        {
            state.ledger.active += need;
            grants.push((grant, self.seat(need, Kind::Active)));
        }
        if !state.queue.is_empty() && state.ledger.warm != Share::default() {
            self.pressed.notify_one();
        }
        Grants(grants)
    }
}

// === impl State ===

impl State {
    fn enqueue(&mut self, need: Share) -> (u64, oneshot::Receiver<Seat>) {
        let (grant, granted) = oneshot::channel();
        let ticket = self.next;
        self.next += 1;
        self.counts.waited += 1;
        self.queue.push_back(Waiter { ticket, need, grant });
        (ticket, granted)
    }

    fn sum(&mut self, kind: Kind) -> &mut Share {
        match kind {
            Kind::Active => &mut self.ledger.active,
            Kind::Warm => &mut self.ledger.warm,
        }
    }
}

// === impl Grants ===

impl Grants {
    /// A waiter that has gone gives its seat back at once, and that is somebody else's.
    fn hand_out(self) {
        for (grant, seat) in self.0 {
            drop(grant.send(seat));
        }
    }
}

// === impl Place ===

impl Place<'_> {
    fn lost_patience(&self, need: Share, waited: Duration) -> Refused {
        let mut state = self.admission.state.lock();
        state.counts.impatient += 1;
        let ahead = state.queue.iter().take_while(|waiter| waiter.ticket != self.ticket).count();
        // What was missing may have become free at this moment.
        Refused::Impatient { scarce: state.ledger.lacks(need).unwrap_or(Scarce::Memory), waited, ahead }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock();
        state.queue.retain(|waiter| waiter.ticket != self.ticket);
        // It may have been the one for which the others waited.
        let grants = self.admission.grants(&mut state);
        drop(state);
        grants.hand_out();
    }
}

// === impl Seat ===

impl Seat {
    /// The machine uses so much memory now, page cache left out.
    pub(super) fn measured(&self, bytes: u64) {
        if self.admission.rules.charge == Charge::Use {
            self.change(|held| {
                if held.share.memory > 0 {
                    held.share.memory = bytes.max(held.floor);
                }
            });
        }
    }

    /// The sandbox does not run any more; with `memory` its machine is still there.
    pub(super) fn rest(&self, memory: bool) {
        self.change(|held| {
            let memory = if memory { held.share.memory } else { 0 };
            held.share = Share { memory, ..Share::default() };
        });
    }

    /// The memory that it is charged, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.held.lock().share.memory
    }

    /// What it has to get to run.
    pub(super) fn wants(&self, resources: Resources) -> Share {
        let (whole, held) = (self.admission.share(resources), self.held.lock());
        // Memory that is held is not taken a second time.
        Share { memory: if held.share.memory > 0 { 0 } else { whole.memory }, ..whole }
    }

    /// Takes in what another seat has.
    pub(super) fn join(&self, other: &Self) {
        let mut taken = other.held.lock();
        if std::mem::replace(&mut taken.given_back, true) {
            return;
        }
        let (share, floor) = (taken.share, taken.floor);
        drop(taken);
        let mut held = self.held.lock();
        let mut state = self.admission.state.lock();
        if held.given_back {
            *state.sum(other.kind) -= share;
        } else {
            held.share += share;
            held.floor = held.floor.max(floor);
            if other.kind != self.kind {
                *state.sum(other.kind) -= share;
                *state.sum(self.kind) += share;
            }
        }
        let grants = self.admission.grants(&mut state);
        drop((held, state));
        grants.hand_out();
    }

    /// Of a warm machine: a sandbox takes it. Nothing when somebody waits, or there is no room.
    pub(super) fn promote(&self, need: Share) -> Option<Self> {
        let mut held = self.held.lock();
        let mut state = self.admission.state.lock();
        let mut without = state.ledger;
        without.warm -= held.share;
        if held.given_back || !state.queue.is_empty() || without.lacks(need).is_some() {
            return None;
        }
        state.ledger = without;
        state.ledger.active += need;
        held.given_back = true;
        drop((held, state));
        Some(self.admission.seat(need, Kind::Active))
    }

    /// Gives everything back. Once.
    pub(super) fn give_back(&self) {
        self.change(|held| {
            held.share = Share::default();
            held.given_back = true;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock();
        if held.given_back {
            return;
        }
        let before = held.share;
        change(&mut held);
        if held.share == before {
            return;
        }
        let mut state = self.admission.state.lock();
        let sum = state.sum(self.kind);
        *sum -= before;
        *sum += held.share;
        let grants = self.admission.grants(&mut state);
        if state.ledger.short_of(Share::default()) > 0 && state.ledger.warm != Share::default() {
            self.admission.pressed.notify_one();
        }
        drop((held, state));
        grants.hand_out();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests;
