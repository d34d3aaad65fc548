//! Kernel calls that neither rustix nor nix wrap, each as one safe function.
#![expect(unsafe_code, reason = "the kernel is called directly here, and only here, for what no crate wraps")]

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicI32,
};

use seccompiler::sock_filter;

/// Attributes of a mount (`MOUNT_ATTR_*` of `mount_setattr(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountAttr(pub(crate) u64);

impl MountAttr {
    pub(crate) const READ_ONLY: Self = Self(0x1);
    pub(crate) const NO_SUID: Self = Self(0x2);
    pub(crate) const NO_DEV: Self = Self(0x4);
    pub(crate) const NO_EXEC: Self = Self(0x8);
    const ID_MAP: Self = Self(0x10_0000);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where the process stands after [`clone_sibling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller.
    Caller,
    /// The new process.
    New,
}

/// clone3(2) as fork does it, with new namespaces, as a child of the caller's parent. `pid`
/// holds the new process's id, in the caller's pid namespace, before that process first runs, so
/// whoever shares the memory knows of it even when the caller is killed in between.
///
/// Call it in a process with one thread, which has no parent's locks to inherit.
pub(crate) fn clone_sibling(namespaces: u64, pid: &AtomicI32) -> io::Result<Side> {
    // SAFETY: an all-zero clone_args is a valid one: no stack, no descriptors, no flags.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    // With CLONE_PARENT the new process has the caller's exit signal and must name none.
    args.flags = namespaces | u64::from((libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID).cast_unsigned());
    args.parent_tid = pid.as_ptr() as u64;
    // SAFETY: without CLONE_VM the new process has its own copy of the memory, as after fork(2);
    // `parent_tid` points to an integer that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::New),
        _ => Ok(Side::Caller),
    }
}

/// Adds attributes to one mount (not those below it), and with a user namespace an id mapping.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: MountAttr,
    idmap: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set.0 | idmap.map_or(0, |_| MountAttr::ID_MAP.0),
        attr_clr: 0,
        propagation: 0,
        userns_fd: idmap.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
    };
    // SAFETY: the path is an empty C string, `attr` is a mount_attr of the size that is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `target` a copy of `source`, closing what it was. Between fork and exec only: the owner of a number
/// that is replaced must never use it again.
pub(crate) fn place(source: RawFd, target: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 touches no memory.
    let result = unsafe { libc::dup3(source, target, flags) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends the process at once: no destructor, no exit handler.
pub(crate) fn end_process(code: libc::c_int) -> ! {
    // SAFETY: nothing of this process is used any more.
    unsafe { libc::_exit(code) }
}

/// The descriptor of a number that [`place`] gave and nothing closes before exec.
pub(crate) fn borrow_for_good(placed: RawFd) -> BorrowedFd<'static> {
    // SAFETY: open until the process image is replaced, by the caller's promise.
    unsafe { BorrowedFd::borrow_raw(placed) }
}

/// Closes every descriptor from `first` on. Between fork and exec only, as [`place`].
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: close_range touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts the process under one more seccomp filter. It takes `CAP_SYS_ADMIN` in the user
/// namespace instead of `no_new_privs`, so that setuid programs go on working.
pub(crate) fn install_filter(program: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // sock_filter of seccompiler and of libc are the kernel's struct of the same name.
    let prog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `prog` tells the length of a live slice; the kernel copies it and does not write to it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves the inherited session keyring for a new, empty one. A kernel without keyrings has
/// none to leave.
pub(crate) fn leave_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is touched.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) };
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Every signal as a new process expects it: default action, none blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    // Not through libc, which refuses the two signals that it uses itself. The kernel's struct:
    // handler, flags, restorer and mask, of which all zeroes say "default".
    let default = [0_usize; 4];
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: `default` is as large as the kernel's sigaction; numbers that cannot be set
        // (KILL, STOP) answer EINVAL and are at their default anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<libc::c_void>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: the set is initialised by sigemptyset before it is read.
    let result = unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// unshare(2) of a new user and network namespace, in a process with one thread.
pub(crate) fn unshare_user_and_net() -> io::Result<()> {
    // SAFETY: no CLONE_FILES or CLONE_VM: nothing that Rust's rules rest on is split.
    let result = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// unshare(2) of a new mount namespace, in a process with one thread.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: as above.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the interface flag `IFF_UP` of `lo`, through a socket of the network namespace.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    const IFF_UP: libc::c_short = 1;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *target = byte.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_UP;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is live.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A page of memory that a process shares with the children it forks, holding one `T`.
#[derive(Debug)]
pub(crate) struct Shared<T>(NonNull<T>);

// === impl Shared ===

impl<T: Default + Sync> Shared<T> {
    /// A new page with the type's default value.
    pub(crate) fn new() -> io::Result<Self> {
        const { assert!(size_of::<T>() <= 4096 && align_of::<T>() <= 4096) };
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page =
            NonNull::new(page.cast::<T>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the mapping is large and aligned enough for a T, writable, and nobody else has it yet.
        unsafe { page.write(T::default()) };
        Ok(Self(page))
    }
}

impl<T: Sync> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the page holds a T from `new` to `drop`; `T: Sync` makes sharing it sound.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<T>()) };
    }
}
