//! The zygote's own life: leave the guest's cgroup, take orders, clone, answer.
#![expect(unsafe_code, reason = "fork, clone and descriptors received from a socket")]

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
        stat::{Mode, umask},
    },
    unistd::{pipe2, write},
};

use super::{
    Order, REPLY_BYTES, Stdio,
    birth::{self, Prepared, Step},
};

/// The longest order: arguments and environment may not exceed what exec takes anyway.
pub(super) const MAX_ORDER: usize = 16 << 20;
const LAST_SIGNAL: i32 = 64;
/// Descriptors that a process may open without asking for more: programs walk up to this limit,
/// and those that use `select` rely on it. The guest's own is higher.
const OPEN_FILES: u64 = 1024;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// Class 2, best effort, in the upper bits; level 4 of 0 to 7 below.
const IOPRIO_BEST_EFFORT_4: libc::c_int = (2 << 13) | 4;

/// Forks the zygote; returns in the guest only.
pub(super) fn fork(socket: &UnixStream, groups: &[OwnedFd]) -> io::Result<i32> {
    // SAFETY: the child runs `live`, which never returns and uses nothing of the parent but
    // the socket and the descriptors; the C library keeps its allocator usable over fork.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => live(socket, groups),
        pid => Ok(pid),
    }
}

/// `Err(None)`: the order was malformed.
pub(super) fn read_reply(reply: [u8; REPLY_BYTES]) -> Result<i32, Option<(Step, Errno)>> {
    let word = |at: usize| i32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
    let (pid, step, errno) = (word(0), word(4), word(8));
    if pid > 0 { Ok(pid) } else { Err(Step::from_code(step).map(|step| (step, Errno::from_raw(errno)))) }
}

fn live(socket: &UnixStream, groups: &[OwnedFd]) -> ! {
    settle(socket.as_raw_fd(), groups);
    let mut socket = socket;
    // Ends with the guest: its end of the socket closes.
    while let Ok(reply) = serve(&mut socket) {
        if socket.write_all(&reply).is_err() {
            break;
        }
    }
    // SAFETY: ends this process without running the guest's destructors.
    unsafe { libc::_exit(0) }
}

/// Everything that processes inherit is set here once, so that a birth need not.
fn settle(socket: RawFd, groups: &[OwnedFd]) {
    // SAFETY: plain system calls on integers; dispositions go to the default, none to a handler.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"firkin-spawner".as_ptr());
        for number in 1..=LAST_SIGNAL {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // Back to ordinary priority, whatever the guest has: the effect of `nice` and `ionice`.
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_BEST_EFFORT_4);
    }
    umask(Mode::from_bits_truncate(0o022));
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Lowering is never refused.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard);
    }
    for group in groups {
        // A group that cannot be joined leaves the process where it is; the launcher checked them.
        let _ = write(group, b"0");
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", "100");
    let socket = socket.unsigned_abs();
    // SAFETY: nothing in this process uses another descriptor above the standard ones.
    unsafe {
        if socket > 3 {
            libc::close_range(3, socket - 1, 0);
        }
        libc::close_range(socket + 1, u32::MAX, 0);
    }
}

fn serve(socket: &mut &UnixStream) -> io::Result<[u8; REPLY_BYTES]> {
    let (length, stdio) = receive(socket)?;
    if length > MAX_ORDER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body)?;
    let prepared = serde_json::from_slice::<Order>(&body).ok().and_then(|order| Prepared::new(&order));
    Ok(match prepared {
        None => reply(0, 0, 0),
        Some(prepared) => match bear(&prepared, &stdio) {
            Ok(pid) => reply(pid, 0, 0),
            Err((step, errno)) => reply(0, step.code(), errno),
        },
    })
}

fn reply(pid: i32, step: i32, errno: i32) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    bytes[..4].copy_from_slice(&pid.to_ne_bytes());
    bytes[4..8].copy_from_slice(&step.to_ne_bytes());
    bytes[8..].copy_from_slice(&errno.to_ne_bytes());
    bytes
}

fn receive(socket: &UnixStream) -> io::Result<(usize, Stdio)> {
    let mut header = [0; 4];
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let mut slices = [io::IoSliceMut::new(&mut header)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just made these descriptors for us.
            received.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let stdio = received.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((u32::from_be_bytes(header) as usize, stdio))
}

/// Clones the process and waits until it executes or says why not.
fn bear(prepared: &Prepared, stdio: &Stdio) -> Result<i32, (Step, i32)> {
    let clone_failed = |errno: Errno| (Step::Clone, errno as i32);
    let (mut failure, told) =
        pipe2(OFlag::O_CLOEXEC).map(|(r, w)| (File::from(r), w)).map_err(clone_failed)?;
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: no new stack and no shared memory: this is fork, with the guest as the parent.
    // The process is single-threaded, and the child only makes system calls until it executes.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(clone_failed(Errno::last())),
        0 => birth::become_process(prepared, stdio, &told),
        pid => {
            drop(told);
            let mut words = [0; 8];
            if failure.read_exact(&mut words).is_err() {
                // The pipe closed by exec.
                return Ok(i32::try_from(pid).unwrap_or_default());
            }
            let step = i32::from_ne_bytes([words[0], words[1], words[2], words[3]]);
            let errno = i32::from_ne_bytes([words[4], words[5], words[6], words[7]]);
            Err((Step::from_code(step).unwrap_or(Step::Clone), errno))
        }
    }
}
