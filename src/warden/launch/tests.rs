//! Launches for real, as root, in a temporary directory and with a shell as the guest.
//!
//! Each test runs in a forked process with one thread and its own mount namespace, as the warden is: so its
//! mounts, children and descriptors can be compared before and after.

mod bench;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags},
    process::Signal,
};

use self::bench::{BASE, Bench, alone, arguments, attempts, await_end, await_event, directory, finish};
use super::{LaunchError, Launched, Launcher, Launching, Step};
use crate::warden::syscall;

#[test]
fn a_machine_is_what_the_plan_says() {
    alone(|shell| {
        let bench = Bench::new(shell);
        let out = bench.script(
            "echo $$; id -u; hostname; nproc; cat /proc/sys/kernel/random/boot_id /sys/devices/system/cpu/online;
            stat -c %u:%g /etc /etc/lower; grep -c . /proc/self/uid_map; awk '{print $3}' /proc/self/uid_map;
            awk '/MemTotal/{print $2}' /proc/meminfo; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status;
            umask; pwd; env | grep -v -E '^(PATH|PWD|SHLVL)='; (ls /proc/$$/fd); echo told >&4;
            ping -c 1 -w 2 127.0.0.1 >/dev/null && echo pong",
        );
        let lines: Vec<&str> = out.lines().map(str::trim).collect();
        let expected = [
            "1",
            "0",
            "machine",
            "1",
            "00000000-0000-0000-0000-000000000007",
            "0",
            "0:0",
            "0:0",
            "1",
            "65536",
            "524288",
            "NoNewPrivs:\t0",
            "Seccomp:\t2",
            "0022",
            "/",
            "0",
            "1",
            "2",
            "3",
            "4",
            "pong",
        ];
        let found: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with("CapBnd")).collect();
        assert_eq!(found, expected, "{out}");
        assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");
        assert_eq!(fs::read_to_string(bench.path("work.procs")).unwrap(), "told\n");
    });
}

