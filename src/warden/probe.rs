//! What this host offers, each feature tried for real: what will be used, what is lost, what to do.
//!
//! Nothing is read off a version number. Every attempt leaves the host as it was.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags},
    process::PidfdFlags,
};

use super::{
    cgroup::Cgroups,
    dial::Home,
    instance::{INSTANCES, Instance},
    machine::room,
    slot::Slot,
    steer,
    storage::{self, Driver},
    syscall::{self, MountAttr},
};
use crate::wire::warden::ProbeResult;

/// Descriptors that a few hundred sandboxes need in gateway and helper.
const FILES: u64 = 8192;
/// Processes that a few hundred sandboxes need.
const PIDS: u64 = 32_768;

/// Tries everything. `data`: the data directory, or a directory on the file system where it is
/// going to be. Takes some milliseconds and forks; run it in a process with one thread.
pub fn all(data: BorrowedFd<'_>) -> Vec<ProbeResult> {
    let scratch = Scratch::make(data);
    // Above all instances: these ids are nobody's.
    let slot = Slot::make(0, Instance(INSTANCES).base_uid(0)).map_err(io::Error::other);
    let idmap = |path: BorrowedFd<'_>| match &slot {
        Ok(slot) => idmapped(path, slot.userns.as_fd()),
        Err(_) => Err(io::Error::other("no user namespace to map to")),
    };
    let usr = rustix::fs::open("/usr", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let scratch_dir = scratch.as_ref().map(AsFd::as_fd).map_err(|error| io::Error::other(error.to_string()));
    vec![
        required(
            "user and network namespaces",
            slot.as_ref().map(drop).map_err(copy),
            "one of each a sandbox",
            "enable CONFIG_USER_NS and CONFIG_NET_NS; set user.max_user_namespaces above 0",
        ),
        required(
            "idmapped mounts on the data directory",
            scratch_dir.and_then(&idmap),
            "sandboxes' files keep plain ids on disk",
            "put --data-dir on ext4, xfs or btrfs (not on an overlay: not inside a container)",
        ),
        optional(
            "idmapped mounts on /usr",
            usr.map_err(io::Error::from).and_then(|usr| idmap(usr.as_fd())),
            "the host's packages can be lent to sandboxes",
            "no `base` template from this host; use `firkin template import NAME --rootfs DIR`",
        ),
        required(
            "overlay with user.overlay.* attributes",
            scratch.as_ref().map_err(copy).and_then(overlay),
            "one writable layer a sandbox over shared read-only ones",
            "needs overlayfs of kernel 5.11 or newer, and a file system with user.* attributes",
        ),
        hardlinks(data),
        disks(data),
        optional(
            "merged /usr",
            merged_usr(),
            "`base` shows the host's packages",
            "no `base` template from this host; use `firkin template import`",
        ),
        optional(
            "dpkg database",
            fs::metadata("/var/lib/dpkg/status").map(drop),
            "`base` shows what packages own, and nothing else",
            "no `base` template from this host; use `firkin template import`",
        ),
        optional(
            "socket look-up programs",
            steer::probe(),
            "the host API answers at 192.0.2.1 in sandboxes, beside their own port 80",
            "nothing answers there; needs kernel 5.9, CONFIG_BPF_SYSCALL, and a container that lets root call bpf",
        ),
        sudo(),
        cgroups(),
        seccomp(),
        required(
            "sealed memory files",
            sealed(),
            "the guest is started from one that nobody can change",
            "needs memfd_create and F_ADD_SEALS",
        ),
        required(
            "process descriptors",
            pidfd(),
            "machines are found again and watched without races",
            "needs kernel 5.8 or newer (pidfd_open, setns with a process descriptor)",
        ),
        enough("open files", files(), FILES, "raise the hard limit (LimitNOFILE=, ulimit -Hn)"),
        enough("process ids", pids(), PIDS, "raise kernel.pid_max"),
    ]
}

/// A directory of its own for attempts that need one.
struct Scratch {
    parent: OwnedFd,
    directory: OwnedFd,
}

const SCRATCH: &str = ".probe";

// === impl Scratch ===

