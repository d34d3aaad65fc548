//! The machine's first process, from its clone to the guest's exec.
//!
//! It starts as root of the slot with every capability there, in a mount namespace that still
//! shows the host; each step takes something away, and the order matters: what needs
//! `CAP_SYS_ADMIN` comes before the capabilities go, the filter comes last, since it refuses what the steps before do.

use std::{
    convert::Infallible,
    ffi::CString,
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    fcntl::{AtFlags, FcntlArg},
    sched::CpuSet,
};
use rustix::{
    fs::{CWD, Mode},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags},
    process::{Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    Launch, LaunchMount, LaunchPlan, Step,
    kernel_files::{KernelFiles, mount_point},
    stager::{DISK, ROOT, lower_name},
};
use crate::warden::syscall;

/// Docker's default capabilities: chown, `dac_override`, fowner, fsetid, kill, setgid, setuid,
/// setpcap, `net_bind_service`, `net_raw`, `sys_chroot`, mknod, `audit_write`, setfcap.
const CAPABILITIES: u64 = 0xa804_25fb;
/// The kernel's capability numbers end well below this one.
const LAST_POSSIBLE_CAPABILITY: u32 = 63;
/// Open files: what programs expect to start with, and how far they may raise it.
const OPEN_FILES: (u64, u64) = (1024, 20_000);
/// The first number after the standard streams.
const FIRST_NUMBER: RawFd = 3;

/// The guest's descriptors by number; the rest of its table is the standard streams on /dev/null.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) listener: RawFd,
    pub(super) work_cgroups: Vec<RawFd>,
    pub(super) memory_current: Option<RawFd>,
    pub(super) memory_stat: Option<RawFd>,
    pub(super) cpu_usage: Option<RawFd>,
}

/// The whole way; it returns only to fail.
pub(super) fn run(launch: &Launch<'_>) -> io::Result<Infallible> {
    let plan = launch.plan;
    // Until it is the guest it ends with the warden, whose descriptors it still has.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::umask(Mode::empty());
    launch.begin(Step::Overlays)?;
    // These two are closed by number with all others, so they must not be closed by value.
    let root = ManuallyDrop::new(overlays(plan)?);
    launch.begin(Step::KernelFiles)?;
    let files = ManuallyDrop::new(KernelFiles::make(plan)?);
    launch.begin(Step::Pivot)?;
    pivot(root.as_fd())?;
    launch.begin(Step::Attach)?;
    files.attach(root.as_fd())?;
    launch.begin(Step::Masks)?;
    files.mask(plan)?;
    launch.begin(Step::Settings)?;
    settings(plan)?;
    launch.begin(Step::Descriptors)?;
    let guest = descriptors(launch, &ManuallyDrop::new(files.open_null()?))?;
    launch.begin(Step::Capabilities)?;
    capabilities()?;
    launch.begin(Step::Filter)?;
    syscall::install_filter(&launch.launcher.filter.allow)?;
    syscall::install_filter(&launch.launcher.filter.deny)?;
    launch.begin(Step::Exec)?;
    rustix::process::set_parent_process_death_signal(None)?;
    let environment: [CString; 0] = [];
    Ok(nix::unistd::execveat(guest, c"", &launch.arguments, &environment, AtFlags::AT_EMPTY_PATH)?)
}

/// Mounts the overlays on the stage and returns the root's.
fn overlays(plan: &LaunchPlan<'_>) -> io::Result<OwnedFd> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let mut root: Option<OwnedFd> = None;
    let mut lowers = 0;
    for mount in plan.mounts {
        let overlay = overlay(mount, lowers)?;
        lowers += mount.lowers.len();
        match &root {
            None => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(&overlay, "", CWD, ROOT, flags)?;
                root = Some(overlay);
            }
            Some(root) => {
                let target = mount_point(root.as_fd(), mount.at)?;
                attach(overlay.as_fd(), target.as_fd())?;
            }
        }
    }
    root.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// One overlay, detached; its lower layers are those of the stage from number `first` on.
