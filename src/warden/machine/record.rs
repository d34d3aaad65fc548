//! `machine.json`: written by rename, read back with suspicion, and held against the processes.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    process::{Pid, PidfdFlags},
};

use super::Record;
use crate::{
    failpoint::{self, Step},
    warden::{cgroup::Cgroups, instance::Instance},
};

const NAME: &str = "machine.json";
const NEW: &str = "machine.json.new";
/// Marks a writable layer that waits for its next machine.
const KEPT: &str = "kept.json";
/// No record is longer: it names some images.
const LONGEST: u64 = 16 * 1024;

/// Writes the record into the machine's directory.
pub(in crate::warden) fn write(room: BorrowedFd<'_>, record: &Record) -> io::Result<()> {
    let _ = rustix::fs::unlinkat(room, NEW, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(room, NEW, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(&serde_json::to_vec(record)?)?;
    rustix::fs::renameat(room, NEW, room, NAME)?;
    failpoint::reach(Step::MachineNamed);
    // A layer that was kept is in use again.
    let _ = rustix::fs::unlinkat(room, KEPT, AtFlags::empty());
    Ok(())
}

/// Reads the record of a machine's directory; nothing when there is no whole one.
pub(in crate::warden) fn read(room: BorrowedFd<'_>) -> Option<Record> {
    read_named(room, NAME)
}

/// The record of the last machine of a layer that was kept.
pub(in crate::warden) fn read_kept(room: BorrowedFd<'_>) -> Option<Record> {
    if is_kept(room) { read_named(room, KEPT) } else { None }
}

fn read_named(room: BorrowedFd<'_>, name: &str) -> Option<Record> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(room, name, flags, Mode::empty()).ok()?);
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Marks the layer as waiting for its next machine.
pub(in crate::warden) fn keep(room: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::renameat(room, NAME, room, KEPT)?)
}

/// Whether the layer waits for its next machine.
pub(in crate::warden) fn is_kept(room: BorrowedFd<'_>) -> bool {
    rustix::fs::statat(room, KEPT, AtFlags::SYMLINK_NOFOLLOW).is_ok()
        && rustix::fs::statat(room, NAME, AtFlags::SYMLINK_NOFOLLOW).is_err()
}

/// Opens the recorded process if it is still the same one: same boot, same start, and a member
/// of the machine's cgroups.
pub(in crate::warden) fn find(
    record: &Record,
    boot_id: &str,
    cgroups: &Cgroups,
    instance: Instance,
) -> Option<OwnedFd> {
    if record.boot_id != boot_id {
        return None;
    }
    // First the descriptor, then the checks: what they find is then true of the descriptor.
    let process = rustix::process::pidfd_open(Pid::from_raw(record.pid)?, PidfdFlags::empty()).ok()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", record.pid)).ok()?;
    let membership = fs::read_to_string(format!("/proc/{}/cgroup", record.pid)).ok()?;
    let same = start_time(&stat) == Some(record.start_time)
        && cgroups.holds(instance, record.name(), &membership)
        && !has_exited(&process);
    same.then_some(process)
}

/// Whether the process has ended, reaped or not.
pub(in crate::warden) fn has_exited(process: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Field 22 of `/proc/<pid>/stat`; the name before it may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BuildId, OsEntropy, SandboxId};
    use std::os::fd::AsFd;

    fn record() -> Record {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        Record {
            sandbox: SandboxId::generate(&OsEntropy),
            generation: 3,
            build: BuildId::generate(&OsEntropy),
            slot: 7,
            pid: std::process::id().cast_signed(),
            start_time: start_time(&stat).unwrap(),
            boot_id: "boot".to_owned(),
            disk_mb: 1024,
            lineage: Vec::new(),
        }
    }

    #[test]
    fn a_record_reads_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let room = File::open(dir.path()).unwrap();
        assert_eq!(read(room.as_fd()), None);
        let record = record();
        write(room.as_fd(), &record).unwrap();
        assert_eq!(read(room.as_fd()), Some(record.clone()));
        assert!(!is_kept(room.as_fd()));
        keep(room.as_fd()).unwrap();
        assert!(is_kept(room.as_fd()) && read(room.as_fd()).is_none());
        fs::write(dir.path().join(NAME), r#"{"sandbox":"i0"#).unwrap();
        assert_eq!(read(room.as_fd()), None);
    }

    #[test]
    fn a_process_is_only_found_when_it_is_the_same_one() {
        let none = Cgroups::none();
        let live = record();
        assert!(find(&live, "boot", &none, Instance(0)).is_some());
        let reused = Record { start_time: live.start_time + 1, ..live.clone() };
        assert!(find(&reused, "boot", &none, Instance(0)).is_none());
        assert!(find(&live, "another boot", &none, Instance(0)).is_none());
        let foreign = Cgroups::detect(Instance(0));
        assert!(foreign.kind() == "none" || find(&live, "boot", &foreign, Instance(0)).is_none());
    }

    #[test]
    fn a_name_in_stat_may_hold_anything() {
        let stat = "7 (a) R 9 (b)) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 8";
        assert_eq!(start_time(stat), Some(4242));
    }
}
