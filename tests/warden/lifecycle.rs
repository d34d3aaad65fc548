//! Machines from nothing to nothing, and what a warden's end leaves of them.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use firkin::{
    id::{BuildId, SandboxId},
    runtime::{
        engine::{Engine, EngineError, Machine, MachineSpec},
        link::{LinkError, LinkStream},
        namespace::NamespaceEngine,
    },
    sandbox::ENVD_PORT,
    wire::{
        link::Nonce,
        warden::{Call, CreateMachine, MachineInfo, Request},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server::{Data, Server, pid, shut_down, spec};
use crate::runtime::contract::{self, Subject};
use crate::support::host::{Host, Scope, descriptors};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_machines_leaves_nothing() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    assert!(server.scope.look().instance);
    assert!(server.client.machines().await.unwrap().is_empty());
    server.client.shutdown(false).await.unwrap();
    server.client.closed().await;
    server.scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_vanishes_ends_its_warden() {
    let Some(data) = Data::new() else { return };
    let (socket, scope, ..) = data.fork();
    drop(socket);
    scope.settles_as(&Host::default());
    // The next one has the directory to itself.
    let again = data.serve().await;
    again.client.shutdown(true).await.unwrap();
    scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_build_makes_no_machine() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    assert!(server.client.machines().await.unwrap().is_empty());
    let before = server.scope.look();
    let spec = spec(BuildId(uuid::Uuid::from_u128(7)));
    assert!(matches!(server.engine.create(spec).await, Err(EngineError::NoImage(_))));
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

async fn ask(stream: &mut LinkStream, line: &str) -> String {
    stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        match stream.read_u8().await.unwrap() {
            b'\n' => return String::from_utf8(answer).unwrap(),
            byte => answer.push(byte),
        }
    }
}

/// Asks the guest one thing.
pub(crate) async fn say(machine: &Arc<dyn Machine>, line: &str) -> String {
    let mut stream = machine.link().open(ENVD_PORT).await.unwrap();
    ask(&mut stream, line).await
}

pub(crate) async fn speaks(machine: &Arc<dyn Machine>) {
    let mut stream = machine.link().open(ENVD_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "id").await, "e2b.local 0 1");
}

async fn listen(machine: &Arc<dyn Machine>, address: &str) {
    let mut stream = machine.link().open(ENVD_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, &format!("echo {address}")).await, "listening");
}

/// The same contract as every engine's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_contract_holds() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let build = data.image();
    let scope = server.scope.clone();
    let subject = Subject {
        engine: Arc::<NamespaceEngine>::clone(&server.engine),
        build,
        resources: spec(build).resources,
        echo: Box::new(|machine, port| {
            Box::pin(async move { listen(&machine, &format!("127.0.0.1:{port}")).await })
        }),
        write: Box::new(|machine, _, name, text| {
            Box::pin(async move {
                assert_eq!(say(&machine, &format!("write /root/{name} {text}")).await, "done");
            })
        }),
        read: Box::new(|machine, _, name| {
            Box::pin(async move {
                let answer = say(&machine, &format!("read /root/{name}")).await;
                answer.strip_prefix("text ").map(str::to_owned)
            })
        }),
        census: Box::new(move || {
            let mut host = scope.look();
            // Files may still be on their way out, says the contract.
            host.entries.retain(|entry| !entry.to_string_lossy().contains(".trash"));
            vec![format!("{host:#?}")]
        }),
    };
    assert!(server.client.machines().await.unwrap().is_empty());
    contract::hold(&subject).await;
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

/// What is left when nothing is: the rooms of a server that runs without machines.
pub(crate) async fn idle(server: &Server) -> Host {
    assert!(server.client.machines().await.unwrap().is_empty());
    server.scope.look()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_speaks_and_goes_without_a_trace() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let machine = server.engine.create(spec(data.image())).await.unwrap();
    speaks(&machine).await;
    let (_, generation) = machine.link().open_control(Nonce([1; 16])).await.unwrap();
    assert_eq!(generation, 1);
    for (address, port) in [("127.0.0.1:8000", 8000), ("[::1]:8001", 8001), ("0.0.0.0:8003", 8003)] {
        listen(&machine, address).await;
        let mut stream = machine.link().open(port).await.unwrap();
        assert_eq!(ask(&mut stream, "hello").await, "hello");
    }
    assert!(matches!(machine.link().open(8002).await, Err(LinkError::PortClosed { port: 8002 })));
    let stats = machine.stats().await.unwrap();
    assert!(stats.memory_limit_bytes == 0 || stats.memory_limit_bytes == 256 << 20, "{stats:?}");
    machine.stop(Duration::ZERO).await.unwrap();
    machine.stop(Duration::ZERO).await.unwrap();
    machine.exited().await;
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_cost_the_warden_no_descriptor_once_they_are_gone() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let build = data.image();
    let warden = pid();
    // The first one also makes what is made once.
    for count in [1, 5] {
        let made =
            futures_util::future::join_all((0..count).map(|_| server.engine.create(spec(build)))).await;
        let open = descriptors(warden).len();
        for machine in made {
            machine.unwrap().stop(Duration::ZERO).await.unwrap();
        }
        server.scope.settles_as(&before);
        let left = settled(|| descriptors(warden));
        assert!(left.len() < open + 2 * 8, "{left:?}");
        assert!(
            left.iter().all(|target| !target.contains("cgroup.") && !target.contains("upper")),
            "{left:?}"
        );
    }
    server.client.shutdown(true).await.unwrap();
}

