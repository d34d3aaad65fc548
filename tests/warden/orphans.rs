//! What a server that died in the worst moment may leave, kind by kind, and the next one's sweep of it.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use firkin::id::{BuildId, OsEntropy, SandboxId};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::server::{Data, pid, shut_down};
use crate::support::host::{Host, Scope};

/// A data directory whose server was killed, with the instance that its next server takes again.
fn abandoned() -> Option<(Data, Scope)> {
    let data = Data::new()?;
    let (socket, scope, ..) = data.fork();
    // A warden that answers has swept what it found.
    let alive = UnixDatagram::from(socket.try_clone().unwrap());
    alive.set_nonblocking(false).unwrap();
    alive.send(br#"{"seq":1,"call":{"call":"list_kept","after":null}}"#).unwrap();
    assert!(alive.recv(&mut [0; 4096]).unwrap() > 0);
    kill(Pid::from_raw(pid().cast_signed()), Signal::SIGKILL).unwrap();
    while alive.recv(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
    assert!(scope.look().instance, "its lock's file is there still");
    Some((data, scope))
}

fn next_server(data: &Data, before: &Scope) -> OwnedFd {
    let (socket, scope, ..) = data.fork();
    assert_eq!(scope.instance, before.instance, "a directory keeps its instance while nobody else wants it");
    socket
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn sandbox() -> SandboxId {
    SandboxId::generate(&OsEntropy)
}

#[test]
fn a_directory_without_a_machine_goes() {
    let Some((data, scope)) = abandoned() else { return };
    let room = data.path().join("machines").join(sandbox().to_string());
    fs::create_dir_all(room.join("upper0/etc")).unwrap();
    fs::write(room.join("upper0/etc/half"), "written").unwrap();
    fs::create_dir_all(data.path().join("machines/.trash/old/upper0")).unwrap();
    let socket = next_server(&data, &scope);
    eventually("rooms and rubbish go", || scope.look().entries.is_empty());
    shut_down(&socket);
    scope.settles_as(&Host::default());
}

#[test]
fn a_socket_without_a_machine_goes() {
    let Some((data, scope)) = abandoned() else { return };
    let path = data.path().join("run").join(format!("{}.1.sock", sandbox()));
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = next_server(&data, &scope);
    eventually("the socket goes", || !path.exists());
    shut_down(&socket);
    scope.settles_as(&Host::default());
}

#[test]
fn half_an_image_goes_and_whole_ones_stay() {
    let Some((data, scope)) = abandoned() else { return };
    let templates = data.path().join("templates");
    let whole = data.image();
    let half = BuildId::generate(&OsEntropy);
    for name in [format!(".new-{half}"), format!(".trash-{half}")] {
        fs::create_dir_all(templates.join(name).join("root/etc")).unwrap();
    }
    let socket = next_server(&data, &scope);
    let names = || {
        let entries = fs::read_dir(&templates).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    eventually("the halves go", || names() == [whole.to_string()]);
    shut_down(&socket);
    scope.settles_as(&Host::default());
}

#[test]
fn a_group_without_a_machine_goes_with_its_processes_and_their_network() {
    let Some((data, scope)) = abandoned() else { return };
    let name = sandbox().to_string();
    let mut orphan = Orphan(Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap());
    let groups = join_groups(&scope, &name, orphan.0.id());
    assert!(!groups.is_empty(), "this host has cgroups");
    let planted = scope.look();
    assert_eq!((planted.processes.len(), planted.networks.len()), (1, 1), "{planted:?}");
    let socket = next_server(&data, &scope);
    eventually("the process ends", || orphan.0.try_wait().unwrap().is_some());
    eventually("the groups go", || groups.iter().all(|group| !group.exists()));
    assert!(scope.look().networks.is_empty());
    shut_down(&socket);
    scope.settles_as(&Host::default());
}

/// Ended with the test, whatever comes of it.
struct Orphan(Child);

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a process into a machine's groups, in every hierarchy that lets it in.
fn join_groups(scope: &Scope, name: &str, pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let used = ["memory", "pids", "cpu", "cpuacct"];
    let mut groups = Vec::new();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ours = match words[2] {
            "cgroup2" => true,
            "cgroup" => words[3].split(',').any(|option| used.contains(&option)),
            _ => false,
        };
        if !ours {
            continue;
        }
        let group = Path::new(words[1]).join(format!("firkin-{}", scope.instance)).join(name);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
        groups.push(group);
    }
    groups
}
