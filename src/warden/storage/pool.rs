//! A btrfs of the server's own: a sparse image in the data directory, on a loop device.
//!
//! ```text
//!   STORE/pool.img     the image; made once, under another name until it is whole
//!   STORE/.pool/       where it is mounted: sealed images, and
//!     .machines/       what is mounted on DATA/machines
//! ```
//! The device goes with the last mount of it, so machines that outlive their server keep it.
#![expect(unsafe_code, reason = "loop devices are set up by ioctl, which no crate wraps")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    fs::{self, AtFlags, Mode, OFlags},
    io::Errno,
    mount::MountFlags,
};

use super::btrfs;
use crate::warden::{machine::room, prepare};

/// Where the pool is mounted.
pub(in crate::warden) const MOUNT: &str = ".pool";
const IMAGE: &str = "pool.img";
const NEW_IMAGE: &str = "pool.img.new";
/// In the pool: the machines' directory.
const MACHINES: &str = ".machines";
/// Where the host's tool for new file systems may be.
const TOOLS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];
const TOOL: &str = "mkfs.btrfs";
/// btrfs wants some hundred MiB.
const SMALLEST: u64 = 1 << 30;
/// Others may take the free device first.
const ATTEMPTS: u32 = 20;

const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LOOP_CONFIGURE: u64 = 0x4c0a;
/// The device goes with its last user; and reads past the host's page cache, which has it all once more.
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// Whether a store has a pool, mounted or not.
pub(super) fn exists(store: BorrowedFd<'_>) -> bool {
    fs::statat(store, IMAGE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Whether a new one could be made; else what is missing.
pub(super) fn possible() -> Result<(), String> {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !kinds.lines().any(|line| line.trim() == "btrfs") {
        return Err("the kernel has no btrfs".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("the kernel has no loop devices".to_owned());
    }
    tool().map(drop).ok_or_else(|| format!("{TOOL} is not installed (btrfs-progs)"))
}

fn tool() -> Option<std::path::PathBuf> {
    TOOLS.iter().map(|place| Path::new(place).join(TOOL)).find(|tool| tool.exists())
}

/// Mounts the pool, made if need be; its directory for machines comes back.
pub(super) fn open(store: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let place = super::directory(store, MOUNT)?;
    let pool = if prepare::is_mount_root(place.as_fd())? {
        place
    } else {
        let new = !exists(store);
        if new {
            make(store)?;
        }
        attach(store, place.as_fd())?;
        let pool = room::open(store, MOUNT)?;
        // It may have been enabled before a start that was cut short.
        btrfs::enable_quota(pool.as_fd()).or_else(|error| if new { Err(error) } else { Ok(()) })?;
        pool
    };
    if !btrfs::is(pool.as_fd()) {
        return Err(io::Error::other(format!("something else is mounted on {MOUNT}")));
    }
    super::directory(pool.as_fd(), MACHINES)
}

/// Makes the image: as large as the file system that it lies on, and taking what is written to it.
fn make(store: BorrowedFd<'_>) -> io::Result<()> {
    let tool = tool().ok_or_else(|| io::Error::other(possible().err().unwrap_or_default()))?;
    let _ = fs::unlinkat(store, NEW_IMAGE, AtFlags::empty());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = File::from(fs::openat(store, NEW_IMAGE, flags, Mode::RUSR | Mode::WUSR)?);
    let host = fs::fstatvfs(&image)?;
    image.set_len((host.f_blocks * host.f_frsize).max(SMALLEST))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let made = Command::new(tool)
        .args(["--quiet", "--force", "--metadata", "single", "--data", "single", "--label", "firkin"])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(io::Error::other(format!("{TOOL}: {said}")));
    }
    image.sync_all()?;
    fs::renameat(store, NEW_IMAGE, store, IMAGE)?;
    Ok(())
}

fn attach(store: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = fs::openat(store, IMAGE, flags, Mode::empty())?;
    let (device, name) = device(image.as_fd())?;
    let target = prepare::proc_path(place);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let mounted = rustix::mount::mount(name, target, "btrfs", flags, c"discard=async");
    // From here on the mount keeps the device.
    drop(device);
    Ok(mounted?)
}

/// A loop device of the image.
fn device(image: BorrowedFd<'_>) -> io::Result<(OwnedFd, String)> {
    let control = fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for attempt in 0..ATTEMPTS {
        let number = ask(control.as_fd(), LOOP_CTL_GET_FREE, &mut [])?;
        let name = format!("/dev/loop{number}");
        let device = fs::open(&name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let flags = if attempt % 2 == 0 { AUTOCLEAR | DIRECT_IO } else { AUTOCLEAR };
        // struct loop_config: the file, the block size, then loop_info64 with its flags.
        let mut config = [0_u64; 38];
        config[0] = u64::from(image.as_raw_fd().unsigned_abs());
        config[7] = u64::from(flags) << 32;
        match ask(device.as_fd(), LOOP_CONFIGURE, &mut config) {
            Ok(_) => return Ok((device, name)),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            // The image's file system has no direct reads.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) && attempt == 0 => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no loop device is free"))
}

fn ask(of: BorrowedFd<'_>, request: u64, argument: &mut [u64]) -> io::Result<i32> {
    // SAFETY: the first request takes no argument; the second reads a loop_config, whose 304 bytes
    // the argument has. Neither writes to it.
    let result = unsafe { libc::ioctl(of.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
