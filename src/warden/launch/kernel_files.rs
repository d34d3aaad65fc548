//! The kernel's own file systems as a machine sees them: proc, sysfs, devices, run, and what of
//! them is hidden or write-protected.
//!
//! Everything is made detached while the host is still there (the kernel gives a fresh proc only
//! to those who see a whole one) and attached when it is gone. Paths are looked up beneath these
//! mounts' own descriptors, never through the image. Nothing here can be undone inside: no
//! process of the machine ever has `CAP_SYS_ADMIN`.

use std::{
    fmt::Write as _,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags},
};

use super::{
    LaunchPlan,
    first::{attach, usable_processors},
};
use crate::warden::{
    instance::SLOT_IDS,
    syscall::{self, MountAttr},
};

/// Device nodes taken from the host; none of them gives more than what every process has.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links that programs expect in /dev.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Parts of proc that show or do what belongs to the host.
const HIDDEN_IN_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// As above, in sysfs.
const HIDDEN_IN_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];
/// Parts of proc that may be read only. The network's sysctls need `CAP_NET_ADMIN` anyway.
const READ_ONLY_IN_PROC: [&str; 5] = ["sys", "bus", "fs", "irq", "sysrq-trigger"];

/// The file systems, detached until [`KernelFiles::attach`].
#[derive(Debug)]
pub(super) struct KernelFiles {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
    pts: OwnedFd,
    shm: OwnedFd,
    /// None where the kernel has no message queues.
    mqueue: Option<OwnedFd>,
    run: OwnedFd,
    nodes: Vec<OwnedFd>,
}

const QUIET: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

// === impl KernelFiles ===

impl KernelFiles {
    /// Makes all of them; nothing is to be seen yet.
    pub(super) fn make(plan: &LaunchPlan<'_>) -> io::Result<Self> {
        let executable = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let read_only = QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY;
        // Files in memory count against the machine's limit; this only keeps `df` honest.
        let half = format!("{}m", (plan.resources.memory_mb / 2).max(1));
        Ok(Self {
            proc: make("proc", &[], QUIET)?,
            sys: make("sysfs", &[], read_only)?,
            dev: make("tmpfs", &[("mode", "755"), ("size", "1m")], MountAttrFlags::MOUNT_ATTR_NOSUID)?,
            pts: make(
                "devpts",
                // The host's terminals are one pool: no sandbox may take them all.
                &[("ptmxmode", "666"), ("mode", "620"), ("gid", "5"), ("max", "256")],
                MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            )?,
            shm: make("tmpfs", &[("mode", "1777"), ("size", &half)], executable)?,
            mqueue: match make("mqueue", &[], QUIET) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => None,
                other => Some(other?),
            },
            run: make("tmpfs", &[("mode", "755"), ("size", &half)], executable)?,
            nodes: NODES.iter().map(|name| host_node(name)).collect::<io::Result<_>>()?,
        })
    }

    /// Puts them into the machine's file system, whose root is `root`.
    pub(super) fn attach(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        for (mount, at) in [(&self.proc, "proc"), (&self.sys, "sys"), (&self.dev, "dev"), (&self.run, "run")]
        {
            attach(mount.as_fd(), mount_point(root, at)?.as_fd())?;
        }
        let dev = self.dev.as_fd();
        for (node, name) in self.nodes.iter().zip(NODES) {
            attach(node.as_fd(), new_file(dev, name, 0o666, "")?.as_fd())?;
        }
        attach(self.pts.as_fd(), mount_point(dev, "pts")?.as_fd())?;
        attach(self.shm.as_fd(), mount_point(dev, "shm")?.as_fd())?;
        if let Some(mqueue) = &self.mqueue {
            attach(mqueue.as_fd(), mount_point(dev, "mqueue")?.as_fd())?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, dev, name)?;
        }
        Ok(())
    }

    /// Hides, protects and replaces parts of them. After [`KernelFiles::attach`].
    pub(super) fn mask(&self, plan: &LaunchPlan<'_>) -> io::Result<()> {
        // No user namespace within this one: each is a second try at the kernel's privileged parts.
        self.set("user/max_user_namespaces", "0")?;
        // `ping` without privileges, for every group there is inside.
        self.set("net/ipv4/ping_group_range", &format!("0 {}", SLOT_IDS - 1))?;
        for name in HIDDEN_IN_PROC {
            self.hide(self.proc.as_fd(), name)?;
        }
        for name in HIDDEN_IN_SYS {
            self.hide(self.sys.as_fd(), name)?;
        }
        for name in READ_ONLY_IN_PROC {
            if exists(self.proc.as_fd(), name)?.is_some() {
                let tree = protected(self.proc.as_fd(), name)?;
                attach(tree.as_fd(), open(self.proc.as_fd(), name)?.as_fd())?;
            }
        }
        self.replace(plan)
    }

    /// `/dev/null`, for the standard streams. After [`KernelFiles::attach`].
    pub(super) fn open_null(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.dev, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Sets one of the namespaces' own settings. Here and not by the host's proc, where the names of all
    /// machines' settings lie in one row that each look-up walks.
    fn set(&self, setting: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let setting = rustix::fs::openat(&self.proc, format!("sys/{setting}"), flags, Mode::empty())?;
        rustix::io::write(&setting, value.as_bytes())?;
        Ok(())
    }

    /// Files that tell of the machine instead of the host.
    fn replace(&self, plan: &LaunchPlan<'_>) -> io::Result<()> {
        let proc = self.proc.as_fd();
        let boot_id = format!("{}\n", plan.boot_id);
        self.lay_over(proc, "sys/kernel/random/boot_id", &boot_id, MountAttr::READ_ONLY)?;
        // The guest rewrites this one as memory is used.
        self.lay_over(proc, "meminfo", &meminfo(plan.resources.memory_mb), MountAttr::NO_EXEC)?;
        let online = match processors(plan.resources.cpu_count)? {
            1 => "0\n".to_owned(),
            several => format!("0-{}\n", several - 1),
        };
        self.lay_over(self.sys.as_fd(), "devices/system/cpu/online", &online, MountAttr::READ_ONLY)
    }

    /// Shows `text` in place of a kernel file. The text is a file in memory without a name.
    fn lay_over(&self, base: BorrowedFd<'_>, path: &str, text: &str, attr: MountAttr) -> io::Result<()> {
        const NAME: &str = ".text";
        if exists(base, path)?.is_none() {
            return Ok(());
        }
        new_file(self.dev.as_fd(), NAME, 0o644, text)?;
        let file = clone(self.dev.as_fd(), NAME)?;
        syscall::mount_setattr(file.as_fd(), attr.and(MountAttr::NO_SUID), None)?;
        attach(file.as_fd(), open(base, path)?.as_fd())?;
        rustix::fs::unlinkat(&self.dev, NAME, AtFlags::empty())?;
        Ok(())
    }

    fn hide(&self, base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
        match exists(base, path)? {
            None => Ok(()),
            Some(FileType::Directory) => self.empty(base, path),
            Some(_) => attach(clone(self.dev.as_fd(), "null")?.as_fd(), open(base, path)?.as_fd()),
        }
    }

    /// Shows nothing in place of a kernel directory: a directory in memory without a name. Not a file system of
    /// its own, since the kernel looks through all there are whenever a control group goes.
    fn empty(&self, base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
        const NAME: &str = ".nothing";
        rustix::fs::mkdirat(&self.dev, NAME, Mode::from_raw_mode(0o755))?;
        let cover = clone(self.dev.as_fd(), NAME)?;
        let quiet = MountAttr::NO_SUID.and(MountAttr::NO_DEV).and(MountAttr::NO_EXEC);
        syscall::mount_setattr(cover.as_fd(), MountAttr::READ_ONLY.and(quiet), None)?;
        attach(cover.as_fd(), open(base, path)?.as_fd())?;
        Ok(rustix::fs::unlinkat(&self.dev, NAME, AtFlags::REMOVEDIR)?)
    }
}

