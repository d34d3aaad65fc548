//! The compiled programs, word for word, and what they do.
#![expect(unsafe_code, reason = "calls that are refused have no safe wrapper")]

use std::{fmt::Write as _, fs, io, path::PathBuf};

use seccompiler::TargetArch;

use super::*;
use crate::warden::{syscall::install_filter, worker::fork_into};

fn text(filter: &Filter) -> String {
    let mut text = String::new();
    for (name, program) in [("allow", &filter.allow), ("deny", &filter.deny)] {
        writeln!(text, "# {name}: code jt jf k").unwrap();
        for word in program {
            writeln!(text, "{:02x} {:02x} {:02x} {:08x}", word.code, word.jt, word.jf, word.k).unwrap();
        }
    }
    text
}

#[test]
fn programs_are_the_golden_ones() {
    for (arch, name) in [(TargetArch::x86_64, "x86_64"), (TargetArch::aarch64, "aarch64")] {
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/warden/seccomp/golden/{name}.txt"));
        let now = text(&Filter::compile(arch).unwrap());
        if std::env::var_os("FIRKIN_UPDATE_GOLDEN").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            now == golden,
            "the {name} filter is not {}: if that is meant, run this test with FIRKIN_UPDATE_GOLDEN=1 and read the diff",
            path.display()
        );
    }
}

type Call = fn() -> libc::c_long;

/// The errno of a call, 0 for none, in a process of its own; with or without the filter.
fn outcome(filtered: bool, call: Call) -> i32 {
    let filter = Filter::native().unwrap();
    let child = fork_into(|| {
        if filtered && (install_filter(&filter.allow).is_err() || install_filter(&filter.deny).is_err()) {
            return 255;
        }
        match call() {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(254),
            _ => 0,
        }
    })
    .unwrap();
    let (_, status) =
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| panic!("ended by signal {:?}", status.terminating_signal()))
}

macro_rules! call {
    ($($argument:expr),+) => {
        // SAFETY: in a process of its own; pointers are null or live.
        || unsafe { libc::syscall($($argument),+) }
    };
}

#[test]
fn privileged_calls_are_refused_and_their_harmless_twins_are_not() {
    let refused: [(&str, Call); 12] = [
        ("mount", call!(libc::SYS_mount, 0, 0, 0, 0, 0)),
        ("setns", call!(libc::SYS_setns, -1, 0)),
        ("keyctl", call!(libc::SYS_keyctl, 0, -3, 0)),
        ("bpf", call!(libc::SYS_bpf, 0, 0, 0)),
        ("perf_event_open", call!(libc::SYS_perf_event_open, 0, 0, 0, 0, 0)),
        ("open_by_handle_at", call!(libc::SYS_open_by_handle_at, -1, 0, 0)),
        ("unshare user", call!(libc::SYS_unshare, libc::CLONE_NEWUSER)),
        (
            "unshare net among harmless flags",
            call!(libc::SYS_unshare, libc::CLONE_NEWNET | libc::CLONE_FILES),
        ),
        ("clone user", call!(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0)),
        ("socket to the hypervisor", call!(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
        ("socket to the ciphers", call!(libc::SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
        ("kexec_load", call!(libc::SYS_kexec_load, 0, 0, 0, 0)),
    ];
    for (name, call) in refused {
        assert_eq!(outcome(true, call), libc::EPERM, "{name}");
    }
    // Without the filter root may: the refusals above are the filter's.
    assert_ne!(outcome(false, refused[2].1), libc::EPERM, "keyctl");
    assert_eq!(outcome(false, refused[6].1), 0, "unshare user");
    let allowed: [(&str, Call); 6] = [
        ("unshare files", call!(libc::SYS_unshare, libc::CLONE_FILES)),
        ("fork", call!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
        ("socket", call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)),
        ("ptrace", call!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
        ("personality, asked", call!(libc::SYS_personality, 0xffff_ffff_u64)),
        ("memfd_create", call!(libc::SYS_memfd_create, c"x".as_ptr(), 0)),
    ];
    for (name, call) in allowed {
        assert_eq!(outcome(true, call), 0, "{name}");
    }
}

#[test]
fn unknown_calls_look_like_an_older_kernel() {
    let unknown: [(&str, Call); 5] = [
        ("clone3", call!(libc::SYS_clone3, 0, 0)),
        ("io_uring_setup", call!(libc::SYS_io_uring_setup, 0, 0)),
        ("userfaultfd", call!(libc::SYS_userfaultfd, 0x7fff_ffff)),
        ("one of the future", call!(4000)),
        ("personality without address randomisation", call!(libc::SYS_personality, 0x4_0000)),
    ];
    for (name, call) in unknown {
        assert_eq!(outcome(true, call), libc::ENOSYS, "{name}");
    }
    assert_ne!(outcome(false, unknown[0].1), libc::ENOSYS);
    assert_ne!(outcome(false, unknown[1].1), libc::ENOSYS);
}
