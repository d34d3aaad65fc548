//! The storage contract, the same for both drivers.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, OFlags};

use super::*;
use crate::{
    id::{BuildId, OsEntropy},
    warden::{
        image::{self, Draft, seal, squash},
        worker::{Report, Worker},
    },
    wire::warden::ImageKind,
};

const MIB: u64 = 1 << 20;
const FILES: usize = 6;

/// A store with an image, and a place for machines.
struct Host {
    dir: tempfile::TempDir,
    store: OwnedFd,
    machines: OwnedFd,
    place: PathBuf,
    driver: Driver,
    ground: BuildId,
}

impl Host {
    fn new(wanted: StorageDriver) -> Self {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let dir = tempfile::Builder::new().prefix("storage-").tempdir_in(target).unwrap();
        let open = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, dir.path().join(name), flags, Mode::empty()).unwrap()
        };
        let (store, machines) = (open("store"), open("machines"));
        let (driver, other) = choose(store.as_fd(), machines.as_fd(), Some(wanted)).unwrap();
        let place = dir.path().join(if other.is_some() { "store/.pool/.machines" } else { "machines" });
        let machines = other.unwrap_or(machines);
        let ground = BuildId::generate(&OsEntropy);
        let draft = Draft::begin(store.as_fd(), ground).unwrap();
        draft.layer("root").unwrap();
        draft.finish(ImageKind::Imported, None, None).unwrap();
        Self { dir, store, machines, place, driver, ground }
    }

    /// A machine's directory, and the path of its disk.
    fn room(&self, name: &str, size: Option<u64>) -> (OwnedFd, PathBuf) {
        let room = room::make(self.machines.as_fd(), name, 1, self.driver, size).unwrap();
        let disk = match self.driver {
            Driver::Plain => self.place.join(name),
            Driver::Btrfs { .. } => self.place.join(name).join(DISK),
        };
        (room, disk)
    }

    fn seal(&self, room: &OwnedFd, parent: BuildId) -> BuildId {
        let build = BuildId::generate(&OsEntropy);
        seal::seal(self.store.as_fd(), room.as_fd(), parent, build, || {}).unwrap().build
    }

    /// A file of the topmost layer of an image.
    fn read(&self, build: BuildId, name: &str) -> Option<String> {
        let layers = image::resolve(self.store.as_fd(), build).unwrap();
        let top = &layers.mounts[0].lowers[0];
        fs::read_to_string(format!("{}/{name}", crate::warden::prepare::proc_path(top.as_fd()))).ok()
    }
}

/// Bytes of a disk, all of which have reached the file system.
fn counted(room: &OwnedFd) -> u64 {
    // What a file system counts it counts as of its last transaction.
    rustix::fs::syncfs(room).unwrap();
    measure(room::disk(room.as_fd()).unwrap().as_fd())
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("store/.pool")).output();
    }
}

/// A host with each driver that this one can have.
fn hosts() -> Vec<Host> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return Vec::new();
    }
    let mut hosts = vec![Host::new(StorageDriver::Plain)];
    match pool::possible() {
        Ok(()) => hosts.push(Host::new(StorageDriver::Btrfs)),
        Err(reason) => eprintln!("btrfs is skipped: {reason}"),
    }
    hosts
}

#[test]
fn a_new_disk_is_empty_and_goes_without_a_trace() {
    for host in hosts() {
        let (room, disk) = host.room("one", Some(64 * MIB));
        for name in ["upper0", "work0"] {
            let made = fs::metadata(disk.join(name)).unwrap();
            assert!(made.is_dir() && made.mode() & 0o7777 == 0o755, "{:?}", host.driver);
        }
        assert!(counted(&room) < MIB, "{:?}", host.driver);
        fs::write(disk.join("upper0/file"), vec![7; 3 << 20]).unwrap();
        let used = counted(&room);
        assert!((3 * MIB..4 * MIB).contains(&used), "{:?}: {used}", host.driver);
        drop(room);
        room::retire(host.machines.as_fd(), "one", 1).unwrap();
        let trash = room::trash(host.machines.as_fd()).unwrap();
        rubbish::empty(trash.as_fd()).unwrap();
        assert_eq!(fs::read_dir(host.place.join(".trash")).unwrap().count(), 0, "{:?}", host.driver);
    }
}

