//! The v2 backend on a fake tree (this is all that runs of it where the host has no v2
//! controllers), and the host's own backend for real.

use std::process::{Command, Stdio};

use super::*;

fn fake_v2() -> (tempfile::TempDir, Cgroups) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    let mounts = format!("cgroup2 {} cgroup2 rw,nsdelegate 0 0\n", dir.path().display());
    let cgroups = Cgroups::from_mounts(&mounts, "firkin-0");
    (dir, cgroups)
}

#[test]
fn v2_hands_controllers_down_and_limits_the_user_side() {
    let (dir, cgroups) = fake_v2();
    assert_eq!(cgroups.kind(), "cgroup v2");
    cgroups.establish().unwrap();
    let group = dir.path().join("firkin-0/ibox");
    fs::create_dir_all(group.join("work")).unwrap();
    for name in ["work/memory.current", "work/memory.stat", "cpu.stat", "work/memory.swap.max"] {
        fs::write(group.join(name), "").unwrap();
    }
    let handles = cgroups.make("ibox", &Limits { memory: 512 << 20, cpus: 2 }).unwrap();
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    for level in ["", "firkin-0/", "firkin-0/ibox/"] {
        assert_eq!(read(&format!("{level}cgroup.subtree_control")), "+memory +pids +cpu");
    }
    assert_eq!(read("firkin-0/ibox/memory.max"), (640_u64 << 20).to_string());
    assert_eq!(read("firkin-0/ibox/work/memory.max"), (512_u64 << 20).to_string());
    assert_eq!(read("firkin-0/ibox/work/memory.swap.max"), "0");
    assert_eq!(read("firkin-0/ibox/cpu.weight"), "200");
    assert_eq!(read("firkin-0/ibox/work/pids.max"), "4096");
    assert_eq!(read("firkin-0/ibox/guest/pids.max"), "256");
    assert!(handles.v2 && handles.memory_current.is_some());
    assert_eq!((handles.guest.len(), handles.work.len()), (1, 1));
}

#[test]
fn v2_freezes_kills_and_measures() {
    let (dir, cgroups) = fake_v2();
    let group = dir.path().join("firkin-0/ibox");
    fs::create_dir_all(group.join("work")).unwrap();
    let write = |name: &str, text: &str| fs::write(group.join(name), text).unwrap();
    write("cgroup.events", "populated 1\nfrozen 0\n");
    assert!(cgroups.populated("ibox") && !cgroups.frozen("ibox"));
    cgroups.freeze("ibox", true).unwrap();
    assert_eq!(fs::read_to_string(group.join("cgroup.freeze")).unwrap(), "1");
    write("cgroup.events", "populated 0\nfrozen 1\n");
    assert!(!cgroups.populated("ibox") && cgroups.frozen("ibox"));
    cgroups.kill("ibox").unwrap();
    assert_eq!(fs::read_to_string(group.join("cgroup.kill")).unwrap(), "1");
    write("cpu.stat", "usage_usec 1500\nuser_usec 1\n");
    write("work/memory.current", "4096\n");
    write("work/memory.stat", "anon 1\nfile 2048\n");
    let stats = cgroups.measure("ibox");
    assert_eq!((stats.cpu_ns, stats.memory_bytes, stats.cache_bytes), (1_500_000, 4096, 2048));
}

#[test]
fn the_choice_follows_the_mounts() {
    let hybrid = "a /c/memory cgroup rw,memory 0 0\na /c/ca cgroup rw,cpu,cpuacct 0 0\n\
                  a /c/freezer cgroup rw,freezer 0 0\na /c/u cgroup2 rw 0 0\n";
    let cgroups = Cgroups::from_mounts(hybrid, "firkin-0");
    assert_eq!(cgroups.kind(), "cgroup v1 for limits, v2 for freeze and kill");
    assert_eq!(cgroups.hierarchies.len(), 4, "v2, memory, cpu, cpuacct; v2 freezes");
    let v1 = Cgroups::from_mounts(hybrid.rsplit_once("a ").unwrap().0, "firkin-0");
    assert_eq!(v1.kind(), "cgroup v1");
    let none = Cgroups::from_mounts("tmpfs /tmp tmpfs rw 0 0\n", "firkin-0");
    assert_eq!(none.kind(), "none");
    assert_eq!(none.freeze("ibox", true).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn membership_is_the_whole_name() {
    let cgroups = fake_v2().1;
    let holds = |text: &str| cgroups.holds(Instance(0), "ibox", text);
    assert!(holds("5:memory:/firkin-0/ibox/guest\n0::/\n"));
    assert!(holds("0::/firkin-0/ibox\n"));
    assert!(!holds("0::/firkin-0/iboxer\n0::/firkin-01/ibox\n"));
}

/// Needs root and real cgroups.
#[test]
fn the_hosts_own_cgroups_freeze_kill_and_go() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let tree = format!("firkin-test-{}", std::process::id());
    let cgroups = Cgroups::from_mounts(&mounts, &tree);
    if cgroups.kind() == "none" {
        return;
    }
    cgroups.establish().unwrap();
    let handles = cgroups.make("ibox", &Limits { memory: 64 << 20, cpus: 1 }).unwrap();
    let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
    for procs in &handles.guest {
        rustix::io::write(procs, child.id().to_string().as_bytes()).unwrap();
    }
    assert!(cgroups.inhabited() && cgroups.populated("ibox"));
    assert!(!cgroups.remove("ibox"), "a group with a process stays");
    cgroups.freeze("ibox", true).unwrap();
    wait_until(|| cgroups.frozen("ibox"));
    // A frozen machine must die all the same.
    child.kill().unwrap();
    cgroups.kill("ibox").unwrap();
    child.wait().unwrap();
    wait_until(|| !cgroups.populated("ibox"));
    wait_until(|| cgroups.remove("ibox"));
    assert!(cgroups.names().is_empty());
    cgroups.remove_trees();
    assert!(!cgroups.hierarchies.iter().any(|hierarchy| hierarchy.root().exists()));
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it did not come about");
}

#[test]
fn v2_reclaims_what_is_charged_and_lets_it_swap_only_meanwhile() {
    let (dir, cgroups) = fake_v2();
    let group = dir.path().join("firkin-0/ibox");
    fs::create_dir_all(group.join("work")).unwrap();
    assert_eq!(cgroups.reclaim("ibox"), None, "an older kernel");
    let read = |name: &str| fs::read_to_string(group.join("work").join(name)).unwrap();
    for (name, text) in [("memory.reclaim", ""), ("memory.current", "4096\n"), ("memory.swap.max", "0\n")] {
        fs::write(group.join("work").join(name), text).unwrap();
    }
    assert_eq!(cgroups.reclaim("ibox").unwrap().run().unwrap(), 0, "nobody takes it in this tree");
    assert_eq!((&*read("memory.reclaim"), &*read("memory.swap.max")), ("4096", "0"));
}
