use std::{fs, path::Path, process::Command};

use rustix::fs::{CWD, Mode, OFlags};

use super::*;
use crate::{
    id::OsEntropy,
    warden::image::{self, tree},
    wire::warden::ImageKind,
};

/// A store and a machine's directory.
struct Bench {
    dir: tempfile::TempDir,
    store: OwnedFd,
    room: OwnedFd,
    ground: BuildId,
    mounted: bool,
}

impl Bench {
    /// On a file system of so many MiB of its own, if a number is given. None: not root.
    fn new(size: Option<u32>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let dir = tempfile::Builder::new().prefix("seal-").tempdir_in(place).unwrap();
        if let Some(size) = size {
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "none"])
                .arg(dir.path())
                .status();
            assert!(mount.unwrap().success());
        }
        let open = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, dir.path().join(name), flags, Mode::empty()).unwrap()
        };
        let (store, room) = (open("store"), open("room"));
        let ground = BuildId::generate(&OsEntropy);
        let draft = Draft::begin(store.as_fd(), ground).unwrap();
        draft.layer("root").unwrap();
        draft.finish(ImageKind::Imported, None, None).unwrap();
        fs::create_dir(dir.path().join("room/upper0")).unwrap();
        Some(Self { dir, store, room, ground, mounted: size.is_some() })
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join("room/upper0").join(name), content).unwrap();
    }

    fn seal(&self, parent: BuildId) -> Result<BuildId, ImageError> {
        let build = BuildId::generate(&OsEntropy);
        let mut copied = false;
        let sealed = seal(self.store.as_fd(), self.room.as_fd(), parent, build, || copied = true);
        assert!(copied || sealed.is_err());
        sealed.map(|info| info.build)
    }

    fn names(&self) -> usize {
        fs::read_dir(self.dir.path().join("store")).unwrap().count()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        }
    }
}

#[test]
fn a_snapshot_lies_on_its_parent_and_is_checked_against_its_record() {
    let Some(bench) = Bench::new(None) else { return };
    bench.write("file", b"one");
    let first = bench.seal(bench.ground).unwrap();
    bench.write("file", b"two");
    let second = bench.seal(first).unwrap();
    let layers = image::resolve(bench.store.as_fd(), second).unwrap();
    assert_eq!(layers.builds, [second, first, bench.ground]);
    let read = |number: usize| {
        tree::read_capped(layers.mounts[0].lowers[number].as_fd(), "file", 10).map_err(|error| error.kind())
    };
    assert_eq!(read(0).unwrap(), b"two", "the top one first");
    assert_eq!(read(1).unwrap(), b"one");
    assert!(read(2).is_err());
    check(bench.store.as_fd(), first).unwrap();
    let path = bench.dir.path().join(format!("store/{first}/root/file"));
    fs::write(path, "onE").unwrap();
    assert!(matches!(check(bench.store.as_fd(), first), Err(ImageError::Damaged { .. })));
    check(bench.store.as_fd(), second).unwrap();
    // The same name twice is an error before anything is copied.
    let names = bench.names();
    image::remove(bench.store.as_fd(), first).unwrap();
    assert!(matches!(image::resolve(bench.store.as_fd(), second), Err(ImageError::Damaged { .. })));
    assert!(matches!(image::resolve(bench.store.as_fd(), first), Err(ImageError::Missing(_))));
    assert_eq!(bench.names(), names - 1);
}

#[test]
fn a_tall_pile_is_taken_in_by_the_next_snapshot() {
    let Some(bench) = Bench::new(None) else { return };
    let mut last = bench.ground;
    for number in 0..HIGHEST {
        bench.write(&format!("file{number}"), number.to_string().as_bytes());
        last = bench.seal(last).unwrap();
        fs::remove_file(bench.dir.path().join(format!("room/upper0/file{number}"))).unwrap();
    }
    assert_eq!(image::resolve(bench.store.as_fd(), last).unwrap().builds.len(), HIGHEST + 1);
    bench.write("newest", b"x");
    let taken = bench.seal(last).unwrap();
    let layers = image::resolve(bench.store.as_fd(), taken).unwrap();
    assert_eq!(layers.builds, [taken, bench.ground]);
    for number in 0..HIGHEST {
        let content = tree::read_capped(layers.mounts[0].lowers[0].as_fd(), &format!("file{number}"), 10);
        assert_eq!(content.unwrap(), number.to_string().as_bytes());
    }
    check(bench.store.as_fd(), taken).unwrap();
}

#[test]
fn a_full_disk_is_named_and_nothing_stays() {
    let Some(bench) = Bench::new(Some(8)) else { return };
    bench.write("half", &vec![1; 5 << 20]);
    let names = bench.names();
    let error = bench.seal(bench.ground).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(bench.names(), names);
    // With room again it works.
    bench.write("half", &vec![1; 2 << 20]);
    bench.seal(bench.ground).unwrap();
}

#[test]
fn images_in_a_circle_are_damaged() {
    let Some(bench) = Bench::new(None) else { return };
    let first = bench.seal(bench.ground).unwrap();
    let second = bench.seal(first).unwrap();
    let manifest = bench.dir.path().join(format!("store/{first}/image.json"));
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(&bench.ground.to_string(), &second.to_string())).unwrap();
    for build in [first, second] {
        assert!(matches!(image::resolve(bench.store.as_fd(), build), Err(ImageError::Damaged { .. })));
    }
    fs::write(&manifest, text.replace("snapshot", "imported")).unwrap();
    assert!(matches!(image::resolve(bench.store.as_fd(), second), Err(ImageError::Damaged { .. })));
}
