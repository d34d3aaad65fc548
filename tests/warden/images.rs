//! Images made of sandboxes, for real: what a machine of one sees, and what an interrupted one leaves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use firkin::{
    id::{BuildId, OsEntropy, SandboxId},
    runtime::engine::{Disk, Engine as _, EngineError, Machine, MachineSpec},
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    lifecycle::{idle, say, speaks},
    server::{Data, Server, pid, spec},
};
use crate::support::host::Host;

/// Files that keep a seal busy for a while.
const MANY: usize = 4_000;

/// A seal under way.
struct Busy {
    id: SandboxId,
    build: BuildId,
    parent: BuildId,
    machine: Arc<dyn Machine>,
    sealing: JoinHandle<Result<(), EngineError>>,
}

/// Starts to make an image of a frozen machine that has many files, and waits until it copies.
async fn busy(data: &Data, server: &Server) -> Busy {
    let parent = data.image();
    let spec = spec(parent);
    let (id, build) = (spec.sandbox, BuildId::generate(&OsEntropy));
    let machine = server.engine.create(spec).await.unwrap();
    speaks(&machine).await;
    machine.freeze().await.unwrap();
    let bulk = data.path().join(format!("machines/{id}/upper0/bulk"));
    std::fs::create_dir(&bulk).unwrap();
    for number in 0..MANY {
        std::fs::File::create(bulk.join(number.to_string())).unwrap();
    }
    let engine = Arc::clone(&server.engine);
    let sealing = tokio::spawn(async move { engine.seal(id, build, unheard()).await });
    let begun = draft(data, build).join("root/bulk/0");
    until(|| begun.exists() || sealing.is_finished()).await;
    assert!(!sealing.is_finished(), "it was too fast to be looked at");
    Busy { id, build, parent, machine, sealing }
}

fn draft(data: &Data, build: BuildId) -> PathBuf {
    data.path().join(format!("templates/.new-{build}"))
}

/// For who does not care when the copying ends.
fn unheard() -> oneshot::Sender<()> {
    oneshot::channel().0
}

async fn until(done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.expect("in time");
}

async fn is_known(server: &Server, build: BuildId) -> bool {
    server.engine.images().await.unwrap().iter().any(|image| image.build == build)
}

/// All that the guest sees of the directories that tests write to.
async fn view(machine: &Arc<dyn Machine>) -> Vec<String> {
    let mut lines = Vec::new();
    for top in ["/etc", "/usr", "/root"] {
        lines.extend(say(machine, &format!("view {top}")).await.split('|').map(str::to_owned));
    }
    lines
}

