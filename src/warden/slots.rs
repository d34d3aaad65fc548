//! The instance's id ranges: which are free, and a few made ready before they are asked for.

use std::collections::VecDeque;

use crate::failpoint::{self, Step};

use super::{
    instance::{Instance, SLOTS},
    launch::LaunchError,
    slot::Slot,
};

/// Ready-made slots: enough for a burst of creates, at two descriptors each.
const READY: usize = 8;

/// The ids that machines may get. Slot 0 is the gateway's.
#[derive(Debug)]
pub(super) struct Slots {
    instance: Instance,
    free: VecDeque<u32>,
    ready: Vec<Slot>,
    /// The last attempt failed: only the next create tries again.
    broken: bool,
}

// === impl Slots ===

impl Slots {
    /// All of an instance's slots but those that living machines have.
    pub(super) fn new(instance: Instance, taken: &[u32]) -> Self {
        let free = (1..SLOTS).filter(|index| !taken.contains(index)).collect();
        Self { instance, free, ready: Vec::new(), broken: false }
    }

    /// A slot for a machine; `None`: all are in use.
    pub(super) fn take(&mut self) -> Option<Result<Slot, LaunchError>> {
        if let Some(slot) = self.ready.pop() {
            return Some(Ok(slot));
        }
        self.make()
    }

    fn make(&mut self) -> Option<Result<Slot, LaunchError>> {
        let index = self.free.pop_front()?;
        let made = Slot::make(index, self.instance.base_uid(index));
        self.broken = made.is_err();
        if made.is_err() {
            self.free.push_front(index);
        }
        Some(made)
    }

    /// Takes back the ids of a machine none of whose processes is left. The oldest go out first, so that
    /// an id rests as long as can be.
    pub(super) fn give_back(&mut self, index: u32) {
        self.free.push_back(index);
    }

    /// Whether fewer are ready than there should be, and there are any.
    pub(super) fn wants_more(&self) -> bool {
        !self.broken && self.ready.len() < READY && !self.free.is_empty()
    }

    /// Makes one slot ready; false: there are enough, or none can be had.
    pub(super) fn refill(&mut self) -> bool {
        if !self.wants_more() {
            return false;
        }
        match self.make() {
            Some(Ok(slot)) => {
                self.ready.push(slot);
                failpoint::reach(Step::SlotReady);
                true
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "no slot could be made ready");
                false
            }
            None => false,
        }
    }
}