impl Scratch {
    fn make(data: BorrowedFd<'_>) -> io::Result<Self> {
        let parent = data.try_clone_to_owned()?;
        match rustix::fs::mkdirat(&parent, SCRATCH, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let directory = room::open(parent.as_fd(), SCRATCH)?;
        Ok(Self { parent, directory })
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = super::rubbish::empty(self.directory.as_fd());
        let _ = rustix::fs::unlinkat(&self.parent, SCRATCH, AtFlags::REMOVEDIR);
    }
}

/// Whether the host's /usr can be shown with mapped ids.
pub(crate) fn idmapped_usr() -> io::Result<()> {
    let slot = Slot::make(0, Instance(INSTANCES).base_uid(0)).map_err(io::Error::other)?;
    let usr = rustix::fs::open("/usr", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    idmapped(usr.as_fd(), slot.userns.as_fd())
}

fn idmapped(directory: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = rustix::mount::open_tree(directory, "", flags)?;
    syscall::mount_setattr(clone.as_fd(), MountAttr::NO_DEV, Some(userns))
}

/// A detached overlay: made, not attached, gone with its descriptor.
fn overlay(scratch: &Scratch) -> io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(&overlay, "userxattr")?;
    for (key, name) in [("lowerdir+", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        rustix::fs::mkdirat(scratch, name, Mode::from_raw_mode(0o755))?;
        let path = format!("{}/{name}", super::prepare::proc_path(scratch.as_fd()));
        fsconfig_set_string(&overlay, key, path)?;
    }
    fsconfig_create(&overlay)?;
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    // A mount that came out read-only could not use its upper layer.
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, "file", flags, Mode::from_raw_mode(0o600))?;
    Ok(())
}

fn hardlinks(data: BorrowedFd<'_>) -> ProbeResult {
    let name = ".probe-link";
    let linked = fs::canonicalize("/usr/bin/env")
        .and_then(|file| Ok(rustix::fs::linkat(CWD, file, data, name, AtFlags::empty())?));
    if linked.is_ok() {
        let _ = rustix::fs::unlinkat(data, name, AtFlags::empty());
    }
    optional(
        "hard links from /usr to the data directory",
        linked,
        "`base` is stable when the host is upgraded",
        "the live view `host` is used; put --data-dir on the file system of /usr for the stable one",
    )
}

/// How sandboxes' disks are kept here, unless an option says otherwise.
fn disks(data: BorrowedFd<'_>) -> ProbeResult {
    let (driver, possible) = storage::probe(data);
    let advice = "snapshots are copies, and the size of a disk is only measured; ";
    let mut probe = optional(
        "btrfs under the data directory",
        if driver == Driver::Plain { Err(io::Error::other("")) } else { Ok(()) },
        driver.name(),
        &match possible {
            Ok(()) => format!("{advice}`--storage btrfs` makes a btrfs of its own there"),
            Err(reason) => format!("{advice}put --data-dir on btrfs ({reason})"),
        },
    );
    if !probe.present {
        "plain directories".clone_into(&mut probe.used);
    } else if driver != (Driver::Btrfs { limits: true }) {
        "the size of a disk is only measured; `btrfs quota enable` gives it a limit"
            .clone_into(&mut probe.advice);
    }
    probe
}

fn merged_usr() -> io::Result<()> {
    for name in ["bin", "sbin", "lib"] {
        let target = fs::read_link(Path::new("/").join(name))?;
        if target.strip_prefix("/").unwrap_or(&target) != Path::new("usr").join(name) {
            return Err(io::Error::other(format!("/{name} is not in /usr")));
        }
    }
    Ok(())
}

fn sudo() -> ProbeResult {
    let mut probe = optional(
        "the host's sudo",
        fs::metadata("/usr/bin/sudo").map(drop),
        "sandboxes have the host's sudo",
        "nothing is lost but options that few use; `apt-get install sudo` on the host gives them, too",
    );
    if !probe.present {
        "firkin's own small sudo".clone_into(&mut probe.used);
    }
    probe
}

fn cgroups() -> ProbeResult {
    let cgroups = Cgroups::detect(Instance(INSTANCES));
    let tried = cgroups.try_out();
    let mut probe = optional(
        "cgroups",
        tried,
        cgroups.kind(),
        "no limits on memory and processes, no freezing: do not run untrusted code; mount cgroup v2",
    );
    if cgroups.kind() != "cgroup v2" && probe.present {
        probe.used.push_str(" (the pure v2 way was not run on this host)");
    }
    probe
}

fn seccomp() -> ProbeResult {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").and_then(|actions| {
        if actions.split_whitespace().any(|action| action == "errno") {
            Ok(())
        } else {
            Err(io::Error::other("the action `errno` is not offered"))
        }
    });
    required(
        "system call filters",
        actions,
        "an allow-list for every process of a sandbox",
        "enable CONFIG_SECCOMP_FILTER",
    )
}

fn sealed() -> io::Result<()> {
    let file = super::seal(b"probe")?;
    let again = rustix::fs::open(super::prepare::proc_path(file.as_fd()), OFlags::RDWR, Mode::empty())?;
    match rustix::io::write(&again, b"x") {
        Err(rustix::io::Errno::PERM) => Ok(()),
        Ok(_) => Err(io::Error::other("a sealed file could be written")),
        Err(error) => Err(error.into()),
    }
}

fn pidfd() -> io::Result<()> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Home::open()?.sockets_in(own.as_fd(), false, 1).map(drop)
}

fn files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum
}

fn pids() -> Option<u64> {
    fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()
}

fn required(feature: &str, tried: io::Result<()>, used: &str, advice: &str) -> ProbeResult {
    ProbeResult { required: true, ..optional(feature, tried, used, advice) }
}

fn optional(feature: &str, tried: io::Result<()>, used: &str, advice: &str) -> ProbeResult {
    let feature = feature.to_owned();
    match tried {
        Ok(()) => ProbeResult {
            feature,
            present: true,
            required: false,
            used: used.to_owned(),
            advice: String::new(),
        },
        Err(error) => ProbeResult {
            feature,
            present: false,
            required: false,
            used: format!("nothing: {error}"),
            advice: advice.to_owned(),
        },
    }
}

/// `None`: without limit.
fn enough(feature: &str, found: Option<u64>, wanted: u64, advice: &str) -> ProbeResult {
    let tried = match found {
        Some(found) if found < wanted => Err(io::Error::other(format!("{found}, fewer than {wanted}"))),
        _ => Ok(()),
    };
    let used = found.map_or_else(|| "unlimited".to_owned(), |found| found.to_string());
    optional(feature, tried, &used, advice)
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}
