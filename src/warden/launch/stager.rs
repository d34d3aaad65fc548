//! The stager: from host root to the slot's root, with the layers in hand.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    },
    thread::{Gid, LinkNameSpaceType, Uid},
};

use super::{Launch, Step, first};
use crate::warden::syscall::{self, MountAttr, Side};

/// Where the stage is mounted in the stager's own mount namespace: exists everywhere, and every
/// user may pass through it. The machine never sees it.
const STAGE: &str = "/tmp";
/// In the stage: the machine's directory.
pub(super) const DISK: &str = "disk";
/// In the stage: where the root file system is put together.
pub(super) const ROOT: &str = "root";

/// The new process's own; user and net namespace are the slot's.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;

/// The stager's whole life. The process that it starts goes on in [`first::run`], which only
/// returns to fail.
pub(super) fn run(launch: &Launch<'_>) -> io::Result<()> {
    launch.begin(Step::Cgroups)?;
    for procs in launch.plan.guest_cgroups {
        rustix::io::write(procs, b"0")?;
    }
    launch.begin(Step::Layers)?;
    let layers = clone_layers(launch)?;
    launch.begin(Step::Stage)?;
    stage(&layers)?;
    launch.begin(Step::Enter)?;
    enter(launch)?;
    launch.begin(Step::Clone)?;
    match syscall::clone_sibling(NAMESPACES.unsigned_abs().into(), &launch.track.pid)? {
        Side::New => {
            let Err(error) = first::run(launch);
            launch.track.fail(&error);
            // Not by returning: descriptors that are owned further up may be closed by now.
            syscall::end_process(1)
        }
        Side::Caller => Ok(()),
    }
}

/// The machine's directory, then every layer of every mount, as detached mounts in which the
/// slot's root is root. Made before the mount namespace is left: only its own mounts can be cloned.
fn clone_layers(launch: &Launch<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let plan = launch.plan;
    let userns = plan.slot.userns.as_fd();
    let mut layers = vec![(DISK.to_owned(), clone(plan.disk, MountAttr::NO_DEV, userns)?)];
    for (number, lower) in plan.mounts.iter().flat_map(|mount| mount.lowers).enumerate() {
        let tree = clone(lower.as_fd(), MountAttr::READ_ONLY.and(MountAttr::NO_DEV), userns)?;
        layers.push((lower_name(number), tree));
    }
    Ok(layers)
}

/// The stage's name for the n-th lower layer, counted over all mounts.
pub(super) fn lower_name(number: usize) -> String {
    format!("l{number}")
}

fn clone(directory: BorrowedFd<'_>, attr: MountAttr, userns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(directory, "", flags)?;
    syscall::mount_setattr(tree.as_fd(), attr, Some(userns))?;
    Ok(tree)
}

fn stage(layers: &[(String, OwnedFd)]) -> io::Result<()> {
    syscall::unshare_mounts()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "755")?;
    rustix::mount::fsconfig_create(&context)?;
    let stage = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(&stage, "", CWD, STAGE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&stage)?;
    rustix::fs::mkdir(ROOT, Mode::from_raw_mode(0o755))?;
    for (name, tree) in layers {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755))?;
        rustix::mount::move_mount(tree, "", &stage, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

fn enter(launch: &Launch<'_>) -> io::Result<()> {
    let slot = launch.plan.slot;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::move_into_link_name_space(slot.netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    rustix::thread::move_into_link_name_space(slot.userns.as_fd(), Some(LinkNameSpaceType::User))?;
    // Root of the slot; all capabilities came with the namespace.
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}