/// A new file system, detached.
fn make(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// One of the host's device nodes, as a detached mount; refused when it is anything else.
fn host_node(name: &str) -> io::Result<OwnedFd> {
    let dev = rustix::fs::open("/dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let node = clone(dev.as_fd(), name)?;
    let stat = rustix::fs::fstat(&node)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(Errno::NODEV.into());
    }
    Ok(node)
}

/// A directory directly beneath `parent`, made if it is missing. An image in which it is a
/// link or a file is refused: the mount would land elsewhere.
pub(super) fn mount_point(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?)
}

fn new_file(parent: BorrowedFd<'_>, name: &str, mode: u32, text: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode))?;
    if !text.is_empty() {
        rustix::io::write(&file, text.as_bytes())?;
    }
    open(parent, name)
}

/// A name beneath a mount, through the mounts that lie over it.
fn open(base: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(base, path, flags, Mode::empty(), resolve)?)
}

fn exists(base: BorrowedFd<'_>, path: &str) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(base, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A detached mount of what lies beneath a name.
fn clone(base: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    Ok(rustix::mount::open_tree(base, path, flags)?)
}

/// As [`clone`], read only.
fn protected(base: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let tree = clone(base, path)?;
    syscall::mount_setattr(tree.as_fd(), MountAttr::READ_ONLY, None)?;
    Ok(tree)
}

/// What the file shows until the guest writes it for the first time: the size, and all of it free.
fn meminfo(memory_mb: u32) -> String {
    let kib = u64::from(memory_mb) * 1024;
    let mut text = String::new();
    for (name, value) in [
        ("MemTotal:", kib),
        ("MemFree:", kib),
        ("MemAvailable:", kib),
        ("Buffers:", 0),
        ("Cached:", 0),
        ("SwapCached:", 0),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Shmem:", 0),
        ("SReclaimable:", 0),
    ] {
        let _ = writeln!(text, "{name:<15} {value:>8} kB");
    }
    text
}

/// How many processors the machine shows: what it asked for, at most what the warden may use.
fn processors(wanted: u32) -> io::Result<u32> {
    let usable = usable_processors()?.len();
    Ok(wanted.clamp(1, u32::try_from(usable).unwrap_or(u32::MAX)))
}
