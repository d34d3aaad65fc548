//! The arithmetic of admission: what there is, what is given away, and what follows for one who
//! comes. Pure: no clock, no task, no machine.

use std::{
    fmt,
    ops::{AddAssign, SubAssign},
};

/// What somebody takes, or has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Sandboxes that run, or are on their way there.
    pub sandboxes: u64,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
}

/// What there is for all sandboxes together; none: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Sandboxes that run.
    pub sandboxes: Option<u64>,
    /// Virtual CPUs of those.
    pub cpus: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
}

/// What there is too little of. In the order in which it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    /// Running sandboxes.
    Sandboxes,
    /// Virtual CPUs.
    Cpus,
    /// Memory.
    Memory,
}

/// What follows for one who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// In at once.
    Admit,
    /// Behind those who wait; warm machines have to go first when nobody else waits.
    Wait,
    /// It would not fit an empty host.
    Oversized(Scarce),
    /// As many wait as may.
    Full,
}

/// What is given away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) capacity: Capacity,
    /// By sandboxes.
    pub(super) active: Share,
    /// By machines that nobody has yet; they go when a sandbox needs their room.
    pub(super) warm: Share,
}

// === impl Ledger ===

impl Ledger {
    /// Decides for one who comes while `waiting` others wait, of at most `most`.
    pub(super) fn decide(&self, need: Share, waiting: usize, most: usize) -> Verdict {
        let empty = Self { capacity: self.capacity, ..Self::default() };
        if let Some(scarce) = empty.lacks(need) {
            return Verdict::Oversized(scarce);
        }
        // Nobody overtakes.
        let alone = waiting == 0;
        if alone && self.lacks(need).is_none() {
            return Verdict::Admit;
        }
        let without_warm = Self { warm: Share::default(), ..*self };
        if waiting < most || (alone && without_warm.lacks(need).is_none()) {
            Verdict::Wait
        } else {
            Verdict::Full
        }
    }

    /// What is missing for this need; what is not needed is never missing.
    pub(super) fn lacks(&self, need: Share) -> Option<Scarce> {
        let given = self.given();
        let over = |need: u64, given: u64, there_is: Option<u64>| {
            need > 0 && there_is.is_some_and(|there_is| given.saturating_add(need) > there_is)
        };
        if over(need.sandboxes, given.sandboxes, self.capacity.sandboxes) {
            Some(Scarce::Sandboxes)
        } else if over(need.cpus, given.cpus, self.capacity.cpus) {
            Some(Scarce::Cpus)
        } else if over(need.memory, given.memory, self.capacity.memory) {
            Some(Scarce::Memory)
        } else {
            None
        }
    }

    /// How much memory is missing for this need, in bytes; also what is overdrawn without any.
    pub(super) fn short_of(&self, need: Share) -> u64 {
        let wanted = self.given().memory.saturating_add(need.memory);
        self.capacity.memory.map_or(0, |there_is| wanted.saturating_sub(there_is))
    }

    fn given(&self) -> Share {
        let mut given = self.active;
        given += self.warm;
        given
    }
}

// === impl Share ===

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.sandboxes = self.sandboxes.saturating_add(other.sandboxes);
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory = self.memory.saturating_add(other.memory);
    }
}

impl SubAssign for Share {
    fn sub_assign(&mut self, other: Self) {
        self.sandboxes = self.sandboxes.saturating_sub(other.sandboxes);
        self.cpus = self.cpus.saturating_sub(other.cpus);
        self.memory = self.memory.saturating_sub(other.memory);
    }
}

// === impl Scarce ===

impl fmt::Display for Scarce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sandboxes => "room for another sandbox",
            Self::Cpus => "CPUs",
            Self::Memory => "memory",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share() -> impl Strategy<Value = Share> {
        (0..6u64, 0..9u64, 0..40u64).prop_map(|(sandboxes, cpus, memory)| Share { sandboxes, cpus, memory })
    }

    fn ledger() -> impl Strategy<Value = Ledger> {
        let bound = |most: u64| proptest::option::of(0..most);
        let capacity = (bound(8), bound(16), bound(64)).prop_map(|(sandboxes, cpus, memory)| Capacity {
            sandboxes,
            cpus,
            memory,
        });
        (capacity, share(), 0..20u64).prop_map(|(capacity, active, memory)| {
            let warm = Share { memory, ..Share::default() };
            Ledger { capacity, active, warm }
        })
    }

    fn within(given: Share, capacity: Capacity, need: Share) -> bool {
        let fits = |need, given, most: Option<u64>| need == 0 || most.is_none_or(|most| given <= most);
        fits(need.sandboxes, given.sandboxes, capacity.sandboxes)
            && fits(need.cpus, given.cpus, capacity.cpus)
            && fits(need.memory, given.memory, capacity.memory)
    }

    proptest! {
        #[test]
        fn whoever_is_admitted_fits_and_overtakes_nobody(ledger in ledger(), need in share(), waiting in 0..4usize) {
            let verdict = ledger.decide(need, waiting, 3);
            let mut after = ledger;
            after.active += need;
            let fits = within(after.given(), ledger.capacity, need);
            prop_assert_eq!(verdict == Verdict::Admit, fits && waiting == 0, "{:?}", verdict);
        }

        #[test]
        fn what_no_empty_host_could_hold_never_waits(ledger in ledger(), need in share(), waiting in 0..4usize) {
            let verdict = ledger.decide(need, waiting, 3);
            let impossible = !within(need, ledger.capacity, need);
            prop_assert_eq!(matches!(verdict, Verdict::Oversized(_)), impossible, "{:?}", verdict);
        }

        #[test]
        fn a_full_queue_takes_only_what_warm_machines_make_room_for(ledger in ledger(), need in share(), waiting in 0..4usize, most in 0..4usize) {
            let verdict = ledger.decide(need, waiting, most);
            let mut bare = ledger;
            bare.warm = Share::default();
            bare.active += need;
            let evictable = waiting == 0 && within(bare.given(), ledger.capacity, need);
            if verdict == Verdict::Wait {
                prop_assert!(waiting < most || evictable);
            }
            if verdict == Verdict::Full {
                prop_assert!(waiting >= most && !evictable);
            }
        }

        #[test]
        fn what_is_short_is_what_has_to_be_given_back(ledger in ledger(), need in share()) {
            let mut after = ledger;
            let short = ledger.short_of(need);
            after.active.memory = after.active.memory.saturating_sub(short);
            let back = ledger.active.memory - after.active.memory;
            if back == short && need.memory > 0 {
                prop_assert_ne!(after.lacks(Share { memory: need.memory, ..Share::default() }), Some(Scarce::Memory));
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_in_a_fixed_order() {
        let capacity = Capacity { sandboxes: Some(1), cpus: Some(1), memory: Some(1) };
        let mut ledger = Ledger { capacity, ..Ledger::default() };
        let need = Share { sandboxes: 1, cpus: 1, memory: 1 };
        assert_eq!(ledger.lacks(need), None);
        ledger.active = need;
        assert_eq!(ledger.lacks(need), Some(Scarce::Sandboxes));
        ledger.capacity.sandboxes = None;
        assert_eq!(ledger.lacks(need), Some(Scarce::Cpus));
        ledger.capacity.cpus = None;
        assert_eq!(ledger.lacks(need), Some(Scarce::Memory));
        assert_eq!(ledger.lacks(Share { memory: 0, ..need }), None, "one whose memory is there already");
        assert_eq!(ledger.decide(Share { memory: 2, ..need }, 0, 9), Verdict::Oversized(Scarce::Memory));
    }
}