/// What a look gives when it has given the same for a while.
fn settled<T: PartialEq>(look: impl Fn() -> T) -> T {
    let mut last = look();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = look();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds the whole base template: ten seconds on a quiet machine"]
async fn base_is_built_once_while_the_warden_goes_on_and_boots() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let lines = std::sync::Mutex::new(Vec::new());
    let note = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let build = server.client.ensure_base(note);
    // Both wait for one worker; the warden answers others meanwhile.
    let (first, second, others) =
        tokio::join!(build, server.client.ensure_base(|_| {}), server.client.machines());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(others.unwrap().is_empty());
    assert_eq!((first.build, first.fresh), (second.build, true));
    assert!(!lines.lock().unwrap().is_empty());
    let again = server.client.ensure_base(|_| {}).await.unwrap();
    assert_eq!((again.build, again.fresh), (first.build, false));
    let before = idle(&server).await;
    let machine = server.engine.create(spec(first.build)).await.unwrap();
    speaks(&machine).await;
    let remove = Call::RemoveImage { build: first.build };
    assert!(server.client.call(remove).await.is_err(), "a machine uses it");
    machine.stop(Duration::ZERO).await.unwrap();
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

/// Prints the cost of machines on this host: `cargo test --test integration -- --ignored --nocapture cost`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn cost_of_a_hundred_machines() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let build = data.image();
    let mut single = Vec::new();
    for _ in 0..100 {
        let start = std::time::Instant::now();
        let machine = server.engine.create(spec(build)).await.unwrap();
        single.push(start.elapsed());
        machine.stop(Duration::ZERO).await.unwrap();
        // The pool is refilled off the request path.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    single.sort();
    eprintln!("create p50 {:?} p90 {:?} max {:?}", single[50], single[90], single[99]);
    let start = std::time::Instant::now();
    let made = futures_util::future::join_all((0..100).map(|_| server.engine.create(spec(build)))).await;
    eprintln!("100 at once: {:?}", start.elapsed());
    for machine in &made {
        speaks(machine.as_ref().unwrap()).await;
    }
    let start = std::time::Instant::now();
    listen(made[0].as_ref().unwrap(), "127.0.0.1:8000").await;
    for _ in 0..100 {
        drop(made[0].as_ref().unwrap().link().open(8000).await.unwrap());
    }
    eprintln!("port connection: {:?}", start.elapsed() / 100);
    let start = std::time::Instant::now();
    server.client.shutdown(true).await.unwrap();
    eprintln!("100 ended: {:?}", start.elapsed());
    let _ = before;
    server.scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ends_by_itself_is_noticed_and_cleared() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let spec = spec(data.image());
    let id = spec.sandbox;
    let machine = server.engine.create(spec).await.unwrap();
    let mut stream = machine.link().open(ENVD_PORT).await.unwrap();
    stream.write_all(b"exit\n").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), machine.exited()).await.unwrap();
    assert!(matches!(machine.freeze().await, Err(EngineError::Gone)));
    assert_eq!(server.engine.kept().await.unwrap(), [id], "its disk is for its sandbox to decide on");
    server.engine.discard(id).await.unwrap();
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_machine_holds_still_and_still_dies() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let machine = server.engine.create(spec(data.image())).await.unwrap();
    speaks(&machine).await;
    machine.freeze().await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(200), speaks(&machine)).await;
    assert!(silent.is_err(), "a frozen guest must not answer");
    machine.thaw().await.unwrap();
    machine.thaw().await.unwrap();
    speaks(&machine).await;
    machine.freeze().await.unwrap();
    machine.stop(Duration::ZERO).await.unwrap();
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_caller_goes_away_is_undone() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let build = data.image();
    for wait in [0, 1, 2, 3, 5, 8] {
        let create = server.engine.create(spec(build));
        let _ = tokio::time::timeout(Duration::from_millis(wait), create).await.map(|made| {
            let machine = made.unwrap();
            tokio::spawn(async move { machine.stop(Duration::ZERO).await.unwrap() })
        });
    }
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

/// Sends creates without waiting for an answer.
fn send_creates(socket: &OwnedFd, build: BuildId, count: u64) {
    for seq in 1..=count {
        let MachineSpec { sandbox, generation, build, resources, hostname, .. } = spec(build);
        let create = CreateMachine { sandbox, generation, build, resources, hostname, kept_disk: false };
        let call = Call::CreateMachine(create);
        let packet = serde_json::to_vec(&Request { seq, call }).unwrap();
        nix::unistd::write(socket, &packet).unwrap();
    }
}