async fn told(machine: &Arc<dyn Machine>, lines: &[&str]) {
    for line in lines {
        assert_eq!(say(machine, line).await, "done", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_of_a_snapshot_sees_what_the_first_one_saw() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let base = data.image();
    let root = data.path().join(format!("templates/{base}/root"));
    for name in ["etc/kept", "etc/changed", "etc/removed", "usr/dir/low", "usr/gone/low", "usr/file"] {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::write(root.join(name), "base").unwrap();
    }
    let of_base = spec(base);
    let mut sandbox = of_base.sandbox;
    let mut last = server.engine.create(of_base).await.unwrap();
    told(
        &last,
        &[
            "write /etc/changed first",
            "remove /etc/removed",
            "write /usr/dir/high first",
            // Not empty and made again: the new one must not show the old one's files.
            "remove /usr/gone",
            "mkdir /usr/gone",
            "write /usr/gone/new first",
            "remove /usr/file",
            "mkdir /usr/file",
            "mkdir /root/one",
            "write /root/one/file first",
            "link /root/one/file /root/again",
            "rename /root/one /root/two",
        ],
    )
    .await;
    let seen = view(&last).await;
    assert!(seen.iter().any(|line| line.starts_with("/root/two/file ") && line.ends_with(" first")));
    assert!(!seen.iter().any(|line| line.contains("removed") || line.contains("/usr/gone/low")));
    let mut builds = Vec::new();
    for round in 0..3 {
        let build = BuildId::generate(&OsEntropy);
        last.freeze().await.unwrap();
        server.engine.seal(sandbox, build, unheard()).await.unwrap();
        last.thaw().await.unwrap();
        let seen = view(&last).await;
        let of_build = spec(build);
        sandbox = of_build.sandbox;
        let child = server.engine.create(of_build).await.unwrap();
        assert_eq!(view(&child).await, seen, "round {round}");
        server.client.check_image(build).await.unwrap();
        let word = format!("write /etc/changed round{round}");
        let low = if round == 0 { "remove /usr/dir/low" } else { "write /usr/dir/low again" };
        told(&child, &[word.as_str(), low, "remove /root/two", "mkdir /root/two"]).await;
        last.stop(Duration::ZERO).await.unwrap();
        builds.push(build);
        last = child;
    }
    last.stop(Duration::ZERO).await.unwrap();
    for build in builds.iter().rev() {
        assert!(server.engine.remove_image(*build).await.unwrap());
    }
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_stands_still_while_an_image_is_made_of_it() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let Busy { id, build, parent, machine, sealing } = busy(&data, &server).await;
    machine.thaw().await.expect_err("it must stay as it is");
    let other = BuildId::generate(&OsEntropy);
    server.engine.seal(id, other, unheard()).await.expect_err("one at a time");
    assert!(!server.engine.remove_image(parent).await.unwrap());
    assert!(!server.engine.remove_image(build).await.unwrap(), "it is being made");
    assert!(!is_known(&server, build).await, "not before it is complete");
    // Others do not wait for it.
    let neighbour = server.engine.create(spec(parent)).await.unwrap();
    speaks(&neighbour).await;
    assert!(!sealing.is_finished());
    neighbour.stop(Duration::ZERO).await.unwrap();
    sealing.await.unwrap().unwrap();
    assert!(is_known(&server, build).await);
    machine.thaw().await.unwrap();
    speaks(&machine).await;
    machine.stop(Duration::ZERO).await.unwrap();
    assert!(server.engine.remove_image(build).await.unwrap());
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_is_ended_leaves_no_half_image() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    for keep in [false, true] {
        let Busy { id, build, machine, sealing, .. } = busy(&data, &server).await;
        if keep {
            machine.shelve().await.unwrap();
        } else {
            machine.stop(Duration::ZERO).await.unwrap();
        }
        assert!(matches!(sealing.await.unwrap(), Err(EngineError::Gone)));
        assert!(!is_known(&server, build).await);
        until(|| !draft(&data, build).exists()).await;
        server.engine.discard(id).await.unwrap();
    }
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warden_killed_while_it_makes_an_image_leaves_the_sandbox_and_no_image() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let Busy { id, build, parent, machine, sealing } = busy(&data, &server).await;
    let record = machine.record();
    let warden = nix::unistd::Pid::from_raw(pid().cast_signed());
    nix::sys::signal::kill(warden, nix::sys::signal::Signal::SIGKILL).unwrap();
    sealing.await.unwrap().expect_err("nobody makes it any more");
    drop((machine, server));

    let server = data.serve().await;
    assert!(!is_known(&server, build).await);
    until(|| !draft(&data, build).exists()).await;
    let machine = server.engine.adopt(id, &record).await.unwrap().expect("it was not touched");
    server.engine.seal(id, build, unheard()).await.expect("it is frozen as it was");
    machine.shelve().await.unwrap();
    // Its disk is as good as its image.
    let next = MachineSpec { sandbox: id, generation: 2, disk: Disk::Kept, ..spec(parent) };
    let again = server.engine.create(next).await.unwrap();
    let child = server.engine.create(spec(build)).await.unwrap();
    for machine in [again, child] {
        assert_eq!(say(&machine, &format!("read /bulk/{}", MANY - 1)).await, "text ");
        machine.stop(Duration::ZERO).await.unwrap();
    }
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_machine_is_made_of_a_snapshot_that_is_not_what_it_was() {
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let parent = data.image();
    let of_parent = spec(parent);
    let sandbox = of_parent.sandbox;
    let machine = server.engine.create(of_parent).await.unwrap();
    told(&machine, &["write /root/file text"]).await;
    machine.shelve().await.unwrap();
    let (low, high) = (BuildId::generate(&OsEntropy), BuildId::generate(&OsEntropy));
    server.engine.seal(sandbox, low, unheard()).await.unwrap();
    let of_low = spec(low);
    let child = of_low.sandbox;
    server.engine.create(of_low).await.unwrap().shelve().await.unwrap();
    server.engine.seal(child, high, unheard()).await.unwrap();
    for id in [sandbox, child] {
        server.engine.discard(id).await.unwrap();
    }
    server.client.shutdown(true).await.unwrap();
    drop(server);

    let file = data.path().join(format!("templates/{low}/root/root/file"));
    std::fs::write(&file, "tex!").unwrap();
    let server = data.serve().await;
    for build in [low, high] {
        let refused = server.engine.create(spec(build)).await;
        assert!(matches!(refused, Err(EngineError::NoImage(of)) if of == build), "{refused:?}");
    }
    let unharmed = server.engine.create(spec(parent)).await.unwrap();
    speaks(&unharmed).await;
    std::fs::write(&file, "text").unwrap();
    let again = server.engine.create(spec(high)).await.unwrap();
    assert_eq!(say(&again, "read /root/file").await, "text text");
    server.client.shutdown(true).await.unwrap();
    server.scope.settles_as(&Host::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tall_pile_of_snapshots_is_made_one_under_machines_that_go_on() {
    const ROUNDS: usize = 16;
    let Some(data) = Data::new() else { return };
    let server = data.serve().await;
    let before = idle(&server).await;
    let ground = data.image();
    let mut builds = vec![ground];
    let mut last = None;
    for round in 0..=ROUNDS {
        let of_build = spec(*builds.last().unwrap());
        let sandbox = of_build.sandbox;
        let machine = server.engine.create(of_build).await.unwrap();
        told(&machine, &[&format!("write /root/file{round} text{round}")]).await;
        if round < ROUNDS {
            let build = BuildId::generate(&OsEntropy);
            machine.freeze().await.unwrap();
            server.engine.seal(sandbox, build, unheard()).await.unwrap();
            machine.thaw().await.unwrap();
            builds.push(build);
        }
        if let Some(former) = last.replace(machine) {
            former.stop(Duration::ZERO).await.unwrap();
        }
    }
    let (last, top) = (last.unwrap(), *builds.last().unwrap());
    let parent = async |build| {
        let images = server.engine.images().await.unwrap();
        images.into_iter().find(|image| image.build == build).and_then(|image| image.parent)
    };
    let until_low = async {
        while parent(top).await != Some(ground) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until_low).await.expect("in time");
    // The machine sees what it was made of, whichever form that had; so does a new one.
    let next = server.engine.create(spec(top)).await.unwrap();
    for machine in [&last, &next] {
        for round in 0..ROUNDS {
            assert_eq!(say(machine, &format!("read /root/file{round}")).await, format!("text text{round}"));
        }
    }
    server.client.check_image(top).await.unwrap();
    last.stop(Duration::ZERO).await.unwrap();
    let former = data.path().join(format!("templates/.squash-{top}"));
    until(|| !former.exists()).await;
    assert_eq!(say(&next, "read /root/file0").await, "text text0");
    next.stop(Duration::ZERO).await.unwrap();
    // Those below it are nobody's any more.
    for build in builds[1..].iter().rev() {
        assert!(server.engine.remove_image(*build).await.unwrap());
    }
    server.scope.settles_as(&before);
    server.client.shutdown(true).await.unwrap();
}