fn overlay(mount: &LaunchMount<'_>, first: usize) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Without it overlay wants trusted.* attributes, which root of a slot cannot set.
    rustix::mount::fsconfig_set_flag(&context, "userxattr")?;
    let names: Vec<String> = (first..first + mount.lowers.len()).map(lower_name).collect();
    for (index, name) in names.iter().enumerate() {
        match rustix::mount::fsconfig_set_string(&context, "lowerdir+", name.as_str()) {
            // Kernels before 6.7 know only the joined form.
            Err(Errno::INVAL) if index == 0 => {
                rustix::mount::fsconfig_set_string(&context, "lowerdir", names.join(":"))?;
                break;
            }
            other => other?,
        }
    }
    rustix::mount::fsconfig_set_string(&context, "upperdir", format!("{DISK}/{}", mount.upper))?;
    rustix::mount::fsconfig_set_string(&context, "workdir", format!("{DISK}/{}", mount.work))?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Attaches a detached mount to a directory or file that was looked up before.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Makes the overlay the root and lets go of everything else.
fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies over the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn settings(plan: &LaunchPlan<'_>) -> io::Result<()> {
    nix::unistd::sethostname(plan.hostname)?;
    rustix::process::setsid()?;
    syscall::leave_session_keyring()?;
    syscall::reset_signals()?;
    limit(Resource::Core, 0, u64::MAX)?;
    pin(plan)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Sets a limit, no higher than the warden's own: raising one is a privilege of the host.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let ours = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let hard = hard.min(ours);
    let or_none = |value: u64| (value != u64::MAX).then_some(value);
    let limit = Rlimit { current: or_none(soft.min(hard)), maximum: or_none(hard) };
    Ok(rustix::process::setrlimit(resource, limit)?)
}

/// Shows the machine as many processors as it asked for, neighbours starting at different ones.
fn pin(plan: &LaunchPlan<'_>) -> io::Result<()> {
    let usable = usable_processors()?;
    let wanted = usize::try_from(plan.resources.cpu_count).unwrap_or(usize::MAX);
    if usable.is_empty() || wanted >= usable.len() {
        return Ok(());
    }
    let start = usize::try_from(plan.slot.index).unwrap_or(0) * wanted;
    let mut set = CpuSet::new();
    for cpu in usable.iter().cycle().skip(start % usable.len()).take(wanted) {
        set.set(*cpu)?;
    }
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

/// The processors that the warden, and so this process, may run on.
pub(super) fn usable_processors() -> io::Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Arranges the guest's descriptors as [`Numbers`] says and closes all others. Returns the
/// guest's binary, which with the launch's pipe is closed by exec.
fn descriptors(launch: &Launch<'_>, null: &OwnedFd) -> io::Result<BorrowedFd<'static>> {
    let passed = passed(launch.plan);
    let guest = FIRST_NUMBER + RawFd::try_from(passed.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let done = guest + 1;
    let end = done + 1;
    // Out of the way of every number that is about to be replaced.
    let aside =
        |fd: BorrowedFd<'_>| nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(end)).map_err(io::Error::from);
    let null = aside(null.as_fd())?;
    let guest_aside = aside(launch.plan.guest)?;
    let done_aside = aside(launch.done)?;
    let passed_aside = passed.into_iter().map(aside).collect::<io::Result<Vec<_>>>()?;
    for stream in 0..FIRST_NUMBER {
        syscall::place(null, stream, false)?;
    }
    for (fd, number) in passed_aside.into_iter().zip(FIRST_NUMBER..) {
        syscall::place(fd, number, false)?;
    }
    syscall::place(guest_aside, guest, true)?;
    syscall::place(done_aside, done, true)?;
    syscall::close_from(end)?;
    // Not before: the warden's descriptors, of which there are many, were all open here.
    limit(Resource::Nofile, OPEN_FILES.0, OPEN_FILES.1)?;
    Ok(syscall::borrow_for_good(guest))
}

/// What the guest gets, in the order of its numbers.
fn passed<'a>(plan: &LaunchPlan<'a>) -> Vec<BorrowedFd<'a>> {
    let stats = [plan.stats.memory_current, plan.stats.memory_stat, plan.stats.cpu_usage];
    let mut all = vec![plan.listener];
    all.extend(plan.work_cgroups);
    all.extend(stats.into_iter().flatten());
    all
}

fn capabilities() -> io::Result<()> {
    for number in 0..=LAST_POSSIBLE_CAPABILITY {
        let bit = 1_u64 << number;
        if CAPABILITIES & bit != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
            Ok(()) => {}
            // This kernel knows no capability of this number, so none above it either.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    // The effective ones serve until exec, which leaves root the bounding set.
    let sets = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets { inheritable: CapabilitySet::empty(), ..sets };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

// === impl Numbers ===

impl Numbers {
    /// The numbers that [`passed`] gives.
    pub(super) fn of(plan: &LaunchPlan<'_>) -> Self {
        let mut next = FIRST_NUMBER..;
        let mut number = || next.next().unwrap_or(RawFd::MAX);
        Self {
            listener: number(),
            work_cgroups: plan.work_cgroups.iter().map(|_| number()).collect(),
            memory_current: plan.stats.memory_current.map(|_| number()),
            memory_stat: plan.stats.memory_stat.map(|_| number()),
            cpu_usage: plan.stats.cpu_usage.map(|_| number()),
        }
    }
}