#[test]
fn an_image_is_the_disk_as_it_was_and_stays_so() {
    for host in hosts() {
        let (room, disk) = host.room("one", None);
        let file = disk.join("upper0/file");
        fs::write(&file, "first").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let low = host.seal(&room, host.ground);
        fs::write(&file, "second").unwrap();
        let high = host.seal(&room, low);
        fs::remove_file(&file).unwrap();
        for (build, text, layers) in [(low, "first", 2), (high, "second", 3)] {
            assert_eq!(host.read(build, "file").as_deref(), Some(text), "{:?}", host.driver);
            assert_eq!(image::resolve(host.store.as_fd(), build).unwrap().mounts[0].lowers.len(), layers);
            seal::check(host.store.as_fd(), build).unwrap();
        }
        let listed = image::list(host.store.as_fd(), None, 10).unwrap();
        assert_eq!(listed.iter().filter(|image| image.sealed).count(), 2);
        assert_eq!(image::parent(host.store.as_fd(), high).unwrap(), Some(low));
        for build in [high, low] {
            image::remove(host.store.as_fd(), build).unwrap();
            assert!(image::info(host.store.as_fd(), build).is_err());
        }
        assert_eq!(image::list(host.store.as_fd(), None, 10).unwrap().len(), 1, "{:?}", host.driver);
    }
}

#[test]
fn a_tall_pile_becomes_one_and_shows_the_same() {
    for host in hosts() {
        let (room, disk) = host.room("one", None);
        let mut last = host.ground;
        for number in 0..FILES {
            fs::write(disk.join(format!("upper0/file{number}")), number.to_string()).unwrap();
            last = host.seal(&room, last);
            fs::remove_file(disk.join(format!("upper0/file{number}"))).unwrap();
        }
        let store = host.store.as_fd();
        let before = image::resolve(store, last).unwrap();
        assert_eq!(before.builds.len(), FILES + 1, "{:?}", host.driver);
        assert_eq!(squash::squash(store, last).unwrap(), Some(host.ground));
        // Who was mounted from what it was goes on seeing that; everybody else sees one layer.
        let after = image::resolve(store, last).unwrap();
        assert_eq!(after.builds, [last, host.ground], "{:?}", host.driver);
        for layers in [&before, &after] {
            let seen = |name: String| {
                let has = |layer: &OwnedFd| rustix::fs::statat(layer, &*name, AtFlags::empty()).is_ok();
                layers.mounts[0].lowers.iter().any(has)
            };
            assert!((0..FILES).all(|number| seen(format!("file{number}"))), "{:?}", host.driver);
        }
        seal::check(store, last).unwrap();
        assert_eq!(squash::formers(store).unwrap(), [last]);
        // A warden's start leaves it: a machine that outlived the last one may be mounted from it.
        image::clear_drafts(store).unwrap();
        assert_eq!(squash::formers(store).unwrap(), [last]);
        squash::forget(store, last).unwrap();
        assert_eq!(squash::formers(store).unwrap(), []);
        seal::check(store, last).unwrap();
        assert_eq!(host.read(last, "file0").as_deref(), Some("0"));
        assert_eq!(squash::squash(store, last).unwrap(), None, "there is nothing to do any more");
    }
}

#[test]
fn a_squash_that_is_killed_leaves_a_whole_image() {
    for host in hosts() {
        let store = host.store.as_fd();
        let (room, disk) = host.room("one", None);
        let mut last = host.ground;
        for number in 0..FILES {
            for copy in 0..50 {
                fs::write(disk.join(format!("upper0/file{number}.{copy}")), vec![7; 5000]).unwrap();
            }
            last = host.seal(&room, last);
        }
        let mut kills = 0;
        let whole = (0..400_u32).any(|round| {
            let worker = Worker::spawn(|_| match squash::squash(store, last) {
                Ok(_) => Report::Done,
                Err(error) => Report::Failed(error.to_string()),
            })
            .unwrap();
            // Later from round to round: each step is cut short by one of them.
            std::thread::sleep(Duration::from_millis(30) * round);
            drop(worker);
            seal::check(store, last).unwrap();
            let builds = image::resolve(store, last).unwrap().builds.len();
            assert!(builds == FILES + 1 || builds == 2, "{:?}: {builds}", host.driver);
            squash::forget(store, last).unwrap();
            seal::check(store, last).unwrap();
            kills = round;
            builds == 2
        });
        assert!(whole && kills > 0, "{:?}: {kills}", host.driver);
        // The last process of a killed worker may hold its draft for a moment.
        let left = || {
            image::clear_drafts(store).unwrap();
            let names = |place| fs::read_dir(host.dir.path().join(place)).into_iter().flatten();
            let names = names("store").chain(names("store/.pool"));
            names
                .filter(|name| name.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b".new-"))
                .count()
        };
        let begin = std::time::Instant::now();
        while left() > 0 {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", host.driver);
        }
    }
}