#[test]
fn the_writable_layer_keeps_plain_ids_and_the_image_stays() {
    alone(|shell| {
        let bench = Bench::new(shell);
        let out = bench.script(
            "echo mine > /made; chown 1000:1000 /made; echo more >> /etc/lower; rm /bin/busybox; cat /made",
        );
        assert_eq!(out, "mine\n", "rm and cat: the shell has them built in");
        let made = fs::metadata(bench.path("disk/ru/made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1000));
        assert_eq!(fs::read_to_string(bench.path("disk/ru/etc/lower")).unwrap(), "lower\nmore\n");
        assert_eq!(fs::read_to_string(bench.path("image/etc/lower")).unwrap(), "lower\n");
        assert!(bench.path("image/bin/busybox").exists());
    });
}

#[test]
fn setuid_works_inside_and_not_on_the_hosts_disk() {
    const PROBE: &str = "#include <unistd.h>\n#include <stdio.h>\nint main(int n, char **v) {
        if (n > 1) { setgid(1000); setuid(1000); execl(v[1], v[1], (char *)0); }
        printf(\"%d %d\\n\", getuid(), geteuid()); }";
    alone(|shell| {
        let mut bench = Bench::new(shell);
        let (source, probe) = (bench.path("probe.c"), bench.path("image/probe"));
        fs::write(&source, PROBE).unwrap();
        let compiled =
            std::process::Command::new("cc").args(["-static", "-o"]).arg(&probe).arg(&source).status();
        if !compiled.is_ok_and(|status| status.success()) {
            return;
        }
        // As the warden keeps it.
        let disk = bench.path("disk");
        rustix::mount::mount_bind(&disk, &disk).unwrap();
        rustix::mount::mount_remount(&disk, MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV, "")
            .unwrap();
        bench.disk = directory(&disk);
        let out = bench.script("cp /probe /mine; /probe /mine; chmod 4755 /mine; /probe /mine");
        assert_eq!(out, "1000 1000\n1000 0\n");
        fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let outside = || {
            let output = std::process::Command::new(&probe).arg(bench.path("disk/ru/mine")).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(outside(), "1000 1000\n");
        // The twin: without that mount it is a way to the host's root.
        rustix::mount::unmount(&disk, UnmountFlags::DETACH).unwrap();
        assert_eq!(outside(), "1000 0\n");
    });
}

#[test]
fn a_second_overlay_lies_on_usr() {
    alone(|shell| {
        let mut bench = Bench::new(shell);
        for name in ["top", "low"] {
            fs::create_dir_all(bench.path(name)).unwrap();
            fs::write(bench.path(name).join("which"), name).unwrap();
            fs::write(bench.path(name).join(name), name).unwrap();
        }
        let lowers = ["top", "low"].map(|name| directory(&bench.path(name)));
        bench.images.push(("usr", lowers.into()));
        let out = bench.script("cat /usr/which; ls /usr; echo new > /usr/new");
        assert_eq!(out, "toplow\ntop\nwhich\n");
        assert_eq!(fs::read_to_string(bench.path("disk/uu/new")).unwrap(), "new\n");
    });
}

#[test]
fn root_inside_can_undo_nothing() {
    alone(|shell| {
        let bench = Bench::new(shell);
        let allowed = [
            "mkfifo /tmp/fifo",
            "mkdir /tmp/d && chroot / true",
            "chown 1000 /etc/lower",
            "echo MemFree > /proc/meminfo",
            "echo x > /dev/null",
            "test -n \"$(cat /proc/sys/kernel/hostname)\"",
        ];
        let refused = [
            "mount -t tmpfs none /tmp",
            "mount -o bind /etc /tmp",
            "mount -o remount,rw /proc/sys",
            "mount -o remount,rw /sys",
            "umount /proc/sys",
            "umount /proc/meminfo",
            "umount /proc/keys",
            "unshare -U true",
            "unshare -m true",
            "unshare -n true",
            "mknod /tmp/n b 254 0",
            "mknod /tmp/c c 1 1",
            "hostname other",
            "echo other > /proc/sys/kernel/hostname",
            "echo x > /proc/sys/kernel/core_pattern",
            "echo 10 > /proc/sys/user/max_user_namespaces",
            "echo x > /proc/sysrq-trigger",
            "echo x > /proc/sys/kernel/random/boot_id",
            "test -n \"$(cat /proc/keys)\"",
            "test -n \"$(cat /proc/timer_list)\"",
            "test -n \"$(cat /proc/kcore | head -c 1)\"",
            "test -n \"$(ls /sys/firmware)\"",
            "echo x > /sys/kernel/uevent_helper",
            "ls /proc/1/root/home",
            "dmesg",
            "echo 512 > /proc/sys/net/core/somaxconn",
        ];
        assert_eq!(bench.script(&attempts(&allowed)), "yes\n".repeat(allowed.len()));
        let out = bench.script(&attempts(&refused));
        let done: Vec<&str> =
            out.lines().zip(refused).filter(|(done, _)| *done != "no").map(|(_, what)| what).collect();
        assert_eq!(done, [""; 0]);
        assert_eq!(out.lines().count(), refused.len());
    });
}

#[test]
fn layers_are_locked_before_anything_runs_in_the_machine() {
    fn try_to_open_the_image() -> io::Result<()> {
        // The twin: the writable layer is in reach and writable.
        File::create("disk/ru/reached")?;
        let refused = [
            rustix::mount::mount_remount("l0", MountFlags::BIND, "").err() == Some(rustix::io::Errno::PERM),
            rustix::mount::unmount("l0", UnmountFlags::DETACH).err() == Some(rustix::io::Errno::INVAL),
            File::create("l0/etc/planted").err().and_then(|error| error.raw_os_error()) == Some(libc::EROFS),
            rustix::mount::unmount("disk", UnmountFlags::DETACH).err() == Some(rustix::io::Errno::INVAL),
        ];
        match refused.iter().position(|refused| !refused) {
            None => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(200 + i32::try_from(number).unwrap())),
        }
    }
    alone(|shell| {
        let bench = Bench::new(shell);
        bench.script_at("true", Some((Step::Overlays, try_to_open_the_image)));
        assert!(bench.path("disk/ru/reached").exists());
        assert!(!bench.path("image/etc/planted").exists());
    });
}

#[test]
fn a_link_for_a_mount_point_is_refused() {
    alone(|shell| {
        let bench = Bench::new(shell);
        assert_eq!(bench.script("echo ran"), "ran\n");
        fs::remove_dir(bench.path("disk/ru/proc")).unwrap();
        symlink("/etc", bench.path("image/proc")).unwrap();
        let launcher = Launcher::new().unwrap();
        let error = finish(bench.start(&launcher).unwrap()).unwrap_err();
        assert!(matches!(error, LaunchError::Step { step: Step::Attach, .. }), "{error}");
    });
}

/// What a launch might leave behind: mounts, descriptors, processes.
fn remains() -> (String, BTreeSet<String>, BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let descriptors = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| Some(format!("{:?} {:?}", entry.file_name(), fs::read_link(entry.path()).ok()?)))
        .filter(|text| !text.contains("/fd\""))
        // A descriptor that a neighbour had at the fork is still the same when its file is removed.
        .map(|text| text.replace(" (deleted)", ""))
        .collect();
    let ids = BASE..BASE + 65_536;
    let me = std::process::id().to_string();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let field = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            };
            let inside = field("Uid:")?.parse().is_ok_and(|uid: u32| ids.contains(&uid));
            (inside || field("PPid:")? == me).then(|| status.lines().next().unwrap_or_default().to_owned())
        })
        .collect();
    (mounts, descriptors, processes)
}

