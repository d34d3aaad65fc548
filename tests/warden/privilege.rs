//! The privilege row of the threat model: who may what, after start.
#![expect(unsafe_code, reason = "a process that drops its privileges must be a child of the test")]

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

use firkin::{
    id::BuildId,
    runtime::namespace::ClientError,
    warden,
    wire::warden::{Call, Cause, CreateMachine, Reply},
};

use super::server::{Data, spec};
use crate::support::host::{Host, assert_unprivileged, status};

#[test]
fn the_gateway_holds_no_capability_and_no_root_id_after_start() {
    let Some(data) = Data::new() else { return };
    let prepared = warden::prepare(&data.path(), None).unwrap();
    let (mut report, write) = io::pipe().unwrap();
    let (hold, release) = io::pipe().unwrap();
    // SAFETY: the child only makes system calls until it ends.
    let child = match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            drop((report, release));
            let byte = u8::from(warden::drop_privileges(&prepared).is_ok());
            let _ = nix::unistd::write(OwnedFd::from(write), &[byte]);
            let _ = nix::unistd::read(OwnedFd::from(hold), &mut [0]);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => child,
    };
    drop((write, hold));
    let mut byte = [0];
    report.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1]);
    let pid = child.as_raw().unsigned_abs();
    assert_unprivileged(pid, prepared.gateway_uid());
    drop((release, prepared));
    nix::sys::wait::waitpid(child, None).unwrap();
    release_unserved(&data);
}

#[tokio::test]
async fn the_warden_refuses_what_is_not_its_business() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    // The allowed twin: an unknown machine is already ended.
    let good = spec(BuildId(uuid::Uuid::nil()));
    let stop = Call::StopMachine { sandbox: good.sandbox, keep_disk: false };
    assert_eq!(server.client.call(stop).await.unwrap().0, Reply::Done);
    for (hostname, memory_mb, cpu_count) in
        [("", 256, 1), ("a/b", 256, 1), ("ok", 0, 1), ("ok", 256, 0), ("ok", 256, 100_000)]
    {
        let mut bad = CreateMachine {
            sandbox: good.sandbox,
            generation: 1,
            build: good.build,
            resources: good.resources,
            hostname: hostname.to_owned(),
            kept_disk: false,
        };
        bad.resources.memory_mb = memory_mb;
        bad.resources.cpu_count = cpu_count;
        let answer = server.client.call(Call::CreateMachine(bad)).await;
        assert!(matches!(answer, Err(ClientError::Refused { cause: Cause::Invalid, .. })), "{answer:?}");
    }
    let freeze = server.client.call(Call::Freeze { sandbox: good.sandbox }).await;
    assert!(matches!(freeze, Err(ClientError::Refused { cause: Cause::NoMachine, .. })));
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

#[tokio::test]
async fn the_data_directory_is_closed_to_other_users() {
    use std::os::unix::fs::MetadataExt;
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    for (room, mode, uid) in [
        ("", 0o700, server.gateway_uid),
        ("gateway", 0o700, server.gateway_uid),
        ("run", 0o750, 0),
        ("templates", 0o700, 0),
        ("machines", 0o700, 0),
    ] {
        let found = std::fs::metadata(data.path().join(room)).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (mode, uid), "{room}");
    }
    let mounts = server.scope.look().mounts;
    assert!(mounts.iter().any(|line| line.contains("nosuid") && line.contains("nodev")), "{mounts:?}");
    assert_eq!(status(std::process::id(), "NoNewPrivs:"), ["0"], "only the gateway gives privileges up");
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

#[test]
fn a_directory_of_somebody_else_is_not_taken() {
    let Some(data) = Data::new() else { return };
    std::fs::create_dir(data.path()).unwrap();
    std::fs::write(data.path().join("thesis.txt"), "years of work").unwrap();
    let error = warden::prepare(&data.path(), None).unwrap_err().to_string();
    assert!(error.contains("not firkin's"), "{error}");
    std::fs::remove_file(data.path().join("thesis.txt")).unwrap();
    drop(warden::prepare(&data.path(), None).unwrap());
    release_unserved(&data);
}

#[tokio::test]
async fn the_host_is_probed_feature_by_feature_and_left_as_it_was() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = std::fs::read_dir(data.path()).unwrap().count();
    let probes = server.client.probe().await.unwrap();
    for probe in &probes {
        println!("{probe:?}");
        assert!(probe.present || !probe.required, "this host runs sandboxes: {probe:?}");
        assert_eq!(probe.present, probe.advice.is_empty(), "{probe:?}");
    }
    assert!(probes.len() > 10);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), before);
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

/// A directory that was prepared and never served is released by the server that serves it.
fn release_unserved(data: &Data) {
    let (socket, scope, ..) = data.fork();
    drop(socket);
    scope.settles_as(&Host::default());
}