#[test]
fn a_disk_is_kept_within_its_size_where_the_file_system_can() {
    for host in hosts() {
        let (room, disk) = host.room("one", Some(8 * MIB));
        let chunk = vec![7; 1 << 20];
        let fill = || {
            let mut file = fs::File::create(disk.join("upper0/file")).unwrap();
            (0..16).find_map(|_| file.write_all(&chunk).and_then(|()| file.sync_data()).err())
        };
        let refused = fill();
        if host.driver == Driver::Plain {
            assert!(refused.is_none() && !is_limited(room::disk(room.as_fd()).unwrap().as_fd()));
            assert!(counted(&room) >= 16 * MIB, "it is measured");
            continue;
        }
        assert_eq!(host.driver, Driver::Btrfs { limits: true });
        assert!(is_limited(room::disk(room.as_fd()).unwrap().as_fd()));
        assert_eq!(refused.unwrap().raw_os_error(), Some(Errno::DQUOT.raw_os_error()));
        assert!(counted(&room) <= 8 * MIB);
        // A full disk can be cleared, and sealed.
        let build = host.seal(&room, host.ground);
        assert!(image::info(host.store.as_fd(), build).is_ok());
        image::remove(host.store.as_fd(), build).unwrap();
        fs::remove_file(disk.join("upper0/file")).unwrap();
    }
}

#[test]
fn a_snapshot_that_was_written_to_is_not_taken_for_what_it_was() {
    for host in hosts().into_iter().filter(|host| host.driver != Driver::Plain) {
        let (room, disk) = host.room("one", None);
        fs::write(disk.join("upper0/file"), "text").unwrap();
        let build = host.seal(&room, host.ground);
        let kept = host.dir.path().join(format!("store/.pool/{build}/disk"));
        assert!(fs::write(kept.join("upper0/file"), "other").is_err(), "nobody can write to it");
        seal::check(host.store.as_fd(), build).unwrap();
        // What an operator could do: another snapshot in its place.
        let image = room::open(host.store.as_fd(), &format!(".pool/{build}")).unwrap();
        btrfs::destroy(image.as_fd(), DISK.as_bytes()).unwrap();
        btrfs::snapshot(room::disk(room.as_fd()).unwrap().as_fd(), image.as_fd(), DISK).unwrap();
        assert!(seal::check(host.store.as_fd(), build).is_err());
    }
}

#[test]
fn the_kind_of_storage_is_not_changed_under_sandboxes() {
    for host in hosts() {
        let (_room, _) = host.room("one", None);
        let below = room::open(host.machines.as_fd(), ".").unwrap();
        if host.driver == Driver::Plain {
            if pool::possible().is_ok() {
                let refused =
                    choose(host.store.as_fd(), below.as_fd(), Some(StorageDriver::Btrfs)).unwrap_err();
                assert!(refused.contains("plain storage"), "{refused}");
            }
            assert_eq!(choose(host.store.as_fd(), below.as_fd(), None).unwrap().0, Driver::Plain);
        } else {
            let refused = choose(host.store.as_fd(), below.as_fd(), Some(StorageDriver::Plain)).unwrap_err();
            assert!(refused.contains("pool.img"), "{refused}");
            // What was made once is found again, mounted or not.
            let (driver, place) = choose(host.store.as_fd(), below.as_fd(), None).unwrap();
            assert!(driver == host.driver && place.is_some());
        }
    }
}
