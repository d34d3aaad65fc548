//! The one place that waits for processes.
//!
//! As the first process of a machine the guest is the parent of every process that the spawner
//! makes and of every orphan. Nothing else in the program may call `wait`: one reaper collects
//! all exits on `SIGCHLD`, hands those of claimed processes to their owners and forgets the rest.
//! A process may end before its owner learns its pid. So unknown exits are kept while a birth is
//! under way ([`Reaper::expect`]), and a claim looks there first.
//! A pid stays valid for signals exactly as long as it is in the table: [`Reaper::kill`] checks
//! that under the lock under which exits are collected, so no stranger can be hit.
#![expect(unsafe_code, reason = "waitid, for exits that nix cannot express")]

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        number: i32,
        /// Whether the kernel wrote a core.
        core: bool,
    },
}

/// A process that its owner may wait for. Dropping it does not end the process.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its id in the machine.
    pub(crate) pid: i32,
    /// Resolves when it has ended and is collected.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// The table of awaited processes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    owners: HashMap<i32, oneshot::Sender<Exit>>,
    births: usize,
    early: HashMap<i32, Exit>,
}

/// While it lives, exits of unknown processes are kept for a claim.
#[derive(Debug)]
pub(crate) struct Birth(Reaper);

// === impl Reaper ===

impl Reaper {
    /// Collects exits for as long as the runtime lives.
    pub(crate) async fn run(self) -> io::Result<()> {
        let mut signals = signal(SignalKind::child())?;
        loop {
            self.collect();
            if signals.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Announces that a process is about to be made.
    pub(crate) fn expect(&self) -> Birth {
        self.table().births += 1;
        Birth(self.clone())
    }

    /// Sends a signal to a claimed process. False: it has ended already.
    pub(crate) fn kill(&self, pid: i32, signal: Signal) -> Result<bool, Errno> {
        let table = self.table();
        if !table.owners.contains_key(&pid) {
            return Ok(false);
        }
        signal::kill(Pid::from_raw(pid), signal).map(|()| true)
    }

    /// Signals a claimed process and all of its group. False: it has ended already.
    pub(crate) fn kill_group(&self, pid: i32, signal: Signal) -> Result<bool, Errno> {
        let table = self.table();
        if !table.owners.contains_key(&pid) {
            return Ok(false);
        }
        signal::killpg(Pid::from_raw(pid), signal).map(|()| true)
    }

    fn collect(&self) {
        loop {
            // Held over the wait: a pid leaves the kernel's table and ours in one step.
            let mut table = self.table();
            let Some((pid, exit)) = wait_any() else { return };
            table.settle(pid, exit);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn settle(&mut self, pid: i32, exit: Exit) {
        if let Some(owner) = self.owners.remove(&pid) {
            // An owner that went away does not care.
            let _ = owner.send(exit);
        } else if self.births > 0 {
            self.early.insert(pid, exit);
        }
    }
}

/// The next process that has ended, if there is one. Not by nix, which has no name for real-time
/// signals and would lose such an exit.
fn wait_any() -> Option<(i32, Exit)> {
    // SAFETY: the kernel fills the zeroed structure; its fields are read only when it has.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        while libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG) < 0 {
            if Errno::last() != Errno::EINTR {
                return None;
            }
        }
        let (pid, status) = (info.si_pid(), info.si_status());
        let exit = match info.si_code {
            libc::CLD_EXITED => Exit::Code(status),
            code => Exit::Signal { number: status, core: code == libc::CLD_DUMPED },
        };
        (pid != 0).then_some((pid, exit))
    }
}

// === impl Birth ===

impl Birth {
    /// Takes the new process as one's own.
    pub(crate) fn claim(self, pid: i32) -> Child {
        let (sender, exit) = oneshot::channel();
        let mut table = self.0.table();
        if let Some(early) = table.early.remove(&pid) {
            let _ = sender.send(early);
        } else {
            table.owners.insert(pid, sender);
        }
        drop(table);
        Child { pid, exit }
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.births -= 1;
        if table.births == 0 {
            table.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_its_claim_is_not_lost() {
        let reaper = Reaper::default();
        let birth = reaper.expect();
        reaper.table().settle(41, Exit::Code(3));
        reaper.table().settle(42, Exit::Code(4));
        let mut child = birth.claim(41);
        assert_eq!(child.exit.try_recv(), Ok(Exit::Code(3)));
        assert!(reaper.table().early.is_empty(), "a stranger's exit is forgotten after the birth");
    }

    #[test]
    fn without_a_birth_orphans_are_forgotten_and_owners_told() {
        let reaper = Reaper::default();
        reaper.table().settle(7, Exit::Code(0));
        assert!(reaper.table().early.is_empty());
        let mut child = reaper.expect().claim(8);
        reaper.table().settle(8, Exit::Signal { number: 9, core: false });
        assert_eq!(child.exit.try_recv(), Ok(Exit::Signal { number: 9, core: false }));
        assert_eq!(reaper.kill(8, Signal::SIGKILL), Ok(false), "an ended process is not signalled");
    }
}