#[test]
fn a_gateway_killed_in_the_middle_of_creates_leaves_no_half_machine() {
    let Some(data) = Data::new() else { return };
    for wait in [0, 2, 5, 10, 20, 40, 80] {
        let (socket, scope, ..) = data.fork();
        send_creates(&socket, data.image(), 6);
        std::thread::sleep(Duration::from_millis(wait));
        drop(socket);
        // Those that were made stay and have a record; the next server ends them.
        let (socket, ..) = data.fork();
        shut_down(&socket);
        scope.settles_as(&Host::default());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Makes a machine, and leaves its disk to whoever comes next.
async fn leave_a_disk(data: &Data) -> MachineSpec {
    let server = data.serve().await;
    let spec = spec(data.image());
    let machine = server.engine.create(spec.clone()).await.unwrap();
    speaks(&machine).await;
    machine.shelve().await.unwrap();
    spec
}

/// Whether the disk is there for another machine; then it is given up.
async fn is_left(data: &Data, sandbox: SandboxId) -> bool {
    let server = data.serve().await;
    if let Some(machine) = server.engine.find(sandbox).await.unwrap() {
        machine.shelve().await.unwrap();
    }
    let left = server.engine.kept().await.unwrap().contains(&sandbox);
    server.engine.discard(sandbox).await.unwrap();
    server.client.shutdown(true).await.unwrap();
    left
}

#[test]
fn a_gateway_killed_while_a_machine_is_made_on_a_kept_disk_leaves_the_disk() {
    let Some(data) = Data::new() else { return };
    for wait in [0, 1, 2, 4, 6, 8, 10, 20] {
        let MachineSpec { sandbox, build, resources, hostname, .. } = runtime().block_on(leave_a_disk(&data));
        let next = CreateMachine { sandbox, generation: 2, build, resources, hostname, kept_disk: true };
        let (socket, ..) = data.fork();
        let packet = serde_json::to_vec(&Request { seq: 1, call: Call::CreateMachine(next) }).unwrap();
        nix::unistd::write(&socket, &packet).unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        drop(socket);
        assert!(runtime().block_on(is_left(&data, sandbox)), "lost after {wait} ms");
    }
}

#[test]
fn a_warden_killed_in_the_middle_of_creates_leaves_nothing_behind_its_successor() {
    let Some(data) = Data::new() else { return };
    for wait in [0, 2, 5, 10, 20, 40, 80] {
        let (socket, scope, ..) = data.fork();
        let warden = pid();
        send_creates(&socket, data.image(), 6);
        std::thread::sleep(Duration::from_millis(wait));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(warden.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        drop(socket);
        let (socket, ..) = data.fork();
        shut_down(&socket);
        scope.settles_as(&Host::default());
    }
}

#[test]
fn twenty_machines_outlive_their_gateway_and_are_found_again() {
    let Some(data) = Data::new() else { return };
    let first = runtime();
    let (records, scope) = first.block_on(make_twenty(&data));
    let running = scope.look();
    assert_eq!(running.networks.len(), 20);
    // The gateway is gone without a word: its socket closes.
    drop(first);
    runtime().block_on(find_again(&data, &records, &running));
    scope.settles_as(&Host::default());
}

async fn make_twenty(data: &Data) -> (Vec<(SandboxId, serde_json::Value)>, Scope) {
    let server = data.serve().await;
    let build = data.image();
    let made = futures_util::future::join_all((0..20).map(|_| server.engine.create(spec(build)))).await;
    for machine in made {
        speaks(&machine.unwrap()).await;
    }
    let known = server.client.machines().await.unwrap();
    assert_eq!(known.len(), 20);
    let record = |info: &MachineInfo| {
        serde_json::json!({
            "generation": info.generation, "pid": info.pid, "start_time": info.start_time
        })
    };
    (known.iter().map(|info| (info.sandbox, record(info))).collect(), server.scope.clone())
}

async fn find_again(data: &Data, records: &[(SandboxId, serde_json::Value)], running: &Host) {
    let server = data.serve().await;
    assert_eq!(server.client.machines().await.unwrap().len(), 20);
    assert_eq!(server.scope.look().processes, running.processes, "nobody died of it");
    let mut adopted: Vec<Arc<dyn Machine>> = Vec::new();
    for (sandbox, record) in &records[..19] {
        let machine = server.engine.adopt(*sandbox, record).await.unwrap().expect("it is alive");
        speaks(&machine).await;
        adopted.push(machine);
    }
    // A record of another process is nobody's machine.
    let (last, mut foreign) = records[19].clone();
    foreign["start_time"] = 1.into();
    assert!(server.engine.adopt(last, &foreign).await.unwrap().is_none());
    let keep: Vec<SandboxId> = records[..19].iter().map(|(sandbox, _)| *sandbox).collect();
    assert_eq!(server.engine.sweep(&keep).await.unwrap(), [last]);
    // An adopted machine is no child of the new warden; its end is noticed all the same.
    let mut stream = adopted[0].link().open(ENVD_PORT).await.unwrap();
    stream.write_all(b"exit\n").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), adopted[0].exited()).await.unwrap();
    server.engine.discard(records[0].0).await.unwrap();
    adopted[1].stop(Duration::ZERO).await.unwrap();
    assert_eq!(server.client.machines().await.unwrap().len(), 17);
    server.client.shutdown(true).await.unwrap();
}
