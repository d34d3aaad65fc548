//! Between clone and exec: what a new process does to become the user's.
//!
//! Everything that needs memory is prepared before the clone; afterwards only system calls are
//! made, raw ones where the C library's own would look for other threads.
#![expect(unsafe_code, reason = "system calls between clone and exec")]

use std::{
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::errno::Errno;

use super::{Order, Stdio};

/// What can fail before the program runs, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making the process: EAGAIN is the machine's process limit.
    Clone,
    /// Its session, terminal and standard descriptors.
    Session,
    /// Groups, group and user.
    Credentials,
    /// Its directory.
    Chdir,
    /// Arguments and environment that no program can be given. Other failures to execute are the
    /// process's own.
    Exec,
}

// === impl Step ===

impl Step {
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Clone => 1,
            Self::Session => 2,
            Self::Credentials => 3,
            Self::Chdir => 4,
            Self::Exec => 5,
        }
    }

    pub(super) fn from_code(code: i32) -> Option<Self> {
        [Self::Clone, Self::Session, Self::Credentials, Self::Chdir, Self::Exec]
            .into_iter()
            .find(|step| step.code() == code)
    }
}

/// An order in the form the kernel takes.
pub(super) struct Prepared {
    /// The program's candidates along `PATH`, in order.
    candidates: Vec<CString>,
    _argv: Vec<CString>,
    argv_pointers: Vec<*const c_char>,
    /// `/bin/sh`, then a place for the candidate, then the arguments: for scripts without `#!`.
    script_pointers: Vec<*const c_char>,
    _env: Vec<CString>,
    env_pointers: Vec<*const c_char>,
    cwd: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    tty: bool,
    /// What `nice` says of a program that it cannot run, up to the errno's text.
    complaint: Vec<u8>,
}

// === impl Prepared ===

impl Prepared {
    /// None: a NUL byte, or no program.
    pub(super) fn new(order: &Order) -> Option<Self> {
        let strings = |texts: &[String]| {
            texts.iter().map(|text| CString::new(text.as_str()).ok()).collect::<Option<Vec<_>>>()
        };
        let argv = strings(&order.argv)?;
        let env = strings(&order.env)?;
        let program = order.argv.first()?;
        let pointers = |texts: &[CString]| -> Vec<_> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let mut script_pointers = vec![c"/bin/sh".as_ptr(), std::ptr::null()];
        script_pointers.extend(argv.iter().skip(1).map(|text| text.as_ptr()));
        script_pointers.push(std::ptr::null());
        Some(Self {
            candidates: candidates(program, &order.env)?,
            argv_pointers: pointers(&argv),
            script_pointers,
            env_pointers: pointers(&env),
            _argv: argv,
            _env: env,
            cwd: CString::new(order.cwd.as_str()).ok()?,
            uid: order.uid,
            gid: order.gid,
            groups: order.groups.clone(),
            tty: order.tty,
            complaint: format!("nice: '{program}': ").into_bytes(),
        })
    }
}

