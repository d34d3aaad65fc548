//! P1: from a create request to its 201, on a new and on a warm machine, beside a bare clone3 of the
//! same namespaces.
#![expect(unsafe_code, reason = "the reference is the system call itself")]

use std::{
    ffi::CStr,
    io, mem, ptr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::support::{
    client::Client,
    report::{Metric, Report, Series},
    samples,
    server::Server,
};

/// What the engine clones; user and network namespaces come ready-made with a slot.
const NAMESPACES: i32 =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
const TRUE: &CStr = c"/bin/true";
/// Creates before the first one that counts.
const WARM_UP: usize = 10;

const NOTHING: &[&str] = &["--warm", "none"];
const POOL: &[&str] = &["--warm", "base=4"];
/// Between two looks at the pool.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) async fn run(report: &mut Report) -> anyhow::Result<()> {
    let (creates, clones) = measure(NOTHING, false).await?;
    let metric = Metric {
        promise: "P1",
        name: "create, one after the other, nothing pooled",
        reference: "clone3 of pid, mount, uts, ipc and cgroup namespaces, exec of true, reap",
        start: "POST /sandboxes is written to a kept-alive loopback connection",
        end: "its 201 is read",
        excluded: "SDK, connection set-up, the kill between two creates",
        target: "p50 <= 12 ms, p99 <= 30 ms",
    };
    report.pair(metric, &creates, &clones);
    let (creates, clones) = measure(POOL, true).await?;
    let metric = Metric {
        name: "create, one after the other, from the pool",
        excluded: "SDK, connection set-up, the kill between two creates, the wait for a full pool",
        target: "p50 <= 3 ms",
        ..metric
    };
    report.pair(metric, &creates, &clones);
    Ok(())
}

/// Creates, and clones between them; `pooled`: each create finds a full pool.
async fn measure(settings: &'static [&'static str], pooled: bool) -> anyhow::Result<(Series, Series)> {
    let server = Server::start_with(settings)?;
    let token = server.admin_token()?;
    let mut client = Client::connect(&server).await?;
    let (mut creates, mut clones) = (Series::default(), Series::default());
    for round in 0..WARM_UP + samples(500) {
        while pooled && client.metric(&token, r#"firkin_warm_machines{template="base"}"#).await? < 4.0 {
            tokio::time::sleep(LOOK).await;
        }
        let begin = Instant::now();
        let answer = client.create().await;
        let took = begin.elapsed();
        let (sandbox, _) = answer.with_context(|| server.log())?;
        let begin = Instant::now();
        clone_exec_reap()?;
        let reference = begin.elapsed();
        if round >= WARM_UP {
            creates.add(took);
            clones.add(reference);
        }
        client.kill(&sandbox).await?;
    }
    if pooled {
        let missed = client.metric(&token, r#"firkin_warm_checkouts_total{outcome="miss"}"#).await?;
        ensure!(missed < 1.0, "{missed} creates found no warm machine");
    }
    Ok((creates, clones))
}

fn clone_exec_reap() -> anyhow::Result<()> {
    // SAFETY: all-zero is a valid clone_args: no flags, no pointers.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = u64::try_from(NAMESPACES)?;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD)?;
    let argv = [TRUE.as_ptr(), ptr::null()];
    let envp = [ptr::null()];
    // SAFETY: without CLONE_VM and a stack this is a fork: the child has its own copy of
    // everything, and calls nothing but execve and _exit, which are async-signal-safe.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>());
        if pid == 0 {
            libc::execve(TRUE.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
        pid
    };
    ensure!(pid > 0, "clone3: {}", io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the pid is our own child's, the status a live integer.
    let reaped = unsafe { libc::waitpid(libc::pid_t::try_from(pid)?, &raw mut status, 0) };
    ensure!(reaped > 0 && status == 0, "the reference's child failed: {status}");
    Ok(())
}
