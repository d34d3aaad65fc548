//! Memory that a machine gives back without losing anything: caches, and what can go to swap.

use std::{
    fs,
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::{put, read_number};

/// What has to be done for one machine. Takes up to seconds: for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reclaim {
    groups: Vec<PathBuf>,
    manner: Manner,
}

/// How the hierarchy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// `memory.force_empty`; swap is bounded together with memory.
    V1,
    /// `memory.reclaim`. Swap, which running machines may not use, is allowed for as long as it takes.
    V2,
}

// === impl Reclaim ===

impl Reclaim {
    /// Of the user's processes and of the guest.
    pub(super) fn new(group: &std::path::Path, manner: Manner) -> Self {
        Self { groups: ["work", "guest"].map(|name| group.join(name)).to_vec(), manner }
    }

    /// Returns how many bytes less are charged than before.
    pub(crate) fn run(&self) -> io::Result<u64> {
        let mut freed = 0;
        for group in &self.groups {
            let usage = match self.manner {
                Manner::V1 => group.join("memory.usage_in_bytes"),
                Manner::V2 => group.join("memory.current"),
            };
            let Some(before) = read_number(&usage) else { continue };
            match self.manner {
                Manner::V1 => force_empty(group)?,
                Manner::V2 => reclaim(group, before)?,
            }
            freed += before.saturating_sub(read_number(&usage).unwrap_or(before));
        }
        Ok(freed)
    }
}

fn force_empty(group: &std::path::Path) -> io::Result<()> {
    tolerant(put(&group.join("memory.force_empty"), 0))
}

fn reclaim(group: &std::path::Path, bytes: u64) -> io::Result<()> {
    let swap = group.join("memory.swap.max");
    let swaps = swap.exists();
    if swaps {
        // No more than it has: one that is ended here half-way gains nothing but that.
        put(&swap, bytes)?;
    }
    let reclaimed = tolerant(put(&group.join("memory.reclaim"), bytes));
    if swaps {
        // What is in swap by now stays there.
        put(&swap, 0)?;
    }
    reclaimed
}

/// The kernel says so when it could not take all; what it took is taken.
fn tolerant(asked: io::Result<()>) -> io::Result<()> {
    match asked {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ResourceBusy) => Ok(()),
        asked => asked,
    }
}

/// Whether this hierarchy can be asked.
pub(super) fn is_offered(group: &std::path::Path, manner: Manner) -> bool {
    let file = match manner {
        Manner::V1 => "work/memory.force_empty",
        Manner::V2 => "work/memory.reclaim",
    };
    fs::metadata(group.join(file)).is_ok()
}