/// Where `execvp` would look: a name with a slash is itself, else each directory of `PATH`.
fn candidates(program: &str, env: &[String]) -> Option<Vec<CString>> {
    // Nothing has an empty name: the kernel says so of it.
    if program.contains('/') || program.is_empty() {
        return Some(vec![CString::new(program).ok()?]);
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("/bin:/usr/bin");
    path.split(':')
        .map(|dir| {
            let dir = if dir.is_empty() { "." } else { dir };
            CString::new(format!("{dir}/{program}")).ok()
        })
        .collect()
}

/// Runs in the new process; ends by exec or by exit.
pub(super) fn become_process(prepared: &Prepared, stdio: &Stdio, told: &OwnedFd) -> ! {
    if let Err((step, errno)) = prepare(prepared, stdio) {
        give_up(step, errno, told);
    }
    let errno = execute(prepared);
    if errno == Errno::E2BIG {
        give_up(Step::Exec, errno, told);
    }
    complain(&prepared.complaint, errno);
    // As a shell does: 127 for what is not there, 126 for what cannot be run.
    // SAFETY: ends the process.
    unsafe { libc::_exit(if errno == Errno::ENOENT { 127 } else { 126 }) }
}

/// Tells the zygote that there will be no process.
fn give_up(step: Step, errno: Errno, told: &OwnedFd) -> ! {
    let mut words = [0_u8; 8];
    words[..4].copy_from_slice(&step.code().to_ne_bytes());
    words[4..].copy_from_slice(&(errno as i32).to_ne_bytes());
    // SAFETY: the buffer is on this stack; the process ends here.
    unsafe {
        libc::write(told.as_raw_fd(), words.as_ptr().cast(), words.len());
        libc::_exit(1)
    }
}

fn prepare(prepared: &Prepared, stdio: &Stdio) -> Result<(), (Step, Errno)> {
    let check = |step: Step, result: libc::c_long| {
        if result < 0 { Err((step, Errno::last())) } else { Ok(()) }
    };
    // SAFETY: system calls on integers and on memory that `prepared` owns.
    unsafe {
        check(Step::Session, libc::c_long::from(libc::setsid()))?;
        for (target, source) in (0..).zip(stdio) {
            // None of the sources is a standard descriptor: those are always open in the zygote.
            check(Step::Session, libc::c_long::from(libc::dup2(source.as_raw_fd(), target)))?;
        }
        if prepared.tty {
            check(Step::Session, libc::c_long::from(libc::ioctl(0, libc::TIOCSCTTY, 0)))?;
        }
        let groups = (prepared.groups.len(), prepared.groups.as_ptr());
        check(Step::Credentials, libc::syscall(libc::SYS_setgroups, groups.0, groups.1))?;
        check(
            Step::Credentials,
            libc::syscall(libc::SYS_setresgid, prepared.gid, prepared.gid, prepared.gid),
        )?;
        check(
            Step::Credentials,
            libc::syscall(libc::SYS_setresuid, prepared.uid, prepared.uid, prepared.uid),
        )?;
        // After the credentials: a directory closed to the user is a failure (contract/sandbox 3).
        check(Step::Chdir, libc::c_long::from(libc::chdir(prepared.cwd.as_ptr())))
    }
}

/// `execvpe`, with the errno that matters most: a file that may not be run beats none at all.
fn execute(prepared: &Prepared) -> Errno {
    let mut worst = Errno::ENOENT;
    for candidate in &prepared.candidates {
        match exec(candidate, &prepared.argv_pointers, &prepared.env_pointers) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Errno::EACCES,
            Errno::ENOEXEC => return exec_script(candidate, prepared),
            errno => return errno,
        }
    }
    worst
}

fn exec_script(script: &CStr, prepared: &Prepared) -> Errno {
    // Memory may be taken here: the clone has its own copy of a single-threaded allocator.
    let mut pointers = prepared.script_pointers.clone();
    pointers[1] = script.as_ptr();
    exec(c"/bin/sh", &pointers, &prepared.env_pointers)
}

fn exec(program: &CStr, argv: &[*const c_char], env: &[*const c_char]) -> Errno {
    // SAFETY: all strings are owned by `prepared`, both lists end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Errno::last()
}

fn complain(complaint: &[u8], errno: Errno) {
    // In the C library's words, as `nice` has them.
    let text = io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default().as_bytes();
    for part in [complaint, text, b"\n"] {
        // SAFETY: the buffer lives; what cannot be written is lost with the process.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_searched_in_the_requests_path() {
        let env = |path: &str| vec![format!("PATH={path}")];
        let texts = |list: Option<Vec<CString>>| {
            list.unwrap().iter().map(|text| text.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(texts(candidates("ls", &env("/a:/b"))), ["/a/ls", "/b/ls"]);
        assert_eq!(texts(candidates("ls", &env("/a::"))), ["/a/ls", "./ls", "./ls"]);
        assert_eq!(texts(candidates("./ls", &env("/a"))), ["./ls"]);
        assert_eq!(texts(candidates("", &env("/a"))), [""]);
        assert_eq!(texts(candidates("ls", &[])), ["/bin/ls", "/usr/bin/ls"]);
    }
}