#[test]
fn a_launch_that_fails_at_any_step_leaves_nothing() {
    fn fail() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EXDEV))
    }
    fn be_killed() -> io::Result<()> {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
        // The first process of a pid namespace cannot kill itself.
        syscall::end_process(9)
    }
    alone(|shell| {
        let bench = Bench::new(shell);
        let mut launcher = Launcher::new().unwrap();
        launcher.trial.arguments = Some(arguments(&["true"]));
        let before = remains();
        assert_eq!(before.2, BTreeSet::new());
        await_end(&finish(bench.start(&launcher).unwrap()).unwrap());
        assert_eq!(remains(), before, "after a success");
        for step in Step::ALL.into_iter().skip_while(|step| *step != Step::Cgroups) {
            launcher.trial.at = Some((step, fail));
            match finish(bench.start(&launcher).unwrap()) {
                Err(LaunchError::Step { step: at, source }) => {
                    assert_eq!((at, source.raw_os_error()), (step, Some(libc::EXDEV)));
                }
                other => panic!("{step:?}: {other:?}"),
            }
            assert_eq!(remains(), before, "after failing at {step:?}");
            launcher.trial.at = Some((step, be_killed));
            let killed = finish(bench.start(&launcher).unwrap());
            // Killed in the very last step is killed as a guest: that shows on the pidfd.
            match killed {
                Ok(machine) if step == Step::Exec => await_end(&machine),
                Err(LaunchError::Killed(at)) => assert_eq!(at, step),
                other => panic!("{step:?}: {other:?}"),
            }
            assert_eq!(remains(), before, "after being killed at {step:?}");
        }
        launcher.trial.at = None;
        launcher.trial.arguments = Some(arguments(&["sleep", "1000"]));
        drop(bench.start(&launcher).unwrap());
        let finished = bench.start(&launcher).unwrap();
        await_event(finished.as_fd());
        drop(finished);
        assert_eq!(remains(), before, "after being dropped");
    });
}

#[test]
fn several_launches_may_be_under_way() {
    alone(|shell| {
        let benches: Vec<Bench> = (0..4).map(|_| Bench::new(shell)).collect();
        let mut launcher = Launcher::new().unwrap();
        launcher.trial.arguments = Some(arguments(&["sh", "-c", "echo here > /out"]));
        let under_way: Vec<Launching> = benches.iter().map(|bench| bench.start(&launcher).unwrap()).collect();
        let machines: Vec<Launched> =
            under_way.into_iter().rev().map(|launching| finish(launching).unwrap()).collect();
        machines.iter().for_each(await_end);
        for bench in &benches {
            assert_eq!(fs::read_to_string(bench.path("disk/ru/out")).unwrap(), "here\n");
        }
    });
}

#[test]
fn a_machine_starts_beside_any_number_of_descriptors() {
    alone(|shell| {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let all = rustix::process::Rlimit { current: most, maximum: most };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
        // More than a machine's first process may open.
        let open: Vec<File> = (0..1_100).map(|_| File::open("/dev/null").unwrap()).collect();
        let out = Bench::new(shell).script("ulimit -Sn; ulimit -Hn; ls /proc/$$/fd; true");
        let hard = most.unwrap_or(u64::MAX).min(20_000);
        assert_eq!(out.trim(), format!("1024\n{hard}\n0\n1\n2\n3\n4"));
        drop(open);
    });
}

#[test]
#[ignore = "a measurement: run it alone, in release, with --nocapture"]
fn time_of_a_launch() {
    alone(|shell| {
        let bench = Bench::new(shell);
        let mut launcher = Launcher::new().unwrap();
        launcher.trial.arguments = Some(arguments(&["true"]));
        let mut times: Vec<Duration> = (0..200)
            .map(|_| {
                let begin = Instant::now();
                let machine = finish(bench.start(&launcher).unwrap()).unwrap();
                let took = begin.elapsed();
                await_end(&machine);
                took
            })
            .collect();
        times.sort_unstable();
        let line =
            format!("launch to exec: p50 {:?} p90 {:?} max {:?}\n", times[100], times[180], times[199]);
        let _ = io::stderr().write_all(line.as_bytes());
    });
}
