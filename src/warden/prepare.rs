//! The data directory made fit for use, before anybody drops privileges.
//!
//! ```text
//! DATA/           0700 the gateway's user      the gateway may do here what it likes, so the
//!   lock          0600 root, locked            warden never goes through this directory by path
//!   instance      0600 root                    again: it opens every child once, checks it,
//!   gateway/      0700 the gateway's user      and keeps the descriptors
//!   run/          0750 root, gateway's group
//!   templates/    0700 root; with --storage btrfs also pool.img, and where it is mounted (`storage`)
//!   machines/     0700 root, mounted on itself (or the pool on it) nosuid,nodev: sandboxes put
//!                 setuid files there
//! ```

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{
        self, AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags,
        Uid,
    },
    io::Errno,
    mount::{self, MountFlags, UnmountFlags},
};

use super::{
    At, WardenError, cgroup,
    instance::{Claim, Instance},
    storage::{self, Driver},
};
use crate::wire::warden::StorageDriver;

/// Where the host's instances are listed.
const REGISTRY: &str = "/run/firkin/instances";
/// How long a new server waits for an old one's helper to notice that its gateway is gone.
const LOCK_ATTEMPTS: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A data directory with its instance, ready for a warden and a gateway. Held by both.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) claim: Claim,
    pub(crate) data: OwnedFd,
    pub(crate) run: OwnedFd,
    pub(crate) templates: OwnedFd,
    pub(crate) machines: OwnedFd,
    /// How new disks are made.
    pub(crate) driver: Driver,
    lock: File,
    path: PathBuf,
}

/// Makes and checks the data directory, takes its lock and an instance number, and makes the
/// mounts that its machines need. `storage`: how disks are to be kept; none: as it is best. Run as
/// root, in a process with one thread.
pub fn prepare(data_dir: &Path, storage: Option<StorageDriver>) -> Result<Prepared, WardenError> {
    if !rustix::process::geteuid().is_root() {
        return Err(WardenError::NotRoot);
    }
    let refuse = |reason: String| WardenError::DataDir { path: data_dir.to_owned(), reason };
    if !data_dir.is_absolute() {
        return Err(refuse("the path must be absolute".to_owned()));
    }
    let data = open_data(data_dir).map_err(refuse)?;
    let lock = take_lock(data.as_fd(), data_dir)?;
    let before = read_instance(data.as_fd());
    let live = |instance: Instance| cgroup::Cgroups::detect(instance).inhabited();
    let claim = Claim::take(Path::new(REGISTRY), data_dir, before, &live)?;
    if before != Some(claim.instance.0) {
        write_instance(data.as_fd(), claim.instance).at("record the instance")?;
    }
    let id = claim.instance.gateway_id();
    own(data.as_fd(), id, id, 0o700).at("hand the data directory to the gateway")?;
    let gateway = room(data.as_fd(), "gateway").at("make DATA/gateway")?;
    hand_over(gateway.as_fd(), id).at("hand DATA/gateway to the gateway")?;
    own(gateway.as_fd(), id, id, 0o700).at("hand DATA/gateway to the gateway")?;
    let run = root_room(data.as_fd(), "run", id, 0o750).at("make DATA/run")?;
    let templates = root_room(data.as_fd(), "templates", 0, 0o700).at("make DATA/templates")?;
    let machines = root_room(data.as_fd(), "machines", 0, 0o700).at("make DATA/machines")?;
    let (driver, place) = storage::choose(templates.as_fd(), machines.as_fd(), storage).map_err(refuse)?;
    let place = place.as_ref().map(AsFd::as_fd);
    let machines = mount_on_itself(data.as_fd(), machines, place).at("mount DATA/machines nosuid,nodev")?;
    tracing::info!(storage = driver.name(), "disks of sandboxes");
    Ok(Prepared { claim, data, run, templates, machines, driver, lock, path: data_dir.to_owned() })
}

// === impl Prepared ===

impl Prepared {
    /// The user that the gateway becomes.
    pub fn gateway_uid(&self) -> u32 {
        self.claim.instance.gateway_id()
    }

    /// The group that the gateway becomes.
    pub fn gateway_gid(&self) -> u32 {
        self.claim.instance.gateway_id()
    }

    /// The directory of the gateway's own files: database, secret, admin socket.
    pub fn gateway_dir(&self) -> PathBuf {
        self.path.join("gateway")
    }

    /// The directory of the machines' sockets, for `NamespaceEngine::connect`.
    pub fn run_dir(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The instance's number on this host.
    pub fn instance(&self) -> u32 {
        self.claim.instance.0
    }

    /// Everything that the warden needs of it open.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 6] {
        [
            self.claim.as_fd(),
            self.data.as_fd(),
            self.run.as_fd(),
            self.templates.as_fd(),
            self.machines.as_fd(),
            self.lock.as_fd(),
        ]
    }

    /// Undoes what a server without machines no longer needs: the mount and the number.
    pub(crate) fn release(&self) {
        let pool = open_beneath(self.templates.as_fd(), storage::POOL);
        for (name, mounted) in
            [("machines", Some(self.machines.as_fd())), ("the pool", pool.as_ref().ok().map(AsFd::as_fd))]
        {
            let Some(mounted) = mounted.filter(|mounted| is_mount_root(*mounted).unwrap_or(false)) else {
                continue;
            };
            if let Err(error) = mount::unmount(proc_path(mounted), UnmountFlags::DETACH) {
                tracing::warn!(%error, "the mount of {name} stays");
            }
        }
        self.claim.release();
    }
}

