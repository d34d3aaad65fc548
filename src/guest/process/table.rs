//! Which processes there are: the live ones by pid, and for a while those that ended.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::Process;

/// How long the end of a process can still be asked for (contract/sandbox 3).
const RETENTION: Duration = Duration::from_secs(30);
/// More ends than this are not kept: a loop of short commands must not fill memory.
const MAX_RETAINED: usize = 4096;

/// How a request names a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    /// By its pid.
    Pid(u32),
    /// By the tag it was started with; of several the youngest.
    Tag(String),
}

/// Live and lately ended processes.
#[derive(Debug, Default)]
pub(super) struct Table {
    live: HashMap<u32, Arc<Process>>,
    births: u64,
    ended: VecDeque<(Instant, Arc<Process>)>,
}

// === impl Table ===

impl Table {
    /// The number of the next process: tells the age of namesakes.
    pub(super) fn next_number(&mut self) -> u64 {
        self.births += 1;
        self.births
    }

    /// Adds a live process. An earlier end of the same tag, or pid, is forgotten.
    pub(super) fn add(&mut self, process: &Arc<Process>) {
        self.ended
            .retain(|(_, old)| old.pid != process.pid && (process.tag.is_none() || old.tag != process.tag));
        self.live.insert(process.pid, Arc::clone(process));
    }

    /// Moves a process to those that ended.
    pub(super) fn retire(&mut self, process: &Arc<Process>, now: Instant) {
        // The pid may belong to a younger process already.
        if self.live.get(&process.pid).is_some_and(|live| live.number == process.number) {
            self.live.remove(&process.pid);
        }
        self.expire(now);
        if self.ended.len() == MAX_RETAINED {
            self.ended.pop_front();
        }
        self.ended.push_back((now, process.remains()));
    }

    /// A live process.
    pub(super) fn live(&self, selector: &Selector) -> Option<Arc<Process>> {
        match selector {
            Selector::Pid(pid) => self.live.get(pid),
            Selector::Tag(tag) => youngest(self.live.values(), tag),
        }
        .cloned()
    }

    /// A live process, or one that ended lately.
    pub(super) fn any(&mut self, selector: &Selector, now: Instant) -> Option<Arc<Process>> {
        self.expire(now);
        self.live(selector).or_else(|| {
            let mut ended = self.ended.iter().map(|(_, process)| process);
            match selector {
                Selector::Pid(pid) => ended.rfind(|process| process.pid == *pid),
                Selector::Tag(tag) => youngest(ended, tag),
            }
            .cloned()
        })
    }

    /// All live ones.
    pub(super) fn list(&self) -> Vec<Arc<Process>> {
        self.live.values().cloned().collect()
    }

    fn expire(&mut self, now: Instant) {
        while self.ended.front().is_some_and(|(when, _)| now.duration_since(*when) > RETENTION) {
            self.ended.pop_front();
        }
    }
}

fn youngest<'a>(processes: impl Iterator<Item = &'a Arc<Process>>, tag: &str) -> Option<&'a Arc<Process>> {
    processes.filter(|process| process.tag.as_deref() == Some(tag)).max_by_key(|process| process.number)
}
