//! Long work in a forked child, so that the warden itself never waits.
//!
//! A worker reports through a pipe, one JSON line each, and ends; it dies with the warden. Its work
//! is therefore always something that a later start finds half done and does again.
#![expect(unsafe_code, reason = "fork has no safe form; the warden has one thread")]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions},
};
use serde::{Deserialize, Serialize};

use crate::{
    id::BuildId,
    wire::warden::{ImageInfo, ProbeResult},
};

/// How much lower than the warden's the workers' priority is.
const NICENESS: i32 = 10;
/// A worker that says more than this without a line's end is broken.
const LONGEST_LINE: usize = 1 << 20;

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It goes on; for people.
    Progress(String),
    /// What it copies is copied: that may change again.
    Copied,
    /// It did what it was for.
    Done,
    /// It made or found an image.
    Image(ImageInfo),
    /// It looked at the host.
    Probes(Vec<ProbeResult>),
    /// It counted bytes; and ended so many processes that wrote too many.
    Bytes { used: u64, ended: u64 },
    /// It made one image of several, on this one.
    Squashed(BuildId),
    /// It had so many bytes of memory back.
    Reclaimed(u64),
    /// There was no room for it.
    Full(String),
    /// It could not.
    Failed(String),
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    pipe: File,
    text: Vec<u8>,
}

/// Where a worker's reports go.
#[derive(Debug)]
pub(crate) struct Reporter(File);

// === impl Reporter ===

impl Reporter {
    /// Says something; a warden that is gone does not hear it.
    pub(crate) fn say(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Starts a job. What it returns is its last report.
    pub(crate) fn spawn(job: impl FnOnce(&mut Reporter) -> Report) -> io::Result<Self> {
        let (read, write) = rustix_pipe()?;
        let pid = fork_bound(move || {
            let _ = rustix::process::nice(NICENESS);
            let mut reporter = Reporter(File::from(write));
            let last = catch_unwind(AssertUnwindSafe(|| job(&mut reporter)))
                .unwrap_or_else(|_| Report::Failed("the helper's worker broke".to_owned()));
            reporter.say(&last);
            0
        })?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok(Self { pid, pipe: File::from(read), text: Vec::new() })
    }

    /// Tells it to end, and does not wait: [`Self::listen`] says when it has.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// The reports that have come since the last call; true beside them when it has ended.
    pub(crate) fn listen(&mut self) -> (Vec<Report>, bool) {
        let ended = self.fill();
        let mut reports = Vec::new();
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            if let Ok(report) = serde_json::from_slice(&line) {
                reports.push(report);
            }
        }
        (reports, ended)
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.pipe.read(&mut chunk) {
                Ok(0) => return true,
                Ok(count) => self.text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
            if self.text.len() > LONGEST_LINE {
                return true;
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that has ended is only reaped by this; one that has not must not outlive its owner.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        while matches!(rustix::process::waitpid(Some(self.pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
}

/// Of a worker: takes the warden's own priority back, for work that somebody waits for.
pub(crate) fn hurry() {
    let _ = rustix::process::nice(-NICENESS);
}

fn rustix_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((read.into(), write.into()))
}

/// Ignores a signal from now on.
pub(crate) fn ignore(signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: ignoring installs no handler, so no code of ours ever runs in a signal's context.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    Ok(())
}

/// Closes every descriptor but the standard ones and these: the gateway's listener must not live on in
/// its helper. For a fresh child whose caller never returns to the owners of what is closed.
pub(crate) fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut next = 3;
    for number in kept.into_iter().chain([u32::MAX]) {
        if next < number {
            // SAFETY: what is closed belongs to frames of the parent's stack that the child
            // never returns to, so no owner uses or closes these numbers again.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, next, number - 1, 0) };
            if closed == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        next = number.saturating_add(1);
    }
    Ok(())
}

/// The same for a child that is killed when this process ends: what it inherited (the data
/// directory's lock above all) must not outlive its owner.
pub(crate) fn fork_bound(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let parent = rustix::process::getpid();
    fork_into(move || {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // A parent that ended before the signal was asked for sends none.
        if rustix::process::getppid() == Some(parent) { child() } else { 1 }
    })
}

/// Runs a closure in a child process, which ends with what it returns.
pub(crate) fn fork_into(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the calling process has one thread (the warden, or `serve` before its runtime), so
    // the child's copy of every lock and of the allocator is in a consistent state.
    let forked = unsafe { nix::unistd::fork() }?;
    match forked {
        nix::unistd::ForkResult::Parent { child } => {
            Pid::from_raw(child.as_raw()).ok_or_else(|| io::Error::other("fork gave no process id"))
        }
        nix::unistd::ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: `_exit` ends the process without running what belongs to the parent:
            // its exit handlers, its buffers.
            unsafe { libc::_exit(code) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(worker: &mut Worker) -> Vec<Report> {
        let mut reports = Vec::new();
        loop {
            let mut fds = [rustix::event::PollFd::new(&worker.pipe, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let (more, ended) = worker.listen();
            reports.extend(more);
            if ended {
                return reports;
            }
        }
    }

    #[test]
    fn a_worker_reports_and_is_reaped() {
        let mut worker = Worker::spawn(|reporter| {
            reporter.say(&Report::Progress("half".to_owned()));
            Report::Bytes { used: 7, ended: 0 }
        })
        .unwrap();
        assert_eq!(
            all(&mut worker),
            [Report::Progress("half".to_owned()), Report::Bytes { used: 7, ended: 0 }]
        );
        let pid = worker.pid;
        drop(worker);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_worker_is_ended_with_its_owner() {
        let worker = Worker::spawn(|_| {
            loop {
                std::thread::park();
            }
        })
        .unwrap();
        let pid = worker.pid;
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(worker);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