/// Opens the directory, made if need be. Only an empty directory, or one that was a data
/// directory before, is taken: the wrong path must not cost an operator a directory of his.
fn open_data(path: &Path) -> Result<OwnedFd, String> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| error.to_string())?;
    check_parents(path)?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let data = fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("{error}; it must be a directory, not a link to one"))?;
    let stat = fs::fstat(&data).map_err(|error| error.to_string())?;
    if stat.st_uid != 0 && !Instance::is_gateway_id(stat.st_uid) {
        return Err(format!("it belongs to user {}; it must belong to root or be new", stat.st_uid));
    }
    let known = fs::statat(&data, "instance", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if !known && !is_empty(data.as_fd()).map_err(|error| error.to_string())? {
        return Err("it holds files that are not firkin's; choose an empty or a new directory".to_owned());
    }
    Ok(data)
}

/// The gateway is an ordinary user and must be able to walk to its files.
fn check_parents(path: &Path) -> Result<(), String> {
    for parent in path.ancestors().skip(1) {
        let stat = fs::stat(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        if stat.st_mode & 0o001 == 0 {
            let parent = parent.display();
            return Err(format!(
                "the server runs as an ordinary user and may not walk through {parent}; \
                 `chmod o+x {parent}` or choose another --data-dir"
            ));
        }
    }
    Ok(())
}

fn is_empty(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    for entry in fs::Dir::read_from(dir)? {
        // A server that died in its first moments leaves only its lock; a disk of its own has the latter.
        if !matches!(entry?.file_name().to_bytes(), b"." | b".." | b"lock" | b"lost+found") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn take_lock(data: BorrowedFd<'_>, path: &Path) -> Result<File, WardenError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = fs::openat(data, "lock", flags, Mode::from_raw_mode(0o600)).at("open DATA/lock")?;
    for _ in 0..LOCK_ATTEMPTS {
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock.into()),
            // The holder may be the warden of a gateway that was just killed: it is about to
            // end. A blocking lock would be the event, but has no time limit.
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error).at("lock DATA/lock"),
        }
    }
    Err(WardenError::Busy(path.to_owned()))
}

/// What an earlier start recorded; nothing when it is not root's own small file.
fn read_instance(data: BorrowedFd<'_>) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::openat(data, "instance", flags, Mode::empty()).ok()?;
    let stat = fs::fstat(&file).ok()?;
    if stat.st_uid != 0 || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    File::from(file).take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_instance(data: BorrowedFd<'_>, instance: Instance) -> io::Result<()> {
    match fs::unlinkat(data, "instance.new", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(data, "instance.new", flags, Mode::from_raw_mode(0o600))?);
    writeln!(file, "{}", instance.0)?;
    file.sync_all()?;
    Ok(fs::renameat(data, "instance.new", data, "instance")?)
}

fn own(dir: BorrowedFd<'_>, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    fs::fchown(dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fs::fchmod(dir, Mode::from_raw_mode(mode))?)
}

/// Opens a child directory, made if need be, without following links.
fn room(data: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match fs::mkdirat(data, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    open_beneath(data, name)
}

fn open_beneath(data: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(fs::openat2(data, name, flags, Mode::empty(), resolve)?)
}

/// A child that only root may have made: the gateway can rename it, but not fill another one.
fn root_room(data: BorrowedFd<'_>, name: &str, gid: u32, mode: u32) -> io::Result<OwnedFd> {
    let dir = room(data, name)?;
    let stat = fs::fstat(&dir)?;
    if stat.st_uid != 0 {
        let reason = format!("it belongs to user {}, not to root: remove it", stat.st_uid);
        return Err(io::Error::other(reason));
    }
    own(dir.as_fd(), 0, gid, mode)?;
    Ok(dir)
}

/// Gives the gateway's files to its user of this instance, which may have another number than
/// the last time.
fn hand_over(gateway: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let owner = fs::fstat(gateway)?.st_uid;
    if owner == id {
        return Ok(());
    }
    for entry in fs::Dir::read_from(gateway)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = fs::statat(gateway, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        if may_change_hands(&stat) {
            let (user, group) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
            fs::chownat(gateway, entry.file_name(), user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

/// A hard link that an earlier gateway planted must not become a gift of somebody else's file.
fn may_change_hands(stat: &Stat) -> bool {
    stat.st_nlink == 1 && (stat.st_uid == 0 || Instance::is_gateway_id(stat.st_uid))
}

/// Mounts the directory on itself, or `place` on it, or finds it mounted by an earlier warden.
fn mount_on_itself(
    data: BorrowedFd<'_>,
    machines: OwnedFd,
    place: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let machines = if is_mount_root(machines.as_fd())? {
        machines
    } else {
        let path = proc_path(machines.as_fd());
        mount::mount_bind(place.map_or_else(|| path.clone(), proc_path), &path)?;
        open_beneath(data, "machines")?
    };
    if !is_mount_root(machines.as_fd())? {
        return Err(io::Error::other("the mount did not appear"));
    }
    if let Some(place) = place
        && fs::fstat(place)?.st_ino != fs::fstat(&machines)?.st_ino
    {
        return Err(io::Error::other("an earlier server has mounted another directory: unmount it"));
    }
    let path = proc_path(machines.as_fd());
    mount::mount_remount(&path, MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV, "")?;
    let flags = fs::fstatvfs(&machines)?.f_flag;
    if flags.contains(StatVfsMountFlags::NOSUID) {
        Ok(machines)
    } else {
        Err(io::Error::other("the mount is not nosuid"))
    }
}

pub(super) fn is_mount_root(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = fs::statx(dir, "", AtFlags::EMPTY_PATH, fs::StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes.contains(fs::StatxAttributes::MOUNT_ROOT))
}

/// A path that names the descriptor's own directory, whatever happened to its name.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
