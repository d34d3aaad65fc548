//! What happens to a disk that goes far over its size where nothing but a measure keeps it: the
//! processes that are writing to it are ended, as those are that run out of memory.
//!
//! A little over its size envd refuses uploads, and processes may still write: they are given time to
//! clear up. Far over it they would fill the disk of everybody.

use std::{fs, io, os::fd::AsFd as _};

use rustix::{
    fs::{CWD, Mode, OFlags},
    process::{Pid, PidfdFlags, Signal},
};

use super::{cgroup::Cgroups, instance::Instance};

/// How far over: an eighth of the size, within these bounds, in bytes.
const LEAST: u64 = 64 << 20;
const MOST: u64 = 1 << 30;
/// The kind of a machine's root file system.
const OVERLAY: i64 = 0x794c_7630;
/// Descriptors of one process that are looked at.
const LOOKS: usize = 4096;

/// Whether a disk of this size, in bytes, holds so much that its writers are ended.
pub(super) fn is_over(size: u64, used: u64) -> bool {
    size > 0 && used > size.saturating_add((size / 8).clamp(LEAST, MOST))
}

/// Ends the processes of a machine that have a file of its disk open for writing. Says how many.
pub(super) fn end_writers(cgroups: &Cgroups, instance: Instance, name: &str) -> u64 {
    let mut ended = 0;
    for pid in cgroups.work(name) {
        // First the descriptor, then the checks: what they find is then true of the descriptor.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let membership = fs::read_to_string(format!("{proc}/cgroup")).unwrap_or_default();
        if cgroups.holds(instance, name, &membership)
            && writes(&proc).unwrap_or(false)
            && rustix::process::pidfd_send_signal(process.as_fd(), Signal::KILL).is_ok()
        {
            ended += 1;
        }
    }
    ended
}

fn writes(proc: &str) -> io::Result<bool> {
    for entry in fs::read_dir(format!("{proc}/fd"))?.take(LOOKS) {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let info = fs::read_to_string(format!("{proc}/fdinfo/{number}")).unwrap_or_default();
        if !is_writable(&info) {
            continue;
        }
        // By path only: opening a pipe or a device of theirs would do something.
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(CWD, entry.path(), path, Mode::empty()) else { continue };
        let regular = rustix::fs::fstat(&file).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        });
        if regular && rustix::fs::fstatfs(&file).is_ok_and(|kind| kind.f_type == OVERLAY) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// From the `flags:` line of a descriptor, in octal.
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & OFlags::ACCMODE.bits() != 0 && flags & OFlags::PATH.bits() == 0
}

impl Cgroups {
    /// The user's processes in a machine.
    fn work(&self, name: &str) -> Vec<Pid> {
        let procs = self.work_processes(name).unwrap_or_default();
        procs.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_may_go_an_eighth_over_its_size_within_bounds() {
        let gib = 1 << 30;
        assert!(!is_over(10 * gib, 11 * gib) && is_over(10 * gib, 11 * gib + 1));
        assert!(!is_over(1 << 20, LEAST) && is_over(1 << 20, LEAST + (2 << 20)));
        assert!(is_over(100 * gib, 101 * gib + 1), "not more than the upper bound");
        assert!(!is_over(0, u64::MAX), "no size is known");
    }

    #[test]
    fn only_descriptors_that_can_write_count() {
        assert!(is_writable("pos:\t0\nflags:\t0100001\nmnt_id:\t9\n"));
        assert!(is_writable("flags:\t02\n"));
        assert!(!is_writable("flags:\t0100000\n") && !is_writable(""));
        assert!(!is_writable("flags:\t012000002\n"), "a path is no way to write");
    }
}
